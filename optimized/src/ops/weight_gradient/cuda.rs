use super::{WeightGradient, WeightGradientArgs, in_two_steps};
use crate::cuda::{Argument, Compute, Cuda, Kernel, Launcher, Shape, Values, WEIGHT_GRADIENT};
use crate::error::Result;
use crate::ops::fake_quantize::{FakeQuantizeArgs, cuda as quantizer};
use crate::ops::fake_quantize_backward::{FakeQuantizeGradients, cuda as backward, factor};
use crate::ops::linear::cuda::Padded;

const NAME: &str = "weight_gradient";
/// Complaints carry the name of the step that reads the quantizer's tensors.
const COMPLAINS_AS: &str = "fake_quantize_backward";
/// By what the weight is stored as.
const WIDE: [&str; 3] =
    ["weight_gradient_128", "weight_gradient_128_of_bf16", "weight_gradient_128_of_f16"];
const NARROW: [&str; 3] =
    ["weight_gradient_32", "weight_gradient_32_of_bf16", "weight_gradient_32_of_f16"];
const ADD: Kernel = Kernel { module: &WEIGHT_GRADIENT, entry: "add_partial_sums" };

/// Rows of a tile, tokens of a step and threads of a block, as in products.cuh.
const TALL: usize = 128;
const TOKENS: usize = 32;
const THREADS: u32 = 256;

/// Ranks up to the first number go to the fused kernel with up to the second number of tokens;
/// all else takes two steps.
///
/// Reasoned, not measured. The two steps write, mask and read a weight of floats: about 24 bytes
/// per element, and the factors' products twice as many floats again. The fused kernel saves them,
/// but multiplies with the tensor-core instructions of every device since sm_80, which on Hopper
/// reach perhaps 0.55 of what the library gets from its own. Per element and at 4.3 TB/s,
/// 700 and 390 TFLOP/s: 24 B take 5.6 ps, and 2 * tokens FLOPs take 2.3 ps per 1000 tokens longer.
/// They meet near 2500 tokens; a long rank adds f32 work to a block that nothing else overlaps.
const FUSED: &[(usize, usize)] = &[(16, 2560), (64, 1024)];

fn is_fused(rank: usize, tokens: usize) -> bool {
    FUSED
        .iter()
        .any(|(most_rank, most_tokens)| rank <= *most_rank && (1..=*most_tokens).contains(&tokens))
}

/// How a weight is cut into tiles.
#[derive(Clone, Copy)]
struct Tiles {
    kernel: Kernel,
    down: usize,
    across: usize,
    columns: usize,
}

impl Tiles {
    fn of<L: Launcher>(args: &FakeQuantizeArgs<'_, Cuda<L>>) -> Self {
        let columns_of_a_thread = quantizer::columns_of_a_thread(args.spec);
        let entry = args.weight.choose(if columns_of_a_thread == 4 { WIDE } else { NARROW });
        Self {
            kernel: Kernel { module: &WEIGHT_GRADIENT, entry },
            down: args.out_features.div_ceil(TALL),
            across: quantizer::tiles_across(args.spec),
            columns: 32 * columns_of_a_thread,
        }
    }
}

impl<L: Launcher> WeightGradient for Cuda<L> {
    fn weight_gradient(
        &self,
        args: &FakeQuantizeArgs<'_, Self>,
        from: &WeightGradientArgs<'_, Values<L>>,
        d_weight: &mut Values<L>,
        gradients: FakeQuantizeGradients<'_, Values<L>>,
    ) -> Result<()> {
        let rank = args.low_rank.as_ref().map_or(0, |low_rank| low_rank.rank);
        if self.compute == Compute::F32 || !is_fused(rank, from.tokens) {
            return in_two_steps(self, args, from, d_weight, gradients);
        }
        let (out, width, tiles) = (args.out_features, args.spec.in_features(), Tiles::of(args));
        let (rows, padded_rows) = (from.tokens, from.tokens.next_multiple_of(TOKENS));
        let of_d_y = Padded { rows, columns: out, padded_rows, pitch: tiles.down * TALL };
        let pitch = tiles.across * tiles.columns;
        let of_x = Padded { rows, columns: width, padded_rows, pitch };
        let d_y = from.d_y.first(NAME, "d_y", rows * out)?;
        let x = from.x.first(NAME, "x", rows * width)?;
        let [left, right] = &self.rounded;
        self.with_rounded(left, d_y, of_d_y, |d_y| {
            self.with_rounded(right, x, of_x, |x| {
                let operands = Operands { d_y, x, steps: padded_rows / TOKENS };
                self.fused(args, from, tiles, operands, gradients)
            })
        })
    }
}

/// Both operands in whole tiles of bf16.
struct Operands<'a, B> {
    d_y: &'a B,
    x: &'a B,
    /// Of 32 tokens.
    steps: usize,
}

impl<L: Launcher> Cuda<L> {
    fn fused(
        &self,
        args: &FakeQuantizeArgs<'_, Self>,
        from: &WeightGradientArgs<'_, Values<L>>,
        tiles: Tiles,
        operands: Operands<'_, L::Buffer>,
        gradients: FakeQuantizeGradients<'_, Values<L>>,
    ) -> Result<()> {
        let (out, width, spec) = (args.out_features, args.spec.in_features(), args.spec);
        let rank = args.low_rank.as_ref().map_or(0, |low_rank| low_rank.rank);
        let wants_factors = rank > 0 && gradients.d_low_rank.is_some();
        let factors = tiles.down * rank * width + tiles.across * out * rank;
        let words = if wants_factors { factors.div_ceil(2) } else { 0 };
        self.workspace.with(&self.launcher, out * backward::parts(spec), |partial| {
            self.factors.with(&self.launcher, words, |factors| {
                let mut arguments = quantizer::quantizer_arguments(NAME, args)?;
                arguments.extend([
                    Argument::In(operands.d_y),
                    Argument::In(operands.x),
                    Argument::side(operands.steps),
                    Argument::Out(&mut *partial),
                    Argument::Out(&mut *factors),
                    Argument::U32(u32::from(wants_factors)),
                ]);
                let shape = Shape::line(tiles.down * tiles.across, THREADS);
                self.status.with(COMPLAINS_AS, |status, first| {
                    let mut arguments = arguments;
                    arguments.extend([Argument::Out(status), Argument::U32(first)]);
                    self.launcher.launch(tiles.kernel, shape, &mut arguments)
                })?;
                let FakeQuantizeGradients { d_scale, d_offset, d_low_rank } = gradients;
                let factor = factor(spec, from.grad_scale);
                self.group_gradients(args, partial, factor, (d_scale, d_offset))?;
                match (&args.low_rank, d_low_rank) {
                    (Some(low_rank), Some((d_lora_a, d_lora_b))) if wants_factors => {
                        let d_lora_a = d_lora_a.first_mut(NAME, "d_lora_a", rank * width)?;
                        let d_lora_b = d_lora_b.first_mut(NAME, "d_lora_b", out * rank)?;
                        let to = (d_lora_a, d_lora_b);
                        self.add_factors(
                            factors,
                            tiles,
                            (rank * width, out * rank),
                            low_rank.lora_scaling,
                            to,
                        )
                    }
                    _ => Ok(()),
                }
            })
        })
    }

    /// Adds the tiles' parts of both factors' gradients, of these lengths.
    fn add_factors(
        &self,
        factors: &L::Buffer,
        tiles: Tiles,
        (of_a, of_b): (usize, usize),
        lora_scaling: f32,
        (d_lora_a, d_lora_b): (&mut L::Buffer, &mut L::Buffer),
    ) -> Result<()> {
        let parts =
            [(d_lora_a, tiles.down, 0, of_a), (d_lora_b, tiles.across, tiles.down * of_a, of_b)];
        for (to, count, start, len) in parts {
            self.launcher.launch(
                ADD,
                Shape::elements(len),
                &mut [
                    Argument::In(factors),
                    Argument::Out(to),
                    Argument::F32(lora_scaling),
                    Argument::side(count),
                    Argument::U64(start as u64),
                    Argument::U64(len as u64),
                ],
            )?;
        }
        Ok(())
    }
}
