//! The results of `plumbline compare`: each row's file, and the table as Markdown, JSON and SVG.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::chart::{Picture, Series, picture, short};
use crate::eval::Perplexity;
use crate::train::Session;

/// What a model makes of one text; absent numbers are not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextResult {
    /// File name without folder.
    pub text: String,
    /// `exp(mean_nll)`.
    pub perplexity: Option<f64>,
    /// Nats a token.
    pub mean_nll: Option<f64>,
    /// Tokens that were predicted.
    pub predicted_tokens: usize,
    /// Windows, the shorter last one included.
    pub windows: usize,
}

impl TextResult {
    /// Of a text of that name.
    pub fn new(text: &str, result: Perplexity) -> Self {
        let Perplexity { perplexity, mean_nll, predicted_tokens, windows } = result;
        let finite = |value: f64| value.is_finite().then_some(value);
        let (perplexity, mean_nll) = (finite(perplexity), finite(mean_nll));
        Self { text: text.to_owned(), perplexity, mean_nll, predicted_tokens, windows }
    }
}

/// What became of a row's model between training and measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deployment {
    /// Nothing was trained.
    Untrained,
    /// It is measured as it was trained: an update stays beside the weight.
    AsTrained,
    /// It is merged to codes that are the trained model in every bit of its logits.
    SameBits,
    /// It is merged to codes of the same function, in other roundings.
    SameFunction,
    /// It is rounded anew, which is another model than the trained one.
    RoundedAnew,
}

/// What training took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainingResult {
    /// Values that are trained.
    pub trained_values: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// Room of the windows trained on.
    pub tokens: u64,
    /// Over the whole run.
    pub tokens_per_second: f64,
}

/// The most memory that making the row's model took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeakMemory {
    /// Bytes.
    pub bytes: u64,
    /// What was measured.
    pub of: String,
}

/// Where a row was computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Of this program.
    pub version: String,
    /// The backend.
    pub device: String,
    /// Threads of the processor.
    pub threads: usize,
    /// The processor.
    pub processor: String,
    /// Operating system and architecture.
    pub system: String,
}

impl Environment {
    /// Of this process.
    pub fn new(device: &str) -> Self {
        let Session { version, device, threads, processor, system, .. } = Session::new(device, 0);
        Self { version, device, threads, processor, system }
    }
}

/// A finished row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowResult {
    /// SHA-256 of everything that the result depends on.
    pub digest: String,
    /// What the table calls it.
    pub name: String,
    /// The method.
    pub method: String,
    /// Width of a code.
    pub bits: Option<u32>,
    /// Fields of the optimizer that are this row's own.
    pub optimizer: toml::Table,
    /// What the texts were measured on.
    pub deployment: Deployment,
    /// The deployed model, text by text.
    pub perplexity: Vec<TextResult>,
    /// The trained model where it is another one.
    pub trained_perplexity: Vec<TextResult>,
    /// Between the logits of the two.
    pub largest_difference: Option<f32>,
    /// Bits of the deployed linear layers by their weights.
    pub linear_bits_per_weight: f64,
    /// Bits of the deployed model by its parameters.
    pub model_bits_per_weight: f64,
    /// What training took, where the row is trained.
    pub training: Option<TrainingResult>,
    /// Of training, or of quantizing.
    pub seconds: f64,
    /// Absent where the process was killed between its last step and its result.
    pub peak_memory: Option<PeakMemory>,
    /// Where it was computed.
    pub environment: Environment,
}

/// Where a row of the table stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RowState {
    /// Its result.
    Done(Box<RowResult>),
    /// It ended with an error.
    Failed {
        /// What the table calls it.
        name: String,
        /// Width of a code.
        bits: Option<u32>,
    },
    /// It is still to be made.
    Open {
        /// What the table calls it.
        name: String,
        /// Width of a code.
        bits: Option<u32>,
    },
}

/// All rows, and what they share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// What the model is called.
    pub model: String,
    /// Values of the model.
    pub parameters: usize,
    /// Those in linear layers.
    pub linear_parameters: usize,
    /// Consecutive inputs that share a scale; absent for one group per row.
    pub group_size: Option<usize>,
    /// Tokens of a window, of training and of measuring.
    pub context: usize,
    /// Windows of an optimizer step.
    pub windows_per_step: usize,
    /// Optimizer steps of every trained row.
    pub steps: u64,
    /// Seed of initialisation and data order.
    pub seed: u64,
    /// In the order of the table.
    pub rows: Vec<RowState>,
}

const NONE: &str = "–";

impl Comparison {
    fn done(&self) -> impl Iterator<Item = &RowResult> {
        self.rows.iter().filter_map(|row| match row {
            RowState::Done(result) => Some(&**result),
            RowState::Failed { .. } | RowState::Open { .. } => None,
        })
    }

    /// The names of the texts; none before the first row is done.
    fn texts(&self) -> Vec<&str> {
        let first = self.done().next();
        let texts = first.map(|row| row.perplexity.iter().map(|result| result.text.as_str()));
        texts.into_iter().flatten().collect()
    }

    /// `table.md`.
    pub fn markdown(&self) -> String {
        let mut out = self.introduction();
        let texts = self.texts();
        let mut heads = vec!["method".to_owned(), "bits".into()];
        heads.extend(texts.iter().map(|text| format!("perplexity of {text}")));
        heads.extend(texts.iter().map(|text| format!("trained model's of {text}")));
        let rest = [
            "bits per weight, linear layers",
            "bits per weight, model",
            "trained values",
            "peak memory, MiB",
            "tokens/s",
            "minutes",
        ];
        heads.extend(rest.map(str::to_owned));
        _ = writeln!(out, "\n| {} |", heads.join(" | "));
        _ = writeln!(out, "|{}", "---|".repeat(heads.len()));
        for row in &self.rows {
            let cells = cells(row, texts.len(), heads.len());
            _ = writeln!(out, "| {} |", cells.join(" | "));
        }
        self.notes(&mut out);
        out
    }

    fn introduction(&self) -> String {
        let Self { model, parameters, linear_parameters, group_size, context, .. } = self;
        let Self { windows_per_step, steps, seed, .. } = self;
        let groups =
            group_size.map_or("one group a row".into(), |size| format!("groups of {size}"));
        let mut out = format!(
            "{model}: {parameters} parameters, {linear_parameters} of them in linear layers. \
             Quantized rows have {groups}; trained rows have {steps} steps of {} tokens (windows of \
             {context}), seed {seed}.\n",
            windows_per_step * context
        );
        if let Some(row) = self.done().next() {
            let measured: Vec<String> = row
                .perplexity
                .iter()
                .map(|result| format!("{} windows of {}", result.windows, result.text))
                .collect();
            _ = writeln!(out, "\nMeasured on {}.", measured.join(", "));
        }
        let mut places: Vec<String> = Vec::new();
        for Environment { version, device, threads, processor, system } in
            self.done().map(|row| &row.environment)
        {
            let place =
                format!("plumbline {version}, {device}, {threads} threads, {processor}, {system}");
            if !places.contains(&place) {
                places.push(place);
            }
        }
        if !places.is_empty() {
            _ = writeln!(out, "\nComputed by {}.", places.join("; "));
        }
        out
    }

    /// What a reader must know of single rows.
    fn notes(&self, out: &mut String) {
        let mut noted: Vec<(&str, &toml::Table)> = Vec::new();
        for row in self.done().filter(|row| !row.optimizer.is_empty()) {
            if !noted.contains(&(&row.name, &row.optimizer)) {
                noted.push((&row.name, &row.optimizer));
            }
        }
        if !noted.is_empty() {
            out.push_str("\nFields of the optimizer that are a row's own:\n\n");
        }
        for (name, fields) in noted {
            let fields: Vec<String> = dotted("", fields);
            _ = writeln!(out, "- {}: {}", cell(name), fields.join(", "));
        }
        out.push_str(
            "\nA code counts its width; a scale counts 32 bits, an offset or a zero point 32 where \
             it is real, the width of a code where it is one of the codes, and nothing where the \
             grid is symmetric. An update that stays beside the weight counts 32 bits a value. \
             Embeddings and norms count what they have in the base model's files. \"same bits\": \
             the merged model's logits are the trained one's in every bit. Peak memory, tokens/s \
             and minutes are those of training or quantizing, each row in a process of its own.\n",
        );
    }

    /// `table.json`.
    ///
    /// # Panics
    /// Never: the table is plain data.
    pub fn json(&self) -> String {
        format!("{:#}\n", serde_json::to_value(self).expect("plain data serialises"))
    }

    /// `plot.svg`: for each text the loss over the width of a code, a line a method. Nothing before
    /// the first row is done.
    pub fn svg(&self) -> String {
        let charts: Vec<Picture> = self
            .texts()
            .iter()
            .enumerate()
            .map(|(index, text)| Picture {
                title: format!("Held-back loss, {text}"),
                unit: "nats a token, over bits of a code; level lines have no codes".into(),
                series: self.series(index),
            })
            .collect();
        if charts.is_empty() { String::new() } else { picture(&charts) }
    }

    fn series(&self, text: usize) -> Vec<Series> {
        let widths = || self.done().filter_map(|row| row.bits);
        let ends = [widths().min(), widths().max()].map(Option::unwrap_or_default);
        let mut all: Vec<Series> = Vec::new();
        for row in self.done() {
            let place = all.iter().position(|series| series.name == row.name);
            let place = place.unwrap_or_else(|| {
                all.push(Series { name: row.name.clone(), points: Vec::new() });
                all.len() - 1
            });
            let Some(loss) = row.perplexity.get(text).and_then(|result| result.mean_nll) else {
                continue;
            };
            let at = row.bits.map_or(ends.to_vec(), |bits| vec![bits]);
            all[place].points.extend(at.into_iter().map(|bits| (f64::from(bits), loss)));
        }
        all
    }
}

/// Dotted names and values of a table's fields.
fn dotted(prefix: &str, fields: &toml::Table) -> Vec<String> {
    let of_field = |(name, value): (&String, &toml::Value)| match value {
        toml::Value::Table(inner) => dotted(&format!("{prefix}{name}."), inner),
        value => vec![format!("`{prefix}{name} = {value}`")],
    };
    fields.iter().flat_map(of_field).collect()
}

fn cells(row: &RowState, texts: usize, columns: usize) -> Vec<String> {
    let width = |bits: &Option<u32>| bits.map_or(NONE.to_owned(), |bits| bits.to_string());
    let without = |name: &str, bits: &Option<u32>, state: &str| {
        let mut cells = vec![cell(name), width(bits), state.to_owned()];
        cells.resize(columns, String::new());
        cells
    };
    let result = match row {
        RowState::Done(result) => result,
        RowState::Failed { name, bits } => return without(name, bits, "failed"),
        RowState::Open { name, bits } => return without(name, bits, "to be made"),
    };
    let mut cells = vec![cell(&result.name), width(&result.bits)];
    cells.extend(result.perplexity.iter().map(perplexity));
    let trained = |index: usize| match result.deployment {
        Deployment::Untrained => NONE.to_owned(),
        Deployment::AsTrained => "not merged".into(),
        Deployment::SameBits => "same bits".into(),
        Deployment::SameFunction | Deployment::RoundedAnew => {
            result.trained_perplexity.get(index).map_or(NONE.to_owned(), perplexity)
        }
    };
    cells.extend((0..texts).map(trained));
    let training = result.training.as_ref();
    let told = |value: Option<String>| value.unwrap_or_else(|| NONE.to_owned());
    let mebibytes = |peak: &PeakMemory| format!("{:.0}", peak.bytes as f64 / f64::from(1 << 20));
    cells.extend([
        format!("{:.3}", result.linear_bits_per_weight),
        format!("{:.3}", result.model_bits_per_weight),
        told(training.map(|training| training.trained_values.to_string())),
        told(result.peak_memory.as_ref().map(mebibytes)),
        told(training.map(|training| short(training.tokens_per_second))),
        format!("{:.1}", result.seconds / 60.0),
    ]);
    cells
}

fn perplexity(result: &TextResult) -> String {
    result.perplexity.map_or("not finite".to_owned(), |value| match value {
        value if value < 1e4 => format!("{value:.2}"),
        value => format!("{value:.2e}"),
    })
}

/// Text that does not end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}
