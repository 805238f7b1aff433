//! What the kernels' callers ask of a machine: buffers, launches, plain matrix products.
//!
//! There are two implementations: the driver of a GPU (`device`) and the interpreter of the same
//! compiled kernels (`host`). Everything above this trait is one code path, so that grids, argument
//! lists and shared-memory sizes are judged where there is no GPU.

use crate::error::{Error, Result};

/// A source file of kernels and what the pinned compiler made of it.
#[derive(Debug)]
pub struct Module {
    /// Name of the operation, of its folder and of its files.
    pub name: &'static str,
    /// The text of `<name>.cu`.
    pub source: &'static str,
    /// The text of `<name>.ptx`, which is what runs.
    pub ptx: &'static str,
}

/// One entry of a module.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// Where it stands.
    pub module: &'static Module,
    /// Its name there.
    pub entry: &'static str,
}

/// Sizes of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of shared memory beyond what the kernel declares itself.
    pub dynamic_shared: u32,
}

impl Shape {
    /// `blocks` blocks of `threads` threads in a row.
    pub fn line(blocks: usize, threads: u32) -> Self {
        let blocks = u32::try_from(blocks).expect("a grid has fewer than 2^32 blocks");
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], dynamic_shared: 0 }
    }

    /// One thread for each of `len` elements, or fewer threads that each take several.
    pub fn elements(len: usize) -> Self {
        Self::line(len.div_ceil(256).min(1 << 16), 256)
    }

    /// A block per row, of whole warps whose threads take four columns each, or `most` threads that
    /// take more.
    pub fn rows(rows: usize, columns: usize, most: u32) -> Self {
        let threads = columns.div_ceil(4).next_multiple_of(32).clamp(32, most as usize);
        Self::line(rows, threads as u32)
    }

    /// `columns` by `rows` blocks of `threads` threads in a row.
    pub fn plane(columns: usize, rows: usize, threads: u32) -> Self {
        let rows = u32::try_from(rows).expect("a grid has fewer than 2^32 blocks");
        let line = Self::line(columns, threads);
        Self { grid: [line.grid[0], rows, 1], ..line }
    }
}

/// One kernel argument, in the order of the kernel's parameters.
#[derive(Debug)]
pub enum Argument<'a, B> {
    /// A pointer that the kernel reads through and never writes through.
    In(&'a B),
    /// A pointer that it may read and write through. An operation in place passes its buffer once.
    Out(&'a mut B),
    /// A pointer to a table of pointers, for as many buffers as there are.
    Table(Vec<Pointer<'a, B>>),
    /// `unsigned`.
    U32(u32),
    /// `int`.
    I32(i32),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
    /// `double`.
    F64(f64),
}

/// A pointer in a table.
#[derive(Debug)]
pub enum Pointer<'a, B> {
    /// As [`Argument::In`].
    In(&'a B),
    /// As [`Argument::Out`].
    Out(&'a mut B),
}

impl<B> Argument<'_, B> {
    /// A side of a tensor, `unsigned`.
    pub(crate) fn side(size: usize) -> Self {
        Self::U32(u32::try_from(size).expect("a side of a tensor is below 2^32"))
    }
}

/// Type that the operands of a product are rounded to once; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// As they are.
    #[default]
    F32,
    /// To the nearest bf16, ties to even.
    Bf16,
}

impl Compute {
    /// Bytes of an operand's value.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// `out = multiplier * a @ b`, or added to `out`; every matrix is row-major and dense.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub columns: usize,
    /// Length of the sums.
    pub inner: usize,
    /// Whether `a` lies as `[inner, rows]`.
    pub a_transposed: bool,
    /// Whether `b` lies as `[columns, inner]`.
    pub b_transposed: bool,
    /// Factor on the product.
    pub multiplier: f32,
    /// Whether the old content of the result is added.
    pub add: bool,
    /// What `a` and `b` hold; the result is f32.
    pub operands: Compute,
}

/// That `len` bytes from `start` on lie in a buffer of `bytes`.
pub(super) fn inside(
    device: &'static str,
    operation: &str,
    start: usize,
    len: usize,
    bytes: usize,
) -> Result<()> {
    match start.checked_add(len) {
        Some(end) if end <= bytes => Ok(()),
        _ => {
            let reason = format!("{operation}: {len} bytes at byte {start} of a buffer of {bytes}");
            Err(Error::Device { device, reason })
        }
    }
}

/// A machine that runs kernels. Work is done in the order of the calls.
pub trait Launcher: Send + Sync + 'static {
    /// The name that `--device` and reports use.
    const NAME: &'static str;
    /// Memory of the machine.
    type Buffer: Send + Sync;

    /// A zeroed buffer of `len` elements of `element_bytes` (1, 2, 4 or 8) each.
    ///
    /// # Errors
    /// When there is no room.
    fn zeros(&self, len: usize, element_bytes: usize) -> Result<Self::Buffer>;

    /// Copies from byte `start` on to the host, after everything before it is done.
    ///
    /// # Errors
    /// When the range leaves the buffer, or an earlier launch failed.
    fn read(&self, buffer: &Self::Buffer, start: usize, bytes: &mut [u8]) -> Result<()>;

    /// Copies from the host to byte `start` on.
    ///
    /// # Errors
    /// When the range leaves the buffer.
    fn write(&self, bytes: &[u8], buffer: &mut Self::Buffer, start: usize) -> Result<()>;

    /// Copies `len` bytes between two buffers.
    ///
    /// # Errors
    /// When a range leaves its buffer.
    fn copy(
        &self,
        from: &Self::Buffer,
        from_start: usize,
        to: &mut Self::Buffer,
        to_start: usize,
        len: usize,
    ) -> Result<()>;

    /// Sets every byte to zero.
    ///
    /// # Errors
    /// When the machine failed.
    fn clear(&self, buffer: &mut Self::Buffer) -> Result<()>;

    /// Runs a kernel. An empty grid is nothing to do.
    ///
    /// # Errors
    /// When the kernel cannot be loaded, or broke a rule where the machine watches.
    fn launch(
        &self,
        kernel: Kernel,
        shape: Shape,
        arguments: &mut [Argument<'_, Self::Buffer>],
    ) -> Result<()>;

    /// A product of matrices with f32 sums, in an order that a rerun repeats.
    ///
    /// # Errors
    /// When a buffer is too short.
    fn product(
        &self,
        product: Product,
        a: &Self::Buffer,
        b: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<()>;
}
