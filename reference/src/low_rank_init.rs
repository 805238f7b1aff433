//! The low-rank update before training: factors that say what quantization lost.

use ndarray::{Array1, Array2, ArrayView2};
use ndarray_linalg::SVD;

use crate::init_scale::init_scale;
use crate::lora::delta_weight;
use crate::quantize::{FakeQuantized, fake_quantize, raised_scale};
use crate::spec::{InitScaleRule, LoftqQuantizer};
use crate::{Error, Real, check};

/// The factors of an update.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors<T> {
    /// `[rank, in]`
    pub lora_a: Array2<T>,
    /// `[out, rank]`
    pub lora_b: Array2<T>,
}

/// A quantized weight and the update that is trained beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoftqInit<T> {
    /// `[out, in]`
    pub codes: Array2<i8>,
    /// `[out, groups]`
    pub scale: Array2<T>,
    /// `[out, in]`, the dequantized codes.
    pub output: Array2<T>,
    /// The update.
    pub factors: Factors<T>,
}

/// Singular vectors as columns, and the values that belong to them, descending.
pub struct Singular<T> {
    left: Array2<T>,
    values: Array1<T>,
    right: Array2<T>,
}

/// The scalars that LAPACK decomposes: f32 and f64.
pub trait SingularReal: Real + sealed::Sealed {
    /// `gesvd`; none where its iteration does not converge.
    #[doc(hidden)]
    fn singular(matrix: &Array2<Self>) -> Option<Singular<Self>>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! impl_singular_real {
    ($float:ty) => {
        impl sealed::Sealed for $float {}

        impl SingularReal for $float {
            fn singular(matrix: &Array2<Self>) -> Option<Singular<Self>> {
                let (left, values, right) = matrix.svd(true, true).ok()?;
                Some(Singular { left: left?, values, right: right?.reversed_axes() })
            }
        }
    };
}

impl_singular_real!(f32);
impl_singular_real!(f64);

/// The update of a given rank that is nearest to a matrix. Eq. (A4).
///
/// ```text
/// weight[o,i] = sum_r left[o,r] * singular[r] * right[i,r], singular descending, at least 0
/// sign[r] = 1 where left[o,r] > 0 at the first o of largest |left[o,r]|, else -1
/// root[r] = sqrt(singular[r] / lora_scaling)
/// lora_b[o,r] = sign[r] * left[o,r] * root[r]
/// lora_a[r,i] = sign[r] * right[i,r] * root[r]
/// ```
///
/// # Shapes
/// `weight [out, in]` -> `lora_a [rank, in]`, `lora_b [out, rank]`
///
/// # Errors
/// `Shape`, `NonFinite`, `NotConverged`, `Spec` for a rank that is 0 or larger than the smaller
/// side of `weight`, and for a `lora_scaling` that is not positive.
pub fn svd_init<T: SingularReal>(
    weight: ArrayView2<T>,
    rank: usize,
    lora_scaling: f64,
) -> Result<Factors<T>, Error> {
    const OPERATION: &str = "svd_init";
    let (out_features, in_features) = weight.dim();
    check::finite(OPERATION, "weight", &weight)?;
    if !(1..=out_features.min(in_features)).contains(&rank) {
        return Err(check::out_of_range("rank", rank, "1 to the smaller side of weight"));
    }
    let lora_scaling: T = check::positive("lora_scaling", lora_scaling)?;
    let weight = weight.as_standard_layout().into_owned();
    let Singular { left, values, right } =
        T::singular(&weight).ok_or(Error::NotConverged { operation: OPERATION })?;
    let sign: Vec<T> = (0..rank).map(|r| sign_of_largest(left.column(r).iter())).collect();
    let root: Vec<T> = (0..rank).map(|r| (values[r] / lora_scaling).sqrt()).collect();
    let lora_b =
        Array2::from_shape_fn((out_features, rank), |(o, r)| sign[r] * left[[o, r]] * root[r]);
    let lora_a =
        Array2::from_shape_fn((rank, in_features), |(r, i)| sign[r] * right[[i, r]] * root[r]);
    Ok(Factors {
        lora_a: check::result(OPERATION, "lora_a", lora_a)?,
        lora_b: check::result(OPERATION, "lora_b", lora_b)?,
    })
}

/// 1 or -1, after the first element of largest magnitude.
fn sign_of_largest<'a, T: Real>(column: impl Iterator<Item = &'a T>) -> T {
    let largest = column.fold(T::zero(), |a, &b| if b.abs() > a.abs() { b } else { a });
    if largest < T::zero() { -T::one() } else { T::one() }
}

/// Codes of a frozen weight, and the update that makes up for them. Eq. (A5a).
///
/// ```text
/// target[1] = weight
/// scale[n] = init_scale(target[n], min_max)
/// codes[n], output[n] = fake_quantize(target[n], scale[n], 0)
/// lora_a[n], lora_b[n] = svd_init(weight - output[n], rank, lora_scaling)
/// target[n+1] = weight - delta_weight(lora_a[n], lora_b[n], lora_scaling)
/// ```
///
/// # Shapes
/// `weight [out, in]` -> `codes, output [out, in]`, `scale [out, groups]`, `lora_a [rank, in]`,
/// `lora_b [out, rank]`
///
/// # Errors
/// `Shape`, `NonFinite`, those of [`svd_init`], and `Spec` for 0 iterations.
pub fn loftq_init<T: SingularReal>(
    weight: ArrayView2<T>,
    quantizer: LoftqQuantizer,
    rank: usize,
    iterations: usize,
    lora_scaling: f64,
) -> Result<LoftqInit<T>, Error> {
    const OPERATION: &str = "loftq_init";
    let LoftqQuantizer::Uniform(spec) = quantizer;
    check::input(OPERATION, "weight", &weight, &[weight.nrows(), spec.in_features()])?;
    if iterations == 0 {
        return Err(check::out_of_range("iterations", iterations, "at least 1"));
    }
    let turn = |target: ArrayView2<T>| -> Result<LoftqInit<T>, Error> {
        let (scale, FakeQuantized { codes, output }) = quantized(target, quantizer)?;
        let factors = svd_init((&weight - &output).view(), rank, lora_scaling)?;
        Ok(LoftqInit { codes, scale, output, factors })
    };
    let mut found = turn(weight)?;
    for _ in 1..iterations {
        let Factors { lora_a, lora_b } = &found.factors;
        let delta_weight = delta_weight(lora_a.view(), lora_b.view(), lora_scaling)?;
        found = turn((&weight - &delta_weight).view())?;
    }
    Ok(found)
}

/// One rounding of LoftQ: the grid that it chose, and the weight on it.
fn quantized<T: Real>(
    target: ArrayView2<T>,
    quantizer: LoftqQuantizer,
) -> Result<(Array2<T>, FakeQuantized<T>), Error> {
    match quantizer {
        LoftqQuantizer::Uniform(spec) => {
            let grid = init_scale(target, &spec, InitScaleRule::MinMax)?;
            let rounded = fake_quantize(target, grid.scale.view(), grid.offset.view(), &spec)?;
            Ok((grid.scale, rounded))
        }
    }
}

/// The update in units of a grid, as LR-QAT adds it. Eq. (A5b).
///
/// ```text
/// grid_lora_b[o,r] = lora_b[o,r] / raised_scale[o]
/// ```
///
/// There is one scale for each output row: it multiplies a row of `lora_b`. The scales of several
/// groups would multiply blocks of the product, which then has no such factors.
///
/// # Shapes
/// `lora_b [out, rank]`, `scale [out, 1]` -> `[out, rank]`
///
/// # Errors
/// `NonFinite`, and `Shape` for a scale with another number of rows or more than one group.
pub fn grid_lora_b<T: Real>(
    lora_b: ArrayView2<T>,
    scale: ArrayView2<T>,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "grid_lora_b";
    check::finite(OPERATION, "lora_b", &lora_b)?;
    check::input(OPERATION, "scale", &scale, &[lora_b.nrows(), 1])?;
    let divided =
        Array2::from_shape_fn(lora_b.dim(), |(o, r)| lora_b[[o, r]] / raised_scale(scale[[o, 0]]));
    check::result(OPERATION, "grid_lora_b", divided)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bits, QuantSpec};
    use approx::assert_abs_diff_eq;
    use ndarray::array;

    #[test]
    fn example_of_a4() {
        let Factors { lora_a, lora_b } =
            svd_init(array![[0.0, -36.0], [1.0, 0.0]].view(), 1, 4.0).unwrap();
        assert_abs_diff_eq!(lora_b, array![[3.0], [0.0]], epsilon = 1e-14);
        assert_abs_diff_eq!(lora_a, array![[0.0, -3.0]], epsilon = 1e-14);
    }

    #[test]
    fn example_of_a5() {
        let weight = array![[3.5, 1.125]];
        let spec = QuantSpec::new(Bits::new(4).unwrap(), None, 2).unwrap();
        for iterations in [1, 2] {
            let quantizer = LoftqQuantizer::Uniform(spec);
            let found = loftq_init(weight.view(), quantizer, 1, iterations, 0.5).unwrap();
            assert_eq!(found.scale, array![[0.5]]);
            assert_eq!(found.codes, array![[7, 2]]);
            assert_eq!(found.output, array![[3.5, 1.0]]);
            let Factors { lora_a, lora_b } = &found.factors;
            assert_abs_diff_eq!(lora_b, &array![[0.5]], epsilon = 1e-15);
            assert_abs_diff_eq!(lora_a, &array![[0.0, 0.5]], epsilon = 1e-15);
            let in_grid_units = grid_lora_b(lora_b.view(), found.scale.view()).unwrap();
            assert_abs_diff_eq!(in_grid_units, array![[1.0]], epsilon = 1e-15);
        }
    }

    #[test]
    fn the_first_of_the_largest_magnitudes_gives_the_sign() {
        for (column, sign) in [
            (vec![0.5, -0.5, 0.5], 1.0),
            (vec![-0.5, 0.5, 0.5], -1.0),
            (vec![0.25, -0.5, 0.5], -1.0),
            (vec![0.25, 0.5, -0.75], -1.0),
        ] {
            assert_eq!(sign_of_largest(column.iter()), sign, "{column:?}");
        }
    }

    #[test]
    fn a_pair_beyond_the_rank_of_the_matrix_is_zero() {
        let zero = svd_init(Array2::<f32>::zeros((2, 3)).view(), 2, 1.0).unwrap();
        assert_eq!(zero.lora_a, Array2::<f32>::zeros((2, 3)));
        assert_eq!(zero.lora_b, Array2::<f32>::zeros((2, 2)));
    }

    #[test]
    fn a_scale_below_the_floor_divides_as_the_floor() {
        let divided = grid_lora_b(array![[1.0], [1.0]].view(), array![[0.0], [0.5]].view());
        assert_eq!(divided.unwrap(), array![[1e8], [2.0]]);
    }

    #[test]
    fn a_rank_without_singular_values_is_refused() {
        let weight = Array2::<f64>::ones((2, 3));
        for rank in [0, 3] {
            let refused = svd_init(weight.view(), rank, 1.0).unwrap_err();
            let expected = format!("rank is {rank}, expected 1 to the smaller side of weight");
            assert_eq!(refused.to_string(), expected);
        }
        for lora_scaling in [0.0, -1.0, f64::NAN] {
            let refused = svd_init(weight.view(), 1, lora_scaling).unwrap_err();
            assert!(refused.to_string().starts_with("lora_scaling is"), "{refused}");
        }
    }

    #[test]
    fn no_turn_is_refused() {
        let spec = QuantSpec::new(Bits::new(4).unwrap(), None, 2).unwrap();
        let weight = array![[1.0, 2.0]];
        let refused = loftq_init(weight.view(), LoftqQuantizer::Uniform(spec), 1, 0, 1.0);
        assert_eq!(refused.unwrap_err().to_string(), "iterations is 0, expected at least 1");
    }

    #[test]
    fn what_overflows_is_refused() {
        let refused = svd_init(array![[1e300_f64]].view(), 1, 1e-300).unwrap_err();
        assert_eq!(refused.to_string(), "svd_init: lora_a[0, 0] is inf");
        let refused = grid_lora_b(array![[1e305]].view(), array![[0.0]].view()).unwrap_err();
        assert_eq!(refused.to_string(), "grid_lora_b: grid_lora_b[0, 0] is inf");
    }
}
