//! `compare` as a user meets it: the table, what stays when it is run again, what is refused.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use common::program::{json, plumbline, refused};

const ROWS: &str = r#"
[[row]]
name = "full precision"
method.name = "full_precision"

[[row]]
name = "RTN"
method.name = "rtn"

[[row]]
name = "L4Q"
method = { name = "l4q", rank = 2 }
optimizer.scale.learning_rate = 1e-4
"#;

/// A folder with `compare.toml` in it: the model inside the program, few and short windows.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new(rows: &str) -> Self {
        let place = Self { root: tempfile::tempdir().unwrap() };
        place.recipe(2, rows);
        place
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    fn recipe(&self, steps: u64, rows: &str) {
        let text = format!(
            "bits = [3]\ngroup_size = 32\neval_windows = 2\n\
             data = {{ train = [\"builtin:milton_train\"], eval = [\"builtin:milton_eval\"], \
             context = 16 }}\n\
             training = {{ steps = {steps}, micro_batch = 1, seed = 3 }}\n\
             checkpoints = {{ every = 1, keep = 1 }}\n\
             output.dir = \"out\"\n{rows}"
        );
        fs::write(self.path().join("compare.toml"), text).unwrap();
    }

    fn compare(&self) -> Value {
        json(&plumbline(self.path(), &["compare", "compare.toml", "--json"]))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join("out").join(name)
    }

    fn result(&self, row: &str) -> Vec<u8> {
        fs::read(self.file("rows").join(row).join("result.json")).unwrap()
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// A row's numbers that are not those of a clock or a meter.
fn measured(row: &Value) -> [Value; 4] {
    ["perplexity", "linear_bits_per_weight", "largest_difference", "digest"]
        .map(|field| row[field].clone())
}

#[test]
fn a_table_has_every_row_and_is_made_once() {
    let place = Place::new(ROWS);
    let table = place.compare();
    let rows = table["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["full precision", "RTN", "L4Q"]);
    assert!(rows.iter().all(|row| row["state"] == "done"), "{table}");
    // bf16; 3 bits and in groups of 32 a scale with a 3-bit zero point; a scale alone, for no weight
    // is outside the first grid of L4Q, and only those move offsets.
    let bits: Vec<f64> = rows.iter().map(|row| number(&row["linear_bits_per_weight"])).collect();
    assert_eq!(bits, [16.0, 3.0 + 35.0 / 32.0, 3.0 + 32.0 / 32.0]);
    assert_eq!(rows[2]["deployment"], "same_bits");
    assert_eq!(rows[2]["training"]["tokens"], 32);
    assert_eq!(rows[2]["training"]["trained_values"], plan("trained_values", "2"));
    for row in rows {
        assert!(number(&row["perplexity"][0]["perplexity"]) > 1.0, "{row}");
        assert_eq!(row["perplexity"][0]["windows"], 2);
    }
    // A process that trains has at least the base model's floats.
    let peak = number(&rows[2]["peak_memory"]["bytes"]);
    assert!(peak > 4.0 * number(&table["parameters"]), "{peak}");

    let markdown = fs::read_to_string(place.file("table.md")).unwrap();
    let line = markdown.lines().find(|line| line.starts_with("| L4Q | 3 |")).unwrap();
    assert!(line.contains("same bits") && line.contains("4.000"), "{line}");
    assert!(markdown.contains("- L4Q: `scale.learning_rate = 0.0001`"), "{markdown}");
    assert_eq!(fs::read_to_string(place.file("table.json")).unwrap(), format!("{table:#}\n"));
    assert!(fs::read_to_string(place.file("plot.svg")).unwrap().contains(">RTN</text>"));

    // Again: nothing is made, and the files of the rows are the same.
    let (before, rtn) = (place.result("l4q-3-bits"), place.result("rtn-3-bits"));
    assert_eq!(place.compare(), table);
    assert_eq!(place.result("l4q-3-bits"), before);
    // Another rate: that row alone is made again, from its first step.
    place.recipe(2, &ROWS.replace("1e-4", "1e-2"));
    let changed = place.compare();
    assert_ne!(measured(&changed["rows"][2])[3], measured(&rows[2])[3]);
    assert_ne!(measured(&changed["rows"][2])[0], measured(&rows[2])[0]);
    assert_eq!(place.result("rtn-3-bits"), rtn);
}

/// A number of `plumbline plan` for L4Q at 3 bits on the model inside the program.
fn plan(field: &str, rank: &str) -> Value {
    let shape = ["plan", "--config", "builtin", "--method", "l4q", "--bits", "3", "--json"];
    let more = ["--group-size", "32", "--rank", rank];
    json(&plumbline(Path::new("."), &[&shape[..], &more[..]].concat()))[field].clone()
}

#[test]
fn rows_that_are_not_merged_or_rounded_anew_say_so() {
    let place = Place::new(
        r#"
[[row]]
name = "QAT-LoRA"
method = { name = "qat_lora", rank = 2 }
[[row]]
name = "QA-LoRA"
method = { name = "qa_lora", rank = 2 }
[[row]]
name = "GPTQ"
method = { name = "gptq", windows = 2, block_size = 32 }
[[row]]
name = "QLoRA"
method = { name = "qlora", rank = 2 }
"#,
    );
    let table = place.compare();
    let rows = table["rows"].as_array().unwrap();
    let deployed: Vec<&Value> = rows.iter().map(|row| &row["deployment"]).collect();
    assert_eq!(deployed, ["as_trained", "same_function", "untrained", "rounded_anew"]);
    let apart = |row: &Value| {
        let of = |field: &str| number(&row[field][0]["mean_nll"]);
        (of("perplexity") - of("trained_perplexity")).abs()
    };
    assert!(apart(&rows[1]) < 1e-4 && apart(&rows[3]) > 1e-3, "{table}");
    assert_eq!(number(&rows[2]["linear_bits_per_weight"]), 3.0 + 35.0 / 32.0);
    // An update of rank 2 beside 128 x 128 weights and wider ones.
    let beside = number(&rows[0]["linear_bits_per_weight"]);
    assert!(beside > 5.5 && beside < 6.5, "{beside}");
}

const STEPS: u64 = 60;

/// A comparison of [`ROWS`] that `signal` ends, with arguments for `kill` made of its process id, some
/// steps into L4Q; also its exit code.
fn ended_early(signal: impl Fn(&str) -> Vec<String>) -> (Place, Option<i32>) {
    let place = Place::new(ROWS);
    place.recipe(STEPS, ROWS);
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("plumbline"))
        .current_dir(place.path())
        .args(["compare", "compare.toml"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let checkpoint =
        |step: u64| place.file(&format!("rows/l4q-3-bits/run/checkpoints/step-{step}")).exists();
    let began = Instant::now();
    while !(3..STEPS).any(checkpoint) {
        assert!(began.elapsed() < Duration::from_secs(240), "no checkpoint appeared");
        std::thread::sleep(Duration::from_millis(2));
    }
    let arguments = signal(&child.id().to_string());
    assert!(Command::new("kill").args(&arguments).status().unwrap().success(), "{arguments:?}");
    let code = child.wait().unwrap().code();
    (place, code)
}

fn state(place: &Place, row: usize) -> Value {
    let table = fs::read(place.file("table.json")).unwrap();
    serde_json::from_slice::<Value>(&table).unwrap()["rows"][row]["state"].clone()
}

#[test]
fn a_comparison_that_was_ended_goes_on_and_has_the_numbers_of_a_whole_one() {
    let whole = Place::new(ROWS);
    whole.recipe(STEPS, ROWS);
    let uninterrupted = whole.compare();
    let goes_on = |place: &Place| {
        let resumed = place.compare();
        for row in 0..3 {
            let [resumed, whole] = [&resumed, &uninterrupted].map(|table| &table["rows"][row]);
            assert_eq!(measured(resumed), measured(whole));
        }
        let sessions = place.file("rows/l4q-3-bits/run/sessions.json");
        let sessions: Value = serde_json::from_slice(&fs::read(sessions).unwrap()).unwrap();
        assert_eq!(sessions.as_array().unwrap().len(), 2, "{sessions}");
        assert!(number(&sessions[1]["step"]) >= 3.0);
    };
    // Ctrl-C, which reaches both processes: the row saves, and nothing has failed.
    let (interrupted, code) = ended_early(|id| vec!["-INT".into(), id.into(), row_process(id)]);
    assert_eq!(code, Some(130));
    assert_eq!(state(&interrupted, 2), "open");
    goes_on(&interrupted);
    // The row's process alone is killed: that row has failed, and is tried again.
    let (killed, code) = ended_early(|id| vec!["-KILL".into(), row_process(id)]);
    assert_eq!(code, Some(1));
    assert_eq!((state(&killed, 1), state(&killed, 2)), ("done".into(), "failed".into()));
    goes_on(&killed);
}

/// The process that a process started.
fn row_process(parent: &str) -> String {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = fs::read_to_string(path).unwrap();
    let id: u32 = children.trim().parse().expect("one process, which is the row's");
    id.to_string()
}

#[test]
fn bad_input_is_refused_before_anything_is_written() {
    let place = Place::new(ROWS);
    let refuse = |change: &dyn Fn(String) -> String, parts: &[&str]| {
        place.recipe(2, ROWS);
        let path = place.path().join("compare.toml");
        fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
        refused(&plumbline(place.path(), &["compare", "compare.toml"]), parts);
        assert!(!place.file("").exists(), "something was written");
    };
    let with = |from: &'static str, to: &'static str| {
        move |recipe: String| {
            assert!(recipe.contains(from), "{from}");
            recipe.replace(from, to)
        }
    };
    refuse(&with("\"l4q\"", "\"magic\""), &["compare.toml", "row \"L4Q\"", "magic", "`l4q`"]);
    refuse(&with("\"RTN\"", "\"L4Q\""), &["row \"L4Q\"", "l4q-3-bits"]);
    refuse(&with("builtin:milton_eval", "gone.txt"), &["gone.txt", "cannot read"]);
    refuse(&with("builtin:milton_train", "builtin:homer"), &["builtin:homer"]);
    refuse(&with("group_size = 32", "group_size = 7"), &["compare.toml", "group_size 7", "q_proj"]);
    refuse(&with("bits = [3]", "bits = [99]"), &["compare.toml", "99"]);
    refuse(&with("bits = [3]", "bits = [3, 3]"), &["row \"RTN\"", "rtn-3-bits"]);
    refuse(&with("context = 16", "context = 4096"), &["data.context is 4096", "embeddings 256"]);
    refuse(&with("steps = 2", "steps = 0"), &["training.steps is 0"]);
    refuse(&with("seed = 3", "sede = 3"), &["line 5", "sede"]);
    refuse(&with("output.dir", "model.path = \"nowhere\"\noutput.dir"), &["nowhere"]);

    fs::create_dir(place.file("")).unwrap();
    place.recipe(2, ROWS);
    refused(&plumbline(place.path(), &["compare", "compare.toml"]), &["out", "no comparison"]);
    let missing = plumbline(place.path(), &["compare", "missing.toml"]);
    refused(&missing, &["missing.toml", "cannot read"]);
}
