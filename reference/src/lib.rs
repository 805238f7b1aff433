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
//! | Q18, Q19 | [`nf4`] | a codebook of 16 levels, and `absmax` in 8 bits |
//! | Q20 | `gptq`, with the feature `linalg` | columns rounded one after the other |
//! | A1 to A3 | [`lora`] | the low-rank update on its own |
//! | M1 to M3 | [`methods::l4q`] | L4Q: forward, backward, merge |
//! | N1, N2, N3 | [`linear`], [`rms_norm`], [`rope`] | the parts of a LLaMA |
//! | N4, N5 | [`attention`], [`swiglu`] | more of them |
//! | N6, N7 | [`embedding`], [`cross_entropy`] | its two ends |
//! | N8 | [`model`] | a whole LLaMA: loss and every gradient |
//! | T1 | [`adamw`] | one optimizer step |
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
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
#[cfg(feature = "linalg")]
pub mod gptq;
pub mod init_scale;
pub mod linear;
pub mod lora;
pub mod methods;
pub mod model;
pub mod nf4;
pub mod quantize;
pub mod rms_norm;
pub mod rope;
pub mod spec;
pub mod straight_through;
pub mod swiglu;

pub use error::Error;
pub use real::Real;
