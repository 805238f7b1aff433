//! Fresh cases: random inputs, expected outputs from the f64 reference.

use std::path::{Path, PathBuf};

use crate::case::{Case, Expected, Request, container};
use crate::error::Error;
use crate::ops::Operation;
use crate::precision::Precision;
use crate::sampler::Sampler;

/// Who computed the expected outputs of a generated case.
pub const ORIGIN: &str = concat!("plumbline-reference ", env!("CARGO_PKG_VERSION"), " f64");

/// Writes `count` cases of each operation and returns their files.
///
/// A case depends on the seed, its operation and its number alone, not on what is generated beside
/// it. Inputs are f32 numbers; each file is written whole or not at all.
///
/// # Errors
/// `Io`, or `Generated` where the reference refuses what was drawn.
pub fn generate(
    folder: &Path,
    operations: &[&'static Operation],
    count: u64,
    seed: u64,
) -> Result<Vec<PathBuf>, Error> {
    std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    let mut files = Vec::new();
    for op in operations {
        for index in 0..count {
            let case = generated_case(folder, op, seed, index)?;
            container::write(&case.file, &case.container())?;
            files.push(case.file);
        }
    }
    Ok(files)
}

/// One case, not yet written.
///
/// # Errors
/// `Generated` where the reference refuses what was drawn.
pub fn generated_case(
    folder: &Path,
    op: &'static Operation,
    seed: u64,
    index: u64,
) -> Result<Case, Error> {
    let id = format!("{}-seed{seed}-{index:03}", op.name);
    let refused = |problem| Error::Generated { case: id.clone(), problem };
    let (params, inputs) = (op.sample)(&mut Sampler::new(seed, op.name, index)).map_err(refused)?;
    let request = Request { op, params, inputs };
    let outputs = (op.run.f64)(&request.to_precision(Precision::F64)).map_err(refused)?;
    Ok(Case {
        file: folder.join(format!("{id}.safetensors")),
        id,
        request,
        expected: Expected::Outputs(outputs),
        origin: Some(ORIGIN.to_owned()),
        flags: Vec::new(),
        note: Some(format!("generated with seed {seed}, number {index}")),
    })
}
