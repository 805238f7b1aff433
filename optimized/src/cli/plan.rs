//! `plumbline plan`: memory and work of a training step, from a configuration alone.

use anyhow::{Context, Result, bail};
use plumbline::finetune::Method;
use plumbline::methods::LayerCost;
use plumbline::model::{DEVICES, Plan, Projection, Recompute, Run, StepWork, tensor_shapes};
use plumbline::ops::adamw::StateType;
use plumbline::recipe::MethodSettings;
use plumbline_reference::spec::ActivationSpec;
use serde_json::{Value, json};

use super::device::ComputeOption;
use super::methods::with_method;
use super::shape::{Shape, ShapeOption};

/// `plan`.
#[derive(clap::Args)]
pub struct PlanCommand {
    #[command(flatten)]
    shape: ShapeOption,
    /// Micro-batches of one optimizer step
    #[arg(long, default_value_t = 1)]
    accumulation: usize,
    /// Type that the device rounds the operands of products to
    #[arg(long, value_enum, default_value = "bf16")]
    compute: ComputeOption,
    /// Type of the optimizer's moments, as `optimizer.state` of a recipe
    #[arg(long, value_enum, default_value = "f32")]
    state: StateOption,
    /// Memory that the run must fit, such as 80GB or 24GiB
    #[arg(long)]
    memory: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--state` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StateOption {
    /// Four bytes a value.
    F32,
    /// bfloat16, rounded by chance.
    Bf16,
}

impl From<StateOption> for StateType {
    fn from(option: StateOption) -> Self {
        match option {
            StateOption::F32 => Self::F32,
            StateOption::Bf16 => Self::Bf16,
        }
    }
}

/// A size of memory, in bytes.
fn parse_memory(text: &str) -> Result<u64> {
    let expected = || format!("--memory is {text:?}, expected a size such as 80GB or 24GiB");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = match text[digits.len()..].trim() {
        "" | "B" => 1.0,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "MiB" => f64::from(1 << 20),
        "GiB" => f64::from(1 << 30),
        "TiB" => f64::from(1 << 20) * f64::from(1 << 20),
        _ => bail!(expected()),
    };
    let count: f64 = digits.parse().with_context(expected)?;
    if !(count > 0.0 && count.is_finite()) {
        bail!(expected());
    }
    Ok((count * unit) as u64)
}

fn costs<M: Method>(shape: &Shape, method: &M) -> Result<Vec<LayerCost>> {
    let layers = Projection::all(&shape.config);
    Ok(layers.iter().map(|linear| method.cost(linear, shape.stored)).collect::<Result<_, _>>()?)
}

/// How activations are rounded under the method that was asked for, if they are.
fn activations(shape: &Shape) -> Option<ActivationSpec> {
    match &shape.method.settings {
        MethodSettings::LrQat(settings) => settings.activations,
        _ => None,
    }
}

/// The linear layers under the method that was asked for.
fn layers(shape: &Shape) -> Result<Vec<LayerCost>> {
    with_method!(&shape.method, |method| costs(shape, &method))
}

/// Memory and work, with and without recomputed activations.
struct Answer {
    shape: Shape,
    parameters: usize,
    linear_parameters: usize,
    trained: usize,
    operand_bytes: usize,
    state: StateType,
    memory: Option<u64>,
    ways: [(Recompute, Plan, StepWork); 2],
}

/// A line of the answer: its name, and the number of a way.
type Row<T, N> = (&'static str, fn(&T) -> N);

/// Runs the command. A plan that does not fit is an answer, not an error.
pub fn plan(command: &PlanCommand) -> Result<()> {
    let memory = command.memory.as_deref().map(parse_memory).transpose()?;
    if command.accumulation == 0 {
        bail!("--accumulation is 0, expected at least 1");
    }
    let shape = command.shape.resolve()?;
    let layers = layers(&shape)?;
    let operand_bytes = if command.compute == ComputeOption::Bf16 { 2 } else { 4 };
    let (tokens, context) = (shape.sizes.tokens(), shape.sizes.context);
    let (accumulation, state) = (command.accumulation, StateType::from(command.state));
    let ways = [Recompute::None, Recompute::Blocks].map(|recompute| {
        let activations = activations(&shape);
        let run = Run { tokens, recompute, accumulation, operand_bytes, state, activations };
        let sizes = (tokens, context);
        (
            recompute,
            Plan::of_costs(&shape.config, &layers, run),
            StepWork::new(&shape.config, &layers, sizes, recompute, operand_bytes, state),
        )
    });
    let tensors = tensor_shapes(&shape.config);
    let answer = Answer {
        parameters: tensors.values().map(|shape| shape.iter().product::<usize>()).sum(),
        linear_parameters: layers.iter().map(|layer| layer.shape.0 * layer.shape.1).sum(),
        trained: layers.iter().flat_map(|layer| &layer.trained).sum(),
        shape,
        operand_bytes,
        state,
        memory,
        ways,
    };
    if command.json {
        println!("{}", answer.to_json());
    } else {
        answer.print();
    }
    Ok(())
}

impl Answer {
    fn fits(&self, plan: &Plan) -> Option<bool> {
        self.memory.map(|memory| plan.total() as u64 <= memory)
    }

    fn to_json(&self) -> Value {
        let ways = self.ways.iter().map(|(recompute, plan, work)| {
            let floors: serde_json::Map<_, _> = DEVICES
                .iter()
                .map(|device| {
                    (device.name.to_owned(), work.floor(device, self.operand_bytes).into())
                })
                .collect();
            json!({
                "recompute": recompute, "plan": plan, "total_bytes": plan.total(),
                "fits": self.fits(plan), "operations": work.operations, "bytes": work.bytes,
                "floor_seconds": floors,
            })
        });
        let Shape { name, config, method, stored, sizes, .. } = &self.shape;
        json!({
            "config": name, "layers": config.num_hidden_layers, "method": method,
            "frozen": stored,
            "tokens": sizes.tokens(), "context": sizes.context,
            "operand_bytes": self.operand_bytes, "state": self.state,
            "parameters": self.parameters, "linear_parameters": self.linear_parameters,
            "trained_values": self.trained, "memory_bytes": self.memory,
            "ways": ways.collect::<Vec<_>>(),
        })
    }

    fn print(&self) {
        let Shape { name, config, method, sizes, .. } = &self.shape;
        println!(
            "{name}, {} blocks, {}, {} x {} tokens in a micro-batch",
            config.num_hidden_layers,
            method.settings.name(),
            sizes.batch,
            sizes.context
        );
        println!(
            "  {} parameters, {} of them in linear layers; {} values are trained",
            self.parameters, self.linear_parameters, self.trained
        );
        let [(_, keep, keeps), (_, again, recomputes)] = &self.ways;
        println!();
        println!("{:<32}{:>16}{:>16}", "GiB", "recompute none", "blocks");
        let gib = |bytes: usize| format!("{:.2}", bytes as f64 / f64::from(1 << 30));
        let rows: [Row<Plan, usize>; 7] = [
            ("frozen weights and tables", |plan| plan.frozen),
            ("trained tensors", |plan| plan.trained),
            ("their gradients", |plan| plan.gradients),
            ("the optimizer's moments", |plan| plan.moments),
            ("activations", |plan| plan.activations),
            ("scratch", |plan| plan.scratch),
            ("in all", Plan::total),
        ];
        for (what, of) in rows {
            println!("  {what:<30}{:>16}{:>16}", gib(of(keep)), gib(of(again)));
        }
        if let Some(memory) = self.memory {
            let told = |plan| if self.fits(plan) == Some(true) { "yes" } else { "no" };
            let line = format!("fits {} GiB", gib(memory as usize));
            println!("  {line:<30}{:>16}{:>16}", told(keep), told(again));
        }
        println!();
        println!("{:<32}{:>16}{:>16}", "A micro-batch", "recompute none", "blocks");
        let tera = |operations: f64| format!("{:.2}", operations / 1e12);
        let rows: [Row<StepWork, f64>; 3] = [
            ("TFLOP, linear layers", |work| work.operations.linears),
            ("TFLOP, head", |work| work.operations.head),
            ("TFLOP, attention", |work| work.operations.attention),
        ];
        for (what, of) in rows {
            println!("  {what:<30}{:>16}{:>16}", tera(of(keeps)), tera(of(recomputes)));
        }
        let moved = |work: &StepWork| {
            let bytes = work.bytes.linears + work.bytes.head + work.bytes.optimizer;
            format!("{:.2}", bytes / 1e9)
        };
        println!("  {:<30}{:>16}{:>16}", "GB moved", moved(keeps), moved(recomputes));
        for device in DEVICES {
            let ms = |work: &StepWork| {
                let seconds = work.floor(device, self.operand_bytes);
                let rate = sizes.tokens() as f64 / seconds;
                format!("{:.1} ms, {rate:.0}", 1e3 * seconds)
            };
            let what = format!("floor, tokens/s: {}", device.name);
            println!("  {what:<30}{:>16}{:>16}", ms(keeps), ms(recomputes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_memory;

    #[test]
    fn memory_is_decimal_or_binary_as_its_unit_says() {
        for (text, bytes) in [
            ("80GB", 80_000_000_000),
            ("24GiB", 24 << 30),
            ("1.5 TB", 1_500_000_000_000),
            ("512MiB", 512 << 20),
            ("7", 7),
        ] {
            assert_eq!(parse_memory(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GB", "80 gigs", "-1GB", "0GB", "1e999GB"] {
            let told = parse_memory(text).unwrap_err().to_string();
            assert!(told.contains("--memory is"), "{told}");
        }
    }
}
