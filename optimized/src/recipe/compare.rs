//! `plumbline compare`: methods beside each other on one model, data, seed and budget.

use std::path::PathBuf;

use plumbline_reference::spec::{Bits, QuantSpec};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{
    CheckpointSettings, DataFormat, DataSettings, EarlyStopping, MethodSettings, ModelSource,
    OutputSettings, PeqaSettings, TrainRecipe,
};
use crate::error::{Error, Result};
use crate::ptq::{GptqOptions, PtqSettings};
use crate::train::{OptimizerSettings, Schedule, TrainingSettings};

/// `plumbline compare`: what the rows share, and the rows.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareRecipe {
    /// Widths of a code; each row is made at each.
    pub bits: Vec<Bits>,
    /// Consecutive inputs that share a scale; absent for one group per row of a weight.
    pub group_size: Option<usize>,
    /// Windows of each text that are measured; absent for all.
    pub eval_windows: Option<usize>,
    /// What is fine-tuned.
    #[serde(default)]
    pub model: ModelSource,
    /// What it is trained on, and what it is measured on.
    pub data: DataSettings,
    /// The loop.
    pub training: TrainingSettings,
    /// Rates, decay and clipping.
    #[serde(default)]
    pub optimizer: Table,
    /// The learning rate over the steps.
    #[serde(default)]
    pub schedule: Schedule,
    /// Which states of a run are kept.
    #[serde(default)]
    pub checkpoints: CheckpointSettings,
    /// Where results go.
    pub output: OutputSettings,
    /// The rows, in the order of the table.
    #[serde(rename = "row")]
    pub rows: Vec<RowRecipe>,
}

/// A `[[row]]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowRecipe {
    /// What the table calls it.
    pub name: String,
    /// The method as a recipe has it, without the grid.
    pub method: Table,
    /// Fields of the optimizer that are this row's own.
    #[serde(default)]
    pub optimizer: Table,
    /// Widths of this row, where they are not those of all.
    pub bits: Option<Vec<Bits>>,
}

/// A row's `method.name = "gptq"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptqSettings {
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; absent for one group per row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// Windows of the training text that the inputs of layers are measured on.
    #[serde(default = "GptqSettings::published_windows")]
    pub windows: usize,
    /// Zero point in the middle of the codes, or where the range puts it.
    #[serde(default)]
    pub symmetric: bool,
    /// Part of the mean of the Hessian's diagonal that is added to the diagonal.
    #[serde(default = "GptqSettings::published_damping")]
    pub damping: f64,
    /// Columns whose updates reach the columns behind them together.
    #[serde(default = "GptqSettings::published_block_size")]
    pub block_size: usize,
    /// Whether the inputs that matter most are rounded first.
    #[serde(default)]
    pub act_order: bool,
}

impl GptqSettings {
    fn published_windows() -> usize {
        128
    }

    fn published_damping() -> f64 {
        GptqOptions::default().damping
    }

    fn published_block_size() -> usize {
        GptqOptions::default().block_size
    }

    /// Method and grid.
    ///
    /// # Errors
    /// `Invalid` or `Spec` naming the field.
    pub fn ptq(&self) -> Result<PtqSettings> {
        let Self { bits, group_size, windows, symmetric, damping, block_size, act_order } = *self;
        if windows == 0 {
            return Err(Error::Invalid("method.windows is 0, expected at least 1".into()));
        }
        let options = GptqOptions { symmetric, damping, block_size, act_order };
        // What is impossible is so at every width of a layer.
        options.spec(QuantSpec::new(bits, None, 1)?)?;
        Ok(PtqSettings::Gptq { bits, group_size, options })
    }
}

/// How the model of a row is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Making {
    /// It is the model itself.
    FullPrecision,
    /// Rounding to nearest, which is what PEQA starts from.
    Rtn(PeqaSettings),
    /// GPTQ, which is calibrated on the training text.
    Gptq(GptqSettings),
    /// A training run.
    Trained(Box<TrainRecipe>),
}

/// A row at one width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What the table calls it.
    pub name: String,
    /// Width of a code; absent for a row without codes.
    pub bits: Option<u32>,
    /// How its model is made.
    pub making: Making,
    /// Fields of the optimizer that are this row's own.
    pub optimizer: Table,
}

/// Methods that have no grid: one row each.
const WITHOUT_GRID: [&str; 2] = ["full_precision", "lora"];

impl CompareRecipe {
    /// Checks what the rows share and makes every row.
    ///
    /// # Errors
    /// `Invalid` naming the row and the field.
    pub fn rows(&self) -> Result<Vec<Row>> {
        self.check()?;
        let mut rows: Vec<Row> = Vec::new();
        for row in &self.rows {
            let name = method_name(row)?;
            let widths = match row.bits.as_deref() {
                Some(_) if WITHOUT_GRID.contains(&name) => {
                    return Err(refused(row, format!("bits is given, and {name} has no codes")));
                }
                _ if WITHOUT_GRID.contains(&name) => vec![None],
                own => own.unwrap_or(&self.bits).iter().copied().map(Some).collect(),
            };
            for bits in widths {
                let making = self.making(row, name, bits)?;
                let bits = bits.map(Bits::count);
                let optimizer = row.optimizer.clone();
                let made = Row { name: row.name.clone(), bits, making, optimizer };
                if let Some(other) = rows.iter().find(|other| other.folder() == made.folder()) {
                    let (name, folder) = (&other.name, made.folder());
                    let reason = format!("its folder is {folder}, as that of row {name:?}");
                    return Err(refused(row, reason));
                }
                rows.push(made);
            }
        }
        Ok(rows)
    }

    fn check(&self) -> Result<()> {
        let invalid = |reason: &str| Err(Error::Invalid(reason.into()));
        if self.rows.is_empty() {
            return invalid("there is no [[row]]");
        }
        if self.data.eval.is_empty() {
            return invalid("data.eval is empty: there is nothing to compare by");
        }
        if !self.data.eval_samples.is_empty() {
            return invalid("data.eval_samples is for train; a comparison measures texts");
        }
        if self.training.eval_every > 0 {
            return invalid("training.eval_every is for train; a comparison measures at the end");
        }
        if self.eval_windows == Some(0) {
            return invalid("eval_windows is 0, expected at least 1");
        }
        self.data.check()?;
        self.training.check()?;
        self.schedule.check()?;
        self.checkpoints.check()
    }

    /// A row at one width.
    fn making(&self, row: &RowRecipe, name: &str, bits: Option<Bits>) -> Result<Making> {
        let mut method = row.method.clone();
        for field in ["bits", "group_size"] {
            if method.contains_key(field) {
                let reason =
                    format!("method.{field} is that of the whole comparison; leave it out");
                return Err(refused(row, reason));
            }
        }
        if let Some(bits) = bits {
            method.insert("bits".into(), i64::from(bits.count()).into());
            let group_size = self.group_size.map(|size| Value::Integer(size as i64));
            method.extend(group_size.map(|size| ("group_size".into(), size)));
        }
        let is_trained = !["full_precision", "rtn", "gptq"].contains(&name);
        if !is_trained && !row.optimizer.is_empty() {
            return Err(refused(row, format!("optimizer is given, and {name} trains nothing")));
        }
        let unusable =
            |error: toml::de::Error| refused(row, format!("method: {}", one_line(&error)));
        match name {
            "full_precision" if method.len() > 1 => {
                Err(refused(row, "method: full_precision has no other fields"))
            }
            "full_precision" => Ok(Making::FullPrecision),
            "rtn" => {
                method.remove("name");
                let settings: PeqaSettings = method.try_into().map_err(unusable)?;
                settings.rtn().map_err(|error| refused(row, error))?;
                Ok(Making::Rtn(settings))
            }
            "gptq" if self.data.format != DataFormat::Text => {
                Err(refused(row, "gptq is calibrated on text, and data.format is not text"))
            }
            "gptq" => {
                method.remove("name");
                let settings: GptqSettings = method.try_into().map_err(unusable)?;
                settings.ptq().map_err(|error| refused(row, error))?;
                Ok(Making::Gptq(settings))
            }
            _ => {
                let settings: MethodSettings = method.try_into().map_err(unusable)?;
                settings.check().map_err(|error| refused(row, error))?;
                Ok(Making::Trained(Box::new(self.train_recipe(row, settings)?)))
            }
        }
    }

    /// The recipe of a row that is trained. Its folder is for the caller to set; it is evaluated
    /// when it is merged, and not by the run.
    fn train_recipe(&self, row: &RowRecipe, method: MethodSettings) -> Result<TrainRecipe> {
        let merged = over(&self.optimizer, &row.optimizer);
        let unusable =
            |error: toml::de::Error| refused(row, format!("optimizer: {}", one_line(&error)));
        let optimizer: OptimizerSettings = merged.try_into().map_err(unusable)?;
        optimizer.check().map_err(|error| refused(row, error))?;
        Ok(TrainRecipe {
            model: self.model.clone(),
            data: DataSettings { eval: Vec::new(), ..self.data.clone() },
            method: method.into(),
            training: self.training.clone(),
            optimizer,
            schedule: self.schedule,
            checkpoints: self.checkpoints,
            early_stopping: EarlyStopping::default(),
            output: OutputSettings { dir: PathBuf::new() },
        })
    }
}

impl Row {
    /// The name and the width as a folder is called: letters, digits and hyphens.
    pub fn folder(&self) -> String {
        let width = self.bits.map_or(String::new(), |bits| format!(" {bits} bits"));
        let name = format!("{}{width}", self.name).to_lowercase();
        let words = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-")
    }

    /// The method, by the word that recipes have for it.
    pub fn method(&self) -> &'static str {
        match &self.making {
            Making::FullPrecision => "full_precision",
            Making::Rtn(_) => "rtn",
            Making::Gptq(_) => "gptq",
            Making::Trained(recipe) => recipe.method.settings.name(),
        }
    }
}

fn method_name(row: &RowRecipe) -> Result<&str> {
    if !row.name.chars().any(char::is_alphanumeric) {
        return Err(refused(row, "name has neither a letter nor a digit"));
    }
    let name = row.method.get("name").and_then(Value::as_str);
    name.ok_or_else(|| refused(row, "method.name is missing"))
}

fn refused(row: &RowRecipe, reason: impl ToString) -> Error {
    Error::Invalid(format!("row {:?}: {}", row.name, reason.to_string()))
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().trim().replace('\n', "; ")
}

/// A table with fields of another in place of its own, tables within it alike.
fn over(base: &Table, own: &Table) -> Table {
    let mut all = base.clone();
    for (field, value) in own {
        let value = match (all.get(field), value) {
            (Some(Value::Table(base)), Value::Table(own)) => Value::Table(over(base, own)),
            _ => value.clone(),
        };
        all.insert(field.clone(), value);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &str) -> Result<Vec<Row>, String> {
        let text = format!(
            "bits = [4, 2]\ngroup_size = 16\noutput.dir = \"out\"\n\
             data = {{ train = [\"a.txt\"], eval = [\"b.txt\"], context = 8 }}\n\
             training = {{ steps = 2, micro_batch = 1 }}\n\
             optimizer = {{ learning_rate = 1e-3, scale.learning_rate = 1e-4 }}\n{rows}"
        );
        let recipe: CompareRecipe = toml::from_str(&text).map_err(|error| error.to_string())?;
        recipe.rows().map_err(|error| error.to_string())
    }

    #[test]
    fn a_row_has_the_grid_of_all_and_rates_of_its_own() {
        let made = rows(
            "[[row]]\nname = \"FP\"\nmethod.name = \"full_precision\"\n\
             [[row]]\nname = \"L4Q, low\"\nmethod = { name = \"l4q\", rank = 2 }\n\
             optimizer.offset.learning_rate = 0.5\n",
        )
        .unwrap();
        let folders: Vec<String> = made.iter().map(Row::folder).collect();
        assert_eq!(folders, ["fp", "l4q-low-4-bits", "l4q-low-2-bits"]);
        let Making::Trained(recipe) = &made[2].making else { panic!("{:?}", made[2]) };
        let MethodSettings::L4q(settings) = &recipe.method.settings else { panic!("{recipe:?}") };
        assert_eq!((settings.bits.count(), settings.group_size), (2, Some(16)));
        let rates = [recipe.optimizer.scale, recipe.optimizer.offset, recipe.optimizer.lora_a];
        assert_eq!(rates.map(|kind| kind.learning_rate), [Some(1e-4), Some(0.5), None]);
        assert!(recipe.data.eval.is_empty() && recipe.optimizer.learning_rate == 1e-3);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_row_and_field() {
        let row = |fields: &str| format!("[[row]]\nname = \"A\"\n{fields}\n");
        for (text, expected) in [
            (row("method.name = \"magic\""), "row \"A\": method: unknown variant `magic`"),
            (row("method.rank = 2"), "row \"A\": method.name is missing"),
            (row("method = { name = \"l4q\", rank = 0 }"), "row \"A\": method.rank is 0"),
            (
                row("method = { name = \"rtn\", rank = 1 }"),
                "row \"A\": method: unknown field `rank`",
            ),
            (row("method = { name = \"rtn\", bits = 3 }"), "method.bits is that of the whole"),
            (row("method = { name = \"gptq\", windows = 0 }"), "row \"A\": method.windows is 0"),
            (row("method = { name = \"gptq\", damping = -1.0 }"), "row \"A\": damping"),
            (row("method.name = \"rtn\"\noptimizer.beta1 = 0.5"), "rtn trains nothing"),
            (row("method.name = \"full_precision\"\nbits = [4]"), "full_precision has no codes"),
            (
                row("method = { name = \"l4q\", rank = 2 }\noptimizer.rate = 1"),
                "row \"A\": optimizer: unknown field `rate`",
            ),
            (
                row("method.name = \"rtn\"").repeat(2),
                "its folder is a-4-bits, as that of row \"A\"",
            ),
            (String::new(), "missing field `row`"),
        ] {
            let error = rows(&text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
