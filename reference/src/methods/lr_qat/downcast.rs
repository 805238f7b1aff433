//! The frozen weight of LR-QAT, in units of its first grid and in a cheap type.

use ndarray::{Array2, ArrayView2};

use crate::cast::nearest;
use crate::pack::pack_signed;
use crate::quantize::raised_scale;
use crate::spec::{Downcast, PackedBits, QuantSpec, StoredType};
use crate::{Error, Real, check};

/// Result of [`downcast`].
#[derive(Debug, Clone, PartialEq)]
pub struct Downcasted<T> {
    /// `[out, in]`, after the up-cast.
    pub phi: Array2<T>,
    /// What is kept between steps; for the float types that is `phi` itself.
    pub stored: Option<Stored>,
}

/// A frozen weight in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// `[out, in]`, in units of `2^(bits-8)`.
    Fixed8(Array2<i8>),
    /// `[out, ceil(in / 2)]`, two codes in a byte.
    Int(Array2<u8>),
}

/// Smallest and largest code of every group. Eq. (M4d).
#[derive(Debug, Clone, PartialEq)]
pub struct GridEnds<T> {
    /// `[out, groups]`
    pub low: Array2<T>,
    /// `[out, groups]`
    pub high: Array2<T>,
}

/// The ends of the signed grid, or of one with frozen zero-points. Eq. (M4d).
///
/// ```text
/// low[o,g] = qmin, or -zero_point[o,g] where there is a zero_point
/// high[o,g] = low[o,g] + 2^bits - 1
/// ```
///
/// # Shapes
/// `zero_point [out, groups]` -> `low, high [out, groups]`
///
/// # Errors
/// `Shape`, `NonFinite`, `ZeroPoint` for what is not an integer from 0 to `2^bits - 1`, `Spec` for
/// 8 bits with a `zero_point`: signed bytes do not hold those codes.
pub(super) fn grid_ends<T: Real>(
    operation: &'static str,
    rows: usize,
    zero_point: Option<ArrayView2<T>>,
    grid: &QuantSpec,
) -> Result<GridEnds<T>, Error> {
    let largest = grid.bits().unsigned_max();
    let steps = T::of(f64::from(largest));
    let Some(zero_point) = zero_point else {
        let low = Array2::from_elem((rows, grid.groups()), T::of(f64::from(grid.qmin())));
        return Ok(GridEnds { high: low.mapv(|low| low + steps), low });
    };
    check::input(operation, "zero_point", &zero_point, &[rows, grid.groups()])?;
    if grid.bits().count() == 8 {
        return Err(check::out_of_range("bits", 8, "2 to 7 with a zero_point"));
    }
    for ((row, group), zero_point) in zero_point.indexed_iter() {
        let value = zero_point.value();
        if value.fract() != 0.0 || !(0.0..=f64::from(largest)).contains(&value) {
            return Err(Error::ZeroPoint { operation, row, group, value, largest });
        }
    }
    // From zero, so that a zero_point of 0 gives no negative zero.
    let low = zero_point.mapv(|zero_point| T::zero() - zero_point);
    Ok(GridEnds { high: low.mapv(|low| low + steps), low })
}

/// The frozen weight in units of its first grid, rounded to a cheap type and read back. Eq. (M4).
///
/// ```text
/// initial_argument[o,i] = weight[o,i] / max(initial_scale[o,g], SCALE_FLOOR)
/// low[o,g] = qmin, or -zero_point[o,g] where there is a zero_point
/// high[o,g] = low[o,g] + 2^bits - 1
/// shift[o,g] = low[o,g] - qmin
/// f32:       phi = initial_argument
/// bf16, f16: phi = cast(initial_argument)
/// fixed8:    fixed[o,i] = round_half_even(2^(8-bits) * clamp(initial_argument[o,i], low, high))
///            phi[o,i] = fixed[o,i] / 2^(8-bits)
///            stored[o,i] = fixed[o,i] - 2^(8-bits) * shift[o,g]
/// int:       phi[o,i] = round_half_even(clamp(initial_argument[o,i], low, high))
///            stored = pack(phi[o,i] - shift[o,g] in 4 bits)
/// ```
///
/// # Shapes
/// `weight [out, in]`, `initial_scale, zero_point [out, groups]` -> `phi [out, in]`,
/// `stored [out, in]` or `[out, ceil(in / 2)]`
///
/// # Errors
/// `Shape`, `NonFinite`, for a `phi` too that the float type does not reach, `ZeroPoint`, `Spec`
/// where the stored type does not hold codes of that width.
pub fn downcast<T: Real>(
    weight: ArrayView2<T>,
    initial_scale: ArrayView2<T>,
    zero_point: Option<ArrayView2<T>>,
    grid: &QuantSpec,
    downcast: Downcast,
) -> Result<Downcasted<T>, Error> {
    const OPERATION: &str = "lr_qat.downcast";
    downcast.check(grid.bits())?;
    let rows = weight.nrows();
    check::input(OPERATION, "weight", &weight, &[rows, grid.in_features()])?;
    check::input(OPERATION, "initial_scale", &initial_scale, &[rows, grid.groups()])?;
    let GridEnds { low, high } = grid_ends(OPERATION, rows, zero_point, grid)?;
    let at = |o: usize, i: usize| [o, i / grid.group_size()];
    let argument = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        weight[[o, i]] / raised_scale(initial_scale[at(o, i)])
    });
    let in_floats = |phi| -> Result<_, Error> {
        Ok(Downcasted { phi: check::result(OPERATION, "phi", phi)?, stored: None })
    };
    let fraction_bits = match downcast {
        Downcast::F32 => return in_floats(argument),
        Downcast::Bf16 => return in_floats(argument.mapv(|x| nearest(x, StoredType::Bf16))),
        Downcast::F16 => return in_floats(argument.mapv(|x| nearest(x, StoredType::F16))),
        Downcast::Fixed8 => 8 - grid.bits().count(),
        Downcast::Int => 0,
    };
    let unit = T::of(f64::from(1_u32 << fraction_bits));
    let fixed = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let clamped = argument[[o, i]].max(low[at(o, i)]).min(high[at(o, i)]);
        // From zero: an integer has no negative zero.
        T::zero() + (unit * clamped).round_half_even()
    });
    let bytes = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let shift = low[at(o, i)].value() - f64::from(grid.qmin());
        (fixed[[o, i]].value() - unit.value() * shift) as i8
    });
    let stored = if downcast == Downcast::Fixed8 {
        Stored::Fixed8(bytes)
    } else {
        Stored::Int(pack_signed(bytes.view(), PackedBits::new(4)?)?)
    };
    Ok(Downcasted { phi: fixed.mapv(|fixed| fixed / unit), stored: Some(stored) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::unpack_signed;
    use crate::spec::Bits;
    use ndarray::array;

    fn row_of(in_features: usize, bits: u32) -> QuantSpec {
        QuantSpec::new(Bits::new(bits).unwrap(), None, in_features).unwrap()
    }

    #[test]
    fn example_of_m4() {
        let (weight, scale) = (array![[0.609375, -6.0, 3.65625]], array![[0.5]]);
        let run = |zero_point, kind| {
            downcast(weight.view(), scale.view(), zero_point, &row_of(3, 4), kind).unwrap()
        };
        let fixed = run(None, Downcast::Fixed8);
        assert_eq!(fixed.stored, Some(Stored::Fixed8(array![[20, -128, 112]])));
        assert_eq!(fixed.phi, array![[1.25, -8.0, 7.0]]);
        let int = run(None, Downcast::Int);
        assert_eq!(int.stored, Some(Stored::Int(array![[0x81, 0x07]])));
        assert_eq!(int.phi, array![[1.0, -8.0, 7.0]]);
        let zero_point = array![[3.0]];
        let shifted = run(Some(zero_point.view()), Downcast::Fixed8);
        assert_eq!(shifted.stored, Some(Stored::Fixed8(array![[-60, -128, 37]])));
        assert_eq!(shifted.phi, array![[1.25, -3.0, 7.3125]]);
        for kind in [Downcast::F32, Downcast::Bf16, Downcast::F16] {
            let floats = run(None, kind);
            assert_eq!(floats, Downcasted { phi: array![[1.21875, -12.0, 7.3125]], stored: None });
        }
    }

    /// Every width, every zero-point, every multiple of a quarter of the stored unit and beyond the
    /// ends: the value, and that a byte or a nibble gives it back.
    #[test]
    fn every_stored_value_is_the_nearest_and_comes_back() {
        for (kind, bits) in [(Downcast::Fixed8, 2..=7), (Downcast::Int, 2..=4)] {
            for bits in bits {
                let fraction = if kind == Downcast::Fixed8 { 8 - bits } else { 0 };
                let unit = f64::from(1 << fraction);
                for zero_point in 0..1 << bits {
                    assert_round_trip(kind, bits, unit, f64::from(zero_point));
                }
            }
        }
    }

    fn assert_round_trip(kind: Downcast, bits: u32, unit: f64, zero_point: f64) {
        let (low, high) = (-zero_point, f64::from((1 << bits) - 1) - zero_point);
        let quarters = (4.0 * unit * (low - 1.0)) as i32..=(4.0 * unit * (high + 1.0)) as i32;
        let arguments: Vec<f64> = quarters.map(|n| f64::from(n) / (4.0 * unit)).collect();
        let spec = row_of(arguments.len(), bits);
        let weight = Array2::from_shape_vec((1, arguments.len()), arguments).unwrap();
        let zero_points = array![[zero_point]];
        let scale = array![[1.0]];
        let result =
            downcast(weight.view(), scale.view(), Some(zero_points.view()), &spec, kind).unwrap();
        let shift = low - f64::from(spec.qmin());
        let values = match result.stored.unwrap() {
            Stored::Fixed8(bytes) => bytes,
            Stored::Int(packed) => {
                unpack_signed(packed.view(), PackedBits::new(4).unwrap(), weight.len()).unwrap()
            }
        };
        for ((&weight, &phi), &value) in weight.iter().zip(&result.phi).zip(&values) {
            assert_eq!(phi, f64::from(value) / unit + shift);
            let clamped = weight.clamp(low, high);
            assert!((phi - clamped).abs() <= 0.5 / unit);
            if (phi - clamped).abs() == 0.5 / unit {
                assert_eq!((phi * unit) % 2.0, 0.0, "a tie at {weight}");
            }
        }
    }

    #[test]
    fn a_scale_below_the_floor_is_raised() {
        let weight = array![[1.25e-8, 1.0]];
        let run = |kind| {
            downcast(weight.view(), array![[-1.0]].view(), None, &row_of(2, 4), kind).unwrap().phi
        };
        assert_eq!(run(Downcast::Fixed8), array![[1.25, 7.0]]);
        assert_eq!(run(Downcast::F32), array![[1.25, 1e8]]);
    }

    #[test]
    fn what_a_type_does_not_reach_is_refused_and_what_clips_is_not() {
        let (weight, scale) = (array![[3e38_f32, -7e4]], array![[1.0]]);
        let run = |kind| downcast(weight.view(), scale.view(), None, &row_of(2, 4), kind);
        let refused = run(Downcast::F16).unwrap_err();
        assert_eq!(refused.to_string(), "lr_qat.downcast: phi[0, 0] is inf");
        assert!(run(Downcast::Bf16).is_ok());
        assert_eq!(run(Downcast::Int).unwrap().phi, array![[7.0, -8.0]]);
        let scale = array![[1e-8]];
        let run = |kind| downcast(weight.view(), scale.view(), None, &row_of(2, 4), kind);
        assert!(run(Downcast::F32).is_err());
        assert_eq!(run(Downcast::Fixed8).unwrap().phi, array![[7.0, -8.0]]);
    }

    #[test]
    fn zero_points_that_are_no_code_are_refused() {
        let (weight, scale) = (array![[1.0, 2.0]], array![[1.0]]);
        for (zero_point, shown) in [(2.5, "2.5"), (-1.0, "-1"), (16.0, "16")] {
            let zero_point = array![[zero_point]];
            let zero_point = Some(zero_point.view());
            let grid = row_of(2, 4);
            let refused = downcast(weight.view(), scale.view(), zero_point, &grid, Downcast::F32)
                .unwrap_err();
            let expected = "expected an integer, 0 to 15";
            let message = format!("lr_qat.downcast: zero_point[0, 0] is {shown}, {expected}");
            assert_eq!(refused.to_string(), message);
        }
        let (grid, zero_point) = (row_of(2, 8), array![[0.0]]);
        let refused =
            downcast(weight.view(), scale.view(), Some(zero_point.view()), &grid, Downcast::F32);
        let message = "bits is 8, expected 2 to 7 with a zero_point";
        assert_eq!(refused.unwrap_err().to_string(), message);
    }

    #[test]
    fn widths_that_do_not_fit_are_refused() {
        let (weight, scale) = (array![[1.0]], array![[1.0]]);
        for (kind, bits) in [(Downcast::Fixed8, 8), (Downcast::Int, 5)] {
            let refused = downcast(weight.view(), scale.view(), None, &row_of(1, bits), kind);
            let message = refused.unwrap_err().to_string();
            assert!(message.starts_with(&format!("bits is {bits}, expected 2 to ")), "{message}");
        }
    }
}
