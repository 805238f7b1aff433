//! The exact maths of quantization-aware low-rank fine-tuning, on the CPU, to be read.
//!
//! One numbered equation of `docs/spec.md` is one function here, written as the equation is
//! written: naive loops in a stated order, no threads, no saved state. Everything is generic over
//! [`Real`], so that the same lines give the f64 value that others are judged against and the f32
//! value whose codes every backend reproduces bit for bit.
//!
//! | equations | module | what |
//! |---|---|---|
//! | Q1 to Q4 | [`quantize`] | the grid; weights to codes and back |
//! | Q5 to Q7 | [`straight_through`] | gradients through the rounding |
//! | Q8 | [`init_scale`] | scale and offset before training |
//! | Q9, Q10 | [`cast`], [`pack`] | narrow floats, codes in bytes |
//! | Q11, Q12 | [`affine`] | unsigned grids with a zero point |
//! | Q13 | [`rtn`] | round to nearest, and the search of a range |
//! | Q14, Q15 | [`dynamic_quantize`] | activations, on a grid of each token's own |
//! | Q16, Q17 | [`lwc`] | a learned clipping of the range of a weight |
//! | Q18, Q19 | [`nf4`] | the NF4 codebook, and its block scales quantized again |
//! | Q20 | `gptq` | GPTQ, with the feature `linalg` |
//! | Q21, Q22 | [`awq`] | AWQ's searches of channel scales and of clipping |
//! | Q23 | [`round_scale`] | a scale as a format can hold it |
//! | Q18, Q19 | [`nf4`] | a codebook of 16 levels, and `absmax` in 8 bits |
//! | Q20 | `gptq`, with the feature `linalg` | columns rounded one after the other |
//! | A1 to A3 | [`lora`] | the low-rank update on its own |
//! | A4, A5 | `low_rank_init` | SVD and LoftQ starts, with the feature `linalg` |
//! | M1 to M3 | [`methods::l4q`] | L4Q: forward, backward, merge |
//! | M4 to M7 | [`methods::lr_qat`] | LR-QAT: downcast, forward, backward, merge |
//! | M8 to M10 | [`methods::qa_lora`] | QA-LoRA: forward, backward, merge |
//! | M11, M12 | [`methods::qat`] | full-model quantization-aware training |
//! | M13, M14 | [`methods::qat_lora`] | a quantized weight with the update beside it |
//! | M15, M16 | [`methods::peqa`] | PEQA: forward, backward |
//! | N1, N2, N3 | [`linear`], [`rms_norm`], [`rope`] | the parts of a LLaMA |
//! | N4, N5 | [`attention`], [`swiglu`] | more of them |
//! | N6, N7 | [`embedding`], [`cross_entropy`] | its two ends |
//! | N8 | [`model`] | a whole LLaMA: loss and every gradient |
//! | T1 | [`adamw`] | one optimizer step |
//! | T2 | [`model::train`] | a whole LLaMA, trained by any of the methods |
//!
//! Every operation refuses tensors of the wrong shape and values that are not finite, by name, and
//! never returns a value that is not finite: an overflow is an [`Error`] that names the result.
//!
//! # Example
//! ```
//! use ndarray::array;
//! use plumbline_reference::quantize::fake_quantize;
//! use plumbline_reference::spec::{Bits, QuantSpec};
//!
//! let spec = QuantSpec::new(Bits::new(4)?, None, 3)?;
//! let weight = array![[1.25, -0.5, 9.0]];
//! let quantized = fake_quantize(
//!     weight.view(),
//!     array![[0.5]].view(),
//!     array![[0.0]].view(),
//!     &spec,
//! )?;
//! assert_eq!(quantized.codes, array![[2, -1, 7]]);
//! assert_eq!(quantized.output, array![[1.0, -0.5, 3.5]]);
//! # Ok::<(), plumbline_reference::Error>(())
//! ```
#![forbid(unsafe_code)]

mod check;
mod error;
mod real;

pub mod adamw;
pub mod affine;
pub mod attention;
pub mod awq;
pub mod cast;
pub mod cross_entropy;
pub mod dynamic_quantize;
pub mod embedding;
#[cfg(feature = "linalg")]
pub mod gptq;
pub mod init_scale;
pub mod linear;
pub mod lora;
#[cfg(feature = "linalg")]
pub mod low_rank_init;
pub mod lwc;
pub mod methods;
pub mod model;
pub mod nf4;
pub mod pack;
pub mod quantize;
pub mod rms_norm;
pub mod rope;
pub mod round_scale;
pub mod rtn;
pub mod spec;
pub mod straight_through;
pub mod swiglu;

pub use error::Error;
pub use real::Real;
