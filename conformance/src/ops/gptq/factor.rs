//! The factor of the inverse in binary64, and what rounding does to that of a subject.
//!
//! With `damped^-1 = upper^T @ upper`, an error `E` of the inverse becomes, to first order,
//!
//! ```text
//! d_upper = up(F) @ upper,   F = upper^-T @ E @ upper^-1,   up: half the diagonal, and above it
//! ```
//!
//! A residual `weight - output` of GPTQ is `lower^-1` times what was given, where
//! `lower[k,j] = upper[j,k] / upper[j,j]`. So it changes by `-K @ residual` with
//!
//! ```text
//! K = diag(upper) @ below(F) @ diag(upper)^-1,   below: strictly below the diagonal
//! ```
//!
//! `F` has a part from each step of the prescribed way, over absolute values and with
//! `root @ root^T = damped`, `turn = upper @ root`, which is orthogonal (N. J. Higham, Accuracy and
//! Stability of Numerical Algorithms, theorem 10.3, section 14.2):
//!
//! | step | backward or forward error | part of `F` |
//! |---|---|---|
//! | damping | `gamma(in + 3) * diag(damped)` | `upper @ . @ upper^T` |
//! | `root` | `gamma(in + 1) * root @ root^T` | the same |
//! | `root^-1` | `gamma(in) * root^-1 @ root @ root^-1` | `turn @ . @ upper^-1`, and transposed |
//! | `root^-T @ root^-1` | `gamma(in) *` itself | `upper^-T @ . @ upper^-1` |
//! | `upper` | `gamma(in + 1) * upper^T @ upper` | the same |

use ndarray::Array2;

use crate::precision::Unit;

/// The factor, its inverse, and `K`.
pub(super) struct Factor {
    /// `upper[j,k]`, zero for `j > k`.
    pub upper: Array2<f64>,
    /// Its inverse.
    pub inverse: Array2<f64>,
    /// Bound of `|K[k,j]|`, zero for `j >= k`.
    pub error: Array2<f64>,
}

impl Factor {
    /// # Errors
    /// Where the matrix is not positive definite.
    pub fn new(damped: &Array2<f64>, unit: Unit) -> Result<Self, String> {
        let count = damped.nrows();
        let root = root(damped)?;
        let root_inverse = inverse_of_lower(&root);
        // damped = inverse @ inverse^T with an upper inverse: the root of the reversed matrix.
        let reversed = |matrix: &Array2<f64>| {
            Array2::from_shape_fn(matrix.dim(), |(j, k)| matrix[[count - 1 - j, count - 1 - k]])
        };
        let reversed_root = self::root(&reversed(damped))?;
        let inverse = reversed(&reversed_root);
        let upper = reversed(&inverse_of_lower(&reversed_root));

        let n = count as f64;
        let turn = upper.dot(&root).mapv(f64::abs);
        let [u, v, r, y] = [&upper, &inverse, &root, &root_inverse].map(|m| m.mapv(f64::abs));
        let diagonal = Array2::from_diag(&damped.diag());
        let of_damped = r.dot(&r.t()) * unit.gamma(n + 1.0) + diagonal * unit.gamma(n + 3.0);
        let of_inverse = turn.dot(&y).dot(&r).dot(&y).dot(&v) * unit.gamma(n);
        let of_products = y.t().dot(&y) * unit.gamma(n) + u.t().dot(&u) * unit.gamma(n + 1.0);
        let total = u.dot(&of_damped).dot(&u.t())
            + &of_inverse
            + of_inverse.t()
            + v.t().dot(&of_products).dot(&v);
        let error = Array2::from_shape_fn(damped.dim(), |(k, j)| {
            if j < k { upper[[k, k]] * total[[k, j]] / upper[[j, j]] } else { 0.0 }
        });
        Ok(Self { upper, inverse, error })
    }

    /// `lower[k,j]`: what a residual of column `j` takes off column `k`.
    pub fn lower(&self, k: usize, j: usize) -> f64 {
        self.upper[[j, k]] / self.upper[[j, j]]
    }

    /// `lower^-1[k,j]`.
    pub fn lower_inverse(&self, k: usize, j: usize) -> f64 {
        self.upper[[k, k]] * self.inverse[[j, k]]
    }
}

/// The lower `root` with `root @ root^T = matrix`.
fn root(matrix: &Array2<f64>) -> Result<Array2<f64>, String> {
    let mut root = Array2::zeros(matrix.dim());
    for j in 0..matrix.nrows() {
        for k in 0..=j {
            let known: f64 = (0..k).map(|m| root[[j, m]] * root[[k, m]]).sum();
            let rest = matrix[[j, k]] - known;
            root[[j, k]] = if j > k { rest / root[[k, k]] } else { rest.sqrt() };
        }
        let pivot: f64 = root[[j, j]];
        if pivot.is_nan() || pivot <= 0.0 {
            return Err("in.hessian is not positive definite with its damping".to_owned());
        }
    }
    Ok(root)
}

fn inverse_of_lower(lower: &Array2<f64>) -> Array2<f64> {
    let mut inverse = Array2::zeros(lower.dim());
    for column in 0..lower.nrows() {
        for j in column..lower.nrows() {
            let one = if j == column { 1.0 } else { 0.0 };
            let known: f64 = (column..j).map(|m| lower[[j, m]] * inverse[[m, column]]).sum();
            inverse[[j, column]] = (one - known) / lower[[j, j]];
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;
    use crate::sampler::Sampler;
    use plumbline_reference::gptq::Cholesky;

    fn definite(sampler: &mut Sampler, count: usize) -> Array2<f64> {
        let x: Array2<f64> =
            sampler.normal(&[2 * count + 3, count], 1.0).array().into_dimensionality().unwrap();
        // Numbers of binary32, so that both precisions factor the same matrix.
        x.t().dot(&x).mapv(|h| f64::from(h as f32))
    }

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let damped = definite(&mut Sampler::new(1, "factor", 0), 7);
        let Factor { upper, inverse, .. } = Factor::new(&damped, Unit::of(Precision::F64)).unwrap();
        let whole = upper.dot(&damped).dot(&upper.t());
        let identity = Array2::<f64>::eye(7);
        assert!((whole - &identity).iter().all(|x| x.abs() < 1e-12));
        assert!((upper.dot(&inverse) - identity).iter().all(|x| x.abs() < 1e-12));
    }

    /// What binary32 does to `lower` is within the bound, and the bound is not far above it.
    #[test]
    fn the_error_of_a_binary32_factor_is_covered() {
        let mut used: f64 = 0.0;
        for index in 0..60 {
            let mut sampler = Sampler::new(2, "factor", index);
            let count = sampler.size(2, 12);
            let damped = definite(&mut sampler, count);
            let factor = Factor::new(&damped, Unit::of(Precision::F32)).unwrap();
            let narrow = f32::factor_of_inverse(damped.mapv(|h| h as f32)).unwrap();
            let unit_lower = |upper: &dyn Fn(usize, usize) -> f64| {
                Array2::from_shape_fn(damped.dim(), |(k, j)| upper(j, k) / upper(j, j))
            };
            let exact = unit_lower(&|j, k| factor.upper[[j, k]]);
            let rounded = unit_lower(&|j, k| f64::from(narrow[[j, k]]));
            // lower^-1 @ d_lower, which is K.
            let inverse = Array2::from_shape_fn(damped.dim(), |(k, j)| factor.lower_inverse(k, j));
            let k_matrix = inverse.dot(&(rounded - exact));
            for ((k, j), value) in k_matrix.indexed_iter().filter(|((k, j), _)| j < k) {
                let ratio = value.abs() / factor.error[[k, j]];
                assert!(ratio <= 1.0, "{value:e} is {ratio} of its bound");
                used = used.max(ratio);
            }
        }
        assert!(used > 1.0 / 64.0, "the bound is {} times too large", 1.0 / used);
    }

    #[test]
    fn a_diagonal_matrix_has_no_error_off_the_diagonal() {
        let damped = Array2::from_diag(&ndarray::array![2.0, 3.0, 5.0]);
        let factor = Factor::new(&damped, Unit::of(Precision::F32)).unwrap();
        assert!(factor.error.iter().all(|error| *error == 0.0));
        assert!(Factor::new(&-damped, Unit::of(Precision::F32)).is_err());
    }
}
