//! What kernels found wrong, told to the host without waiting for them.
//!
//! A kernel that meets a number which is not finite, or a zero point that is no code, leaves a word in a buffer that all kernels
//! share; the host looks at it where it waits for the device anyway. The smallest word stays, so
//! that the same run always names the same element.

use std::sync::Mutex;

use super::launch::Launcher;
use crate::error::{Error, Result};

/// Tensors that a kernel can complain of, by operation. The place of a row times [`TENSORS`] plus
/// the place of a name is the code that the kernel is given or adds up to.
const OPERATIONS: &[(&str, [&str; TENSORS])] = &[
    ("affine_dequantize", ["scale", "zero_point", "output", "", "", "", "", ""]),
    ("affine_quantize", ["weight", "scale", "", "", "", "", "", ""]),
    ("dynamic_quantize", DYNAMIC),
    ("dynamic_quantize_backward", DYNAMIC),
    ("fake_quantize", QUANTIZER),
    ("fake_quantize_backward", QUANTIZER),
    ("init_scale", ["weight", "", "", "", "", "", "", ""]),
    ("lr_qat_quantize", LR_QAT),
    ("lr_qat_quantize_backward", LR_QAT),
    ("nf4_dequantize", ["output", "", "", "", "", "", "", ""]),
    ("round_scale", ["scale", "", "", "", "", "", "", ""]),
    ("rtn", ["weight", "scale", "", "", "", "", "", ""]),
];

const DYNAMIC: [&str; TENSORS] = ["x", "scale", "output", "", "", "", "", ""];

const QUANTIZER: [&str; TENSORS] =
    ["scale", "offset", "weight", "lora_a", "lora_b", "quantizer argument", "output", ""];

/// In the places of the quantizer's.
const LR_QAT: [&str; TENSORS] =
    ["scale", "zero_point", "weight", "lora_a", "lora_b", "argument", "output", ""];

/// Tensors of one operation.
const TENSORS: usize = 8;

/// No complaint.
const CLEAN: u64 = u64::MAX;

/// The shared word.
pub struct Status<L: Launcher> {
    word: Mutex<L::Buffer>,
}

impl<L: Launcher> Status<L> {
    pub(super) fn new(launcher: &L) -> Result<Self> {
        let mut word = launcher.zeros(1, 8)?;
        launcher.write(&CLEAN.to_le_bytes(), &mut word, 0)?;
        Ok(Self { word: Mutex::new(word) })
    }

    /// Runs `launch` with the word's buffer, and the code of the operation's first tensor.
    pub(crate) fn with<R>(
        &self,
        operation: &'static str,
        launch: impl FnOnce(&mut L::Buffer, u32) -> R,
    ) -> R {
        let row = OPERATIONS.iter().position(|(name, _)| *name == operation);
        let row = row.expect("every operation that complains stands in the table");
        launch(&mut self.word.lock().expect("no launch panics"), (row * TENSORS) as u32)
    }

    /// Runs `launch` with the word's buffer, for a kernel that is to see whether one before it
    /// complained.
    pub(crate) fn seen_by<R>(&self, launch: impl FnOnce(&L::Buffer) -> R) -> R {
        launch(&self.word.lock().expect("no launch panics"))
    }

    /// Copies the word to byte `start` of a buffer, to be read together with it and then judged.
    pub(super) fn copy(&self, launcher: &L, to: &mut L::Buffer, start: usize) -> Result<()> {
        launcher.copy(&self.word.lock().expect("no launch panics"), 0, to, start, 8)
    }

    /// Reads the word and judges it.
    ///
    /// # Errors
    /// As [`Status::judge`].
    pub(super) fn look(&self, launcher: &L) -> Result<()> {
        let mut bytes = [0; 8];
        launcher.read(&self.word.lock().expect("no launch panics"), 0, &mut bytes)?;
        self.judge(launcher, u64::from_le_bytes(bytes))
    }

    /// What the word says, which was read since the last judgement; the next one begins clean.
    ///
    /// # Errors
    /// `NonFinite` naming operation and tensor; `Invalid` for a zero point that is no code.
    pub(super) fn judge(&self, launcher: &L, word: u64) -> Result<()> {
        if word == CLEAN {
            return Ok(());
        }
        let mut buffer = self.word.lock().expect("no launch panics");
        launcher.write(&CLEAN.to_le_bytes(), &mut buffer, 0)?;
        // As `complain` of kernels.cuh packs it.
        let (code, index, kind) = ((word >> 48) as usize, (word << 16 >> 18) as usize, word & 3);
        let (operation, tensors) = OPERATIONS[code / TENSORS];
        let tensor = format!("{operation}: {}", tensors[code % TENSORS]);
        Err(match [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].get(kind as usize) {
            Some(&value) => Error::NonFinite { tensor, index, value },
            None => {
                Error::Invalid(format!("{tensor} is no code of its grid at flat index {index}"))
            }
        })
    }
}
