//! What a layer of each method is, fresh and from a checkpoint.

use plumbline_reference::spec::{
    ActivationSpec, Bits, InitScaleRule, QatQuantizer, QuantSpec, RtnSpec,
};

use super::{LayerStart, Start};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::export::Format;
use crate::methods::{
    AdapterDropout, AffineTensors, L4q, L4qOptions, L4qTensors, LayerCost, LinearMethod, Lora,
    LoraOptions, LrQat, LrQatOptions, LrQatTensors, Peqa, QaLora, QaLoraOptions, Qat, QatLora,
    QatOptions, QatTensors, Qlora, QloraOptions, initial_grid, peqa_cost,
};
use crate::model::Projection;
use crate::ops::widen::{FrozenWeight, WeightType};
use crate::recipe::{
    FrozenBase, L4qSettings, LoraSettings, LrQatSettings, PeqaSettings, QaLoraSettings,
    QatLoraSettings, QatSettings, QloraSettings,
};

/// A method as a recipe states it.
pub trait Method {
    /// A layer under it.
    type Layer<B: Backend>: LinearMethod<B>;

    /// Bits and groups, where there are codes.
    fn grid(&self) -> Option<(Bits, Option<usize>)>;

    /// Those of one layer, where it has codes.
    fn grid_of(&self, _linear: &Projection) -> Option<(Bits, Option<usize>)> {
        self.grid()
    }

    /// How the activations of the model are rounded, if they are.
    fn activations(&self) -> Option<ActivationSpec> {
        None
    }

    /// The format that the model is trained for, if there is one.
    fn target(&self) -> Option<Format> {
        None
    }

    /// What a layer of that place and size costs on a checkpoint that is stored so.
    ///
    /// # Errors
    /// `Spec` naming the field that does not go with the size.
    fn cost(&self, linear: &Projection, stored: WeightType) -> Result<LayerCost>;

    /// One layer.
    ///
    /// # Errors
    /// `Spec`, `Invalid`, `File` naming what cannot be used.
    fn layer<B: Backend>(&self, backend: &B, at: LayerStart<'_>) -> Result<Self::Layer<B>>;
}

/// Bits and groups of a layer.
fn spec_of(method: &impl Method, linear: &Projection) -> Result<QuantSpec> {
    let Some((bits, group_size)) = method.grid() else {
        return Err(Error::Invalid("a method without codes has no grid".into()));
    };
    let spec = QuantSpec::new(bits, group_size, linear.in_features);
    spec.map_err(|error| Error::Invalid(format!("{}: {error}", linear.name)))
}

impl LayerStart<'_> {
    /// The weight as floats, for a layer that does not keep it.
    fn take_floats(&mut self) -> Vec<f32> {
        std::mem::replace(&mut self.weight, FrozenWeight::F32(Vec::new())).into_floats()
    }

    /// The codes that a method freezes: rounded to nearest here, or made beforehand.
    fn frozen_codes<B: Backend>(
        &mut self,
        backend: &B,
        spec: QuantSpec,
        base: FrozenBase,
        rtn: RtnSpec,
    ) -> Result<AffineTensors> {
        let rows = self.linear.out_features;
        match (base, self.codes) {
            (FrozenBase::Rtn, _) => {
                AffineTensors::round_to_nearest(backend, &self.take_floats(), rows, spec, rtn)
            }
            (FrozenBase::Gptq, Some(codes)) if (codes.spec, codes.out_features) == (spec, rows) => {
                Ok(codes.clone())
            }
            (FrozenBase::Gptq, codes) => {
                let found = if codes.is_some() { "codes of another grid" } else { "no codes" };
                let name = &self.linear.name;
                Err(Error::Invalid(format!("{name}: method.base is gptq, and it has {found}")))
            }
        }
    }

    fn spec(&self, method: &impl Method) -> Result<QuantSpec> {
        spec_of(method, self.linear)
    }

    /// `[out, groups]`.
    fn groups(&self, spec: QuantSpec) -> [usize; 2] {
        [self.linear.out_features, spec.groups()]
    }

    /// What the adapter reads is dropped so in this layer.
    fn dropout(&self, probability: f32) -> Option<AdapterDropout> {
        (probability > 0.0).then(|| AdapterDropout::new(probability, &self.linear.name))
    }

    /// Scale and offset as they begin, of the weight alone. Eq. (Q8).
    fn initial_grid<B: Backend>(
        &self,
        backend: &B,
        spec: QuantSpec,
        rule: InitScaleRule,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        initial_grid(backend, spec, rule, self.linear.out_features, &self.weight.to_floats())
    }

    /// Factors of an update from `inputs` inputs.
    fn factors(&self, rank: usize, inputs: usize) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
        let lora_a = self.saved("lora_a", [rank, inputs])?;
        Ok(lora_a.zip(self.saved("lora_b", [self.linear.out_features, rank])?))
    }

    /// A tensor of the checkpoint; `None` for a fresh start.
    fn saved(&self, tensor: &str, shape: [usize; 2]) -> Result<Option<Vec<f32>>> {
        match self.start {
            Start::Fresh(_) => Ok(None),
            Start::Checkpoint(checkpoint) => {
                checkpoint.tensor(&format!("{}.{tensor}", self.linear.name), &shape).map(Some)
            }
        }
    }
}

impl L4qSettings {
    fn options(&self, spec: QuantSpec) -> Result<L4qOptions> {
        let (rank, lora_scaling, grad_scale) = (self.rank, self.lora_scaling, self.grad_scale);
        let scale_rule = self.target.and_then(Format::scale_rule);
        Ok(L4qOptions { spec, rank, lora_scaling, init: self.rule()?, grad_scale, scale_rule })
    }

    fn tensors<B: Backend>(
        &self,
        backend: &B,
        at: &LayerStart<'_>,
        spec: QuantSpec,
    ) -> Result<Option<L4qTensors>> {
        let Some((lora_a, lora_b)) = at.factors(self.rank, spec.in_features())? else {
            return Ok(None);
        };
        let groups = at.groups(spec);
        let has_offset = self.target.and_then(Format::scale_rule).is_none();
        let grid = match self.train_scale {
            true if has_offset => at.saved("scale", groups)?.zip(at.saved("offset", groups)?),
            true => at.saved("scale", groups)?.map(|scale| {
                let offset = vec![0.0; scale.len()];
                (scale, offset)
            }),
            // A function of the base model, so it is made again and not saved.
            false => Some(at.initial_grid(backend, spec, self.rule()?)?),
        };
        Ok(grid.map(|(scale, offset)| L4qTensors { lora_a, lora_b, scale, offset }))
    }
}

impl Method for L4qSettings {
    type Layer<B: Backend> = L4q<B>;

    fn grid(&self) -> Option<(Bits, Option<usize>)> {
        Some((self.bits, self.group_size))
    }

    fn target(&self) -> Option<Format> {
        self.target
    }

    fn cost(&self, linear: &Projection, stored: WeightType) -> Result<LayerCost> {
        let options = self.options(spec_of(self, linear)?)?;
        let cost = options.cost(linear.out_features, stored);
        let cost = if self.lora_warmup_steps > 0 { cost.warming_up() } else { cost };
        Ok(if self.train_scale { cost } else { cost.freezing(options.grid_tensors()) })
    }

    fn layer<B: Backend>(&self, backend: &B, at: LayerStart<'_>) -> Result<L4q<B>> {
        let (spec, rows) = (at.spec(self)?, at.linear.out_features);
        let options = self.options(spec)?;
        if let Start::Checkpoint(checkpoint) = at.start {
            let (done, steps) = (checkpoint.state.position.updates, self.lora_warmup_steps);
            if done < steps {
                let reason = format!(
                    "the checkpoint is of step {done}, within method.lora_warmup_steps = {steps}: \
                     there is no grid yet"
                );
                return Err(Error::Invalid(reason));
            }
        }
        let layer = match self.tensors(backend, &at, spec)? {
            None => L4q::new(backend, &at.weight, rows, options, &mut at.random())?
                .warming_up(self.lora_warmup_steps),
            Some(tensors) => L4q::from_tensors(backend, &at.weight, rows, options, &tensors)?,
        };
        Ok(if self.train_scale { layer } else { layer.freeze_grid() })
    }
}

impl Method for QatLoraSettings {
    type Layer<B: Backend> = QatLora<B>;

    fn grid(&self) -> Option<(Bits, Option<usize>)> {
        self.0.grid()
    }

    fn cost(&self, linear: &Projection, stored: WeightType) -> Result<LayerCost> {
        let options = self.0.options(spec_of(self, linear)?)?;
        let cost = options.cost_beside(linear.out_features, stored);
        let cost = if self.0.dropout > 0.0 { cost.dropping() } else { cost };
        Ok(if self.0.train_scale { cost } else { cost.freezing(2) })
    }

    fn layer<B: Backend>(&self, backend: &B, at: LayerStart<'_>) -> Result<QatLora<B>> {
        let (spec, rows) = (at.spec(self)?, at.linear.out_features);
        let options = self.0.options(spec)?;
        let layer = match self.0.tensors(backend, &at, spec)? {
            None => QatLora::new(backend, &at.weight, rows, options, &mut at.random())?,
            Some(tensors) => QatLora::from_tensors(backend, &at.weight, rows, options, &tensors)?,
        };
        let layer = layer.with_dropout(at.dropout(self.0.dropout));
        Ok(if self.0.train_scale { layer } else { layer.freeze_grid() })
    }
}

impl Method for LoraSettings {
    type Layer<B: Backend> = Lora<B>;

    fn grid(&self) -> Option<(Bits, Option<usize>)> {
        None
    }

    fn cost(&self, linear: &Projection, stored: WeightType) -> Result<LayerCost> {
        let options = LoraOptions { rank: self.rank, lora_scaling: self.lora_scaling };
        let cost = options.cost((linear.out_features, linear.in_features), stored);
        Ok(if self.dropout > 0.0 { cost.dropping() } else { cost })
    }

    fn layer<B: Backend>(&self, backend: &B, at: LayerStart<'_>) -> Result<Lora<B>> {
        let options = LoraOptions { rank: self.rank, lora_scaling: self.lora_scaling };
        let shape = (at.linear.out_features, at.linear.in_features);
        let layer = match at.factors(self.rank, shape.1)? {
            None => Lora::new(backend, &at.weight, shape, options, &mut at.random())?,
            Some((lora_a, lora_b)) => {
                Lora::from_tensors(backend, &at.weight, shape, options, &lora_a, &lora_b)?
            }
        };
        Ok(layer.with_dropout(at.dropout(self.dropout)))
    }
}

impl LrQatSettings {
    fn options(&self, grid: QuantSpec) -> Result<LrQatOptions> {
        let (rank, lora_scaling) = (self.rank, self.lora_scaling);
        let (init, scale_rule) = (self.rule()?, self.target.and_then(Format::scale_rule));
        Ok(LrQatOptions { spec: self.spec(grid)?, rank, lora_scaling, init, scale_rule })
    }
}

impl QatSettings {
    fn options(&self, spec: QuantSpec) -> Result<QatOptions> {
        let (quantizer, init, grad_scale) = (self.quantizer, self.rule()?, self.grad_scale);
        let scale_rule = self.target.and_then(Format::scale_rule);
        Ok(QatOptions { spec, quantizer, init, grad_scale, scale_rule })
    }
}

impl QaLoraSettings {
    fn options(&self) -> Result<QaLoraOptions> {
        let (rank, lora_scaling) = (self.rank, self.lora_scaling);
        Ok(QaLoraOptions { rank, lora_scaling, pool: self.group_pool()? })
    }
}

impl Method for LrQatSettings {
    type Layer<B: Backend> = LrQat<B>;

    fn grid(&self) -> Option<(Bits, Option<usize>)> {
        Some((self.bits, self.group_size))
    }

    fn activations(&self) -> Option<ActivationSpec> {
        self.activations
    }

    fn target(&self) -> Option<Format> {
        self.target
    }

    fn cost(&self, linear: &Projection, _stored: WeightType) -> Result<LayerCost> {
        let cost = self.options(spec_of(self, linear)?)?.cost(linear.out_features);
        Ok(if self.train_scale { cost } else { cost.freezing(1) })
    }

    fn layer<B: Backend>(&self, backend: &B, mut at: LayerStart<'_>) -> Result<LrQat<B>> {
        let (grid, rows) = (at.spec(self)?, at.linear.out_features);
        let (options, weight) = (self.options(grid)?, at.take_floats());
        let Some((lora_a, lora_b)) = at.factors(self.rank, grid.in_features())? else {
            let layer = LrQat::new(backend, &weight, rows, options, &mut at.random())?;
            return Ok(if self.train_scale { layer } else { layer.freeze_scale() });
        };
        // A function of the base model, so it is made again and not saved.
        let begun = options.initial_scale(backend, &weight, rows)?;
        let scale = match at.saved("scale", at.groups(grid)) {
            Ok(Some(scale)) if self.train_scale => scale,
            Err(error) if self.train_scale => return Err(error),
            _ => begun.clone(),
        };
        let initial_scale = options.inner_scale(backend, begun)?;
        let tensors = LrQatTensors { initial_scale, zero_point: None, lora_a, lora_b, scale };
        let layer = LrQat::from_tensors(backend, &weight, rows, options, &tensors)?;
        Ok(if self.train_scale { layer } else { layer.freeze_scale() })
    }
}

impl Method for QatSettings {
    type Layer<B: Backend> = Qat<B>;

    fn grid(&self) -> Option<(Bits, Option<usize>)> {
        Some((self.bits, self.group_size))
    }

    fn target(&self) -> Option<Format> {
        self.target
    }

    fn cost(&self, linear: &Projection, _stored: WeightType) -> Result<LayerCost> {
        let cost = self.options(spec_of(self, linear)?)?.cost(linear.out_features);
        let grid = cost.trained.len() - 1;
        Ok(if self.train_scale { cost } else { cost.freezing(grid) })
    }

    fn layer<B: Backend>(&self, backend: &B, at: LayerStart<'_>) -> Result<Qat<B>> {
        let (spec, rows) = (at.spec(self)?, at.linear.out_features);
        let options = self.options(spec)?;
        let layer = match at.saved("weight", [rows, spec.in_features()])? {
            None => Qat::new(backend, at.weight.into_floats(), rows, options)?,
            Some(weight) => {
                let tensors = self.tensors(backend, &at, (spec, weight))?;
                Qat::from_tensors(backend, rows, options, &tensors)?
            }
        };
        Ok(if self.train_scale { layer } else { layer.freeze_grid() })
    }
}

impl QatSettings {
    /// A saved weight with its grid.
    fn tensors<B: Backend>(
        &self,
        backend: &B,
        at: &LayerStart<'_>,
        (spec, weight): (QuantSpec, Vec<f32>),
    ) -> Result<QatTensors> {
        let has_offset = self.quantizer == QatQuantizer::LsqPlus;
        if !self.train_scale {
            // A function of the base model, so it is made again and not saved.
            let (scale, offset) = at.initial_grid(backend, spec, self.rule()?)?;
            return Ok(QatTensors { weight, scale, offset: has_offset.then_some(offset) });
        }
        let scale = at.saved("scale", at.groups(spec))?;
        let offset = has_offset.then(|| at.saved("offset", at.groups(spec))).transpose()?;
        let missing = || Error::Invalid(format!("{} has no saved scale", at.linear.name));
        Ok(QatTensors { weight, scale: scale.ok_or_else(missing)?, offset: offset.flatten() })
    }
}

impl Method for PeqaSettings {
    type Layer<B: Backend> = Peqa<B>;

    fn grid(&self) -> Option<(Bits, Option<usize>)> {
        Some((self.bits, self.group_size))
    }

    fn target(&self) -> Option<Format> {
        self.target
    }

    fn cost(&self, linear: &Projection, _stored: WeightType) -> Result<LayerCost> {
        let scale_rule = self.target.and_then(Format::scale_rule);
        Ok(peqa_cost(spec_of(self, linear)?, linear.out_features, scale_rule))
    }

    /// Codes and zero points are a function of the base model, so they are made again, or kept
    /// beside the run.
    fn layer<B: Backend>(&self, backend: &B, mut at: LayerStart<'_>) -> Result<Peqa<B>> {
        let spec = at.spec(self)?;
        let mut tensors = at.frozen_codes(backend, spec, self.base, self.rtn()?)?;
        if let Some(scale) = at.saved("scale", at.groups(spec))? {
            tensors.scale = scale;
        }
        Peqa::new(backend, &tensors, self.target.and_then(Format::scale_rule))
    }
}

impl Method for QaLoraSettings {
    type Layer<B: Backend> = QaLora<B>;

    fn grid(&self) -> Option<(Bits, Option<usize>)> {
        Some((self.bits, self.group_size))
    }

    fn cost(&self, linear: &Projection, _stored: WeightType) -> Result<LayerCost> {
        let cost = self.options()?.cost(spec_of(self, linear)?, linear.out_features);
        Ok(if self.dropout > 0.0 { cost.dropping() } else { cost })
    }

    fn layer<B: Backend>(&self, backend: &B, mut at: LayerStart<'_>) -> Result<QaLora<B>> {
        let spec = at.spec(self)?;
        let base = at.frozen_codes(backend, spec, self.base, self.rtn()?)?;
        let options = self.options()?;
        let layer = match at.factors(self.rank, spec.groups())? {
            None => QaLora::new(backend, &base, options, &mut at.random())?,
            Some((lora_a, lora_b)) => {
                QaLora::from_tensors(backend, &base, options, &lora_a, &lora_b)?
            }
        };
        Ok(layer.with_dropout(at.dropout(self.dropout)))
    }
}

impl Method for QloraSettings {
    type Layer<B: Backend> = Qlora<B>;

    fn grid(&self) -> Option<(Bits, Option<usize>)> {
        Some((self.bits, self.group_size))
    }

    fn cost(&self, linear: &Projection, _stored: WeightType) -> Result<LayerCost> {
        Ok(self.options(spec_of(self, linear)?)?.cost(linear.out_features))
    }

    /// The codes of the frozen weight are a function of the base model, so they are made again.
    fn layer<B: Backend>(&self, backend: &B, mut at: LayerStart<'_>) -> Result<Qlora<B>> {
        let (spec, rows) = (at.spec(self)?, at.linear.out_features);
        let options = self.options(spec)?;
        let weight = at.take_floats();
        let layer = match at.factors(self.rank, spec.in_features())? {
            None => Qlora::new(backend, &weight, rows, options, &mut at.random())?,
            Some((lora_a, lora_b)) => {
                Qlora::from_tensors(backend, &weight, rows, options, &lora_a, &lora_b)?
            }
        };
        Ok(layer.with_dropout(at.dropout(self.dropout)))
    }
}

impl QloraSettings {
    fn options(&self, spec: QuantSpec) -> Result<QloraOptions> {
        Ok(QloraOptions {
            rank: self.rank,
            lora_scaling: self.lora_scaling,
            block_size: self.block_size()?,
            double_quantize: self.double_quantize,
            spec,
            rtn: self.rtn()?,
        })
    }
}
