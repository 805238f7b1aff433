//! One linear layer of a method in a process of its own: its times and its peak memory as a line of
//! JSON.
//!
//! `peers/linears.py` starts it in turn with PyTorch and compares. The number of threads is
//! rayon's, `RAYON_NUM_THREADS`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Compute, Cuda, Gpu};
use plumbline::methods::LinearMethod;
use plumbline_benches::{Inputs, Layer, Shape};

/// Steps before the clock counts.
const WARM_UP: usize = 3;

/// Times forward and backward of one linear layer
#[derive(Parser)]
struct Arguments {
    /// How the layer is trained
    #[arg(long, value_enum)]
    method: Method,
    /// Inputs of the layer
    #[arg(long = "in", value_parser = count)]
    in_features: usize,
    /// Outputs of the layer
    #[arg(long = "out", value_parser = count)]
    out_features: usize,
    /// Rows of the input
    #[arg(long, value_parser = count)]
    tokens: usize,
    /// Inner dimension of the low-rank update
    #[arg(long, value_parser = count)]
    rank: usize,
    /// Consecutive inputs that share a scale
    #[arg(long, value_parser = count)]
    group: usize,
    /// Width of a code, 2 to 8
    #[arg(long)]
    bits: u32,
    /// Timed steps; the medians are over these
    #[arg(long, value_parser = count)]
    repeats: usize,
    /// cpu, or cuda for the first GPU
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    /// Type that a GPU rounds the operands of matrix products to
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
    compute: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Method {
    L4q,
    LrQat,
    QaLora,
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("expected a whole number of at least 1".to_owned()),
    }
}

type Record = Result<serde_json::Value, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match on_device(&arguments) {
        Ok(record) => {
            println!("{record}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn on_device(arguments: &Arguments) -> Record {
    let compute = if arguments.compute == "bf16" { Compute::Bf16 } else { Compute::F32 };
    match arguments.device.as_str() {
        "cuda" => of_method(Cuda::with_compute(Gpu::new(0)?, compute)?, arguments),
        _ if compute == Compute::Bf16 => Err("the cpu multiplies f32: bf16 needs a GPU".into()),
        _ => of_method(Cpu, arguments),
    }
}

fn of_method(backend: impl Backend, arguments: &Arguments) -> Record {
    let inputs = Inputs::new(Shape {
        tokens: arguments.tokens,
        in_features: arguments.in_features,
        out_features: arguments.out_features,
        rank: arguments.rank,
        group_size: arguments.group,
        bits: arguments.bits,
    })?;
    match arguments.method {
        Method::L4q => measure(Layer::new(backend, inputs, Inputs::l4q)?, arguments.repeats),
        Method::LrQat => measure(Layer::new(backend, inputs, Inputs::lr_qat)?, arguments.repeats),
        Method::QaLora => measure(Layer::new(backend, inputs, Inputs::qa_lora)?, arguments.repeats),
    }
}

/// A step clears the gradients, then is timed: forward, then every gradient.
fn measure<B: Backend, M: LinearMethod<B>>(mut layer: Layer<B, M>, repeats: usize) -> Record {
    let (mut forward, mut forward_backward) = (Vec::new(), Vec::new());
    for step in 0..WARM_UP + repeats {
        layer.clear_gradients()?;
        layer.wait()?;
        let start = Instant::now();
        layer.forward()?;
        layer.wait()?;
        let middle = start.elapsed();
        layer.backward()?;
        layer.wait()?;
        let end = start.elapsed();
        if step >= WARM_UP {
            forward.push(middle.as_secs_f64());
            forward_backward.push(end.as_secs_f64());
        }
    }
    Ok(serde_json::json!({
        "seconds_forward_backward_median": median(forward_backward),
        "seconds_forward_median": median(forward),
        "peak_rss_bytes": peak_rss_bytes()?,
    }))
}

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
    (values[low] + values[high]) / 2.0
}

/// The most memory that this process has had resident, `VmHWM` of Linux's `/proc/self/status`.
fn peak_rss_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let kibibytes = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok()
    });
    let kibibytes: u64 = kibibytes.ok_or_else(|| format!("{path}: has no VmHWM in kB"))?;
    Ok(1024 * kibibytes)
}
