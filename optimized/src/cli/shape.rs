//! What `plan` and `bench` ask for: a model's shape, a method, the tokens of a step.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use plumbline::embedded;
use plumbline::model::{PRESETS, Recompute, preset};
use plumbline::ops::widen::WeightType;
use plumbline::recipe::{MethodRecipe, MethodSettings};
use plumbline_reference::spec::LlamaConfig;
use serde_json::json;

/// Model, method and sizes, for the commands that need no checkpoint.
#[derive(Debug, Clone, clap::Args)]
pub struct ShapeOption {
    /// llama-2-7b, llama-2-13b, llama-33b, llama-2-70b, llama-3-8b, builtin, or the path of a
    /// config.json or of its folder
    #[arg(long)]
    config: String,
    /// Only the first so many blocks
    #[arg(long)]
    layers: Option<usize>,
    /// l4q, lora, lr_qat, peqa, qa_lora, qat, qat_lora or qlora
    #[arg(long, default_value = "l4q")]
    method: String,
    /// Width of a code; lora has none
    #[arg(long, default_value_t = 4)]
    bits: u32,
    /// Consecutive inputs that share a scale; 0 for one group per row
    #[arg(long, default_value_t = 128)]
    group_size: usize,
    /// Inner dimension of the low-rank update; peqa and qat have none
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Pattern of the linear layers that the method is on, as in `method.targets`; may be repeated
    #[arg(long)]
    target: Option<Vec<String>>,
    /// How lr_qat keeps its frozen weight: f32, bf16, f16, fixed8 or int
    #[arg(long, default_value = "fixed8")]
    downcast: String,
    /// Width of a code of the activations, which lr_qat can round; by default they stay as they are
    #[arg(long)]
    activation_bits: Option<u32>,
    /// Another width for keys and values
    #[arg(long, requires = "activation_bits")]
    kv_bits: Option<u32>,
    /// Type that the checkpoint has its weights in, which l4q, lora and qat_lora keep; by default
    /// what the configuration says, or bf16
    #[arg(long, value_enum)]
    frozen: Option<FrozenOption>,
    /// Tokens of a micro-batch
    #[arg(long, conflicts_with = "batch")]
    tokens: Option<usize>,
    /// Sequences of a micro-batch, in place of --tokens
    #[arg(long)]
    batch: Option<usize>,
    /// Tokens of a sequence; all of --tokens, or 2048, up to the model's longest
    #[arg(long)]
    context: Option<usize>,
}

/// The sizes of a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub context: usize,
}

impl Sizes {
    /// Tokens in all.
    pub fn tokens(self) -> usize {
        self.batch * self.context
    }
}

/// What the options say, checked.
#[derive(Debug, Clone)]
pub struct Shape {
    /// As `--config` has it.
    pub name: String,
    /// With `--layers` blocks.
    pub config: LlamaConfig,
    /// Blocks of the whole model.
    pub all_blocks: usize,
    /// Method and settings.
    pub method: MethodRecipe,
    /// Type of the checkpoint's weights.
    pub stored: WeightType,
    /// The micro-batch.
    pub sizes: Sizes,
}

/// What `--frozen` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FrozenOption {
    /// Four bytes a weight.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl From<FrozenOption> for WeightType {
    fn from(option: FrozenOption) -> Self {
        match option {
            FrozenOption::F32 => Self::F32,
            FrozenOption::Bf16 => Self::Bf16,
            FrozenOption::F16 => Self::F16,
        }
    }
}

/// Keep activations, or recompute blocks: `--recompute`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RecomputeOption {
    /// Every block keeps its activations.
    None,
    /// Only the blocks' inputs are kept.
    Blocks,
}

impl From<RecomputeOption> for Recompute {
    fn from(option: RecomputeOption) -> Self {
        match option {
            RecomputeOption::None => Self::None,
            RecomputeOption::Blocks => Self::Blocks,
        }
    }
}

impl ShapeOption {
    /// Reads the configuration and checks every number.
    pub fn resolve(&self) -> Result<Shape> {
        let (mut config, stored) = self.config()?;
        let all_blocks = config.num_hidden_layers;
        if let Some(layers) = self.layers {
            ensure!(
                (1..=all_blocks).contains(&layers),
                "--layers is {layers}, expected 1 to {all_blocks}"
            );
            config.num_hidden_layers = layers;
        }
        let (method, sizes) = (self.method()?, self.sizes(config.longest_sequence())?);
        method.check_layers(&config).context("--target")?;
        let stored = self.frozen.map_or(stored, WeightType::from);
        let name = self.config.clone();
        Ok(Shape { name, config, all_blocks, method, stored, sizes })
    }

    /// The configuration, and the type of its weights.
    fn config(&self) -> Result<(LlamaConfig, WeightType)> {
        if self.config == "builtin" {
            return Ok((embedded::model()?.config().clone(), WeightType::Bf16));
        }
        if let Some(config) = preset(&self.config) {
            return Ok((config, WeightType::Bf16));
        }
        let path = Path::new(&self.config);
        let path = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        let text = std::fs::read_to_string(&path).with_context(|| {
            let known: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
            let known = known.join(", ");
            format!("{}: cannot read, and it is none of builtin, {known}", path.display())
        })?;
        let at = || path.display().to_string();
        let config = LlamaConfig::from_json(&text).with_context(at)?;
        let value: serde_json::Value = serde_json::from_str(&text).with_context(at)?;
        // Newer files have the shorter name.
        let named = ["dtype", "torch_dtype"].into_iter().find_map(|field| value[field].as_str());
        let stored = match named {
            Some("float32") => WeightType::F32,
            Some("float16") => WeightType::F16,
            _ => WeightType::Bf16,
        };
        Ok((config, stored))
    }

    /// The settings that a recipe would have.
    fn method(&self) -> Result<MethodRecipe> {
        let mut value = json!({ "name": self.method });
        if self.method != "lora" {
            value["bits"] = self.bits.into();
            if self.group_size > 0 {
                value["group_size"] = self.group_size.into();
            }
        }
        if !["peqa", "qat"].contains(&&*self.method) {
            value["rank"] = self.rank.into();
        }
        if self.method == "lr_qat" {
            value["lora_scaling"] = (1.0 / self.rank.max(1) as f64).into();
            value["downcast"] = self.downcast.clone().into();
        }
        if let Some(bits) = self.activation_bits {
            value["activations"] = json!({ "bits": bits, "kv_bits": self.kv_bits });
        }
        let settings: MethodSettings =
            serde_json::from_value(value).with_context(|| format!("--method {}", self.method))?;
        let targets = self.target.clone();
        let method = MethodRecipe { targets, ..settings.into() };
        method.check()?;
        Ok(method)
    }

    fn sizes(&self, longest: usize) -> Result<Sizes> {
        let context = self.context.or(self.tokens).unwrap_or(2048);
        let context = if self.context.is_some() { context } else { context.min(longest) };
        ensure!(
            (1..=longest).contains(&context),
            "--context is {context}, expected 1 to {longest}"
        );
        let batch = match (self.batch, self.tokens) {
            (Some(batch), _) => batch,
            (None, Some(tokens)) => {
                if !tokens.is_multiple_of(context) {
                    bail!("--tokens is {tokens}, expected a multiple of the context {context}");
                }
                tokens / context
            }
            (None, None) => 1,
        };
        ensure!(batch > 0, "there are no tokens, expected at least one sequence");
        Ok(Sizes { batch, context })
    }
}
