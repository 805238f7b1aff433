//! The singular value decomposition of a matrix, and how far a computed one may be from it.
//!
//! No order of operations is promised, so that the allowance is that of any backward stable
//! decomposition: what it computes is exact for a matrix `weight + E` and orthonormal to within
//! `vectors`, where
//!
//! ```text
//! |E|_2 <= vectors * |weight|_F + what weight itself is off by
//! vectors = gamma(reflections * (5 * long + 21) + 68 * (short - 1))
//! reflections = min(short, long - 1) + (short - 1) + max(short - 2, 0)
//! ```
//!
//! for a matrix with sides `long >= short` (G. H. Golub and C. F. Van Loan, Matrix Computations,
//! section 8.6; N. J. Higham, Accuracy and Stability of Numerical Algorithms, lemmas 19.1 to 19.9).
//! A QR factorization and a bidiagonalization apply so many reflections. To apply one costs
//! `2 long + 7` roundings of the norm, to find its vector and factor another `3 long + 14`. The
//! bidiagonal QR iteration takes two sweeps for each value but the last, and in a sweep every row
//! and every column is turned twice, 17 roundings a side.
//!
//! From there (P.-A. Wedin, Perturbation bounds in connection with singular value decomposition):
//! a value moves by at most `|E|`, a pair of vectors turns by an angle whose sine is at most
//! `sqrt(2) |E| / gap`, and the nearest matrix of rank r moves by at most
//! `sqrt(2) (|E| + sine (s[r+1] + |E|))` with `sine <= |E| / (s[r] - s[r+1] - |E|)`. Where a gap is
//! closed the vectors are open, and the product of the factors still is not.

use ndarray::Array2;
use plumbline_reference::lora::delta_weight;
use plumbline_reference::low_rank_init::{Factors, svd_init};

use crate::judge::bound::Allowance;
use crate::precision::Unit;

/// The factors of a matrix in binary64, and how far a subject's may be from them.
pub(super) struct Decomposition {
    pub(super) factors: Factors<f64>,
    lora_scaling: f64,
    /// All singular values, descending, and a zero.
    values: Vec<f64>,
    /// `|E|`, see above.
    error: f64,
    /// How far the computed vectors are from orthonormal ones.
    vectors: f64,
    unit: Unit,
}

impl Decomposition {
    /// Of a matrix that the subject knows to within `given`, in the Frobenius norm.
    pub(super) fn new(
        matrix: &Array2<f64>,
        (rank, lora_scaling): (usize, f64),
        given: f64,
        unit: Unit,
    ) -> Result<Self, String> {
        let short = matrix.nrows().min(matrix.ncols());
        let refused = |e: plumbline_reference::Error| e.to_string();
        let all = svd_init(matrix.view(), short, 1.0).map_err(refused)?;
        let length = |r: usize| {
            let of = |x: f64| x * x;
            let (a, b) = (all.lora_a.row(r).mapv(of).sum(), all.lora_b.column(r).mapv(of).sum());
            (a * b).sqrt()
        };
        let mut values: Vec<f64> = (0..short).map(length).collect();
        values.push(0.0);
        let vectors = vectors_error(matrix.dim(), unit);
        let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let error = vectors * norm + given;
        let factors = svd_init(matrix.view(), rank, lora_scaling).map_err(refused)?;
        Ok(Self { factors, lora_scaling, values, error, vectors, unit })
    }

    /// Bound of the sine of the angle by which the vectors of a pair turn; 1 where it is open.
    fn turned(&self, pair: usize) -> f64 {
        let value = self.values[pair];
        let others = self.values.iter().enumerate().filter(|(other, _)| *other != pair);
        let gap = others.map(|(_, other)| (value - other).abs()).fold(value, f64::min);
        sine(std::f64::consts::SQRT_2 * self.error, gap - self.error)
    }

    /// Allowances of `lora_a` and `lora_b`.
    fn pairs(&self) -> (Allowance, Allowance) {
        let Factors { lora_a, lora_b } = &self.factors;
        let mut a = Allowance::absolute(std::iter::repeat_n(0.0, lora_a.len()));
        let mut b = Allowance::absolute(std::iter::repeat_n(0.0, lora_b.len()));
        for r in 0..lora_a.nrows() {
            let (value, turned) = (self.values[r], self.turned(r));
            // A chord of the angle, whose own sign rule holds while it is small.
            let moved = if turned < 1.0 { std::f64::consts::SQRT_2 * turned } else { 2.0 };
            let vector = moved + self.vectors;
            let root = (value / self.lora_scaling).sqrt();
            let of_value = (self.error / value.sqrt()).min(self.error.sqrt());
            let of_value = if self.error > 0.0 { of_value / self.lora_scaling.sqrt() } else { 0.0 };
            let inherited = (root + of_value) * vector + of_value;
            // The quotient with its constant, the root and the product: 4 roundings at most.
            let bound = |x: f64| inherited + self.unit.gamma(4.0) * (x.abs() + inherited);
            let (row, column) = (lora_a.row(r), lora_b.column(r));
            let column_length = column.iter().map(|x| x * x).sum::<f64>().sqrt();
            let is_open = sign_is_open(column.iter().copied(), vector * column_length);
            a.open += usize::from(turned >= 1.0 || is_open);
            b.open += usize::from(turned >= 1.0 || is_open);
            for (i, x) in row.iter().enumerate() {
                let index = r * lora_a.ncols() + i;
                a.bound[index] = bound(*x);
                a.alternatives.extend(is_open.then_some((index, -x)));
            }
            for (o, x) in column.iter().enumerate() {
                let index = o * lora_b.ncols() + r;
                b.bound[index] = bound(*x);
                b.alternatives.extend(is_open.then_some((index, -x)));
            }
        }
        (a, b)
    }

    /// Bound of every element of `lora_scaling * lora_b @ lora_a`.
    pub(super) fn product(&self) -> f64 {
        let rank = self.factors.lora_a.nrows();
        let (last, next) = (self.values[rank - 1], self.values[rank]);
        let turned = sine(self.error, last - next - self.error);
        let moved = std::f64::consts::SQRT_2 * (self.error + turned * (next + self.error));
        // Both vectors from orthonormal ones; then 3 roundings of each factor, products, sums and
        // the scaling with its constant. The absolute terms add up to the largest value at most.
        let largest = self.values[0] + self.error;
        moved + (2.0 * self.vectors + self.unit.gamma(rank as f64 + 8.0)) * largest
    }

    pub(super) fn delta_weight(&self) -> Result<Array2<f64>, String> {
        let Factors { lora_a, lora_b } = &self.factors;
        delta_weight(lora_a.view(), lora_b.view(), self.lora_scaling).map_err(|e| e.to_string())
    }

    /// Allowances of the three tensors, under their names.
    pub(super) fn allowances(&self) -> [(&'static str, Allowance); 3] {
        let (a, b) = self.pairs();
        let (rows, columns) = (self.factors.lora_b.nrows(), self.factors.lora_a.ncols());
        let product = Allowance::absolute(std::iter::repeat_n(self.product(), rows * columns));
        [("lora_a", a), ("lora_b", b), ("delta_weight", product)]
    }
}

/// `error / gap`, at most 1.
fn sine(error: f64, gap: f64) -> f64 {
    if error == 0.0 {
        0.0
    } else if gap <= error {
        1.0
    } else {
        error / gap
    }
}

/// `vectors` of the comment above.
fn vectors_error((rows, columns): (usize, usize), unit: Unit) -> f64 {
    let (long, short) = (rows.max(columns), rows.min(columns));
    let reflections = short.min(long - 1) + (short - 1) + short.saturating_sub(2);
    unit.gamma((reflections * (5 * long + 21) + 68 * (short - 1)) as f64)
}

/// Whether elements that are each off by `error` leave it open which sign the largest has.
fn sign_is_open(column: impl Iterator<Item = f64>, error: f64) -> bool {
    let (mut positive, mut negative) = (0.0_f64, 0.0_f64);
    for x in column {
        positive = positive.max(x);
        negative = negative.max(-x);
    }
    positive.max(negative) > 0.0 && (positive - negative).abs() <= 2.0 * error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;
    use ndarray::array;

    fn of(matrix: &Array2<f64>, rank: usize) -> Decomposition {
        Decomposition::new(matrix, (rank, 1.0), 0.0, Unit::of(Precision::F32)).unwrap()
    }

    #[test]
    fn reflections_are_counted() {
        let unit = Unit::of(Precision::F32);
        assert_eq!(vectors_error((1, 1), unit), 0.0);
        assert_eq!(vectors_error((1, 4), unit), unit.gamma(41.0));
        assert_eq!(vectors_error((4, 1), unit), unit.gamma(41.0));
        // Two and one, of 7 roundings and 21; then rotations.
        assert_eq!(vectors_error((3, 2), unit), unit.gamma(3.0 * 36.0 + 68.0));
    }

    #[test]
    fn a_closed_gap_opens_the_vectors_and_not_their_product() {
        let equal = of(&array![[0.0, 2.0], [2.0, 0.0]], 2);
        let (a, b) = equal.pairs();
        assert!(a.bound.iter().chain(&b.bound).all(|bound| *bound > 2.0));
        assert!(equal.product() < 1e-4);
        // At rank 1 the product is open too, by no more than what is left out.
        let cut = of(&array![[0.0, 2.0], [2.0, 0.0]], 1).product();
        assert!(2.0 < cut && cut < 3.0, "{cut}");
    }

    #[test]
    fn apart_from_each_other_vectors_and_product_are_known() {
        let (a, b) = of(&array![[4.0, 0.0], [0.0, 1.0]], 1).pairs();
        assert!(a.bound.iter().chain(&b.bound).all(|bound| *bound < 1e-3));
        assert_eq!((a.open, a.alternatives.len()), (0, 0));
        assert_eq!((b.open, b.alternatives.len()), (0, 0));
    }

    #[test]
    fn equal_magnitudes_of_both_signs_leave_the_sign_of_a_pair_open() {
        let (a, b) = of(&array![[1.0, 2.0], [-1.0, -2.0]], 1).pairs();
        assert_eq!((a.alternatives.len(), b.alternatives.len()), (2, 2));
        let (_, same) = of(&array![[1.0, 2.0], [1.0, 2.0]], 1).pairs();
        assert!(same.alternatives.is_empty());
    }

    #[test]
    fn without_a_perturbation_nothing_is_zero_but_what_must_be() {
        let zero = of(&Array2::zeros((2, 3)), 2);
        let (a, b) = zero.pairs();
        assert!(a.bound.iter().chain(&b.bound).all(|bound| *bound == 0.0));
        assert_eq!(zero.product(), 0.0);
    }
}
