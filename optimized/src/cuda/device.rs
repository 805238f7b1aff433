#![allow(unsafe_code)] // launches and the matrix-product library; reasons at the calls

//! A GPU: buffers, launches and products through its driver.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use cudarc::cublas::result::gemm_ex;
use cudarc::cublas::sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
use cudarc::cublas::sys::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT;
use cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
use cudarc::cublas::sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
use cudarc::cublas::{CudaBlas, Gemm, GemmConfig};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DevicePtrMut,
    LaunchConfig, PushKernelArg,
};

use super::launch::{Argument, Compute, Kernel, Launcher, Module, Pointer, Product, Shape, inside};
use crate::error::{Error, Result};

/// One GPU. Everything runs in the order of the calls, on one stream.
pub struct Gpu {
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    loaded: Mutex<Loaded>,
}

/// What was loaded so far, by names.
#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<(&'static str, &'static str), CudaFunction>,
}

fn failed(action: &str) -> impl FnOnce(cudarc::driver::DriverError) -> Error {
    let action = action.to_owned();
    move |cause| Error::Device { device: Gpu::NAME, reason: format!("cannot {action}: {cause}") }
}

fn missing(what: &str) -> Error {
    Error::Device { device: Gpu::NAME, reason: what.to_owned() }
}

impl Gpu {
    /// How many there are; 0 without a driver.
    pub fn count() -> usize {
        // SAFETY: looks for a library and calls nothing in it.
        let present = unsafe { cudarc::driver::sys::is_culib_present() };
        if !present || cudarc::driver::result::init().is_err() {
            return 0;
        }
        CudaContext::device_count().map_or(0, |count| usize::try_from(count).unwrap_or(0))
    }

    /// The GPU with this number, from 0.
    ///
    /// # Errors
    /// `Device` saying what is missing: the driver's library, the GPU, or cuBLAS.
    pub fn new(ordinal: usize) -> Result<Self> {
        // SAFETY: looks for a library and calls nothing in it.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(missing("libcuda is not installed: there is no NVIDIA driver"));
        }
        cudarc::driver::result::init().map_err(failed("start the driver"))?;
        let count = Self::count();
        if ordinal >= count {
            return Err(missing(&format!("there is no GPU {ordinal}, the driver shows {count}")));
        }
        // SAFETY: as above.
        if !unsafe { cudarc::cublas::sys::is_culib_present() } {
            return Err(missing("libcublas is not installed (CUDA 12 or 13)"));
        }
        let context = CudaContext::new(ordinal).map_err(failed(&format!("open GPU {ordinal}")))?;
        let stream = context.default_stream();
        let blas = CudaBlas::new(stream.clone())
            .map_err(|cause| missing(&format!("cannot start cuBLAS: {cause}")))?;
        Ok(Self { stream, blas, loaded: Mutex::default() })
    }

    /// What the driver calls it.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn driver_name(&self) -> Result<String> {
        self.stream.context().name().map_err(failed("ask for the device's name"))
    }

    /// Bytes of the device that are in use, by whomever, once all work is done.
    ///
    /// # Errors
    /// When an earlier launch failed.
    pub fn used_bytes(&self) -> Result<u64> {
        self.stream.synchronize().map_err(failed("finish the work"))?;
        let memory = self.stream.context().mem_get_info();
        let (free, all) = memory.map_err(failed("ask for its free memory"))?;
        Ok((all - free) as u64)
    }

    fn function(&self, kernel: Kernel) -> Result<CudaFunction> {
        let mut loaded = self.loaded.lock().expect("no load panics");
        let Module { name, ptx, .. } = *kernel.module;
        if let Some(function) = loaded.functions.get(&(name, kernel.entry)) {
            return Ok(function.clone());
        }
        let module = match loaded.modules.get(name) {
            Some(module) => module.clone(),
            None => {
                let context = self.stream.context();
                let module =
                    context.load_module(ptx.into()).map_err(failed(&format!("load {name}.ptx")))?;
                loaded.modules.insert(name, module.clone());
                module
            }
        };
        let function = module
            .load_function(kernel.entry)
            .map_err(failed(&format!("find {} in {name}.ptx", kernel.entry)))?;
        loaded.functions.insert((name, kernel.entry), function.clone());
        Ok(function)
    }
}

impl Gpu {
    /// The addresses of buffers, on the device. Everything runs on one stream, so nothing that was
    /// asked for before can still be using a buffer when the kernel starts that the table is for.
    fn table(&self, pointers: &mut [Pointer<'_, CudaSlice<u8>>]) -> Result<CudaSlice<u64>> {
        let addresses: Vec<u64> = pointers
            .iter_mut()
            .map(|pointer| match pointer {
                Pointer::In(buffer) => buffer.device_ptr(&self.stream).0,
                Pointer::Out(buffer) => buffer.device_ptr_mut(&self.stream).0,
            })
            .collect();
        self.stream.clone_htod(&addresses).map_err(failed("write a table of buffers"))
    }

    /// A product of bf16 matrices with f32 sums; the lengths are compared.
    fn multiply_bf16(
        &self,
        config: GemmConfig<f32>,
        a: &CudaSlice<u8>,
        b: &CudaSlice<u8>,
        out: &mut CudaSlice<u8>,
    ) -> Result<()> {
        let (a, _a_in_use) = a.device_ptr(&self.stream);
        let (b, _b_in_use) = b.device_ptr(&self.stream);
        let (out, _out_in_use) = out.device_ptr_mut(&self.stream);
        // SAFETY: the buffers hold the elements that sizes and strides reach, aligned to 256 bytes;
        // the factors are on the host, as the library's default wants them, and outlive the call.
        unsafe {
            gemm_ex(
                *self.blas.handle(),
                config.transa,
                config.transb,
                config.m,
                config.n,
                config.k,
                (&raw const config.alpha).cast(),
                b as *const c_void,
                CUDA_R_16BF,
                config.lda,
                a as *const c_void,
                CUDA_R_16BF,
                config.ldb,
                (&raw const config.beta).cast(),
                out as *mut c_void,
                CUDA_R_32F,
                config.ldc,
                CUBLAS_COMPUTE_32F,
                CUBLAS_GEMM_DFALT,
            )
        }
        .map_err(|cause| missing(&format!("cannot multiply matrices: {cause}")))
    }
}

impl Launcher for Gpu {
    const NAME: &'static str = "cuda";
    type Buffer = CudaSlice<u8>;

    fn zeros(&self, len: usize, element_bytes: usize) -> Result<CudaSlice<u8>> {
        // The driver has no buffers of nothing.
        let bytes = (len * element_bytes).max(1);
        self.stream.alloc_zeros(bytes).map_err(|cause| {
            let free = self.stream.context().mem_get_info().map_or(0, |(free, _)| free);
            let mib = |bytes: usize| bytes >> 20;
            let (wanted, free) = (mib(bytes), mib(free));
            let reason = format!("cannot allocate {wanted} MiB, {free} MiB are free: {cause}");
            Error::Device { device: Self::NAME, reason }
        })
    }

    fn read(&self, buffer: &CudaSlice<u8>, start: usize, bytes: &mut [u8]) -> Result<()> {
        inside(Self::NAME, "read", start, bytes.len(), buffer.len())?;
        let from = buffer.slice(start..start + bytes.len());
        self.stream.memcpy_dtoh(&from, bytes).map_err(failed("read from the device"))?;
        self.stream.synchronize().map_err(failed("finish the work before a read"))
    }

    fn write(&self, bytes: &[u8], buffer: &mut CudaSlice<u8>, start: usize) -> Result<()> {
        inside(Self::NAME, "write", start, bytes.len(), buffer.len())?;
        let mut to = buffer.slice_mut(start..start + bytes.len());
        self.stream.memcpy_htod(bytes, &mut to).map_err(failed("write to the device"))
    }

    fn copy(
        &self,
        from: &CudaSlice<u8>,
        from_start: usize,
        to: &mut CudaSlice<u8>,
        to_start: usize,
        len: usize,
    ) -> Result<()> {
        inside(Self::NAME, "copy", from_start, len, from.len())?;
        inside(Self::NAME, "copy", to_start, len, to.len())?;
        let from = from.slice(from_start..from_start + len);
        let mut to = to.slice_mut(to_start..to_start + len);
        self.stream.memcpy_dtod(&from, &mut to).map_err(failed("copy on the device"))
    }

    fn clear(&self, buffer: &mut CudaSlice<u8>) -> Result<()> {
        self.stream.memset_zeros(buffer).map_err(failed("clear a buffer"))
    }

    fn launch(
        &self,
        kernel: Kernel,
        shape: Shape,
        arguments: &mut [Argument<'_, CudaSlice<u8>>],
    ) -> Result<()> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        let function = self.function(kernel)?;
        let tables = arguments.iter_mut().filter_map(|argument| match argument {
            Argument::Table(pointers) => Some(self.table(pointers)),
            _ => None,
        });
        let tables = tables.collect::<Result<Vec<_>>>()?;
        let mut next_table = tables.iter();
        let mut launch = self.stream.launch_builder(&function);
        for argument in arguments {
            match argument {
                Argument::Table(_) => {
                    launch.arg(next_table.next().expect("one was made for each above"))
                }
                Argument::In(buffer) => launch.arg(*buffer),
                Argument::Out(buffer) => launch.arg(&mut **buffer),
                Argument::U32(value) => launch.arg(&*value),
                Argument::I32(value) => launch.arg(&*value),
                Argument::U64(value) => launch.arg(&*value),
                Argument::F32(value) => launch.arg(&*value),
                Argument::F64(value) => launch.arg(&*value),
            };
        }
        let triple = |[x, y, z]: [u32; 3]| (x, y, z);
        let sizes = LaunchConfig {
            grid_dim: triple(shape.grid),
            block_dim: triple(shape.block),
            shared_mem_bytes: shape.dynamic_shared,
        };
        // SAFETY: the same PTX, run by the interpreter with these argument lists and grids, is shown
        // to read and write inside the buffers it is given and to write through `Out` only; the
        // interpreter compares types and number of the arguments with the kernel's declaration.
        unsafe { launch.launch(sizes) }
            .map_err(failed(&format!("launch {}", kernel.entry)))
            .map(drop)
    }

    fn product(
        &self,
        product: Product,
        a: &CudaSlice<u8>,
        b: &CudaSlice<u8>,
        out: &mut CudaSlice<u8>,
    ) -> Result<()> {
        let Product { rows, columns, inner, .. } = product;
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let operand_bytes = product.operands.bytes();
        inside(Self::NAME, "product", 0, operand_bytes * rows * inner, a.len())?;
        inside(Self::NAME, "product", 0, operand_bytes * inner * columns, b.len())?;
        inside(Self::NAME, "product", 0, 4 * rows * columns, out.len())?;
        let size = |size: usize| {
            i32::try_from(size).map_err(|_| missing(&format!("a matrix has {size} rows")))
        };
        // The library's matrices lie by columns, so this is `out^T = b^T @ a^T`.
        let config = GemmConfig {
            transa: if product.b_transposed { CUBLAS_OP_T } else { CUBLAS_OP_N },
            transb: if product.a_transposed { CUBLAS_OP_T } else { CUBLAS_OP_N },
            m: size(columns)?,
            n: size(rows)?,
            k: size(inner)?,
            alpha: product.multiplier,
            lda: size(if product.b_transposed { inner } else { columns }.max(1))?,
            ldb: size(if product.a_transposed { rows } else { inner }.max(1))?,
            beta: f32::from(u8::from(product.add)),
            ldc: size(columns)?,
        };
        if product.operands == Compute::Bf16 {
            return self.multiply_bf16(config, a, b, out);
        }
        // SAFETY: every bit pattern is an f32, and allocations are aligned to 256 bytes.
        let (a, b, out) = unsafe {
            (
                a.transmute::<f32>(rows * inner),
                b.transmute::<f32>(inner * columns),
                out.transmute_mut::<f32>(rows * columns),
            )
        };
        let (Some(a), Some(b), Some(mut out)) = (a, b, out) else {
            unreachable!("the lengths were compared above");
        };
        // SAFETY: the three views hold exactly the elements that sizes and strides reach.
        unsafe { self.blas.gemm(config, &b, &a, &mut out) }
            .map_err(|cause| missing(&format!("cannot multiply matrices: {cause}")))
    }
}
