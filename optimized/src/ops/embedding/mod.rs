//! `embedding`: the row of each token. Eq. (N6).

mod cpu;
mod cuda;

use crate::backend::Storage;
use crate::error::{Error, Result};

/// Sizes of an embedding.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingShape {
    /// Token ids.
    pub tokens: usize,
    /// Rows of the table.
    pub vocab_size: usize,
    /// Columns of the table.
    pub hidden: usize,
}

/// Looks tokens up.
pub trait Embedding: Storage {
    /// `output[t,:] = table[tokens[t],:]`. Eq. (N6).
    ///
    /// # Shapes
    /// `tokens [tokens]`, `table [vocab_size, hidden]` -> `output [tokens, hidden]`
    ///
    /// # Errors
    /// `TokenOutOfRange`; `Length`.
    fn embedding(
        &self,
        shape: EmbeddingShape,
        tokens: &Self::Tokens,
        table: &Self::Floats,
        output: &mut Self::Floats,
    ) -> Result<()>;

    /// `d_table[tokens[t],:] += d_output[t,:]`, in ascending `t`. Eq. (N6b).
    ///
    /// # Shapes
    /// `tokens [tokens]`, `d_output [tokens, hidden]` -> `d_table [vocab_size, hidden]`
    ///
    /// # Errors
    /// `TokenOutOfRange`; `Length`.
    fn embedding_backward(
        &self,
        shape: EmbeddingShape,
        tokens: &Self::Tokens,
        d_output: &Self::Floats,
        d_table: &mut Self::Floats,
    ) -> Result<()>;
}

/// The row of the table that a token names.
pub(crate) fn table_row(token: i32, position: usize, vocab_size: usize) -> Result<usize> {
    usize::try_from(token).ok().filter(|row| *row < vocab_size).ok_or(Error::TokenOutOfRange {
        token: i64::from(token),
        position,
        vocab_size,
    })
}
