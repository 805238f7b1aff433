//! One case: one operation on concrete tensors, with what must come out.

pub mod container;
pub mod text;

use std::path::{Path, PathBuf};

use ndarray::{Array, Dimension};
use plumbline_reference::Real;

use crate::error::Error;
use crate::ops::{self, Operation, TensorSpec};
use crate::params::Params;
use crate::precision::Precision;
use crate::tensor::{Data, Kind, Tensor, Tensors};
use container::Container;

/// The value of `format` that this crate reads and writes.
pub const FORMAT: &str = "plumbline-case-1";

/// What a subject is given: a case without its answers.
#[derive(Debug, Clone)]
pub struct Request {
    /// The operation.
    pub op: &'static Operation,
    /// Its parameters, as written.
    pub params: Params,
    /// Its inputs.
    pub inputs: Tensors,
}

/// What must come out of a case.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// These outputs; one that is not here is computed by the f64 reference.
    Outputs(Tensors),
    /// A refusal whose message contains this text.
    Refusal(String),
}

/// A request, where it comes from, and what must come out.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file it was read from.
    pub file: PathBuf,
    /// Its name inside the file; a safetensors file holds one case, named like the file.
    pub id: String,
    /// What the subject is given.
    pub request: Request,
    /// What must come out.
    pub expected: Expected,
    /// Who computed the expected outputs.
    pub origin: Option<String>,
    /// Names of the mistakes that the case would catch, in the text form.
    pub flags: Vec<String>,
    /// The same in words, or the seed of a generated case.
    pub note: Option<String>,
}

impl Request {
    /// The input, as an array of the scalar type and the rank that `D` asks for.
    ///
    /// # Errors
    /// Where it is absent or has another rank.
    pub fn array<T: Real, D: Dimension>(&self, name: &str) -> Result<Array<T, D>, String> {
        ranked(name, self.tensor(name)?.array::<T>())
    }

    /// The unsigned codes, as an array of the rank that `D` asks for.
    ///
    /// # Errors
    /// Where they are absent, of another type or of another rank.
    pub fn unsigned<D: Dimension>(&self, name: &str) -> Result<Array<u8, D>, String> {
        let tensor = self.tensor(name)?;
        let Data::U8(codes) = tensor.data() else {
            return Err(format!("in.{name} has dtype {}, expected U8", tensor.dtype()));
        };
        let array = Array::from_shape_vec(tensor.shape(), codes.clone())
            .map_err(|e| format!("in.{name}: {e}"))?;
        ranked(name, array)
    }

    /// The token ids, as an array of the rank that `D` asks for.
    ///
    /// # Errors
    /// Where they are absent, of another type or of another rank.
    pub fn tokens<D: Dimension>(&self, name: &str) -> Result<Array<i32, D>, String> {
        let tensor = self.tensor(name)?;
        let Data::I32(ids) = tensor.data() else {
            return Err(format!("in.{name} has dtype {}, expected I32", tensor.dtype()));
        };
        let array = Array::from_shape_vec(tensor.shape(), ids.clone())
            .map_err(|e| format!("in.{name}: {e}"))?;
        ranked(name, array)
    }

    /// The input as it is stored.
    ///
    /// # Errors
    /// Where it is absent.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        self.inputs.get(name).ok_or_else(|| format!("in.{name} is missing"))
    }

    /// The sizes of an input that must have `N` dimensions.
    ///
    /// # Errors
    /// Where it is absent or has another rank.
    pub fn sizes<const N: usize>(&self, name: &str) -> Result<[usize; N], String> {
        let shape = self.tensor(name)?.shape();
        shape
            .try_into()
            .map_err(|_| format!("in.{name} has shape {shape:?}, expected {N} dimensions"))
    }

    /// The same request with every float input in one precision.
    pub fn to_precision(&self, precision: Precision) -> Self {
        let inputs = self.inputs.iter();
        Self {
            op: self.op,
            params: self.params.clone(),
            inputs: inputs.map(|(name, x)| (name.clone(), x.to_precision(precision))).collect(),
        }
    }
}

fn ranked<A, D: Dimension>(
    name: &str,
    array: Array<A, ndarray::IxDyn>,
) -> Result<Array<A, D>, String> {
    let shape = array.shape().to_vec();
    array.into_dimensionality().map_err(|_| {
        let rank = D::NDIM.unwrap_or_default();
        format!("in.{name} has shape {shape:?}, expected {rank} dimensions")
    })
}

impl Case {
    /// `file#id`, or the file alone where it holds one case.
    pub fn label(&self) -> String {
        let file = self.file.display();
        if self.file.file_stem().is_some_and(|stem| stem == self.id.as_str()) {
            file.to_string()
        } else {
            format!("{file}#{}", self.id)
        }
    }

    /// The first golden input that a binary32 does not hold exactly: an f32 subject would see
    /// another number than the f64 reference.
    pub fn not_f32_exact(&self) -> Option<String> {
        self.request.inputs.iter().find_map(|(name, tensor)| {
            let index = tensor.first_not_f32()?;
            let (position, value) = (tensor.position(index), tensor.describe(index));
            Some(format!("in.{name}{position:?} is {value}, which f32 does not hold exactly"))
        })
    }

    /// The binary form, without the expectation of a refusal, which only the text form has.
    pub fn container(&self) -> Container {
        let mut container = request_container(&self.request);
        let keys = [("origin", &self.origin), ("note", &self.note)];
        for (key, value) in keys {
            if let Some(value) = value {
                container.metadata.insert(key.to_owned(), value.clone());
            }
        }
        if let Expected::Outputs(outputs) = &self.expected {
            container.tensors.extend(prefixed("out.", outputs));
        }
        container
    }

    /// Checks everything that the registry states about the operation.
    ///
    /// The inputs of a case that expects a refusal may be wrong in shape, value and parameter:
    /// noticing that is the subject's work.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let Request { op, params, inputs } = &self.request;
        if let Some(key) = params.unknown_key(op.params) {
            let known = op.params.join(", ");
            return Err(format!("params.{key} is not a parameter of {} ({known})", op.name));
        }
        let refusal = matches!(self.expected, Expected::Refusal(_));
        let specs = match op.tensors(params) {
            Ok(specs) => specs,
            Err(_) if refusal => return Ok(()),
            Err(problem) => return Err(problem),
        };
        check_names("in.", inputs, &specs.inputs, op)?;
        for spec in &specs.inputs {
            if let Some(tensor) = inputs.get(&*spec.name) {
                check_kind("in.", tensor, spec)?;
            } else if !spec.optional {
                return Err(format!("in.{} is missing, {} needs it", spec.name, op.name));
            }
        }
        let Expected::Outputs(outputs) = &self.expected else { return Ok(()) };
        let sizes = op.check_inputs(&self.request, &specs)?;
        for (name, tensor) in inputs {
            check_finite("in.", name, tensor)?;
        }
        check_names("out.", outputs, &specs.outputs, op)?;
        for spec in &specs.outputs {
            let Some(tensor) = outputs.get(&*spec.name) else { continue };
            check_kind("out.", tensor, spec)?;
            sizes.check_output(spec, tensor).map_err(|e| format!("out.{e}"))?;
            check_finite("out.", &spec.name, tensor)?;
        }
        Ok(())
    }
}

fn check_names(
    prefix: &str,
    tensors: &Tensors,
    specs: &[TensorSpec],
    op: &Operation,
) -> Result<(), String> {
    let known = |name: &String| specs.iter().any(|spec| *spec.name == **name);
    match tensors.keys().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => {
            let names: Vec<_> = specs.iter().map(|spec| &*spec.name).take(12).collect();
            let names = names.join(", ");
            Err(format!("{prefix}{name} is no tensor of {} ({prefix}: {names})", op.name))
        }
    }
}

fn check_kind(prefix: &str, tensor: &Tensor, spec: &TensorSpec) -> Result<(), String> {
    if spec.kind.accepts(tensor.dtype()) {
        return Ok(());
    }
    let (name, dtype, expected) = (&spec.name, tensor.dtype(), spec.kind.expected());
    Err(format!("{prefix}{name} has dtype {dtype}, expected {expected}"))
}

fn check_finite(prefix: &str, name: &str, tensor: &Tensor) -> Result<(), String> {
    match tensor.first_non_finite() {
        None => Ok(()),
        Some(index) => {
            let (position, value) = (tensor.position(index), tensor.value(index));
            Err(format!(
                "{prefix}{name}{position:?} is {value}; only a case with expect_error may hold that"
            ))
        }
    }
}

/// The file a subject reads: metadata and `in.*`, no answers.
pub fn request_container(request: &Request) -> Container {
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("op", request.op.name.to_owned()),
        ("params", request.params.to_json()),
    ];
    Container {
        metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
        tensors: prefixed("in.", &request.inputs).collect(),
    }
}

/// Tensors under the names they have in a file.
pub fn prefixed<'a>(
    prefix: &'a str,
    tensors: &'a Tensors,
) -> impl Iterator<Item = (String, Tensor)> + 'a {
    tensors.iter().map(move |(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
}

/// Reads every case of one file, by its extension.
///
/// # Errors
/// `Io`, or `Case` naming the field that is wrong and what it holds.
pub fn load(file: &Path) -> Result<Vec<Case>, Error> {
    let bytes = std::fs::read(file).map_err(|source| Error::io(file, source))?;
    let cases = match file.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => match String::from_utf8(bytes) {
            Ok(text) => text::parse(file, &text),
            Err(e) => Err(format!("not UTF-8: {e}")),
        },
        Some("safetensors") => from_container(file, &bytes).map(|case| vec![case]),
        _ => Err("a case file ends in .toml or .safetensors".to_owned()),
    };
    let cases = cases.map_err(|problem| Error::case(file, problem))?;
    for case in &cases {
        case.validate().map_err(|problem| {
            let text = file.extension().is_some_and(|extension| extension == "toml");
            let at = if text { format!("case {}: ", case.id) } else { String::new() };
            Error::case(file, format!("{at}{problem}"))
        })?;
    }
    Ok(cases)
}

fn from_container(file: &Path, bytes: &[u8]) -> Result<Case, String> {
    let Container { mut metadata, tensors } = container::parse(bytes)?;
    let mut take = |key: &str| metadata.remove(key);
    let required = |key: &str, value: Option<String>| {
        value.ok_or_else(|| format!("metadata key {key} is missing"))
    };
    let format = required("format", take("format"))?;
    if format != FORMAT {
        return Err(format!("format is {format:?}, expected {FORMAT:?}"));
    }
    let op = ops::find(&required("op", take("op"))?)?;
    let params = Params::from_json(&required("params", take("params"))?)?;
    let (origin, note) = (take("origin"), take("note"));
    if let Some(key) = metadata.keys().next() {
        return Err(format!("metadata key {key} is not one of format, op, params, origin, note"));
    }
    let (mut inputs, mut outputs) = (Tensors::new(), Tensors::new());
    for (name, tensor) in tensors {
        if let Some(name) = name.strip_prefix("in.") {
            inputs.insert(name.to_owned(), tensor);
        } else if let Some(name) = name.strip_prefix("out.") {
            outputs.insert(name.to_owned(), tensor);
        } else {
            return Err(format!("tensor {name} begins with neither in. nor out."));
        }
    }
    let id = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let request = Request { op, params, inputs };
    let expected = Expected::Outputs(outputs);
    Ok(Case { file: file.to_owned(), id, request, expected, origin, flags: Vec::new(), note })
}

impl Kind {
    /// The name that text and messages use for the element type.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Float => "number",
            Self::SignedCodes => "code",
            Self::UnsignedCodes => "code from 0 to 255",
            Self::TokenIds => "token id",
        }
    }
}
