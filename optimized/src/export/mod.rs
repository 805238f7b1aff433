//! Merged models in the formats of the programs that serve them.
//!
//! Codes are written and never made: nothing here rounds a weight. What a format cannot hold is
//! refused with the property that is missing ([`Lack`]), before anything is written; what was
//! written is read again by [`crate::checkpoint`], which shares no code with this module, and
//! compared with what was trained before it gets its name.

mod awq;
mod compressed_tensors;
mod floats;
mod folder;
mod format;
mod gguf;
mod gptq;
mod grid;
mod lack;
mod layer;
mod layout;
mod mlx;
mod pack;
mod proof;
mod target;

use std::cell::Cell;
use std::path::Path;

pub use floats::FloatType;
pub use format::Format;
pub use lack::Lack;
pub use layer::{CodedLayer, Zero};
pub use proof::{LayerProof, Level};
pub use target::Grid;
pub(crate) use target::read_target;

use crate::checkpoint::{ModelFolder, free_bytes, output_file, output_folder};
use crate::error::{Error, Result};
use folder::FolderPlan;
use gguf::GgufPlan;
use lack::Refused;
use proof::prove;

/// What is exported, how and where.
pub struct Request<'a> {
    /// A model that this program merged or quantized.
    pub source: &'a ModelFolder,
    /// The format.
    pub format: Format,
    /// Type of the tensors that are no codes, and of what engines compute with.
    pub floats: FloatType,
    /// The folder or file to write.
    pub out: &'a Path,
    /// Replace what is there.
    pub force: bool,
}

/// What was written and read back.
#[derive(Debug)]
pub struct Exported {
    /// Each linear layer.
    pub layers: Vec<LayerProof>,
    /// Tensors of the file.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What the program that reads the format does otherwise, beside the weights.
    pub notes: Vec<String>,
}

/// A model in a format, every tensor of it tried.
enum Plan<'a> {
    Folder(FolderPlan<'a>),
    File(GgufPlan<'a>),
}

impl<'a> Plan<'a> {
    fn new(source: &'a ModelFolder, format: Format, floats: FloatType) -> Result<Self, Refused> {
        let quantization = source.quantization();
        if quantization.is_some_and(|quantization| quantization.activations.is_some())
            && format != Format::Plumbline
        {
            return Err(Refused::lack("the model", Lack::Activations));
        }
        if quantization.is_none() && format != Format::HuggingFace {
            return Err(Refused::lack("the model", Lack::Plain));
        }
        match format {
            Format::GgufQ4_0 | Format::GgufQ4_1 | Format::GgufQ5_0 | Format::GgufQ8_0 => {
                GgufPlan::new(source, format).map(Self::File)
            }
            _ => FolderPlan::new(source, format, floats).map(Self::Folder),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Folder(plan) => plan.bytes(),
            Self::File(plan) => plan.bytes(),
        }
    }

    fn notes(&self) -> Vec<String> {
        match self {
            Self::Folder(_) => Vec::new(),
            Self::File(plan) => plan.notes(),
        }
    }

    fn tensors(&self) -> usize {
        match self {
            Self::Folder(plan) => plan.tensors(),
            Self::File(plan) => plan.tensors(),
        }
    }
}

/// Writes a model in a format, reads it again and compares it; `watch` is told how many of how many
/// tensors are written.
///
/// # Errors
/// `File` naming the layer, what the format lacks and the nearest format that does not; a path that
/// exists; too little room. Whatever goes wrong, nothing is left and what was there stays.
pub fn export(request: &Request<'_>, watch: &dyn Fn(usize, usize)) -> Result<Exported> {
    let Request { source, format, floats, out, force } = *request;
    let plan = match Plan::new(source, format, floats) {
        Ok(plan) => plan,
        Err(Refused::Error(error)) => return Err(error),
        Err(Refused::Lack { of, lack }) => {
            let nearest = match nearest(source, format, floats) {
                Some(other) => format!("{other} can hold this model"),
                None => "no other format can hold this model either".into(),
            };
            let reason = format!("{format} cannot hold {of}: {lack}; {nearest}");
            return Err(Error::file(source.path(), reason));
        }
    };
    let (bytes, tensors) = (plan.bytes(), plan.tensors());
    let free = free_bytes(out)?;
    if free < bytes {
        let reason = format!("needs {bytes} bytes, {free} are free");
        return Err(Error::file(out, reason));
    }
    let written = Cell::new(0);
    let wrote = || {
        written.set(written.get() + 1);
        watch(written.get(), tensors);
    };
    let mut layers = Vec::new();
    let mut proved = |path: &Path| {
        layers = prove(source, &ModelFolder::open(path)?)?;
        Ok(())
    };
    match &plan {
        Plan::Folder(plan) => output_folder(out, force, |folder| {
            plan.write(folder, &wrote)?;
            proved(folder)
        })?,
        Plan::File(plan) => output_file(out, force, |file| {
            plan.write(file, &wrote)?;
            proved(file)
        })?,
    }
    Ok(Exported { layers, tensors, bytes, notes: plan.notes() })
}

/// The first format that holds a model, those of the same program first.
fn nearest(source: &ModelFolder, format: Format, floats: FloatType) -> Option<Format> {
    let program = |format: &Format| format.name().split('-').next();
    let mut others = Format::ALL.to_vec();
    others.sort_by_key(|other| program(other) != program(&format));
    others
        .into_iter()
        .filter(|other| *other != format)
        .find(|other| Plan::new(source, *other, floats).is_ok())
}
