//! Damaged checkpoints, folders that cannot be written, disks that are full.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::common::program::{Place, plumbline, refused};
use super::compare::assert_same_run;
use super::{cut_short, eventful, into, trained};

fn resume(place: &Place) -> Output {
    plumbline(place.path(), &["train", "recipe.toml", "--resume"])
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `run` whole, and `cut` as a complete copy to be damaged.
fn two_runs() -> Place {
    let place = Place::new();
    place.recipe(|recipe| eventful(&recipe));
    trained(&place, &[]);
    place.recipe(|recipe| into(&eventful(&recipe), "cut"));
    trained(&place, &[]);
    place
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_named_put_aside_and_the_one_before_it_used() {
    let place = two_runs();
    let cut = place.path().join("cut/checkpoints");
    change(&cut.join("step-6/adapter.safetensors"), |bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 4;
    });
    fs::remove_file(cut.join("step-4/optimizer.safetensors")).unwrap();
    let output = resume(&place);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    for part in [
        "step-6/adapter.safetensors: has SHA-256",
        "step-4/optimizer.safetensors: cannot open",
        "going on from",
        "step-3\n",
    ] {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    for aside in ["step-6.damaged", "step-4.damaged"] {
        fs::remove_dir_all(cut.join(aside)).unwrap();
    }
    assert_same_run(&place.path().join("run"), &place.path().join("cut"));
}

#[test]
fn a_run_with_damaged_checkpoints_only_names_each() {
    let place = two_runs();
    let cut = place.path().join("cut/checkpoints");
    // 3 is the best evaluation's.
    for step in [2, 3, 4, 6] {
        let state = cut.join(format!("step-{step}/state.json"));
        change(&state, |bytes| bytes.truncate(bytes.len() / 2));
    }
    let before = fs::read(place.path().join("cut/metrics.jsonl")).unwrap();
    let each = [2, 3, 4, 6].map(|step| format!("step-{step}/state.json"));
    refused(&resume(&place), &each.each_ref().map(String::as_str));
    assert_eq!(fs::read(place.path().join("cut/metrics.jsonl")).unwrap(), before);
}

#[test]
fn another_recipe_other_data_and_another_base_are_refused() {
    let place = two_runs();
    let at = place.path();
    let original = |recipe: String| into(&eventful(&recipe), "cut");
    place.recipe(|recipe| original(recipe).replace("rank = 2", "rank = 3"));
    refused(&resume(&place), &["cut/recipe.toml", "method.rank is 2 there and 3 here"]);
    place.recipe(original);
    change(&at.join("cut/recipe.toml"), |bytes| bytes.push(b'\n'));
    refused(&resume(&place), &["step-6", "recipe.toml"]);
    change(&at.join("cut/recipe.toml"), |bytes| bytes.truncate(bytes.len() - 1));
    change(&at.join("text.txt"), |bytes| bytes[0] = b'Z');
    refused(&resume(&place), &["step-6", "training data"]);
    change(&at.join("text.txt"), |bytes| bytes[0] = b'S');
    change(&place.weights(), |bytes| {
        let at = bytes.len() - 4;
        bytes[at] ^= 1;
    });
    refused(&resume(&place), &["step-6", "base model"]);
}

#[test]
fn two_processes_do_not_train_into_one_folder() {
    let place = two_runs();
    let metrics = fs::File::open(place.path().join("cut/metrics.jsonl")).unwrap();
    metrics.lock().unwrap();
    refused(&resume(&place), &["cut/metrics.jsonl", "another process"]);
    drop(metrics);
    assert!(resume(&place).status.success());
}

/// Files beyond a size cannot be written: what a full disk does, for one process.
#[test]
fn a_full_disk_is_an_error_and_the_last_good_checkpoint_stays() {
    let place = two_runs();
    let cut = place.path().join("cut");
    cut_short(&cut, 2);
    let program = assert_cmd::cargo::cargo_bin("plumbline");
    let size = fs::metadata(cut.join("checkpoints/step-2/optimizer.safetensors")).unwrap().len();
    let limited = |bytes: u64| {
        // The signal that the limit sends is ignored, so that writing fails as on a full disk.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", bytes / 512);
        let arguments = ["-c", &script, "sh", &program.to_string_lossy(), "train"];
        let mut command = Command::new("sh");
        command.args(arguments).args(["recipe.toml", "--resume"]).current_dir(place.path());
        command.output().unwrap()
    };
    refused(&limited(size / 2), &["safetensors", "cannot write", "File too large"]);
    let left: Vec<_> = fs::read_dir(cut.join("checkpoints")).unwrap().flatten().collect();
    let names: Vec<_> = left.iter().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["step-2"], "nothing half-made is left");
    assert!(resume(&place).status.success());
    assert_same_run(&place.path().join("run"), &cut);
}

/// The same as somebody who may not write there; root may write anywhere.
#[test]
fn a_read_only_folder_is_an_error_and_the_last_good_checkpoint_stays() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    const NOBODY: u32 = 65534;
    let place = two_runs();
    let (at, cut) = (place.path(), place.path().join("cut"));
    cut_short(&cut, 2);
    let is_root = fs::metadata(at).unwrap().uid() == 0;
    let program = at.join("plumbline");
    fs::copy(assert_cmd::cargo::cargo_bin("plumbline"), &program).unwrap();
    let allow = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    if is_root {
        for path in [at.to_path_buf()].into_iter().chain(all_under(at)) {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let run = || {
        let mut command = Command::new(&program);
        command.args(["train", "recipe.toml", "--resume"]).current_dir(at);
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output().unwrap()
    };
    allow(&cut.join("checkpoints"), 0o555);
    refused(&run(), &["checkpoints", "Permission denied"]);
    allow(&cut.join("checkpoints"), 0o755);
    allow(&cut, 0o555);
    allow(&cut.join("metrics.jsonl"), 0o444);
    refused(&run(), &["metrics.jsonl", "Permission denied"]);
    allow(&cut, 0o755);
    allow(&cut.join("metrics.jsonl"), 0o644);
    let output = run();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same_run(&at.join("run"), &cut);
}

fn all_under(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            let below = if path.is_dir() { all_under(&path) } else { Vec::new() };
            [vec![path], below].concat()
        })
        .collect()
}
