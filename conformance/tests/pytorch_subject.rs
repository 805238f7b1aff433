//! The PyTorch example passes as it is, and each mistake that can be planted in it is found, in the
//! tensors that it touches and nowhere else.

use std::path::Path;
use std::process::Command;

#[test]
#[ignore = "needs Python with PyTorch: pip install -r conformance/examples/pytorch/requirements.txt"]
fn the_example_passes_and_each_planted_mistake_fails_for_its_own_reason() {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pytorch").join("check_bugs.py");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let run = Command::new(&python)
        .arg(&script)
        .args(["--conform", env!("CARGO_BIN_EXE_conform")])
        .output()
        .unwrap_or_else(|error| panic!("{python} does not start: {error}"));
    let (stdout, stderr) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{}\n{stdout}\n{stderr}", run.status);
    // A table that was not printed would have checked nothing.
    assert!(stdout.contains("merge_in_other_precision    l4q.forward.codes"), "{stdout}");
}
