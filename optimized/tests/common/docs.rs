//! Tables of the documentation that a test makes.
#![allow(dead_code)] // each test takes some of it

use std::fs;
use std::path::Path;

/// That docs/formats.md has this table of `what`; `PLUMBLINE_WRITE_DOCS=1` writes it there.
pub fn assert_table(what: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats.md");
    let text = fs::read_to_string(&path).unwrap();
    let (start, end) = (format!("<!-- table of {what} -->\n"), format!("<!-- end of {what} -->"));
    let (before, rest) = text.split_once(&start).unwrap();
    let (found, after) = rest.split_once(&end).unwrap();
    if std::env::var_os("PLUMBLINE_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{start}{table}{end}{after}")).unwrap();
    } else {
        assert_eq!(found, table, "PLUMBLINE_WRITE_DOCS=1 writes the table into docs/formats.md");
    }
}
