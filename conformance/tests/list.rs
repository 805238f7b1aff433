//! What `conform list` shows: a row lost or a subject that stops implementing one is a change that
//! somebody must have meant.

use assert_cmd::Command;

#[test]
fn the_list_of_operations_and_subjects() {
    let output = Command::cargo_bin("conform").unwrap().arg("list").output().unwrap();
    assert!(output.status.success());
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}
