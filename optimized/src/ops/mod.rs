//! One folder per operation: `mod.rs` states it (trait, arguments, shapes), `cpu.rs` is the CPU's
//! implementation. The list below is the feature list.

pub mod adamw;
pub mod add;
pub mod affine;
pub mod attention;
pub(crate) mod counter;
pub mod cross_entropy;
pub mod dropout;
pub mod dynamic_quantize;
pub mod embedding;
pub mod fake_quantize;
pub mod fake_quantize_backward;
pub mod group_pool;
pub mod init_scale;
pub mod linear;
pub mod lr_qat_quantize;
pub mod nf4;
pub mod random_weights;
pub mod rms_norm;
pub mod rope;
pub mod round_scale;
pub mod rtn;
pub mod squared_norm;
pub mod sums;
pub mod swiglu;
pub mod weight_gradient;
pub mod widen;

use crate::error::{Error, Result};

/// Whether a result replaces what its buffer holds or is added to it.
///
/// Gradients of parameters always add, so that micro-batches accumulate; gradients of activations
/// say which, because several layers may read one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The buffer's old content is not read.
    Replace,
    /// The result is added to the old content.
    Add,
}

/// Refuses the first NaN or infinity of a tensor.
pub(crate) fn refuse_non_finite(
    operation: &'static str,
    tensor: &'static str,
    values: &[f32],
) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            let tensor = format!("{operation}: {tensor}");
            Err(Error::NonFinite { tensor, index, value: values[index] })
        }
        None => Ok(()),
    }
}

/// What attention and rotation are told of sequences that hold several documents each: for every
/// token the place in its sequence where its document begins. The documents of `length` tokens with
/// `before` others ahead of them must begin in order, and none after a token of its own.
pub(crate) fn check_documents(
    operation: &'static str,
    documents: &[i32],
    length: usize,
    before: usize,
) -> Result<()> {
    for (sequence, starts) in documents.chunks(length.max(1)).enumerate() {
        let mut least = 0;
        for (token, start) in starts.iter().enumerate() {
            let own = before + token;
            if *start < least || usize::try_from(*start).is_ok_and(|start| start > own) {
                return Err(Error::Invalid(format!(
                    "{operation}: the document of token {token} of sequence {sequence} begins at \
                     {start}, expected {least}..={own}"
                )));
            }
            least = *start;
        }
    }
    Ok(())
}

/// The first `expected` values of a slice.
pub(crate) fn prefix<'a, T>(
    operation: &'static str,
    tensor: &'static str,
    values: &'a [T],
    expected: usize,
) -> Result<&'a [T]> {
    values.get(..expected).ok_or(Error::Length {
        operation,
        tensor,
        expected,
        actual: values.len(),
    })
}

/// The first `expected` values of a mutable slice.
pub(crate) fn prefix_mut<'a, T>(
    operation: &'static str,
    tensor: &'static str,
    values: &'a mut [T],
    expected: usize,
) -> Result<&'a mut [T]> {
    let actual = values.len();
    values.get_mut(..expected).ok_or(Error::Length { operation, tensor, expected, actual })
}
