//! `--device`: which backend a command runs on.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Compute, Cuda, Gpu, Interpreter};

/// The option, for the commands that compute.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DeviceOption {
    /// cpu; cuda or cuda:N; auto takes the first GPU where there is one; cuda-host interprets the
    /// GPU's kernels on the processor (slow, for tests)
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    /// Type that a CUDA device rounds the operands of matrix products to: f32 rounds nothing, bf16
    /// multiplies on tensor cores; sums, parameters and gradients are f32
    #[arg(long, value_enum, default_value = "f32")]
    pub compute: ComputeOption,
}

/// What `--compute` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeOption {
    /// Nothing is rounded.
    F32,
    /// To the nearest bf16.
    Bf16,
}

impl From<ComputeOption> for Compute {
    fn from(option: ComputeOption) -> Self {
        match option {
            ComputeOption::F32 => Self::F32,
            ComputeOption::Bf16 => Self::Bf16,
        }
    }
}

impl ComputeOption {
    /// The device's name as checkpoints have it, with the type where it is not the usual one.
    pub fn device_name<B: Backend>(self) -> String {
        match self {
            Self::F32 => B::NAME.into(),
            Self::Bf16 => format!("{}, bf16", B::NAME),
        }
    }
}

/// What `--device` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The first GPU where there is one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
    /// The GPU's kernels, interpreted on the processor: slow, for tests.
    CudaHost,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?}, expected auto, cpu, cuda, cuda:N or cuda-host");
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "cuda-host" => Ok(Self::CudaHost),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(expected)?;
                number.parse().map(Self::Cuda).map_err(|_| expected())
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::CudaHost => f.write_str("cuda-host"),
        }
    }
}

/// A backend that is there.
pub enum Opened {
    /// The processor.
    Cpu(Arc<Cpu>),
    /// A GPU.
    Cuda(Arc<Cuda<Gpu>>),
    /// The interpreter.
    CudaHost(Arc<Cuda<Interpreter>>),
}

impl Opened {
    /// The device's name as checkpoints have it.
    pub fn name(&self, compute: ComputeOption) -> String {
        match self {
            Self::Cpu(_) => compute.device_name::<Cpu>(),
            Self::Cuda(_) => compute.device_name::<Cuda<Gpu>>(),
            Self::CudaHost(_) => compute.device_name::<Cuda<Interpreter>>(),
        }
    }
}

impl DeviceOption {
    /// The arguments that ask for the same.
    pub fn arguments(self) -> [String; 4] {
        let compute = match self.compute {
            ComputeOption::F32 => "f32",
            ComputeOption::Bf16 => "bf16",
        };
        ["--device".into(), self.device.to_string(), "--compute".into(), compute.into()]
    }

    /// Opens the device. There is no falling back: what was asked for is used, or it is an error.
    pub fn open(self) -> Result<Opened> {
        let device = match self.device {
            Device::Auto if Gpu::count() > 0 => Device::Cuda(0),
            Device::Auto => Device::Cpu,
            other => other,
        };
        let compute = self.compute.into();
        Ok(match device {
            Device::Cuda(number) => {
                Opened::Cuda(Arc::new(Cuda::with_compute(Gpu::new(number)?, compute)?))
            }
            Device::CudaHost => {
                Opened::CudaHost(Arc::new(Cuda::with_compute(Interpreter::new(), compute)?))
            }
            Device::Auto | Device::Cpu => {
                let f32_only = "the cpu multiplies f32: --compute bf16 needs a CUDA device";
                ensure!(compute == Compute::F32, f32_only);
                Opened::Cpu(Arc::new(Cpu))
            }
        })
    }
}
