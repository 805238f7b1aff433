//! The interpreter as a machine that runs kernels, for where there is no GPU.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use half::bf16;

use super::interpreter::{Buffer, Machine};
use super::launch::{Argument, Compute, Kernel, Launcher, Module, Product, Shape, inside};
use crate::cpu::gemm::{self, Matrix, Threads};
use crate::error::{Error, Result};

/// Runs compiled kernels on the host, with every access checked: `docs/interpreter.md`.
pub struct Interpreter {
    machine: Machine,
    replaced: Option<&'static Module>,
    launched: Mutex<BTreeSet<(&'static str, &'static str)>>,
    reads: AtomicU64,
    allocations: AtomicU64,
    bytes: Arc<AtomicU64>,
}

impl Default for Interpreter {
    fn default() -> Self {
        Self::new()
    }
}

impl Interpreter {
    /// Runs every launch once.
    pub fn new() -> Self {
        Self::with_orders(1)
    }

    /// Runs every launch in `orders` orders of its blocks and warps; they must agree in every bit.
    pub fn with_orders(orders: usize) -> Self {
        Self {
            machine: Machine::new(orders),
            replaced: None,
            launched: Mutex::default(),
            reads: AtomicU64::default(),
            allocations: AtomicU64::default(),
            bytes: Arc::default(),
        }
    }

    /// Replaces the number of instructions after which a warp is taken to loop for ever.
    #[must_use]
    pub fn budget(mut self, instructions: u64) -> Self {
        self.machine.set_budget(instructions);
        self
    }

    /// Runs this module's kernels in place of those of its name: for faults that a judge has to
    /// notice. Kernels that it lacks run as they are.
    #[must_use]
    pub fn replacing(mut self, module: &'static Module) -> Self {
        self.replaced = Some(module);
        self
    }

    /// Module and entry of every kernel launched so far.
    pub fn launched(&self) -> BTreeSet<(&'static str, &'static str)> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Copies to the host so far: each of them would wait for a device.
    pub fn reads(&self) -> u64 {
        self.reads.load(Relaxed)
    }

    /// Buffers made so far.
    pub fn allocations(&self) -> u64 {
        self.allocations.load(Relaxed)
    }

    /// Bytes of the buffers that exist.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Instructions executed so far, counted once for each warp.
    pub fn instructions(&self) -> u64 {
        self.machine.instructions()
    }
}

impl Launcher for Interpreter {
    const NAME: &'static str = "cuda-host";
    type Buffer = Buffer;

    fn zeros(&self, len: usize, element_bytes: usize) -> Result<Buffer> {
        self.allocations.fetch_add(1, Relaxed);
        Ok(Buffer::zeros(len, element_bytes).counted(self.bytes.clone()))
    }

    fn read(&self, buffer: &Buffer, start: usize, bytes: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Relaxed);
        inside(Self::NAME, "read", start, bytes.len(), buffer.bytes())?;
        buffer.read(start, bytes);
        Ok(())
    }

    fn write(&self, bytes: &[u8], buffer: &mut Buffer, start: usize) -> Result<()> {
        inside(Self::NAME, "write", start, bytes.len(), buffer.bytes())?;
        buffer.write(start, bytes);
        Ok(())
    }

    fn copy(
        &self,
        from: &Buffer,
        from_start: usize,
        to: &mut Buffer,
        to_start: usize,
        len: usize,
    ) -> Result<()> {
        inside(Self::NAME, "copy from", from_start, len, from.bytes())?;
        inside(Self::NAME, "copy to", to_start, len, to.bytes())?;
        let mut bytes = vec![0; len];
        from.read(from_start, &mut bytes);
        to.write(to_start, &bytes);
        Ok(())
    }

    fn clear(&self, buffer: &mut Buffer) -> Result<()> {
        let zeros = vec![0; buffer.bytes()];
        buffer.write(0, &zeros);
        Ok(())
    }

    fn launch(
        &self,
        kernel: Kernel,
        shape: Shape,
        arguments: &mut [Argument<'_, Buffer>],
    ) -> Result<()> {
        let launched = (kernel.module.name, kernel.entry);
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).insert(launched);
        let replaced = self.replaced.filter(|module| {
            module.name == kernel.module.name
                && module.ptx.contains(&format!(".entry {}(", kernel.entry))
        });
        let kernel = Kernel { module: replaced.unwrap_or(kernel.module), ..kernel };
        self.machine
            .launch(kernel, shape, arguments)
            .map_err(|message| Error::Kernel { kernel: kernel.entry, message })
    }

    fn product(&self, product: Product, a: &Buffer, b: &Buffer, out: &mut Buffer) -> Result<()> {
        let Product { rows, columns, inner, a_transposed, b_transposed, multiplier, add, operands } =
            product;
        let a = operand(a, "a", rows * inner, operands)?;
        let b = operand(b, "b", inner * columns, operands)?;
        let mut sums = operand(out, "out", rows * columns, Compute::F32)?;
        let left = match a_transposed {
            false => Matrix::new(&a, rows, inner),
            true => Matrix::new(&a, inner, rows).t(),
        };
        let right = match b_transposed {
            false => Matrix::new(&b, inner, columns),
            true => Matrix::new(&b, columns, inner).t(),
        };
        gemm::product(&mut sums, columns, left, right, multiplier, add, Threads::Pool);
        out.write(0, bytemuck::cast_slice(&sums));
        Ok(())
    }
}

/// The first `len` values of a buffer, as f32.
fn operand(buffer: &Buffer, tensor: &'static str, len: usize, stored: Compute) -> Result<Vec<f32>> {
    let actual = buffer.bytes() / stored.bytes();
    if actual < len {
        return Err(Error::Length { operation: "product", tensor, expected: len, actual });
    }
    let mut values = vec![0f32; len];
    match stored {
        Compute::F32 => buffer.read(0, bytemuck::cast_slice_mut(&mut values)),
        Compute::Bf16 => {
            let mut halves = vec![bf16::ZERO; len];
            buffer.read(0, bytemuck::cast_slice_mut(&mut halves));
            for (value, half) in values.iter_mut().zip(halves) {
                *value = half.to_f32();
            }
        }
    }
    Ok(values)
}
