//! Post-training quantization: a full-precision model to codes, with nothing trained.
//!
//! Round-to-nearest looks at the weights alone. GPTQ looks at the inputs of every layer too, and
//! goes through the model in the order of its forward, so that a layer is fitted to the inputs that
//! it will have once everything before it is quantized.

mod calibration;
mod factor;
mod gptq;
mod hessian;

use std::collections::BTreeMap;
use std::sync::Arc;

use plumbline_reference::spec::{Bits, GptqSpec, QuantSpec, RtnSpec};

use crate::backend::Backend;
use crate::checkpoint::ModelFolder;
use crate::error::{Error, Result};
use crate::finetune::{MergedModel, build};
use crate::methods::{AffineTensors, CodeTensors, Dense};
use crate::model::{LinearInput, Llama, Projection};

pub use calibration::{Calibration, CalibrationWindow};
pub use gptq::{GptqTensors, gptq_quantize};
use hessian::Hessian;

/// A method and its grid. Both give unsigned codes with integer zero points.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PtqSettings {
    /// Every weight to the nearest code. Eq. (Q13).
    Rtn {
        /// Width of a code.
        bits: Bits,
        /// Consecutive inputs that share a scale; `None` for one group per row.
        group_size: Option<usize>,
        /// How the range of a group becomes its grid.
        rtn: RtnSpec,
    },
    /// Column after column, the error of each made up for by those behind it. Eq. (Q20).
    Gptq {
        /// Width of a code.
        bits: Bits,
        /// Consecutive inputs that share a scale; `None` for one group per row.
        group_size: Option<usize>,
        /// The choices beside the grid.
        options: GptqOptions,
    },
}

/// The choices of GPTQ beside the grid's width and groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqOptions {
    /// One zero point in the middle of the grid, or the one that fits the range.
    pub symmetric: bool,
    /// The part of the mean of the Hessian's diagonal that is added to the diagonal.
    pub damping: f64,
    /// Columns whose updates reach the columns behind them together.
    pub block_size: usize,
    /// Whether the inputs that matter most are rounded first. Groups are of consecutive inputs
    /// still, and their grids are found before the first column.
    pub act_order: bool,
}

impl Default for GptqOptions {
    /// Damping 0.01 and blocks of 128, as published; a zero point that fits the range.
    fn default() -> Self {
        Self { symmetric: false, damping: 0.01, block_size: 128, act_order: false }
    }
}

impl GptqOptions {
    /// The same for a layer of that grid.
    ///
    /// # Errors
    /// `Spec` naming the field.
    pub fn spec(&self, quant: QuantSpec) -> Result<GptqSpec> {
        let spec = GptqSpec::new(quant, self.symmetric);
        let mut spec = spec.with_damping(self.damping)?.with_block_size(self.block_size)?;
        spec.act_order = self.act_order;
        // Without, the groups would follow the order, and a folder has no place for that.
        spec.static_groups = self.act_order;
        Ok(spec)
    }
}

impl PtqSettings {
    /// Bits and groups.
    pub fn grid(&self) -> (Bits, Option<usize>) {
        match *self {
            Self::Rtn { bits, group_size, .. } | Self::Gptq { bits, group_size, .. } => {
                (bits, group_size)
            }
        }
    }

    /// What reports call the method.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rtn { .. } => "rtn",
            Self::Gptq { .. } => "gptq",
        }
    }
}

/// Every linear layer of a model as codes; embeddings, norms and output projection stay as they
/// are. Round-to-nearest does not look at the calibration.
///
/// # Errors
/// `Invalid` for a group size that does not divide a layer and for GPTQ without a calibration;
/// `NonFinite`; `File`.
pub fn quantize_model<B: Backend>(
    backend: Arc<B>,
    base: &ModelFolder,
    settings: &PtqSettings,
    calibration: &Calibration,
) -> Result<MergedModel<B, AffineTensors>> {
    quantize_watched(backend, base, settings, calibration, |_| {})
}

/// The same; `progress` is told how many linear layers are done.
///
/// # Errors
/// As [`quantize_model`].
pub fn quantize_watched<B: Backend>(
    backend: Arc<B>,
    base: &ModelFolder,
    settings: &PtqSettings,
    calibration: &Calibration,
    mut progress: impl FnMut(usize),
) -> Result<MergedModel<B, AffineTensors>> {
    let (bits, group_size) = settings.grid();
    let specs = base.specs(bits, group_size)?;
    match settings {
        PtqSettings::Rtn { rtn, .. } => {
            let (device, mut linears) = (backend.clone(), BTreeMap::new());
            let model = build(backend, base, |index, linear, weight| {
                let (weight, out_features) = (weight.into_floats(), linear.out_features);
                let spec = specs[index];
                let tensors =
                    AffineTensors::round_to_nearest(&*device, &weight, out_features, spec, *rtn)
                        .map_err(|error| of_layer(linear, &error))?;
                let layer = tensors.layer(&*device)?;
                linears.insert(linear.name.clone(), tensors);
                progress(index + 1);
                Ok(layer)
            })?;
            Ok(MergedModel { model, linears })
        }
        PtqSettings::Gptq { options, .. } => {
            let specs = specs.into_iter().map(|spec| options.spec(spec)).collect::<Result<_>>()?;
            let mut model = base.load_dense(backend.clone(), false)?;
            let mut pass = InOrder { specs, linears: BTreeMap::new(), progress };
            pass.run(&mut model, calibration)?;
            let linears = pass.linears;
            let model = model.map_linears(|linear, _| linears[&linear.name].layer(&*backend))?;
            Ok(MergedModel { model, linears })
        }
    }
}

fn of_layer(linear: &Projection, error: &Error) -> Error {
    Error::Invalid(format!("{}: {error}", linear.name))
}

/// GPTQ on its way through a model.
struct InOrder<P> {
    /// Of every linear layer.
    specs: Vec<GptqSpec>,
    /// The layers that are done.
    linears: BTreeMap<String, AffineTensors>,
    progress: P,
}

impl<P: FnMut(usize)> InOrder<P> {
    /// Quantizes every layer; in the model its weight becomes what its codes stand for.
    fn run<B: Backend>(
        &mut self,
        model: &mut Llama<B, Dense<B>>,
        calibration: &Calibration,
    ) -> Result<()> {
        let windows = calibration.windows();
        let longest = windows.iter().map(|window| window.tokens().len()).max();
        let Some(longest) = longest else {
            return Err(Error::Invalid("gptq: the calibration has no window".into()));
        };
        let mut workspace = model.evaluation_workspace(longest)?;
        let hidden = |model: &Llama<B, Dense<B>>, window: &CalibrationWindow, workspace: &mut _| {
            let mut hidden = model.backend().zeros(longest * model.config().hidden_size)?;
            model.embed_batch(&window.batch(), workspace, &mut hidden)?;
            Ok(hidden)
        };
        let mut stream = windows
            .iter()
            .map(|window| hidden(model, window, &mut workspace))
            .collect::<Result<Vec<_>>>()?;
        let mut output = model.backend().zeros(longest * model.config().hidden_size)?;
        for block in 0..model.config().num_hidden_layers {
            for input in LinearInput::ALL {
                let mut hessian = Hessian::new(input.width(model.config()), model.backend())?;
                for (window, hidden) in windows.iter().zip(&stream) {
                    let batch = window.batch();
                    model.run_block(block, &batch, hidden, &mut output, &mut workspace)?;
                    let x = workspace.linear_input(input);
                    hessian.add(model.backend(), window.tokens().len(), x)?;
                }
                self.quantize(model, block, input, &hessian.finish())?;
            }
            // What the next block reads, now that all of this one is quantized.
            for (window, hidden) in windows.iter().zip(&mut stream) {
                let batch = window.batch();
                model.run_block(block, &batch, hidden, &mut output, &mut workspace)?;
                std::mem::swap(hidden, &mut output);
            }
        }
        Ok(())
    }

    /// The layers of a block that read one input.
    fn quantize<B: Backend>(
        &mut self,
        model: &mut Llama<B, Dense<B>>,
        block: usize,
        input: LinearInput,
        hessian: &[f64],
    ) -> Result<()> {
        let backend = model.shared_backend();
        let projections = Projection::of_block(model.config(), block);
        let layers = projections.iter().zip(model.block_linears(block)).enumerate();
        for (place, (linear, layer)) in layers.filter(|(place, _)| input.places().contains(place)) {
            let spec = self.specs[block * projections.len() + place];
            let weight = layer.weight.to_host(&*backend)?;
            let quantized =
                gptq_quantize(&weight, hessian, &spec).map_err(|error| of_layer(linear, &error))?;
            backend.write(&quantized.output, &mut layer.weight.value)?;
            self.linears.insert(linear.name.clone(), quantized.tensors);
            (self.progress)(self.linears.len());
        }
        Ok(())
    }
}
