//! How much memory a command takes, where its device says so.

use anyhow::{Result, bail};

use super::device::Opened;

/// Reads the memory that is in use, or was at most.
pub struct Meter {
    read: Box<dyn Fn() -> Result<u64>>,
    /// What there was before.
    before: u64,
    /// What is read.
    pub what: &'static str,
}

impl Meter {
    /// What is taken on a device from now on.
    pub fn from_now(opened: &Opened) -> Result<Self> {
        let mut meter = Self::of(opened)?;
        meter.before = match opened {
            Opened::Cpu(_) => own_memory("VmRSS")?,
            Opened::Cuda(_) | Opened::CudaHost(_) => (meter.read)()?,
        };
        Ok(meter)
    }

    /// What is taken on a device in all.
    pub fn of(opened: &Opened) -> Result<Self> {
        let (read, what): (Box<dyn Fn() -> Result<u64>>, _) = match opened {
            Opened::Cpu(_) => (Box::new(|| own_memory("VmHWM")), "peak of the process"),
            Opened::Cuda(backend) => {
                let asked = backend.clone();
                (Box::new(move || Ok(asked.launcher().used_bytes()?)), "driver")
            }
            Opened::CudaHost(backend) => {
                let asked = backend.clone();
                (Box::new(move || Ok(asked.launcher().bytes())), "buffers")
            }
        };
        Ok(Self { read, before: 0, what })
    }

    /// Since it was made, or in all.
    pub fn bytes(&self) -> Result<u64> {
        Ok((self.read)()?.saturating_sub(self.before))
    }
}

/// A number of `/proc/self/status`, in bytes.
fn own_memory(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let Some(kib) = kib else { bail!("the system does not tell {field} of a process") };
    Ok(kib << 10)
}
