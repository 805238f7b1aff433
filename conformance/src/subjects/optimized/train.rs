//! A whole model in training, by the crate's own model and optimizer.

use std::collections::BTreeMap;
use std::sync::Arc;

use plumbline::backend::Backend;
use plumbline::methods::LinearMethod;
use plumbline::model::{Batch, IGNORE, Llama, Projection, Recompute};
use plumbline::train::{HostMoments, KindSettings, Optimizer, OptimizerSettings};

use super::{Call, Refused};
use crate::ops::llama_train::{FIRST_MOMENT, SECOND_MOMENT, method_name, optimizer};
use crate::params;
use crate::precision::Precision;
use crate::tensor::{Data, Tensor, Tensors};

/// What a run leaves of each step.
#[derive(Default)]
struct Trajectory {
    losses: Vec<f64>,
    /// Under `d_` and the name of the tensor: its shape, and its elements step by step.
    gradients: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl<B: Backend> Call<'_, B> {
    pub(super) fn train(&self) -> Result<Tensors, Refused> {
        macro_rules! run {
            ($layer:ident) => {
                self.run(self.model_of(|layer| self.layer_named(&layer.name).$layer())?)
            };
        }
        match method_name(&self.request.params)? {
            "lora" => run!(lora),
            "l4q" => run!(l4q),
            "lr_qat" => run!(lr_qat),
            "qa_lora" => run!(qa_lora),
            "qat" => run!(qat),
            "qat_lora" => run!(qat_lora),
            "peqa" => run!(peqa),
            other => Err(Refused(format!("method {other} is not implemented"))),
        }
    }

    fn model_of<L: LinearMethod<B>>(
        &self,
        layer: impl Fn(&Projection) -> Result<L, Refused>,
    ) -> Result<Llama<B, L>, Refused> {
        let config = params::llama_config(&self.request.params)?;
        let invalid = |Refused(why)| plumbline::error::Error::Invalid(why);
        Ok(Llama::build(
            Arc::clone(self.backend),
            config,
            false,
            |name, _| self.host(name).map_err(plumbline::error::Error::Invalid),
            |projection| layer(projection).map_err(invalid),
        )?)
    }

    /// The crate's optimizer, without clipping, where the request begins.
    fn optimizer<L: LinearMethod<B>>(
        &self,
        model: &mut Llama<B, L>,
    ) -> Result<Optimizer<B>, Refused> {
        let (asked, first_step) = optimizer(&self.request.params)?;
        let undecayed = KindSettings { learning_rate: None, weight_decay: Some(0.0) };
        let settings = OptimizerSettings {
            learning_rate: asked.lr,
            weight_decay: asked.weight_decay,
            beta1: asked.spec.beta1,
            beta2: asked.spec.beta2,
            eps: asked.spec.eps,
            max_grad_norm: 0.0,
            scale: undecayed,
            offset: undecayed,
            ..OptimizerSettings::default()
        };
        let Some(steps) = first_step.checked_sub(1) else {
            return Err(Refused("first_step is 0, expected at least 1".to_owned()));
        };
        let mut moments = BTreeMap::new();
        for tensor in model.trainable() {
            let moment = |which: &str| {
                let name = format!("{which}{}", tensor.name);
                let is_given = self.request.inputs.contains_key(&name);
                if is_given { self.host(&name) } else { Ok(vec![0.0; tensor.len]) }
            };
            let (first, second) = (moment(FIRST_MOMENT)?, moment(SECOND_MOMENT)?);
            if let Some(value) = second.iter().find(|value| **value < 0.0) {
                let name = format!("{SECOND_MOMENT}{}", tensor.name);
                return Err(Refused(format!("{name} holds {value}, expected at least 0")));
            }
            moments.insert(tensor.name, HostMoments { first, second });
        }
        Ok(Optimizer::resume(&settings, &**self.backend, steps, &moments)?)
    }

    fn run<L: LinearMethod<B>>(&self, mut model: Llama<B, L>) -> Result<Tensors, Refused> {
        let mut optimizer = self.optimizer(&mut model)?;
        let tokens = self.ids("tokens")?;
        let [steps, batch, length] = self.request.sizes("tokens")?;
        let counted = batch * length.saturating_sub(1);
        if counted == 0 {
            return Err(Refused("no target is counted".to_owned()));
        }
        let mut workspace = model.training_workspace(batch * length, Recompute::Blocks)?;
        let mut trajectory = Trajectory::default();
        for tokens in tokens.chunks(batch * length) {
            let targets: Vec<i32> = tokens
                .chunks(length)
                .flat_map(|row| row.iter().skip(1).copied().chain([IGNORE]))
                .collect();
            let work = Batch { batch, tokens, targets: &targets, documents: None };
            let loss = model.loss_and_gradients(&work, 1.0 / counted as f32, &mut workspace)?;
            trajectory.losses.push(loss.sum / loss.counted as f64);
            for trained in model.trainable() {
                let gradient = self.backend.download(trained.gradient, trained.len)?;
                let name = format!("d_{}", trained.name);
                let of_steps = trajectory.gradients.entry(name);
                of_steps.or_insert((trained.shape.to_vec(), vec![])).1.extend(gradient);
            }
            optimizer.step(&mut model, 1.0)?;
        }
        let last = &tokens[(steps - 1) * batch * length..];
        let logits = model.logits(batch, last, &mut workspace)?;
        let shape = vec![batch, length, model.config().vocab_size];
        let mut outputs = trajectory.outputs(steps)?;
        outputs.insert("logits".to_owned(), Tensor::new(shape, Data::F32(logits))?);
        let moments = optimizer.moments(&**self.backend)?;
        for trained in model.trained_values()? {
            let HostMoments { first, second } = moments[&trained.name].clone();
            for (which, values) in
                [("", trained.values), (FIRST_MOMENT, first), (SECOND_MOMENT, second)]
            {
                let tensor = Tensor::new(trained.shape.clone(), Data::F32(values))?;
                outputs.insert(format!("{which}{}", trained.name), tensor);
            }
        }
        Ok(outputs)
    }
}

impl Trajectory {
    fn outputs(self, steps: usize) -> Result<Tensors, Refused> {
        let losses = self.losses.into_iter();
        let loss = Tensor::from_f64s(vec![steps], losses, Precision::F32);
        let mut outputs = crate::ops::tensors([("loss", loss)]);
        for (name, (shape, values)) in self.gradients {
            let shape = [vec![steps], shape].concat();
            outputs.insert(name, Tensor::new(shape, Data::F32(values))?);
        }
        Ok(outputs)
    }
}
