//! This crate shares vocabulary with the reference and no arithmetic: it uses
//! `plumbline_reference::spec` and nothing else of it.

use std::fs;
use std::path::Path;

fn check(folder: &Path, files: &mut usize) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *files += 1;
            for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
                for used in line.split("plumbline_reference").skip(1) {
                    let place = format!("{}:{}: {line}", path.display(), number + 1);
                    assert!(used.starts_with("::spec::"), "{place}");
                }
            }
        }
    }
}

#[test]
fn only_the_vocabulary_of_the_reference_is_used() {
    let mut files = 0;
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files > 50, "{files} files are not the whole crate");
}
