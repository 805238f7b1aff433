//! Two run folders, but for the clock.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::events::{Scalar, scalars};

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Lines of the metrics without what the clock says.
pub fn lines(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let fields = value.as_object_mut().unwrap();
        fields.remove("seconds");
        fields.remove("tokens_per_second");
        value
    };
    text.lines().map(line).collect()
}

/// The steps of a run.
pub fn loss_lines(run: &Path) -> Vec<Value> {
    lines(run).into_iter().filter(|line| line["loss"].is_number()).collect()
}

/// `state.json` without what depends on the clock: its seconds, and how long their digits are.
fn state(checkpoint: &Path) -> Value {
    let text = fs::read_to_string(checkpoint.join("state.json")).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value.as_object_mut().unwrap().remove("logs");
    value.as_object_mut().unwrap().remove("recipe_sha256");
    value["position"].as_object_mut().unwrap().remove("seconds");
    value
}

/// Every checkpoint that both kept, every line of the metrics; nothing half-made is left.
pub fn assert_same_run(left: &Path, right: &Path) {
    assert_eq!(names(left), names(right));
    let of = |run: &Path| names(&run.join("checkpoints"));
    assert_eq!(of(left), of(right));
    assert!(of(left).iter().all(|name| name.starts_with("step-")), "{:?}", of(left));
    for name in of(left) {
        let [left, right] = [left, right].map(|run| run.join("checkpoints").join(&name));
        for file in ["adapter.safetensors", "optimizer.safetensors"] {
            let bytes = |folder: &Path| fs::read(folder.join(file)).unwrap();
            assert!(bytes(&left) == bytes(&right), "{name}/{file} differs");
        }
        assert_eq!(state(&left), state(&right), "{name}");
    }
    assert_eq!(lines(left), lines(right));
    let events = |run: &Path| {
        let is_clock = |scalar: &Scalar| scalar.1 == "train/tokens_per_second";
        let all = scalars(run);
        all.into_iter().filter(|scalar| !is_clock(scalar)).collect::<Vec<_>>()
    };
    assert_eq!(events(left), events(right));
}
