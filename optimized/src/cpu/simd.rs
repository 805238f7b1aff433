//! Plain loops compiled for the widest vectors the processor has.
//!
//! The loops stay ordinary Rust: [`vectorized`] compiles its closure once per instruction set and
//! picks at run time. Widening changes no bit, because an elementwise IEEE operation has one
//! result, sums keep their own fixed number of lanes, and the compiler never contracts a product
//! and a sum into one rounding.

/// Lanes of every vectorised sum, whatever the processor's width.
pub(crate) const LANES: usize = 16;

/// Runs `body` compiled for the processor at hand. Functions it calls must be `inline(always)`.
#[inline(always)]
pub(crate) fn vectorized<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// `sum(term(i) for i in 0..len)`: lane `l` adds the terms with `i % LANES == l` in ascending
/// order, then the lanes are added pairwise.
#[inline(always)]
pub(crate) fn lane_sum(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = len - len % LANES;
    let mut start = 0;
    while start < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
        start += LANES;
    }
    for i in whole..len {
        lanes[i - whole] += term(i);
    }
    add_lanes(lanes)
}

/// Pairwise sum of the lanes.
#[inline(always)]
pub(crate) fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest value, `-inf` for none; for finite input the order does not matter.
#[inline(always)]
pub(crate) fn lane_max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = if *value > *lane { *value } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// `e^x` within 2 units in the last place on [-87, 88]; outside, the value at the nearer end.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by its Taylor polynomial of degree 7 (remainder
/// below 6e-9), `2^n` by its exponent bits. Branch-free, so that loops over it vectorise, and the
/// same on every machine, which the C library's is not.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // ln 2 in two parts; the first has 9 trailing zero bits, so n * LN_2_HIGH is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut tail = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        tail = tail * r + coefficient;
    }
    tail * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for step in -870_000..=880_000 {
            let x = step as f32 * 1e-4;
            let x = x.clamp(-87.0, 88.0);
            let exact = f64::from(x).exp();
            let ulp = f64::from(f32::EPSILON) * 2f64.powi(exact.log2().floor() as i32);
            worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
        }
        assert!(worst <= 2.0, "worst {worst} ulp");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(-1e30), exp(-87.0));
    }

    #[test]
    fn a_vectorised_sum_has_the_bits_of_the_plain_one() {
        for len in [0, 1, 15, 16, 17, 100, 1000] {
            let values: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1000) as f32 / 7.0).collect();
            let wide = vectorized(
                #[inline(always)]
                || lane_sum(values.len(), |i| values[i]),
            );
            assert_eq!(wide.to_bits(), lane_sum(values.len(), |i| values[i]).to_bits());
            let exact: f64 = values.iter().map(|v| f64::from(*v)).sum();
            assert!((f64::from(wide) - exact).abs() <= exact * 1e-6);
        }
    }

    #[test]
    fn the_largest_value_is_found_in_every_lane_and_tail() {
        for position in 0..37 {
            let mut values = vec![-5.0f32; 37];
            values[position] = -1.0;
            assert_eq!(lane_max(&values), -1.0);
        }
        assert_eq!(lane_max(&[]), f32::NEG_INFINITY);
    }
}
