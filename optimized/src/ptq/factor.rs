//! The factor of the inverse of a positive definite matrix, in f64 with loops in a fixed order.

use rayon::prelude::*;

use crate::cpu::simd::vectorized;

/// Columns that are factored together: their rows stay in the cache while all others pass by.
const BLOCK: usize = 64;

/// Rows of an inverse that are made together.
const ROWS: usize = 16;

/// The upper triangular `upper [n, n]` with `matrix^-1 = upper^T @ upper`, rounded to f32. Nothing
/// where the matrix is not positive definite.
///
/// It is the inverse of the upper triangular `root` with `matrix = root @ root^T`. So no inverse of
/// a full matrix is made, and none is factored.
pub(super) fn factor_of_inverse(mut matrix: Vec<f64>, n: usize) -> Option<Vec<f32>> {
    root(&mut matrix, n)?;
    let mut upper = vec![0.0; n * n];
    upper.par_chunks_mut(ROWS * n).enumerate().for_each(|(task, rows)| {
        vectorized(
            #[inline(always)]
            || inverse_rows(&matrix, n, task * ROWS, rows),
        );
    });
    Some(upper)
}

/// Puts `root` in place of the diagonal and the triangle above it; what is below is of no use then.
///
/// ```text
/// root[j,j] = sqrt(matrix[j,j] - sum_(m>j) root[j,m]^2)
/// root[i,j] = (matrix[i,j] - sum_(m>j) root[i,m] * root[j,m]) / root[j,j], i < j
/// ```
fn root(matrix: &mut [f64], n: usize) -> Option<()> {
    for end in (1..=n).rev().step_by(BLOCK) {
        let first = end.saturating_sub(BLOCK);
        let (width, behind) = (end - first, n - end);
        // The columns behind are done: what they take off the block, row by row.
        let panel: Vec<f64> =
            (first..end).flat_map(|j| &matrix[j * n + end..][..behind]).copied().collect();
        matrix[..end * n].par_chunks_mut(n).for_each(|row| {
            let (row, done) = row.split_at_mut(end);
            vectorized(
                #[inline(always)]
                || {
                    for (j, element) in row[first..].iter_mut().enumerate() {
                        *element -= dot(done, &panel[j * behind..][..behind]);
                    }
                },
            );
        });
        for j in (first..end).rev() {
            let known: f64 = (j + 1..end).map(|m| matrix[j * n + m] * matrix[j * n + m]).sum();
            let pivot = matrix[j * n + j] - known;
            if !(pivot > 0.0 && pivot.is_finite()) {
                return None;
            }
            matrix[j * n + j] = pivot.sqrt();
            for i in first..j {
                let known: f64 = (j + 1..end).map(|m| matrix[i * n + m] * matrix[j * n + m]).sum();
                matrix[i * n + j] = (matrix[i * n + j] - known) / matrix[j * n + j];
            }
        }
        let block: Vec<f64> =
            (first..end).flat_map(|j| &matrix[j * n + first..][..width]).copied().collect();
        matrix[..first * n].par_chunks_mut(n).for_each(|row| {
            let row = &mut row[first..end];
            for j in (0..width).rev() {
                let of_j = &block[j * width..][..width];
                let known: f64 = (j + 1..width).map(|m| row[m] * of_j[m]).sum();
                row[j] = (row[j] - known) / of_j[j];
            }
        });
    }
    Some(())
}

/// Rows `first` and on of the inverse of `root`: `x @ root = e_i`, from the left.
#[inline(always)]
fn inverse_rows(root: &[f64], n: usize, first: usize, upper: &mut [f32]) {
    let rows = upper.len() / n;
    let mut rest = vec![0.0; rows * n];
    for (r, row) in rest.chunks_mut(n).enumerate() {
        row[first + r] = 1.0;
    }
    for m in first..n {
        let of_m = &root[m * n..][..n];
        // Row `first + r` begins at its own column.
        for r in 0..rows.min(m - first + 1) {
            let row = &mut rest[r * n..][..n];
            let x = row[m] / of_m[m];
            upper[r * n + m] = x as f32;
            for (rest, root) in row[m + 1..].iter_mut().zip(&of_m[m + 1..]) {
                *rest -= x * root;
            }
        }
    }
}

/// Eight sums side by side, then added pairwise.
#[inline(always)]
fn dot(left: &[f64], right: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (left, right) = (left.chunks(8), right.chunks(8));
    for (left, right) in left.zip(right) {
        for (lane, (l, r)) in lanes.iter_mut().zip(left.iter().zip(right)) {
            *lane += l * r;
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `x^T x` of more rows than columns.
    fn definite(n: usize) -> Vec<f64> {
        let x = |t: usize, i: usize| ((t * 31 + i * 17 + t * i * 7) % 23) as f64 / 8.0 - 1.25;
        let product = |i: usize, k: usize| -> f64 { (0..2 * n).map(|t| x(t, i) * x(t, k)).sum() };
        (0..n * n)
            .map(|index| {
                product(index / n, index % n) + if index / n == index % n { 1.0 } else { 0.0 }
            })
            .collect()
    }

    /// Sizes beside those of blocks and tasks.
    #[test]
    fn the_factor_turns_the_matrix_into_the_identity() {
        for n in [1, 2, 15, 16, 17, 63, 64, 65, 130] {
            let matrix = definite(n);
            let upper = factor_of_inverse(matrix.clone(), n).unwrap();
            let upper: Vec<f64> = upper.into_iter().map(f64::from).collect();
            for j in 0..n {
                let row = &upper[j * n..][..n];
                assert!(row[..j].iter().all(|below| *below == 0.0), "{n}: row {j}");
                let through: Vec<f64> =
                    (0..n).map(|k| (0..n).map(|i| row[i] * matrix[i * n + k]).sum()).collect();
                for (k, other) in upper.chunks(n).enumerate() {
                    let element: f64 = through.iter().zip(other).map(|(l, r)| l * r).sum();
                    let expected = if j == k { 1.0 } else { 0.0 };
                    assert!((element - expected).abs() < 1e-4, "{n}: {j}, {k}: {element}");
                }
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_definite_has_none() {
        for matrix in [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0, 1.0], [-1.0, 0.0, 0.0, 1.0]] {
            assert!(factor_of_inverse(matrix.to_vec(), 2).is_none(), "{matrix:?}");
        }
        assert!(factor_of_inverse(vec![f64::NAN], 1).is_none());
    }

    #[test]
    fn one_thread_and_two_give_the_same_bits() {
        let of = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| factor_of_inverse(definite(130), 130)).unwrap()
        };
        let bits = |upper: Vec<f32>| upper.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(of(1)), bits(of(2)));
    }
}
