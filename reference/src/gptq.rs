//! GPTQ (arXiv:2210.17323): columns are rounded one after the other, and those that are left make
//! up for the error. In the order of operations of IST-DASLab/gptq.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Slice};
use ndarray_linalg::{CholeskyInto, FactorizeCInto, InverseCInto, UPLO};

use crate::quantize::raised_scale;
use crate::spec::GptqSpec;
use crate::{Error, Real, check};

/// A scalar that LAPACK factors matrices of.
pub trait Cholesky: Real {
    /// The upper triangular `upper` with `matrix^-1 = upper^T @ upper`: a factor of the matrix, the
    /// inverse from it, and the factor of that. Nothing where one of the two does not exist.
    fn factor_of_inverse(matrix: Array2<Self>) -> Option<Array2<Self>>;
}

macro_rules! impl_cholesky {
    ($float:ty) => {
        impl Cholesky for $float {
            fn factor_of_inverse(matrix: Array2<Self>) -> Option<Array2<Self>> {
                let inverse = matrix.factorizec_into(UPLO::Lower).ok()?.invc_into().ok()?;
                inverse.cholesky_into(UPLO::Upper).ok()
            }
        }
    };
}

impl_cholesky!(f32);
impl_cholesky!(f64);

/// Result of [`quantize`].
#[derive(Debug, Clone, PartialEq)]
pub struct GptqQuantized<T> {
    /// `[out, in]`, 0 to `2^bits - 1`.
    pub codes: Array2<u8>,
    /// `[out, groups]`
    pub scale: Array2<T>,
    /// `[out, groups]`, integers.
    pub zero_point: Array2<T>,
    /// `[out, in]`, the dequantized codes.
    pub output: Array2<T>,
    /// `[in]`, the group of each input.
    pub group_index: Array1<usize>,
}

/// The Hessian of the layer's squared error, from inputs. Eq. (Q20a).
///
/// ```text
/// hessian[i,k] = 2 * (sum_t x[t,i] * x[t,k]) / tokens
/// ```
///
/// # Shapes
/// `x [tokens, in]` -> `[in, in]`
///
/// # Errors
/// `NonFinite`, `Empty` where there is no token.
pub fn hessian<T: Real>(x: ArrayView2<T>) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "gptq.hessian";
    check::finite(OPERATION, "x", &x)?;
    if x.nrows() == 0 {
        return Err(Error::Empty { operation: OPERATION, what: "no token" });
    }
    let tokens = T::of(x.nrows() as f64);
    let hessian = Array2::from_shape_fn((x.ncols(), x.ncols()), |(i, k)| {
        T::of(2.0) * check::dot(x.column(i), x.column(k)) / tokens
    });
    check::result(OPERATION, "hessian", hessian)
}

/// Rounds a weight column by column. Eq. (Q20b), Eq. (Q20d), Eq. (Q20e).
///
/// ```text
/// hessian[i,i] = 1, weight[o,i] = 0 where hessian[i,i] = 0
/// order = the inputs by descending hessian[i,i] where act_order, else ascending
/// damped = hessian + damping * ((sum_i hessian[i,i]) / in) * identity
/// damped^-1 = upper^T @ upper, upper[j,k] = 0 for j > k
/// codes[o,j] = clamp(round_half_even(weight[o,j] / scale[o,g]) + zero_point[o,g], 0, maxq)
/// output[o,j] = scale[o,g] * (codes[o,j] - zero_point[o,g])
/// error[o,j] = (weight[o,j] - output[o,j]) / upper[j,j]
/// weight[o,k] = weight[o,k] - error[o,j] * upper[j,k], j < k in the block of j
/// weight[o,k] = weight[o,k] - sum_(j in block) error[o,j] * upper[j,k], k beyond the block
/// ```
///
/// From `upper` on, columns are in `order`; the result is in the order of the inputs.
///
/// # Shapes
/// `weight [out, in]`, `hessian [in, in]` -> `codes, output [out, in]`,
/// `scale, zero_point [out, groups]`, `group_index [in]`
///
/// # Errors
/// `Shape`, `NonFinite`, `NotSymmetric`, `NotPositiveDefinite`, `Spec` for a damping beyond the
/// type.
pub fn quantize<T: Cholesky>(
    weight: ArrayView2<T>,
    hessian: ArrayView2<T>,
    spec: &GptqSpec,
) -> Result<GptqQuantized<T>, Error> {
    const OPERATION: &str = "gptq.quantize";
    let columns = spec.quant.in_features();
    check::input(OPERATION, "weight", &weight, &[weight.nrows(), columns])?;
    check::input(OPERATION, "hessian", &hessian, &[columns, columns])?;
    symmetric(OPERATION, hessian)?;
    let (mut weight, mut hessian) = (weight.to_owned(), hessian.to_owned());
    for i in 0..columns {
        if hessian[[i, i]] == T::zero() {
            hessian[[i, i]] = T::one();
            weight.column_mut(i).fill(T::zero());
        }
    }
    let order = order(hessian.diag(), spec.act_order);
    let upper = factor(OPERATION, &hessian, &order, spec)?;
    let mut sweep = Sweep::new(&weight, &order, spec);
    for first in (0..columns).step_by(spec.block_size()) {
        let end = first.saturating_add(spec.block_size()).min(columns);
        let error = sweep.block(first, end, &upper);
        check::finite(OPERATION, "error", &error)?;
        sweep.update(first, end, &error, &upper);
    }
    Ok(GptqQuantized {
        scale: check::result(OPERATION, "scale", sweep.scale)?,
        output: check::result(OPERATION, "output", sweep.output)?,
        codes: sweep.codes,
        zero_point: sweep.zero_point,
        group_index: sweep.group_index,
    })
}

fn symmetric<T: Real>(operation: &'static str, hessian: ArrayView2<T>) -> Result<(), Error> {
    match hessian.indexed_iter().find(|((row, column), h)| hessian[[*column, *row]] != **h) {
        None => Ok(()),
        Some(((row, column), _)) => {
            Err(Error::NotSymmetric { operation, tensor: "hessian", row, column })
        }
    }
}

/// The inputs in the order in which they are rounded; equals keep theirs.
fn order<T: Real>(diagonal: ArrayView1<T>, act_order: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..diagonal.len()).collect();
    if act_order {
        order.sort_by(|&i, &k| diagonal[k].value().total_cmp(&diagonal[i].value()));
    }
    order
}

/// `upper` of Eq. (Q20b), rows and columns in `order`.
fn factor<T: Cholesky>(
    operation: &'static str,
    hessian: &Array2<T>,
    order: &[usize],
    spec: &GptqSpec,
) -> Result<Array2<T>, Error> {
    let damping: T = check::number("damping", spec.damping())?;
    let sum = hessian.diag().iter().fold(T::zero(), |sum, &h| sum + h);
    let added = damping * (sum / T::of(order.len() as f64));
    let damped = Array2::from_shape_fn(hessian.dim(), |(j, k)| {
        let element = hessian[[order[j], order[k]]];
        if j == k { element + added } else { element }
    });
    let damped = check::result(operation, "damped", damped)?;
    let refused = || {
        let damping = spec.damping();
        Error::NotPositiveDefinite { operation, tensor: "hessian", damping }
    };
    let upper = T::factor_of_inverse(damped).ok_or_else(refused)?;
    check::result(operation, "upper", upper)
}

/// Scale and zero point of one group. Eq. (Q20c).
///
/// ```text
/// low[o,g] = min(0, min_(i in g) weight[o,i]), high[o,g] = max(0, max_(i in g) weight[o,i])
/// low[o,g] = -1, high[o,g] = 1 where low[o,g] = high[o,g]
/// low[o,g], high[o,g] = -max(-low[o,g], high[o,g]), max(-low[o,g], high[o,g]) where symmetric
/// scale[o,g] = max((high[o,g] - low[o,g]) / maxq, SCALE_FLOOR)
/// zero_point[o,g] = round_half_even(-low[o,g] / scale[o,g])
/// zero_point[o,g] = (maxq + 1) / 2 where low[o,g] = -high[o,g]
/// ```
fn group_grid<T: Real>(weights: impl Iterator<Item = T>, spec: &GptqSpec) -> (T, T) {
    let (mut low, mut high) = (T::zero(), T::zero());
    for weight in weights {
        (low, high) = (Real::min(low, weight), Real::max(high, weight));
    }
    if low == high {
        (low, high) = (-T::one(), T::one());
    }
    if spec.symmetric {
        high = Real::max(-low, high);
        low = -high;
    }
    let maxq = T::of(f64::from(spec.maxq()));
    let scale = raised_scale((high - low) / maxq);
    if low == -high {
        return (scale, (maxq + T::one()) / T::of(2.0));
    }
    (scale, (-low / scale).round_half_even())
}

fn columns<T: Real>(matrix: &Array2<T>, first: usize, end: usize) -> ArrayView2<'_, T> {
    matrix.slice_axis(Axis(1), Slice::from(first..end))
}

/// The columns in `order`, some of them already rounded.
struct Sweep<'a, T> {
    spec: &'a GptqSpec,
    order: &'a [usize],
    /// Columns in `order`; it has the updates of finished blocks alone.
    weight: Array2<T>,
    codes: Array2<u8>,
    scale: Array2<T>,
    zero_point: Array2<T>,
    output: Array2<T>,
    group_index: Array1<usize>,
}

impl<'a, T: Real> Sweep<'a, T> {
    /// Static grids are found here, the others when their first column is reached.
    fn new(weight: &Array2<T>, order: &'a [usize], spec: &'a GptqSpec) -> Self {
        let (size, groups) = (spec.quant.group_size(), [weight.nrows(), spec.quant.groups()]);
        let mut group_index: Array1<usize> = (0..order.len()).map(|i| i / size).collect();
        if !spec.static_groups {
            for (j, &i) in order.iter().enumerate() {
                group_index[i] = j / size;
            }
        }
        let mut sweep = Self {
            spec,
            order,
            weight: Array2::from_shape_fn(weight.dim(), |(o, j)| weight[[o, order[j]]]),
            codes: Array2::zeros(weight.dim()),
            scale: Array2::zeros(groups),
            zero_point: Array2::zeros(groups),
            output: Array2::zeros(weight.dim()),
            group_index,
        };
        if spec.static_groups {
            for g in 0..groups[1] {
                sweep.find_grid(g, columns(weight, g * size, (g + 1) * size));
            }
        }
        sweep
    }

    fn find_grid(&mut self, g: usize, weight: ArrayView2<T>) {
        for (o, row) in weight.rows().into_iter().enumerate() {
            let (scale, zero_point) = group_grid(row.iter().copied(), self.spec);
            self.scale[[o, g]] = scale;
            self.zero_point[[o, g]] = zero_point;
        }
    }

    /// Columns `first` to `end`, each with the updates of those before it; their `error`.
    /// Eq. (Q20d), Eq. (Q20e).
    fn block(&mut self, first: usize, end: usize, upper: &Array2<T>) -> Array2<T> {
        let size = self.spec.quant.group_size();
        let mut live = columns(&self.weight, first, end).to_owned();
        let mut error = Array2::zeros(live.dim());
        for j in first..end {
            if !self.spec.static_groups && j % size == 0 {
                // The finished blocks' weight: what this block did so far is not in it.
                let group = columns(&self.weight, j, j + size).to_owned();
                self.find_grid(j / size, group.view());
            }
            for o in 0..live.nrows() {
                let weight = live[[o, j - first]];
                let output = self.round(o, self.order[j], weight);
                error[[o, j - first]] = (weight - output) / upper[[j, j]];
                for k in j + 1..end {
                    live[[o, k - first]] -= error[[o, j - first]] * upper[[j, k]];
                }
            }
        }
        error
    }

    /// Code and output of input `i`. Eq. (Q20d).
    fn round(&mut self, o: usize, i: usize, weight: T) -> T {
        let g = self.group_index[i];
        let (scale, zero_point) = (self.scale[[o, g]], self.zero_point[[o, g]]);
        let maxq = T::of(f64::from(self.spec.maxq()));
        let code = (weight / scale).round_half_even() + zero_point;
        let code = Real::min(Real::max(code, T::zero()), maxq);
        self.codes[[o, i]] = code.value() as u8;
        self.output[[o, i]] = scale * (code - zero_point);
        self.output[[o, i]]
    }

    /// What a finished block does to the columns behind it. Eq. (Q20e).
    fn update(&mut self, first: usize, end: usize, error: &Array2<T>, upper: &Array2<T>) {
        for k in end..self.order.len() {
            for o in 0..error.nrows() {
                let column = upper.column(k);
                let row_part = column.slice_axis(Axis(0), Slice::from(first..end));
                self.weight[[o, k]] -= check::dot(error.row(o), row_part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bits, QuantSpec};
    use ndarray::array;

    fn spec(bits: u32, group_size: Option<usize>, columns: usize, symmetric: bool) -> GptqSpec {
        let quant = QuantSpec::new(Bits::new(bits).unwrap(), group_size, columns).unwrap();
        GptqSpec::new(quant, symmetric).with_damping(0.0).unwrap()
    }

    #[test]
    fn example_of_q20() {
        let (weight, hessian) = (array![[7.5, 0.375]], array![[2.0, 1.0], [1.0, 2.0]]);
        let quantized = quantize(weight.view(), hessian.view(), &spec(4, None, 2, true)).unwrap();
        assert_eq!(quantized.codes, array![[15, 9]]);
        assert_eq!((quantized.scale, quantized.zero_point), (array![[1.0]], array![[8.0]]));
        assert_eq!(quantized.output, array![[7.0, 1.0]]);
        assert_eq!(quantized.group_index, array![0, 0]);
    }

    #[test]
    fn the_hessian_is_twice_the_mean_product() {
        let x = array![[1.0, 2.0], [3.0, -4.0]];
        assert_eq!(hessian(x.view()).unwrap(), array![[10.0, -10.0], [-10.0, 20.0]]);
        let none = hessian(Array2::<f64>::zeros((0, 2)).view()).unwrap_err();
        assert_eq!(none.to_string(), "gptq.hessian: no token");
    }

    #[test]
    fn grids_of_q20c() {
        let grid = |weights: &[f64], symmetric| {
            group_grid(weights.iter().copied(), &spec(2, None, 1, symmetric))
        };
        assert_eq!(grid(&[-1.5, 0.5, 1.0], true), (1.0, 2.0));
        // No weight is negative: the grid reaches as far down as up.
        assert_eq!(grid(&[0.5, 1.5], true), (1.0, 2.0));
        assert_eq!(grid(&[-1.0, 2.0], false), (1.0, 1.0));
        // The range includes 0.
        assert_eq!(grid(&[1.0, 3.0], false), (1.0, 0.0));
        assert_eq!(grid(&[-3.0, -1.0], false), (1.0, 3.0));
        // 0.5 and 1.5 are ties.
        assert_eq!(grid(&[-0.5, 2.5], false), (1.0, 0.0));
        assert_eq!(grid(&[-1.5, 1.5], false), (1.0, 2.0));
        assert_eq!(grid(&[0.0, -0.0], false), (2.0 / 3.0, 2.0));
        assert_eq!(grid(&[0.0], true), (2.0 / 3.0, 2.0));
        assert_eq!(grid(&[1e-9, -1e-9], true), (crate::spec::SCALE_FLOOR, 2.0));
    }

    #[test]
    fn an_input_that_never_occurs_is_zero() {
        let weight = array![[1.5, 100.0, -1.5]];
        let hessian = array![[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]];
        let quantized = quantize(weight.view(), hessian.view(), &spec(2, None, 3, true)).unwrap();
        assert_eq!(quantized.codes, array![[3, 2, 0]]);
        assert_eq!(quantized.output, array![[1.0, 0.0, -2.0]]);
    }

    /// With a diagonal Hessian nothing moves, and the groups are visible.
    #[test]
    fn groups_follow_the_order_unless_they_are_static() {
        let weight = array![[1.5, 3.0, 6.0, 12.0]];
        let hessian = Array2::from_diag(&array![2.0, 8.0, 4.0, 8.0]);
        let plain = spec(2, Some(2), 4, true);
        let mut ordered = plain;
        ordered.act_order = true;
        let run = |spec| quantize(weight.view(), hessian.view(), &spec).unwrap();
        assert_eq!(run(plain).scale, array![[2.0, 8.0]]);
        // Inputs 1, 3, 2, 0: equal importance keeps its order.
        let moved = run(ordered);
        assert_eq!(moved.scale, array![[8.0, 4.0]]);
        assert_eq!(moved.group_index, array![1, 0, 1, 0]);
        ordered.static_groups = true;
        let fixed = run(ordered);
        assert_eq!(fixed.scale, array![[2.0, 8.0]]);
        assert_eq!(fixed.group_index, array![0, 0, 1, 1]);
    }

    /// In a block of four the second group is ranged before the first column's error reaches it.
    #[test]
    fn a_grid_inside_a_block_is_found_without_the_updates_of_the_block() {
        let weight = array![[7.5, 7.75]];
        let hessian = array![[2.0, 1.0], [1.0, 2.0]];
        let whole = spec(4, Some(1), 2, true).with_block_size(2).unwrap();
        let stale = quantize(weight.view(), hessian.view(), &whole).unwrap();
        let fresh =
            quantize(weight.view(), hessian.view(), &whole.with_block_size(1).unwrap()).unwrap();
        let as_given = 2.0 * 7.75 / 15.0;
        assert_eq!(stale.scale, array![[1.0, as_given]]);
        // 7.5 became 7, and half of the error came over.
        assert!((fresh.scale[[0, 1]] - 16.0 / 15.0).abs() < 1e-14);
    }

    #[test]
    fn matrices_without_a_factor_are_refused() {
        let weight = array![[1.0, 2.0]];
        let run = |hessian: Array2<f64>, damping: f64| {
            let spec = spec(4, None, 2, true).with_damping(damping).unwrap();
            quantize(weight.view(), hessian.view(), &spec).map_err(|e| e.to_string())
        };
        let singular = array![[1.0, 1.0], [1.0, 1.0]];
        assert_eq!(
            run(singular.clone(), 0.0).unwrap_err(),
            "gptq.quantize: hessian is not positive definite with damping 0"
        );
        assert!(run(singular, 0.01).is_ok());
        let refused = run(array![[1.0, 2.0], [2.0, 1.0]], 0.5).unwrap_err();
        assert!(refused.contains("not positive definite"), "{refused}");
        let refused = run(array![[-1.0, 0.0], [0.0, 1.0]], 0.5).unwrap_err();
        assert!(refused.contains("not positive definite"), "{refused}");
        assert_eq!(
            run(array![[1.0, 0.5], [0.25, 1.0]], 0.0).unwrap_err(),
            "gptq.quantize: hessian[0, 1] differs from hessian[1, 0]"
        );
    }

    #[test]
    fn what_overflows_is_refused() {
        let hessian = array![[1.0_f32, 0.0], [0.0, 1.0]];
        let refused =
            quantize(array![[3e38, -3e38]].view(), hessian.view(), &spec(4, None, 2, true));
        assert!(refused.unwrap_err().to_string().starts_with("gptq.quantize: "));
    }
}
