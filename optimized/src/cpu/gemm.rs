#![allow(unsafe_code)] // the call of the matrix-product library; reasons at the call

//! The one door to the matrix-product library, and the only unsafe code of the CPU backend.
//!
//! `gemm` was the fastest of the pure-Rust libraries on nearly every shape that a LLaMA step uses and
//! gives the same bits for any number of threads (docs/decisions/0001). Its f32 part is used directly:
//! the whole library would compile kernels for four more types.

use gemm_common::Parallelism;

/// A strided view of a matrix in a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix whose rows start `row_stride` values apart.
    pub(crate) fn strided(
        values: &'a [f32],
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> Self {
        assert!(columns <= row_stride, "rows overlap");
        if rows > 0 {
            assert!((rows - 1) * row_stride + columns <= values.len(), "matrix leaves its slice");
        }
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// A dense row-major matrix.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// The transposed view.
    pub(crate) fn t(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// Whether a product may use the pool's other threads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// All of the current pool.
    Pool,
    /// Only the caller, for products inside a parallel loop.
    One,
}

/// Below this many multiply-adds waking a thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 18;

/// `out = multiplier * a @ b`, or `out += ...` with `add`; rows of `out` are `out_stride` apart.
///
/// The sum over the inner dimension runs in an order that depends on the shape and the processor
/// but not on the number of threads.
pub(crate) fn product(
    out: &mut [f32],
    out_stride: usize,
    a: Matrix<'_>,
    b: Matrix<'_>,
    multiplier: f32,
    add: bool,
    threads: Threads,
) {
    let (rows, columns, inner) = (a.rows, b.columns, a.columns);
    assert_eq!(inner, b.rows, "inner dimensions differ");
    assert!(columns <= out_stride, "rows of the result overlap");
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * out_stride + columns <= out.len(), "the result leaves its slice");
    if inner == 0 {
        if !add {
            for row in out.chunks_mut(out_stride).take(rows) {
                row[..columns].fill(0.0);
            }
        }
        return;
    }
    let work = rows.saturating_mul(columns).saturating_mul(inner);
    let parallelism = if threads == Threads::One || work < PARALLEL_FROM {
        Parallelism::None
    } else {
        Parallelism::Rayon(rayon::current_num_threads())
    };
    let (left, right) = (b.t(), a.t());
    // The library's kernels write columns, so this computes `out^T = b^T @ a^T`.
    //
    // SAFETY: `Matrix::strided` and the asserts above keep every index
    // `row * row_stride + column * column_stride` of a, b and out inside its slice (transposing
    // swaps rows with columns and their strides together, and the last element is the same one);
    // `out` is borrowed mutably, so it aliases neither input; strides fit in isize because slices do.
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            columns,
            rows,
            inner,
            out.as_mut_ptr(),
            out_stride as isize,
            1,
            add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            multiplier,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed) % 2001) as f32 / 1000.0 - 1.0).collect()
    }

    #[test]
    fn a_product_of_integers_is_exact_in_every_layout() {
        for (rows, columns, inner) in [(1, 1, 1), (3, 5, 7), (17, 33, 65), (1, 40, 9), (40, 1, 9)] {
            let integers = |len: usize, seed: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * 31 + seed) % 17) as f32 - 8.0).collect()
            };
            let a = integers(rows * inner, 3);
            let b = integers(columns * inner, 5); // [columns, inner]
            let old = integers(rows * columns, 7);
            let mut out = old.clone();
            let (left, right) = (Matrix::new(&a, rows, inner), Matrix::new(&b, columns, inner).t());
            product(&mut out, columns, left, right, 0.5, true, Threads::Pool);
            for row in 0..rows {
                for column in 0..columns {
                    let dot: f32 =
                        (0..inner).map(|k| a[row * inner + k] * b[column * inner + k]).sum();
                    let at = row * columns + column;
                    assert_eq!(out[at], old[at] + 0.5 * dot);
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        for (rows, columns, inner) in
            [(128, 384, 1024), (1024, 128, 384), (128, 128, 1000), (16, 1536, 576), (500, 3, 700)]
        {
            let (a, b) = (values(rows * inner, 1), values(columns * inner, 2));
            let run = |threads| {
                let mut out = vec![0.0; rows * columns];
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let right = Matrix::new(&b, columns, inner).t();
                    let left = Matrix::new(&a, rows, inner);
                    product(&mut out, columns, left, right, 1.0, false, Threads::Pool);
                });
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(run(1), run(2));
            assert_eq!(run(1), run(5));
        }
    }
}
