//! `plumbline compare`: rows of a table, each made in a process of its own, so that its peak of
//! memory is its own, and kept until what it depends on changes.

mod row;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plumbline::checkpoint::{
    ModelFolder, new_folder, remove_folder, remove_unfinished, sha256, sha256_file, write_file,
};
use plumbline::model::{Projection, tensor_shapes};
use plumbline::recipe::{
    self, CheckpointSettings, CompareRecipe, DataFormat, Making, Row, resolve,
};
use plumbline::report::comparison::{Comparison, RowResult, RowState};

use super::device::DeviceOption;
use super::interrupt::Interrupt;
use super::progress::waiting;
use super::run::{is_table, read_text};
use super::source::open_model;
use super::train::check_context;

pub use row::row;
use row::{Task, read_json};

/// In the folder of a comparison: its recipe, as it was given.
const RECIPE: &str = "compare.toml";
/// The rows' folders.
const ROWS: &str = "rows";
/// In the folder of a row: what its process is told.
const ROW: &str = "row.json";
/// Its result.
const RESULT: &str = "result.json";
/// Its training run.
const RUN: &str = "run";
/// The largest peak of memory of the processes that trained it.
const PEAK: &str = "peak.json";

/// `compare`.
#[derive(clap::Args)]
pub struct CompareCommand {
    /// What the rows share, and the rows, TOML
    recipe: PathBuf,
    #[command(flatten)]
    on: DeviceOption,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
}

/// A comparison whose every field is checked; nothing is written yet.
struct Plan {
    recipe: CompareRecipe,
    /// The recipe's file.
    text: Vec<u8>,
    base: ModelFolder,
    tasks: Vec<Task>,
}

/// Runs the command: exit code 1 where a row failed.
pub fn compare(command: &CompareCommand) -> Result<ExitCode> {
    let device = command.on.open()?.name(command.on.compute);
    let plan = Plan::new(&command.recipe, &device)?;
    plan.open_folder()?;
    let interrupt = Interrupt::listen()?;
    let mut failed = Vec::new();
    // What is finished already, in the order of the recipe as it is now.
    plan.write_table(&failed)?;
    for (index, task) in plan.tasks.iter().enumerate() {
        let folder = plan.row_folder(task);
        if plan.finished(task)?.is_some() {
            continue;
        }
        let (number, all, name) = (index + 1, plan.tasks.len(), task.row.folder());
        eprintln!("row {number} of {all}: {name}");
        prepare(&folder, task)?;
        let code = wait(&mut start(&folder, command.on)?, &interrupt)?;
        if let Some(signal) = interrupt.exit_code() {
            eprintln!("interrupted: the same command goes on from here");
            return Ok(ExitCode::from(signal));
        }
        if code != Some(0) {
            let code = code.map_or("by a signal".to_owned(), |code| format!("with code {code}"));
            eprintln!("row {name} ended {code}; the same command tries it again");
            failed.push(name);
        }
        plan.write_table(&failed)?;
    }
    let table = plan.write_table(&failed)?;
    print!("{}", if command.json { table.json() } else { table.markdown() });
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

impl Plan {
    fn new(path: &Path, device: &str) -> Result<Self> {
        let mut recipe: CompareRecipe = recipe::read(path)?;
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for file in recipe.data.files_mut() {
            *file = resolve(folder, file)?;
        }
        if let Some(model) = &mut recipe.model.path {
            *model = resolve(folder, model)?;
        }
        recipe.output.dir = resolve(folder, &recipe.output.dir)?;
        let name = || path.display().to_string();
        let rows = recipe.rows().with_context(name)?;
        let base = open_model(recipe.model.path.as_deref())?;
        check_base(&recipe, &base).with_context(name)?;
        for row in &rows {
            let bits = row.bits.map(plumbline_reference::spec::Bits::new).transpose()?;
            if let Some(bits) = bits {
                base.specs(bits, recipe.group_size).with_context(name)?;
            }
        }
        let depends = Depends::new(&recipe, &base, device)?;
        let task = |row: Row| {
            Ok(Task {
                digest: depends.digest(&row)?,
                row,
                model: recipe.model.path.clone(),
                train: recipe.data.train.clone(),
                seed: recipe.training.seed,
                eval: recipe.data.eval.clone(),
                context: recipe.data.context,
                eval_windows: recipe.eval_windows,
            })
        };
        let tasks = rows.into_iter().map(task).collect::<Result<_>>()?;
        Ok(Self { recipe, text, base, tasks })
    }

    /// The comparison's folder, made where it is new; any other that exists is refused.
    fn open_folder(&self) -> Result<()> {
        let folder = &self.recipe.output.dir;
        if !folder.exists() {
            return Ok(new_folder(folder, |made| write_file(&made.join(RECIPE), &self.text))?);
        }
        if !folder.join(RECIPE).exists() {
            bail!(
                "{}: already exists and holds no comparison; choose another output.dir",
                folder.display()
            );
        }
        remove_unfinished(folder)?;
        Ok(write_file(&folder.join(RECIPE), &self.text)?)
    }

    fn row_folder(&self, task: &Task) -> PathBuf {
        self.recipe.output.dir.join(ROWS).join(task.row.folder())
    }

    /// The result of a row, where there is one of this digest.
    fn finished(&self, task: &Task) -> Result<Option<RowResult>> {
        let path = self.row_folder(task).join(RESULT);
        if !path.exists() {
            return Ok(None);
        }
        let result: RowResult = read_json(&path)?;
        Ok((result.digest == task.digest).then_some(result))
    }

    /// The table as it stands, written and returned.
    fn write_table(&self, failed: &[String]) -> Result<Comparison> {
        let recipe = &self.recipe;
        let state = |task: &Task| {
            let Row { name, bits, .. } = task.row.clone();
            let result = self.finished(task)?.map(|result| RowState::Done(Box::new(result)));
            Ok(result.unwrap_or_else(|| match failed.contains(&task.row.folder()) {
                true => RowState::Failed { name, bits },
                false => RowState::Open { name, bits },
            }))
        };
        let model = recipe.model.path.as_deref();
        let table = Comparison {
            model: match model.map(|path| path.file_name().unwrap_or(path.as_os_str())) {
                Some(name) => name.to_string_lossy().into_owned(),
                None => "The model inside the program".into(),
            },
            parameters: parameters(&self.base),
            linear_parameters: Projection::all(self.base.config())
                .iter()
                .map(|linear| linear.out_features * linear.in_features)
                .sum(),
            group_size: recipe.group_size,
            context: recipe.data.context,
            windows_per_step: recipe.training.micro_batch * recipe.training.accumulation,
            steps: recipe.training.steps,
            seed: recipe.training.seed,
            rows: self.tasks.iter().map(state).collect::<Result<_>>()?,
        };
        let write =
            |name: &str, text: String| write_file(&recipe.output.dir.join(name), text.as_bytes());
        write("table.md", table.markdown())?;
        write("table.json", table.json())?;
        let plot = table.svg();
        if !plot.is_empty() {
            write("plot.svg", plot)?;
        }
        Ok(table)
    }
}

/// Values of all tensors of a model.
fn parameters(base: &ModelFolder) -> usize {
    tensor_shapes(base.config()).values().map(|shape| shape.iter().product::<usize>()).sum()
}

fn check_base(recipe: &CompareRecipe, base: &ModelFolder) -> Result<()> {
    if base.quantization().is_some() {
        bail!("{}: holds codes; a comparison starts from full precision", base.path().display());
    }
    base.tokenizer()?;
    check_context(recipe.data.context, base)
}

/// What every row's result depends on.
struct Depends {
    version: &'static str,
    device: String,
    base: String,
    train: Vec<PathBuf>,
    seed: u64,
    eval: Vec<String>,
    context: usize,
    eval_windows: Option<usize>,
}

impl Depends {
    fn new(recipe: &CompareRecipe, base: &ModelFolder, device: &str) -> Result<Self> {
        let text = |path: &PathBuf| match is_table(path) {
            true => Ok(sha256_file(path)?),
            false => Ok(sha256(read_text(path)?.as_bytes())),
        };
        let data = &recipe.data;
        let train = data.train.iter().map(|path| match data.format {
            DataFormat::Text => text(path),
            DataFormat::Alpaca | DataFormat::Messages => Ok(sha256_file(path)?),
        });
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            device: device.to_owned(),
            base: waiting("checking the base model", || base.fingerprint())?,
            train: train.map(|sha256| sha256.map(PathBuf::from)).collect::<Result<_>>()?,
            seed: recipe.training.seed,
            eval: data.eval.iter().map(text).collect::<Result<_>>()?,
            context: data.context,
            eval_windows: recipe.eval_windows,
        })
    }

    /// Of a row, whatever the places of the files are called.
    fn digest(&self, row: &Row) -> Result<String> {
        let mut row = row.clone();
        if let Making::Trained(recipe) = &mut row.making {
            recipe.model.path = None;
            recipe.data.train = self.train.clone();
            recipe.checkpoints = CheckpointSettings::default();
        }
        // What a trained row depends on beside these stands in its recipe.
        let calibration = matches!(row.making, Making::Gptq(_)).then_some((&self.train, self.seed));
        let Self { version, device, base, eval, context, eval_windows, .. } = self;
        let all = serde_json::json!({
            "version": version, "device": device, "base": base, "eval": eval,
            "context": context, "eval_windows": eval_windows, "calibration": calibration,
            "row": row,
        });
        Ok(sha256(all.to_string().as_bytes()))
    }
}

/// The row's folder with what its process is told. What stands there of another digest is removed; a
/// run of the same is gone on with.
fn prepare(folder: &Path, task: &Task) -> Result<()> {
    let path = folder.join(ROW);
    if folder.exists() {
        // A row whose file cannot be read is of no use to anybody.
        let before = read_json::<Task>(&path).ok();
        if before.is_none_or(|before| before.digest != task.digest) {
            remove_folder(folder)?;
        }
    }
    std::fs::create_dir_all(folder)
        .with_context(|| format!("{}: cannot create", folder.display()))?;
    let text = format!("{:#}\n", serde_json::to_value(task)?);
    Ok(write_file(&path, text.as_bytes())?)
}

fn start(folder: &Path, on: DeviceOption) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let mut command = Command::new(&program);
    command.arg("compare-row").arg(folder).args(on.arguments());
    command.spawn().with_context(|| format!("{}: cannot start", program.display()))
}

/// Waits for a row's process; its exit code, if it had one. Ctrl-C at a terminal reaches it too, and
/// it saves. What has not ended a while after a signal is killed: its last checkpoint is whole.
fn wait(child: &mut Child, interrupt: &Interrupt) -> Result<Option<i32>> {
    const LOOK: Duration = Duration::from_millis(50);
    const SAVING: Duration = Duration::from_secs(30);
    let mut left = SAVING;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the row")? {
            return Ok(status.code());
        }
        if interrupt.exit_code().is_some() {
            left = left.saturating_sub(LOOK);
            if left.is_zero() {
                child.kill().context("cannot end the row")?;
            }
        }
        std::thread::sleep(LOOK);
    }
}
