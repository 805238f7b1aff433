//! Weights in 4-bit codes of a table.

use plumbline::backend::Storage;
use plumbline::cpu::Cpu;
use plumbline::error::Result;
use plumbline::ops::nf4::{Nf4, Nf4Weight};
use plumbline_reference::spec::BlockSize;

use crate::cuda;
use crate::numbers::{bits, floats, random};

/// `(len, block_size)`: one element; odd lengths and odd blocks, so that codes begin in either half
/// of a byte; by fours with a short last block; a block longer than all; more blocks than share a
/// scale; more elements than a block of threads takes.
const SIZES: &[(usize, usize)] =
    &[(1, 64), (15, 4), (130, 3), (24, 64), (332, 64), (60, 8), (1200, 1), (1204, 4), (5000, 64)];

fn weight(len: usize, block_size: usize, double_quantize: bool) -> Nf4Weight<Cpu> {
    let mut weight = floats(&mut random(len as u64), len, 1.0);
    // Blocks of very different size, and one of zeros.
    for (block, weight) in weight.chunks_mut(block_size).enumerate() {
        let unit = [1.0, 0.01, 3.0, 0.0][block % 4];
        weight.iter_mut().for_each(|w| *w *= unit);
    }
    Nf4Weight::quantize(&weight, BlockSize::new(block_size).unwrap(), double_quantize).unwrap()
}

fn output<B: Nf4 + Storage>(backend: &B, weight: &Nf4Weight<Cpu>, room: usize) -> Result<Vec<f32>> {
    let mut output = backend.upload(&vec![9.0; room])?;
    backend.nf4_dequantize(&weight.upload(backend)?, &mut output)?;
    backend.download(&output, room)
}

#[test]
fn weights_have_the_bits_of_the_cpu() {
    for (len, block_size) in SIZES {
        for double_quantize in [false, true] {
            let weight = weight(*len, *block_size, double_quantize);
            // The buffer is larger, as shared scratch memory is.
            let expected = output(&Cpu, &weight, len + 5).unwrap();
            let actual = output(&cuda(), &weight, len + 5).unwrap();
            assert_eq!(bits(&actual), bits(&expected), "{len} {block_size} {double_quantize}");
            assert_eq!(expected[*len..], [9.0; 5]);
        }
    }
}

#[test]
fn the_weights_reach_every_level_and_both_signs_of_a_magnitude() {
    let weight = weight(1200, 1, true);
    let stored = weight.double_absmax().unwrap();
    assert!(stored.scale.len() > 4);
    assert!(weight.absmax().iter().any(|absmax| *absmax < 0.0), "far below the mean");
    let codes = self::weight(5000, 64, false).codes();
    assert!((0..16).all(|code| codes.contains(&code)));
}

#[test]
fn a_short_buffer_is_refused_as_on_the_cpu() {
    let weight = weight(332, 64, true);
    let expected = output(&Cpu, &weight, 331).unwrap_err().to_string();
    assert!(expected.contains("nf4_dequantize: output"), "{expected}");
    assert_eq!(output(&cuda(), &weight, 331).unwrap_err().to_string(), expected);
}
