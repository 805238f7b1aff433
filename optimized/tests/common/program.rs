//! The program, and a folder for it to work in.
#![allow(dead_code)] // each test takes some of them

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

pub fn plumbline(folder: &Path, arguments: &[&str]) -> Output {
    Command::cargo_bin("plumbline").unwrap().current_dir(folder).args(arguments).output().unwrap()
}

pub fn json(output: &Output) -> serde_json::Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exit code 2, nothing on standard output, and one message with all of `parts`.
pub fn refused(output: &Output, parts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(output.stdout.is_empty());
    let errors = message.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

/// A folder with `model/`, `text.txt` and `recipe.toml`.
pub struct Place {
    root: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        super::write_model(&root.path().join("model"));
        fs::write(root.path().join("text.txt"), super::TEXT.repeat(12)).unwrap();
        let place = Self { root };
        place.recipe(|recipe| recipe);
        place
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    pub fn recipe(&self, change: impl FnOnce(String) -> String) {
        let recipe = r#"
[model]
path = "model"

[data]
train = ["text.txt"]
eval = ["text.txt"]
context = 24

[method]
name = "l4q"
bits = 4
group_size = 16
rank = 2

[training]
steps = 3
micro_batch = 2
seed = 9

[output]
dir = "run"
"#;
        fs::write(self.path().join("recipe.toml"), change(recipe.to_owned())).unwrap();
    }

    pub fn weights(&self) -> PathBuf {
        self.path().join("model/model.safetensors")
    }

    /// `train` is refused with these words, and no run folder appears.
    pub fn train_refused(&self, parts: &[&str]) {
        refused(&plumbline(self.path(), &["train", "recipe.toml"]), parts);
        assert!(!self.path().join("run").exists(), "something was written");
        let unfinished = fs::read_dir(self.path()).unwrap().flatten();
        let left: Vec<_> = unfinished.map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    }
}
