//! The CUDA backend. [`Cuda`] is generic over the machine that runs its kernels: the driver of a
//! GPU, or an interpreter of the same compiled kernels.

pub mod compile;
mod device;
mod host;
mod interpreter;
mod launch;
mod modules;
mod status;
mod workspace;

pub use device::Gpu;
pub use host::Interpreter;
pub use interpreter::Buffer as HostBuffer;
pub use launch::{Argument, Compute, Kernel, Launcher, Module, Pointer, Product, Shape};
pub use modules::MODULES;
pub(crate) use modules::*;

use half::bf16;

use crate::backend::{Backend, Storage};
use crate::error::{Error, Result};
use status::Status;
pub(crate) use workspace::Workspace;

/// A backend whose operations are CUDA kernels.
pub struct Cuda<L: Launcher> {
    pub(crate) launcher: L,
    pub(crate) status: Status<L>,
    pub(crate) workspace: Workspace<L>,
    pub(crate) compute: Compute,
    /// Either operand of a product, rounded.
    pub(crate) rounded: [Workspace<L>; 2],
    /// The parts that tiles of a weight have in the gradients of low-rank factors.
    pub(crate) factors: Workspace<L>,
}

/// The backend whose kernels the interpreter runs.
pub type Host = Cuda<Interpreter>;

/// A buffer and the number of its elements.
pub struct Values<L: Launcher> {
    pub(crate) buffer: L::Buffer,
    len: usize,
    /// `Bf16` for what [`Storage::operand`] allocated and the backend rounds; `F32` for all else.
    stored: Compute,
}

impl<L: Launcher> Values<L> {
    /// The buffer, when it holds at least `expected` elements.
    pub(crate) fn first(
        &self,
        operation: &'static str,
        tensor: &'static str,
        expected: usize,
    ) -> Result<&L::Buffer> {
        self.holds(operation, tensor, expected)?;
        Ok(&self.buffer)
    }

    /// The same, to be written to.
    pub(crate) fn first_mut(
        &mut self,
        operation: &'static str,
        tensor: &'static str,
        expected: usize,
    ) -> Result<&mut L::Buffer> {
        self.holds(operation, tensor, expected)?;
        Ok(&mut self.buffer)
    }

    fn holds(&self, operation: &'static str, tensor: &'static str, expected: usize) -> Result<()> {
        if self.stored == Compute::Bf16 {
            return Err(Error::Invalid(format!(
                "{operation}: {tensor} is the rounded operand of a product, expected f32 values"
            )));
        }
        self.long_enough(operation, tensor, expected)
    }

    fn long_enough(
        &self,
        operation: &'static str,
        tensor: &'static str,
        expected: usize,
    ) -> Result<()> {
        if self.len < expected {
            return Err(Error::Length { operation, tensor, expected, actual: self.len });
        }
        Ok(())
    }

    /// The buffer and what it holds, where a rounded operand is as good as f32 values.
    pub(crate) fn operand(
        &self,
        operation: &'static str,
        tensor: &'static str,
        expected: usize,
    ) -> Result<(&L::Buffer, Compute)> {
        self.long_enough(operation, tensor, expected)?;
        Ok((&self.buffer, self.stored))
    }

    /// The same, to be written to.
    pub(crate) fn operand_mut(
        &mut self,
        operation: &'static str,
        tensor: &'static str,
        expected: usize,
    ) -> Result<(&mut L::Buffer, Compute)> {
        self.long_enough(operation, tensor, expected)?;
        Ok((&mut self.buffer, self.stored))
    }
}

/// Token ids, on the device and on the host.
pub struct Ids<L: Launcher> {
    pub(crate) values: Values<L>,
    /// The ids again: what is wrong with one is said before a kernel sees it.
    pub(crate) host: Vec<i32>,
}

/// Sums in f64, and after the last of them room for the complaint that is read with them.
pub struct Sums<L: Launcher> {
    buffer: L::Buffer,
    len: usize,
}

impl<L: Launcher> Sums<L> {
    /// The buffer, when it has this slot.
    pub(crate) fn with_slot(&self, operation: &'static str, slot: usize) -> Result<&L::Buffer> {
        self.has(operation, slot)?;
        Ok(&self.buffer)
    }

    /// The same, to be written to.
    pub(crate) fn with_slot_mut(
        &mut self,
        operation: &'static str,
        slot: usize,
    ) -> Result<&mut L::Buffer> {
        self.has(operation, slot)?;
        Ok(&mut self.buffer)
    }

    fn has(&self, operation: &'static str, slot: usize) -> Result<()> {
        if slot >= self.len {
            let (expected, actual) = (slot + 1, self.len);
            return Err(Error::Length { operation, tensor: "sums", expected, actual });
        }
        Ok(())
    }
}

impl<L: Launcher> Cuda<L> {
    /// The backend on this machine; products are of f32.
    ///
    /// # Errors
    /// When the machine has no room for a word.
    pub fn new(launcher: L) -> Result<Self> {
        Self::with_compute(launcher, Compute::F32)
    }

    /// The same; the operands of every product of a linear layer are rounded as `compute` says, and
    /// those of attention where heads are 64 or 128 wide and a key head has more than 16 queries.
    /// Parameters, gradients and activations in memory stay f32.
    ///
    /// # Errors
    /// When the machine has no room for a word.
    pub fn with_compute(launcher: L, compute: Compute) -> Result<Self> {
        let status = Status::new(&launcher)?;
        let rounded = [Workspace::new(2), Workspace::new(2)];
        let (workspace, factors) = (Workspace::new(4), Workspace::new(4));
        Ok(Self { status, workspace, compute, rounded, factors, launcher })
    }

    /// Bytes of the memory that the kernels of one call hand on to each other: as much as the
    /// largest call so far needed.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    /// The machine.
    pub fn launcher(&self) -> &L {
        &self.launcher
    }

    pub(crate) fn uploaded(&self, bytes: &[u8], element_bytes: usize) -> Result<Values<L>> {
        let len = bytes.len() / element_bytes;
        let mut buffer = self.launcher.zeros(len, element_bytes)?;
        self.launcher.write(bytes, &mut buffer, 0)?;
        Ok(Values { buffer, len, stored: Compute::F32 })
    }

    /// Waits, and returns values once no kernel has complained.
    pub(crate) fn downloaded<T: bytemuck::Pod>(
        &self,
        buffer: &L::Buffer,
        len: usize,
    ) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); len];
        self.launcher.read(buffer, 0, bytemuck::cast_slice_mut(&mut values))?;
        self.status.look(&self.launcher)?;
        Ok(values)
    }
}

impl<L: Launcher> Storage for Cuda<L> {
    type Floats = Values<L>;
    type Codes = Values<L>;
    type Halves = Values<L>;
    type Tokens = Ids<L>;
    type Sums = Sums<L>;

    fn zeros(&self, len: usize) -> Result<Values<L>> {
        Ok(Values { buffer: self.launcher.zeros(len, 4)?, len, stored: Compute::F32 })
    }

    fn operand(&self, len: usize) -> Result<Values<L>> {
        let stored = self.compute;
        Ok(Values { buffer: self.launcher.zeros(len, stored.bytes())?, len, stored })
    }

    fn operand_bytes(&self) -> usize {
        self.compute.bytes()
    }

    fn upload(&self, values: &[f32]) -> Result<Values<L>> {
        self.uploaded(bytemuck::cast_slice(values), 4)
    }

    fn download(&self, buffer: &Values<L>, len: usize) -> Result<Vec<f32>> {
        let (from, stored) = buffer.operand("download", "buffer", len)?;
        match stored {
            Compute::F32 => self.downloaded(from, len),
            Compute::Bf16 => {
                let values = self.downloaded::<bf16>(from, len)?;
                Ok(values.into_iter().map(bf16::to_f32).collect())
            }
        }
    }

    fn write(&self, values: &[f32], buffer: &mut Values<L>) -> Result<()> {
        let to = buffer.first_mut("write", "buffer", values.len())?;
        self.launcher.write(bytemuck::cast_slice(values), to, 0)
    }

    fn copy(
        &self,
        from: &Values<L>,
        from_start: usize,
        to: &mut Values<L>,
        to_start: usize,
        len: usize,
    ) -> Result<()> {
        let from = from.first("copy", "from", from_start + len)?;
        let to = to.first_mut("copy", "to", to_start + len)?;
        self.launcher.copy(from, 4 * from_start, to, 4 * to_start, 4 * len)
    }

    fn clear(&self, buffer: &mut Values<L>) -> Result<()> {
        self.launcher.clear(&mut buffer.buffer)
    }

    fn zero_codes(&self, len: usize) -> Result<Values<L>> {
        Ok(Values { buffer: self.launcher.zeros(len, 1)?, len, stored: Compute::F32 })
    }

    fn upload_codes(&self, codes: &[i8]) -> Result<Values<L>> {
        self.uploaded(bytemuck::cast_slice(codes), 1)
    }

    fn download_codes(&self, codes: &Values<L>) -> Result<Vec<i8>> {
        self.downloaded(&codes.buffer, codes.len)
    }

    fn upload_halves(&self, halves: &[u16]) -> Result<Values<L>> {
        self.uploaded(bytemuck::cast_slice(halves), 2)
    }

    fn download_halves(&self, halves: &Values<L>, len: usize) -> Result<Vec<u16>> {
        self.downloaded(halves.first("download_halves", "halves", len)?, len)
    }

    fn write_halves(&self, halves: &[u16], buffer: &mut Values<L>) -> Result<()> {
        let to = buffer.first_mut("write_halves", "buffer", halves.len())?;
        self.launcher.write(bytemuck::cast_slice(halves), to, 0)
    }

    fn upload_tokens(&self, tokens: &[i32]) -> Result<Ids<L>> {
        let values = self.uploaded(bytemuck::cast_slice(tokens), 4)?;
        Ok(Ids { values, host: tokens.to_vec() })
    }

    fn write_tokens(&self, tokens: &[i32], buffer: &mut Ids<L>) -> Result<()> {
        let to = buffer.values.first_mut("write_tokens", "buffer", tokens.len())?;
        self.launcher.write(bytemuck::cast_slice(tokens), to, 0)?;
        buffer.host[..tokens.len()].copy_from_slice(tokens);
        Ok(())
    }

    fn upload_sums(&self, sums: &[f64]) -> Result<Sums<L>> {
        let mut buffer = self.launcher.zeros(sums.len() + 1, 8)?;
        self.launcher.write(bytemuck::cast_slice(sums), &mut buffer, 0)?;
        Ok(Sums { buffer, len: sums.len() })
    }

    fn clear_sums(&self, sums: &mut Sums<L>) -> Result<()> {
        self.launcher.clear(&mut sums.buffer)
    }

    fn read_sums(&self, sums: &mut Sums<L>) -> Result<Vec<f64>> {
        self.status.copy(&self.launcher, &mut sums.buffer, 8 * sums.len)?;
        let mut values = vec![0f64; sums.len + 1];
        self.launcher.read(&sums.buffer, 0, bytemuck::cast_slice_mut(&mut values))?;
        let complaint = values.pop().expect("there is one more than sums").to_bits();
        self.status.judge(&self.launcher, complaint)?;
        Ok(values)
    }
}

impl<L: Launcher> Backend for Cuda<L> {
    const NAME: &'static str = L::NAME;
}
