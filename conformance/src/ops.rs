//! The registry: every operation of the case protocol, what it takes, and how it is judged.
//!
//! A row is the only place that knows an operation. Parsing, linting, judging, generating and
//! listing iterate over the rows; a subject looks its operations up by name.

pub mod adamw;
pub mod affine;
pub mod attention;
pub mod awq;
pub mod cast;
pub mod cross_entropy;
mod decomposition;
pub mod dynamic_quantize;
pub mod fake_quantize;
mod floor;
pub mod gptq;
pub mod init_scale;
pub mod l4q;
pub mod llama;
pub mod llama_train;
pub mod lora;
pub mod low_rank_init;
pub mod lr_qat;
pub mod lwc;
mod near;
pub mod nf4;
pub mod pack;
pub mod peqa;
pub mod qa_lora;
pub mod qat;
pub mod qat_lora;
pub mod quantizer;
pub mod rms_norm;
pub mod rope;
pub mod round_scale;
mod row;
pub mod rtn;
pub mod swiglu;
pub mod zero_point;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::judge::tracked::Outputs;
use crate::params::Params;
use crate::precision::{Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Kind, Tensor, Tensors};

/// Every operation, in the protocol's order.
pub static OPERATIONS: LazyLock<Vec<&'static Operation>> = LazyLock::new(|| {
    let families = [
        fake_quantize::ROWS,
        affine::ROWS,
        init_scale::ROWS,
        cast::ROWS,
        round_scale::ROWS,
        pack::ROWS,
        dynamic_quantize::ROWS,
        lwc::ROWS,
        awq::ROWS,
        l4q::ROWS,
        lr_qat::ROWS,
        qa_lora::ROWS,
        qat::ROWS,
        qat_lora::ROWS,
        lora::ROWS,
        low_rank_init::ROWS,
        peqa::ROWS,
        rtn::ROWS,
        nf4::ROWS,
        gptq::ROWS,
        rms_norm::ROWS,
        rope::ROWS,
        attention::ROWS,
        swiglu::ROWS,
        cross_entropy::ROWS,
        adamw::ROWS,
        llama::ROWS,
        llama_train::ROWS,
    ];
    families.into_iter().flatten().collect()
});

/// Runs the reference on a request; a refusal is its message.
pub type Run = fn(&Request) -> Result<Tensors, String>;

/// The reference of one operation, on every number that it is run with here.
#[derive(Clone, Copy)]
pub struct Runs {
    /// Binary64.
    pub f64: Run,
    /// Binary32.
    pub f32: Run,
    /// Binary32 with a slip in it, for [`crate::teeth`].
    pub faulty: Run,
}

impl Runs {
    /// Of an operation without arithmetic on floats.
    const fn of_any_precision(run: Run) -> Self {
        Self { f64: run, f32: run, faulty: run }
    }
}

/// Sizes that the parameters fix before the inputs are looked at.
pub type SizesOf = fn(&Request) -> Result<Vec<(&'static str, usize)>, String>;

/// How large a difference the subject's precision explains, per element.
pub type BoundsOf = fn(&Evidence) -> Result<Bounds, String>;

/// The quantizer arguments of an operation that answers codes.
pub type GridOf = fn(&Request, Unit) -> Result<quantizer::Grid, String>;

/// The integers of one output and what is open about each, where the table of codes is no uniform
/// grid or the argument depends on what the subject answered before.
pub type ChoicesOf = fn(&Evidence) -> Result<Vec<quantizer::Choice>, String>;

/// A fresh random request.
pub type SampleOf = fn(&mut Sampler) -> Result<(Params, Tensors), String>;

/// Tensors whose names depend on the parameters: inputs, then outputs.
pub type WeightsOf = fn(&Params) -> Result<TensorSpecs, String>;

/// One operation of the protocol.
pub struct Operation {
    /// Its name in case files.
    pub name: &'static str,
    /// Keys that `params` may have.
    pub params: &'static [&'static str],
    /// Inputs, in the protocol's order.
    pub inputs: &'static [TensorSpec],
    /// Outputs, in the protocol's order.
    pub outputs: &'static [TensorSpec],
    /// Further tensors, where the parameters name them.
    pub weights: Option<WeightsOf>,
    /// Parses the parameters; the sizes that they fix.
    pub sizes: SizesOf,
    /// The reference.
    pub run: Runs,
    /// Quantizer arguments, where an output is of class `Codes`.
    pub grid: Option<GridOf>,
    /// Allowances of the float outputs.
    pub bounds: BoundsOf,
    /// Fresh requests for `conform generate`.
    pub sample: SampleOf,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Name, type and shape of one tensor of an operation.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Name without `in.` or `out.`.
    pub name: Cow<'static, str>,
    /// What it may hold.
    pub kind: Kind,
    /// Its sizes.
    pub shape: Shape,
    /// Whether an input may be left out; whether an output is answered only under some parameters.
    pub optional: bool,
    /// Whether an output is a factor of the operation's product, which a subject may have rounded.
    pub factor: bool,
    /// How an output is judged.
    pub class: Class,
}

/// Sizes of a tensor.
#[derive(Debug, Clone)]
pub enum Shape {
    /// Words of the protocol; the same word means the same size in one case.
    Words(&'static [&'static str]),
    /// Numbers, where the parameters give them.
    Exact(Vec<usize>),
    /// Any.
    Any,
    /// That of the input so named.
    Like(&'static str),
}

/// How a tensor is judged.
#[derive(Debug, Clone, Copy)]
pub enum Class {
    /// An input is given, not judged.
    Given,
    /// Equal; or the neighbour, where binary64 puts the argument within the derived error of the
    /// tie between the two. See [`quantizer::Grid`].
    Codes,
    /// Equal; or another value that the operation's bounds list as an alternative. Whatever
    /// follows is judged with the subject's own choice.
    Chosen,
    /// The same, each integer with an argument and a tie of its own.
    Choices(ChoicesOf),
    /// Equal, whatever the precision.
    Exact,
    /// Within the per-element allowance, which this text states, and then the grid of the codes:
    /// they and all that follows are judged on the value that the subject answered, which
    /// `grid` and `bounds` find among the inputs.
    Grid(&'static str),
    /// Within the per-element allowance, which this text states.
    Bounded(&'static str),
}

/// Every tensor of one case.
#[derive(Debug, Clone, Default)]
pub struct TensorSpecs {
    /// Inputs.
    pub inputs: Vec<TensorSpec>,
    /// Outputs.
    pub outputs: Vec<TensorSpec>,
}

/// The operation of that name.
///
/// # Errors
/// For a name that is not in the registry.
pub fn find(name: &str) -> Result<&'static Operation, String> {
    OPERATIONS
        .iter()
        .copied()
        .find(|op| op.name == name)
        .ok_or_else(|| format!("op is {name:?}, which this version does not know (conform list)"))
}

impl Operation {
    /// The tensors of a case with these parameters.
    ///
    /// # Errors
    /// Where the parameters that name tensors are wrong.
    pub fn tensors(&self, params: &Params) -> Result<TensorSpecs, String> {
        let mut specs = match self.weights {
            Some(weights) => weights(params)?,
            None => TensorSpecs::default(),
        };
        specs.inputs.splice(0..0, self.inputs.iter().cloned());
        specs.outputs.splice(0..0, self.outputs.iter().cloned());
        Ok(specs)
    }

    /// What a tensor of that name holds in a case with these parameters; one that the operation
    /// does not have is refused later.
    pub fn kind_of(&self, name: &str, params: &Params) -> Kind {
        let specs = self.tensors(params).unwrap_or_else(|_| TensorSpecs {
            inputs: self.inputs.to_vec(),
            outputs: self.outputs.to_vec(),
        });
        let known = specs.inputs.iter().chain(&specs.outputs).find(|spec| *spec.name == *name);
        known.map_or(Kind::Float, |spec| spec.kind)
    }

    /// Parses the parameters and checks the shape of every input.
    ///
    /// # Errors
    /// One line naming the parameter or tensor, what it is and what was expected.
    pub fn check_inputs(&self, request: &Request, specs: &TensorSpecs) -> Result<Sizes, String> {
        let words = (self.sizes)(request)?.into_iter().collect();
        let mut sizes = Sizes { words, shapes: BTreeMap::new() };
        for spec in &specs.inputs {
            let Some(tensor) = request.inputs.get(&*spec.name) else { continue };
            sizes.check(spec, tensor, true).map_err(|e| format!("in.{e}"))?;
            sizes.shapes.insert(spec.name.to_string(), tensor.shape().to_vec());
        }
        Ok(sizes)
    }
}

/// What the words of the shapes stand for in one case.
#[derive(Debug, Default)]
pub struct Sizes {
    words: BTreeMap<&'static str, usize>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Sizes {
    /// # Errors
    /// Names the tensor, its shape and the expected one.
    pub fn check_output(&self, spec: &TensorSpec, tensor: &Tensor) -> Result<(), String> {
        let mut words = Self { words: self.words.clone(), shapes: self.shapes.clone() };
        words.check(spec, tensor, false)
    }

    fn check(&mut self, spec: &TensorSpec, tensor: &Tensor, bind: bool) -> Result<(), String> {
        let actual = tensor.shape();
        let wrong = |expected: String| {
            Err(format!("{} has shape {actual:?}, expected {expected}", spec.name))
        };
        match &spec.shape {
            Shape::Any => Ok(()),
            Shape::Exact(shape) if shape == actual => Ok(()),
            Shape::Exact(shape) => wrong(format!("{shape:?}")),
            Shape::Like(other) => match self.shapes.get(*other) {
                Some(shape) if shape == actual => Ok(()),
                Some(shape) => wrong(format!("{shape:?} like {other}")),
                None => wrong(format!("that of {other}, which is missing")),
            },
            Shape::Words(words) => {
                if bind && actual.len() == words.len() {
                    for (word, &size) in words.iter().zip(actual) {
                        self.words.entry(word).or_insert(size);
                    }
                }
                let sizes: Vec<_> = words.iter().map(|word| self.words.get(word)).collect();
                if sizes.iter().copied().eq(actual.iter().map(Some)) {
                    return Ok(());
                }
                let shown = words.iter().zip(&sizes).map(|(word, size)| match size {
                    Some(size) => format!("{word} {size}"),
                    None => (*word).to_owned(),
                });
                wrong(format!("[{}]", shown.collect::<Vec<_>>().join(", ")))
            }
        }
    }
}

/// The outputs of a reference run as tensors of its scalar type.
pub(crate) fn stored<T: Scalar>(outputs: Outputs<T>) -> Tensors {
    let named = outputs.into_iter();
    named.map(|(name, array)| (name.to_owned(), Tensor::floats(&array))).collect()
}

/// Outputs under their names.
pub(crate) fn tensors<const N: usize>(pairs: [(&str, Tensor); N]) -> Tensors {
    pairs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}
