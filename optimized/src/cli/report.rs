//! `plumbline report`: a run as one HTML page.

use std::path::{Path, PathBuf};

use anyhow::Result;
use plumbline::checkpoint::write_file;
use plumbline::report::page;

/// Runs the command.
pub fn report(run: &Path, out: Option<PathBuf>) -> Result<()> {
    let page = page(run)?;
    let out = out.unwrap_or_else(|| run.join("report.html"));
    write_file(&out, page.as_bytes())?;
    println!("{}", out.display());
    Ok(())
}
