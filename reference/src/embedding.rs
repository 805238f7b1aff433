//! Token embeddings.

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};

use crate::{Error, Real, check};

/// The table row of a token, if there is one.
fn row_of(
    operation: &'static str,
    index: &[usize],
    token: i32,
    vocab_size: usize,
) -> Result<usize, Error> {
    usize::try_from(token).ok().filter(|&row| row < vocab_size).ok_or_else(|| {
        Error::TokenOutOfRange {
            operation,
            index: index.to_vec(),
            token: i64::from(token),
            vocab_size,
        }
    })
}

/// Looks tokens up. Eq. (N6a).
///
/// ```text
/// output[b,t,:] = table[tokens[b,t],:]
/// ```
///
/// # Shapes
/// `tokens [batch, length]`, `table [vocab, hidden]` -> `[batch, length, hidden]`
///
/// # Errors
/// `NonFinite`, `TokenOutOfRange`.
pub fn embedding<T: Real>(
    tokens: ArrayView2<i32>,
    table: ArrayView2<T>,
) -> Result<Array3<T>, Error> {
    const OPERATION: &str = "embedding";
    check::finite(OPERATION, "table", &table)?;
    let (batch, length) = tokens.dim();
    let (vocab_size, hidden) = table.dim();
    let mut output = Array3::zeros((batch, length, hidden));
    for ((b, t), &token) in tokens.indexed_iter() {
        let row = row_of(OPERATION, &[b, t], token, vocab_size)?;
        output.index_axis_mut(Axis(0), b).row_mut(t).assign(&table.row(row));
    }
    Ok(output)
}

/// Gradient of the table: each row collects its occurrences, in ascending `b`, then `t`. Eq. (N6b).
///
/// ```text
/// d_table[w,:] = sum_((b,t) with tokens[b,t] = w) d_output[b,t,:]
/// ```
///
/// # Shapes
/// `tokens [batch, length]`, `d_output [batch, length, hidden]` -> `[vocab, hidden]`
///
/// # Errors
/// `Shape`, `NonFinite`, `TokenOutOfRange`.
pub fn embedding_backward<T: Real>(
    tokens: ArrayView2<i32>,
    d_output: ArrayView3<T>,
    vocab: usize,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "embedding_backward";
    let (batch, length) = tokens.dim();
    let hidden = d_output.dim().2;
    check::input(OPERATION, "d_output", &d_output, &[batch, length, hidden])?;
    let mut d_table = Array2::zeros((vocab, hidden));
    for ((b, t), &token) in tokens.indexed_iter() {
        let row = row_of(OPERATION, &[b, t], token, vocab)?;
        let mut d_row = d_table.row_mut(row);
        d_row += &d_output.index_axis(Axis(0), b).row(t);
    }
    check::result(OPERATION, "d_table", d_table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn example_of_n6() {
        let (tokens, table) = (array![[1, 0, 1]], array![[1.0], [5.0]]);
        let output = embedding(tokens.view(), table.view()).unwrap();
        assert_eq!(output, array![[[5.0], [1.0], [5.0]]]);
        let d_output = array![[[1.0], [2.0], [4.0]]];
        let d_table = embedding_backward(tokens.view(), d_output.view(), 2).unwrap();
        assert_eq!(d_table, array![[2.0], [5.0]]);
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused_with_its_place() {
        let table = array![[1.0], [5.0]];
        let refused = embedding(array![[0, 2]].view(), table.view()).unwrap_err();
        assert_eq!(refused.to_string(), "embedding: token 2 at [0, 1], expected 0 to 2 exclusive");
        assert!(embedding(array![[-1]].view(), table.view()).is_err());
        assert!(embedding_backward(array![[2]].view(), array![[[1.0]]].view(), 2).is_err());
    }
}
