//! `--device`: which backend a command runs on.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::Result;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Gpu, Interpreter};

/// The option, for the commands that compute.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DeviceOption {
    /// cpu; cuda or cuda:N; auto takes the first GPU where there is one; cuda-host interprets the
    /// GPU's kernels on the processor (slow, for tests)
    #[arg(long, default_value = "cpu")]
    pub device: Device,
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

/// A backend that is there.
pub enum Opened {
    /// The processor.
    Cpu(Arc<Cpu>),
    /// A GPU.
    Cuda(Arc<Cuda<Gpu>>),
    /// The interpreter.
    CudaHost(Arc<Cuda<Interpreter>>),
}

impl Device {
    /// Opens the device. There is no falling back: what was asked for is used, or it is an error.
    pub fn open(self) -> Result<Opened> {
        Ok(match self {
            Self::Auto if Gpu::count() > 0 => Self::Cuda(0).open()?,
            Self::Auto | Self::Cpu => Opened::Cpu(Arc::new(Cpu)),
            Self::Cuda(number) => Opened::Cuda(Arc::new(Cuda::new(Gpu::new(number)?)?)),
            Self::CudaHost => Opened::CudaHost(Arc::new(Cuda::new(Interpreter::new())?)),
        })
    }
}
