//! The command line of `conform`.
//!
//! Exit codes: 0 everything conforms, 1 something does not, 2 bad use or unreadable input. A subject
//! that this program was built without is shown as ignored, with 0; `REQUIRE_CUDA=1` makes it 1.

mod properties;

mod families;
mod hunt;

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::case::{self, Case, FORMAT, container, container::Container, prefixed};
use crate::checkpoint::{self, Question};
use crate::collect::{Collected, collect};
use crate::error::Error;
use crate::generate::generate;
use crate::judge::report::{Counts, Status};
use crate::judge::statistics::{Statistics, Summary, Table};
use crate::judge::{judge, run};
use crate::ops::{self, Class, OPERATIONS, Operation};
use crate::precision::Precision;
use crate::report::{self, Run};
use crate::subject::{self, BUILT_IN, ON_HARDWARE, Subject, SubjectError, Support, absent};
use crate::teeth::{self, Score};

use families::FamilyArgs;
use hunt::HuntArgs;

/// Judges implementations of the operations against the reference and golden vectors.
#[derive(Parser)]
#[command(name = "conform", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one case and writes its outputs, comparing nothing.
    Eval(Eval),
    /// Judges every case under the paths.
    Check(Check),
    /// Writes fresh cases whose expected outputs come from the f64 reference.
    Generate(Generate),
    /// Draws cases until the subject fails one, and shrinks that one.
    Hunt(HuntArgs),
    /// Shows the operations and which subject implements which.
    List(List),
    /// Puts the runs of several subjects on one HTML page.
    Report(Page),
    /// Runs deliberate faults on golden cases: does the judge notice every one?
    Teeth(Teeth),
    /// Relates a subject's answers to each other: no reference value is needed.
    Properties(properties::Properties),
    /// Asks a whole checkpoint for the loss of given tokens and its greedy continuation of BOS.
    Checkpoint(Checkpoint),
}

#[derive(Args)]
struct SubjectArgs {
    /// reference, cpu, cuda-host, cuda, mutant:NAME (see teeth), or exec:COMMAND LINE for anything
    /// outside. With products of factors in bf16: reference-bf16, cuda-host-bf16, cuda-bf16,
    /// exec-bf16:COMMAND LINE.
    #[arg(long)]
    subject: String,
    /// Precision of the arithmetic; without it, the subject's first (see list).
    #[arg(long)]
    precision: Option<Precision>,
    /// Seconds that an outside subject has for one case.
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    timeout: f64,
}

#[derive(Args)]
struct Eval {
    /// The case, .safetensors or .toml.
    case: PathBuf,
    #[command(flatten)]
    subject: SubjectArgs,
    /// Which case of a file with several.
    #[arg(long = "case", value_name = "ID")]
    id: Option<String>,
    /// Where the outputs go.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct Check {
    /// Case files, and folders with case files.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    subject: SubjectArgs,
    /// Writes cases.jsonl, junit.xml and report.html there.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Page {
    /// Folders that check --report wrote.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The page, an .html file.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct Generate {
    /// Folder for the case files.
    #[arg(long)]
    out: PathBuf,
    /// Operations; all of them without it.
    #[arg(long = "op", value_name = "NAME", conflicts_with_all = ["family", "families"])]
    ops: Vec<String>,
    /// Cases per operation.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// The same seed gives the same files.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    families: FamilyArgs,
}

#[derive(Args)]
struct Teeth {
    /// Golden case files, and folders with them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Checkpoint {
    /// Model folder in Hugging Face layout.
    model: PathBuf,
    /// reference or cpu.
    #[arg(long)]
    subject: String,
    /// Precision of the arithmetic; without it f64 for the reference and f32 for the cpu.
    #[arg(long)]
    precision: Option<Precision>,
    /// A JSON file: an array of token ids, or an object with input_ids.
    #[arg(long, value_name = "FILE")]
    token_ids: Option<PathBuf>,
    /// Tokens to write greedily, BOS included.
    #[arg(long, default_value_t = 0)]
    greedy: usize,
}

#[derive(Args)]
struct List {
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Shows the adversarial families, and how many cases each has.
    #[arg(long)]
    families: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        // Longer than a Duration can hold is surely a slip.
        Ok(seconds) if seconds > 0.0 && seconds <= 1e6 => Ok(seconds),
        _ => Err("expected a number of seconds above 0".to_owned()),
    }
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    // Clap itself exits with 2 for arguments that it cannot parse, and with 0 for help.
    let done = match Cli::parse().command {
        Command::Eval(args) => eval(&args),
        Command::Check(args) => check(&args),
        Command::Report(args) => page(&args),
        Command::Generate(args) => generate_cases(&args),
        Command::Hunt(args) => hunt::hunt(&args),
        Command::List(args) if args.families => families::list(args.json),
        Command::List(args) => list(&args),
        Command::Teeth(args) => show_teeth(&args),
        Command::Properties(args) => properties::properties(&args),
        Command::Checkpoint(args) => ask_checkpoint(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("conform: {error}");
        let required = std::env::var("REQUIRE_CUDA").is_ok_and(|value| value == "1");
        match error {
            // Where no GPU is, its kernels are neither right nor wrong.
            Error::Absent { .. } if !required => ExitCode::SUCCESS,
            Error::Absent { .. } => ExitCode::from(1),
            _ => ExitCode::from(2),
        }
    })
}

/// Prints a line; a reader that went away is no reason to fail.
fn say(text: impl std::fmt::Display) {
    _ = writeln!(std::io::stdout(), "{text}");
}

fn select(args: &SubjectArgs) -> Result<(Box<dyn Subject>, Precision), Error> {
    let subject = subject::select(&args.subject, Duration::from_secs_f64(args.timeout))?;
    let precision = subject::precision_of(subject.as_ref(), args.precision)?;
    Ok((subject, precision))
}

fn eval(args: &Eval) -> Result<ExitCode, Error> {
    let (mut subject, precision) = select(&args.subject)?;
    let case = one_case(&args.case, args.id.as_deref())?;
    if let Support::No(why) = subject.supports(case.request.op, precision) {
        return Err(Error::Usage(format!(
            "{} skips {}: {why}",
            subject.name(),
            case.request.op.name
        )));
    }
    let request = case.request.to_precision(precision);
    let outputs = match run(subject.as_mut(), &request, precision) {
        Ok(outputs) => outputs,
        // What a subject refuses is input that cannot be used; one that breaks does not conform.
        Err(error @ (SubjectError::Refused(_) | SubjectError::Skip(_))) => {
            return Err(Error::Usage(format!("{}: {} {error}", case.label(), subject.name())));
        }
        Err(SubjectError::Broken(what)) => {
            eprintln!("conform: {}: {} {what}", case.label(), subject.name());
            return Ok(ExitCode::from(1));
        }
    };
    let mut metadata = vec![
        ("format", FORMAT.to_owned()),
        ("op", case.request.op.name.to_owned()),
        ("params", case.request.params.to_json()),
        ("origin", format!("{} {precision}", subject.name())),
    ];
    metadata.extend(case.note.map(|note| ("note", note)));
    let container = Container {
        metadata: metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        tensors: prefixed("out.", &outputs).collect(),
    };
    container::write(&args.out, &container)?;
    Ok(ExitCode::SUCCESS)
}

fn one_case(file: &Path, id: Option<&str>) -> Result<Case, Error> {
    let mut cases = case::load(file)?;
    let ids = cases.iter().map(|case| case.id.clone()).collect::<Vec<_>>().join(", ");
    if let Some(id) = id {
        cases.retain(|case| case.id == id);
    }
    match (cases.len(), cases.pop(), id) {
        (1, Some(case), _) => Ok(case),
        (_, None, Some(id)) => {
            Err(Error::case(file, format!("there is no case {id:?}, only {ids}")))
        }
        _ => Err(Error::case(file, format!("there are several cases, choose one: --case {ids}"))),
    }
}

fn check(args: &Check) -> Result<ExitCode, Error> {
    let (mut subject, precision) = select(&args.subject)?;
    let Collected { cases, mut errors } = collect(&args.paths);
    let (mut counts, mut records) = (Counts::default(), Vec::new());
    let mut statistics = Statistics::default();
    let mut reference = subject::reference_of(subject.products());
    for case in &cases {
        if precision == Precision::F32
            && let Some(problem) = case.not_f32_exact()
        {
            let problem = format!("case {}: {problem}, and the subject computes in f32", case.id);
            errors.push(Error::case(&case.file, problem));
            continue;
        }
        let report = judge(case, subject.as_mut(), precision);
        counts.add(&report);
        // How rough the precision itself is, on the same case.
        let other = subject.name() != reference.name() && !report.tensors.is_empty();
        let beside = other.then(|| judge(case, reference.as_mut(), precision));
        statistics.add(&report, beside.as_ref().unwrap_or(&report));
        if !args.json && !matches!(report.status, Status::Pass) {
            say(&report);
        }
        records.push(report.record());
    }
    if records.is_empty() && errors.is_empty() {
        errors.push(Error::Usage("there is no case under the given paths".to_owned()));
    }
    let run = Run {
        subject: subject.name().to_owned(),
        precision: precision.to_string(),
        outputs: statistics.summaries(),
    };
    if let Some(folder) = &args.report {
        report::write(folder, &records, &run)?;
    }
    let found: Vec<_> = run.outputs.iter().filter(|output| !output.findings.is_empty()).collect();
    if args.json {
        say(json!({
            "subject": subject.name(),
            "precision": precision.to_string(),
            "counts": counts,
            "cases": records,
            "outputs": run.outputs,
            "unreadable": errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }));
    } else {
        say(format!("worst difference over its allowance:{}", Table(&run.outputs)));
        for output in &found {
            let what = output.findings.join("; ");
            say(format!("FAIL whole run {} out.{}: {what}", output.op, output.tensor));
        }
        let count = |of: fn(&Summary) -> usize| run.outputs.iter().map(of).sum::<usize>();
        let (zero, all) = (count(|output| output.empty), count(|output| output.cases));
        if zero > 0 {
            say(format!("{zero} of {all} outputs were expected to be zero everywhere"));
        }
        say(format!("{} {precision}: {counts}", subject.name()));
    }
    for error in &errors {
        eprintln!("conform: {error}");
    }
    Ok(match (errors.is_empty(), counts.fail + found.len()) {
        (false, _) => ExitCode::from(2),
        (true, 0) => ExitCode::SUCCESS,
        (true, _) => ExitCode::from(1),
    })
}

fn page(args: &Page) -> Result<ExitCode, Error> {
    let (records, runs) = report::read(&args.runs)?;
    report::write_page(&args.out, &records, &runs)?;
    Ok(ExitCode::SUCCESS)
}

fn generate_cases(args: &Generate) -> Result<ExitCode, Error> {
    let chosen = args.families.chosen()?;
    if !chosen.is_empty() {
        return families::generate(&chosen, args.families.scope(), &args.out);
    }
    let operations = operations(&args.ops)?;
    let files = generate(&args.out, &operations, args.count, args.seed)?;
    say(format!("wrote {} cases to {}, seed {}", files.len(), args.out.display(), args.seed));
    Ok(ExitCode::SUCCESS)
}

/// The operations of these names; all of them without a name.
fn operations(names: &[String]) -> Result<Vec<&'static Operation>, Error> {
    if names.is_empty() {
        return Ok(OPERATIONS.clone());
    }
    names.iter().map(|name| ops::find(name)).collect::<Result<_, _>>().map_err(Error::Usage)
}

fn list(args: &List) -> Result<ExitCode, Error> {
    let mut subjects = Vec::new();
    let absent = absent();
    let present = |name: &&&str| !absent.iter().any(|(missing, _)| missing == *name);
    for name in BUILT_IN.iter().chain(ON_HARDWARE).filter(present) {
        subjects.push(subject::select(name, Duration::from_secs(60))?);
    }
    if args.json {
        let operations: Vec<_> = OPERATIONS.iter().map(|op| list_json(op, &subjects)).collect();
        let absent: serde_json::Map<_, _> =
            absent.iter().map(|(name, why)| ((*name).to_owned(), json!(why))).collect();
        say(json!({ "format": FORMAT, "operations": operations, "absent": absent }));
        return Ok(ExitCode::SUCCESS);
    }
    let header: Vec<_> = subjects.iter().map(|subject| format!("{:<16}", subject.name())).collect();
    say(format!("{:<28}{}", "operation", header.join("").trim_end()));
    for op in OPERATIONS.iter().copied() {
        let cells = subjects.iter().map(|subject| {
            let precisions = supported(subject.as_ref(), op);
            format!(
                "{:<16}",
                if precisions.is_empty() { "-".to_owned() } else { precisions.join(" ") }
            )
        });
        say(format!("{:<28}{}", op.name, cells.collect::<String>().trim_end()));
    }
    for (name, why) in &absent {
        say(format!("{name:<28}ignored: {why}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn supported(subject: &dyn Subject, op: &Operation) -> Vec<String> {
    let precisions = subject.precisions().iter();
    precisions
        .filter(|precision| subject.supports(op, **precision) == Support::Yes)
        .map(ToString::to_string)
        .collect()
}

fn list_json(op: &Operation, subjects: &[Box<dyn Subject>]) -> Value {
    let names = |specs: &[ops::TensorSpec]| -> Vec<String> {
        let mut names: Vec<_> = specs.iter().map(|spec| spec.name.to_string()).collect();
        if op.weights.is_some() {
            names.push("(tensors named by params)".to_owned());
        }
        names
    };
    let judged = op.outputs.iter().map(|spec| {
        let rule = match spec.class {
            Class::Bounded(formula) | Class::Grid(formula) => formula,
            Class::Codes | Class::Choices(_) => {
                "equal, or the neighbour across a tie that the precision leaves open"
            }
            Class::Chosen => "equal, or a neighbour that the precision leaves open",
            Class::Exact => "equal",
            Class::Given => "not judged",
        };
        (spec.name.to_string(), json!(rule))
    });
    let by_subject = subjects
        .iter()
        .map(|subject| (subject.name().to_owned(), json!(supported(subject.as_ref(), op))));
    json!({
        "op": op.name,
        "params": op.params,
        "in": names(op.inputs),
        "out": names(op.outputs),
        "judged": judged.collect::<serde_json::Map<_, _>>(),
        "subjects": by_subject.collect::<serde_json::Map<_, _>>(),
    })
}

fn show_teeth(args: &Teeth) -> Result<ExitCode, Error> {
    let Collected { cases, errors } = collect(&args.paths);
    if let Some(error) = errors.into_iter().next() {
        return Err(error);
    }
    let score = Score::new(teeth::campaign(&cases));
    if args.json {
        say(score.to_json());
    } else {
        say(&score);
    }
    Ok(ExitCode::from(u8::from(!score.is_full())))
}

fn ask_checkpoint(args: &Checkpoint) -> Result<ExitCode, Error> {
    let default = if args.subject == "reference" { Precision::F64 } else { Precision::F32 };
    let tokens = match &args.token_ids {
        Some(path) => checkpoint::read_token_ids(path)?,
        None => Vec::new(),
    };
    let question = Question { tokens, greedy: args.greedy };
    let precision = args.precision.unwrap_or(default);
    let answer = checkpoint::ask(&args.model, &question, &args.subject, precision)?;
    say(json!(answer));
    Ok(ExitCode::SUCCESS)
}
