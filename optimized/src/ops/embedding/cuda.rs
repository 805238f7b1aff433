use super::{Embedding, EmbeddingShape, table_row};
use crate::cuda::{Argument, Cuda, EMBEDDING, Ids, Kernel, Launcher, Shape, Values};
use crate::error::{Error, Result};

const FORWARD: Kernel = Kernel { module: &EMBEDDING, entry: "embedding" };
const BACKWARD: Kernel = Kernel { module: &EMBEDDING, entry: "embedding_backward" };

/// Threads of a block.
const THREADS: u32 = 256;

/// The first tokens, each of them a row of the table.
fn checked<'a, L: Launcher>(
    operation: &'static str,
    shape: EmbeddingShape,
    tokens: &'a Ids<L>,
) -> Result<&'a [i32]> {
    let (expected, actual) = (shape.tokens, tokens.host.len());
    let host = tokens.host.get(..expected);
    host.ok_or(Error::Length { operation, tensor: "tokens", expected, actual })
}

fn check_rows(shape: EmbeddingShape, tokens: &[i32]) -> Result<()> {
    tokens
        .iter()
        .enumerate()
        .try_for_each(|(position, token)| table_row(*token, position, shape.vocab_size).map(|_| ()))
}

/// The positions by token, those of one token ascending; after them, where each token's begin in
/// that list, and its end.
fn by_token(tokens: &[i32]) -> Vec<i32> {
    let mut positions: Vec<i32> = (0..tokens.len() as i32).collect();
    let token = |position: i32| tokens[position as usize];
    positions.sort_by_key(|position| token(*position));
    let begins = |k: &usize| *k == 0 || token(positions[*k]) != token(positions[*k - 1]);
    let starts: Vec<i32> = (0..tokens.len()).filter(begins).map(|k| k as i32).collect();
    positions.extend(starts);
    positions.push(tokens.len() as i32);
    positions
}

impl<L: Launcher> Embedding for Cuda<L> {
    fn embedding(
        &self,
        shape: EmbeddingShape,
        tokens: &Ids<L>,
        table: &Values<L>,
        output: &mut Values<L>,
    ) -> Result<()> {
        let EmbeddingShape { tokens: count, vocab_size, hidden } = shape;
        let host = checked("embedding", shape, tokens)?;
        let table = table.first("embedding", "table", vocab_size * hidden)?;
        let output = output.first_mut("embedding", "output", count * hidden)?;
        check_rows(shape, host)?;
        self.launcher.launch(
            FORWARD,
            Shape::line(count, THREADS),
            &mut [
                Argument::In(&tokens.values.buffer),
                Argument::In(table),
                Argument::Out(output),
                Argument::side(hidden),
            ],
        )
    }

    fn embedding_backward(
        &self,
        shape: EmbeddingShape,
        tokens: &Ids<L>,
        d_output: &Values<L>,
        d_table: &mut Values<L>,
    ) -> Result<()> {
        let EmbeddingShape { tokens: count, vocab_size, hidden } = shape;
        let host = checked("embedding_backward", shape, tokens)?;
        let d_output = d_output.first("embedding_backward", "d_output", count * hidden)?;
        let d_table = d_table.first_mut("embedding_backward", "d_table", vocab_size * hidden)?;
        check_rows(shape, host)?;
        let order = by_token(host);
        let rows = order.len() - 1 - count;
        // Room for as many rows as tokens, so that it does not grow with their variety.
        self.workspace.with(&self.launcher, count + 1, |at| {
            self.launcher.write(bytemuck::cast_slice(&order), at, 0)?;
            self.launcher.launch(
                BACKWARD,
                Shape::plane(rows, hidden.div_ceil(THREADS as usize), THREADS),
                &mut [
                    Argument::In(&tokens.values.buffer),
                    Argument::In(at),
                    Argument::In(d_output),
                    Argument::Out(d_table),
                    Argument::side(count),
                    Argument::side(hidden),
                ],
            )
        })
    }
}
