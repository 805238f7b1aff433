use super::{Embedding, EmbeddingShape, table_row};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::{prefix, prefix_mut};

impl Embedding for Cpu {
    fn embedding(
        &self,
        shape: EmbeddingShape,
        tokens: &Vec<i32>,
        table: &Vec<f32>,
        output: &mut Vec<f32>,
    ) -> Result<()> {
        let EmbeddingShape { tokens: count, vocab_size, hidden } = shape;
        let tokens = prefix("embedding", "tokens", tokens, count)?;
        let table = prefix("embedding", "table", table, vocab_size * hidden)?;
        let output = prefix_mut("embedding", "output", output, count * hidden)?;
        for (position, (token, y)) in tokens.iter().zip(output.chunks_exact_mut(hidden)).enumerate()
        {
            let row = table_row(*token, position, vocab_size)?;
            y.copy_from_slice(&table[row * hidden..][..hidden]);
        }
        Ok(())
    }

    fn embedding_backward(
        &self,
        shape: EmbeddingShape,
        tokens: &Vec<i32>,
        d_output: &Vec<f32>,
        d_table: &mut Vec<f32>,
    ) -> Result<()> {
        let EmbeddingShape { tokens: count, vocab_size, hidden } = shape;
        let tokens = prefix("embedding_backward", "tokens", tokens, count)?;
        let d_output = prefix("embedding_backward", "d_output", d_output, count * hidden)?;
        let d_table = prefix_mut("embedding_backward", "d_table", d_table, vocab_size * hidden)?;
        for (position, (token, d_y)) in tokens.iter().zip(d_output.chunks_exact(hidden)).enumerate()
        {
            let row = table_row(*token, position, vocab_size)?;
            for (d_row, d_y) in d_table[row * hidden..][..hidden].iter_mut().zip(d_y) {
                *d_row += d_y;
            }
        }
        Ok(())
    }
}
