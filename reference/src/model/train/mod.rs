//! Training of a whole model by any of the methods: the loss, the gradient of every trained tensor,
//! and one AdamW step for each.
//!
//! A linear layer is the method's own forward and backward, tokens in and tokens out, so a method
//! whose update is a path beside the weight keeps its path. Embedding, norms and output projection
//! are frozen.

mod method;

use std::collections::BTreeMap;

use ndarray::{Array2, Array3, ArrayD, ArrayView2};

pub use method::{Grid, LayerShape, LayerTensor, Method};

use super::decoder::Decoder;
use super::{LossAndGradients, base_shapes, linear_shapes, same_names, unflatten};
use crate::adamw::{AdamWState, adamw_step};
use crate::spec::{AdamWSpec, LlamaConfig};
use crate::{Error, Real, check};

const OPERATION: &str = "llama.train";

/// A model, a method and the state of its training; names, shapes and values were checked.
#[derive(Debug, Clone)]
pub struct Training<T> {
    config: LlamaConfig,
    method: Method,
    /// Every float tensor, frozen or trained.
    tensors: BTreeMap<String, ArrayD<T>>,
    codes: BTreeMap<String, Array2<u8>>,
    /// Of every trained tensor.
    moments: BTreeMap<String, Moments<T>>,
}

/// What AdamW remembers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments<T> {
    /// Running mean of the gradient.
    pub first: ArrayD<T>,
    /// Running mean of the squared gradient.
    pub second: ArrayD<T>,
}

/// AdamW over the trained tensors of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optimizer {
    /// Its constants.
    pub spec: AdamWSpec,
    /// Learning rate of every tensor.
    pub lr: f64,
    /// Decoupled decay of weights and low-rank factors; a scale and an offset have none.
    pub weight_decay: f64,
}

/// Result of [`Training::step`].
#[derive(Debug, Clone)]
pub struct Step<T> {
    /// Before the update.
    pub loss: T,
    /// Of every trained tensor, under its name, before the update.
    pub gradients: BTreeMap<String, ArrayD<T>>,
}

impl<T: Real> Training<T> {
    /// Takes a model before its first step, with all moments zero.
    ///
    /// `tensors` holds embedding, norms and output projection under their Hugging Face names, and
    /// of every linear layer the tensors of [`Method::layer_tensors`] as `LAYER.NAME`; those of
    /// unsigned bytes are in `codes`. With tied embeddings there is no `lm_head.weight`.
    ///
    /// # Errors
    /// `Weights` for missing or unexpected names, `Shape`, `NonFinite`, `Spec` where a group would
    /// cross the end of a row.
    pub fn new(
        config: LlamaConfig,
        method: Method,
        tensors: BTreeMap<String, ArrayD<T>>,
        codes: BTreeMap<String, Array2<u8>>,
    ) -> Result<Self, Error> {
        let (mut shapes, mut code_shapes) = (base_shapes(&config), BTreeMap::new());
        let mut trained = Vec::new();
        for (layer, size) in linear_shapes(&config) {
            let groups = method.groups(size[1])?;
            // The other factor and the layer's operations hold the rank against this one.
            let rank = tensors
                .get(&format!("{layer}.lora_a"))
                .map_or(0, |a| a.shape().first().copied().unwrap_or(0));
            for tensor in method.layer_tensors() {
                let name = format!("{layer}.{}", tensor.name);
                if tensor.optional && !tensors.contains_key(&name) {
                    continue;
                }
                if tensor.trained {
                    trained.push(name.clone());
                }
                let of_its_kind = match tensor.shape {
                    LayerShape::Codes => &mut code_shapes,
                    _ => &mut shapes,
                };
                of_its_kind.insert(name, tensor.shape.sizes(size, groups, rank).to_vec());
            }
        }
        same_names(&shapes, tensors.keys())?;
        same_names(&code_shapes, codes.keys())?;
        for (name, tensor) in &tensors {
            check::input(OPERATION, name, tensor, &shapes[name])?;
        }
        for (name, codes) in &codes {
            check::shape(OPERATION, name, codes.shape(), &code_shapes[name])?;
        }
        let zeros = |name: String| {
            let zero = ArrayD::zeros(tensors[&name].raw_dim());
            (name, Moments { first: zero.clone(), second: zero })
        };
        let moments = trained.into_iter().map(zeros).collect();
        Ok(Self { config, method, tensors, codes, moments })
    }

    /// The same model with the moments that an earlier run left of one tensor.
    ///
    /// # Errors
    /// `Weights` for a tensor that is not trained, `Shape`, `NonFinite`.
    pub fn with_moments(mut self, name: &str, moments: Moments<T>) -> Result<Self, Error> {
        let Some(old) = self.moments.get_mut(name) else {
            return Err(Error::Weights { missing: vec![], unexpected: vec![name.to_owned()] });
        };
        for (which, moment) in
            [("first_moment", &moments.first), ("second_moment", &moments.second)]
        {
            check::input(OPERATION, &format!("{which}.{name}"), moment, old.first.shape())?;
        }
        *old = moments;
        Ok(self)
    }

    /// Every float tensor under its name, as the steps so far left it.
    pub fn tensors(&self) -> &BTreeMap<String, ArrayD<T>> {
        &self.tensors
    }

    /// The moments of every trained tensor under its name.
    pub fn moments(&self) -> &BTreeMap<String, Moments<T>> {
        &self.moments
    }

    /// Scores of every next token at every position.
    ///
    /// # Shapes
    /// `tokens [batch, length]` -> `[batch, length, vocab]`
    ///
    /// # Errors
    /// `TokenOutOfRange`; those of the method's forward.
    pub fn logits(&self, tokens: ArrayView2<i32>) -> Result<Array3<T>, Error> {
        Ok(unflatten(self.decoder()?.logits(tokens)?, tokens.dim()))
    }

    /// One step on one batch; the first is step 1. Eq. (T2).
    ///
    /// ```text
    /// loss, d_tensor = loss_and_gradients(tokens)
    /// tensor', first_moment', second_moment' =
    ///     adamw_step(tensor, d_tensor, first_moment, second_moment, step)
    /// weight_decay = 0 where tensor is a scale or an offset
    /// ```
    ///
    /// # Shapes
    /// `tokens [batch, length]` -> a scalar, and one gradient like each trained tensor
    ///
    /// # Errors
    /// `TokenOutOfRange`; `Empty` for sequences shorter than two; those of the method and of
    /// [`adamw_step`]. After an error nothing has been updated.
    pub fn step(
        &mut self,
        tokens: ArrayView2<i32>,
        optimizer: &Optimizer,
        step: u64,
    ) -> Result<Step<T>, Error> {
        let LossAndGradients { loss, mut gradients, .. } =
            self.decoder()?.loss_and_gradients(tokens)?;
        gradients.retain(|name, _| self.moments.contains_key(name));
        let mut updated = Vec::with_capacity(gradients.len());
        for (name, gradient) in &gradients {
            let Moments { first, second } = &self.moments[name];
            let is_grid = name.ends_with(".scale") || name.ends_with(".offset");
            let state = adamw_step(
                self.tensors[name].view(),
                gradient.view(),
                first.view(),
                second.view(),
                &optimizer.spec,
                optimizer.lr,
                if is_grid { 0.0 } else { optimizer.weight_decay },
                step,
            )?;
            updated.push((name.clone(), state));
        }
        for (name, AdamWState { parameter, first_moment, second_moment }) in updated {
            let moments = Moments { first: first_moment, second: second_moment };
            self.tensors.insert(name.clone(), parameter);
            self.moments.insert(name, moments);
        }
        Ok(Step { loss, gradients })
    }

    fn decoder(&self) -> Result<Decoder<'_, T>, Error> {
        let sizes = linear_shapes(&self.config);
        Decoder::new(&self.config, &self.tensors, |layer| {
            self.method.layer(&self.tensors, &self.codes, layer, sizes[layer][1])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use ndarray::{ArrayD, IxDyn, array};

    /// LoRA with every tensor zero but those of the value's path to the head.
    fn example() -> Training<f64> {
        let config = LlamaConfig::from_value(&serde_json::json!({
            "hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 1,
            "num_attention_heads": 1, "head_dim": 2, "vocab_size": 2, "rms_norm_eps": 3.0,
        }))
        .unwrap();
        let method = Method::Lora { lora_scaling: 1.0 };
        let mut tensors = base_shapes(&config);
        for (layer, size) in linear_shapes(&config) {
            for tensor in method.layer_tensors() {
                let sizes = tensor.shape.sizes(size, 0, 1).to_vec();
                tensors.insert(format!("{layer}.{}", tensor.name), sizes);
            }
        }
        let mut tensors: BTreeMap<_, _> = tensors
            .into_iter()
            .map(|(name, shape)| {
                let value = if name.ends_with("norm.weight") { 2.0 } else { 0.0 };
                (name, ArrayD::from_elem(IxDyn(&shape), value))
            })
            .collect();
        let half_log = 3.0_f64.ln() / 2.0;
        let mut set = |name: &str, tensor: Array2<f64>| {
            tensors.insert(name.to_owned(), tensor.into_dyn());
        };
        set("model.embed_tokens.weight", array![[1.0], [1.0]]);
        set("model.layers.0.self_attn.v_proj.weight", array![[1.0], [0.0]]);
        set("model.layers.0.self_attn.o_proj.lora_a", array![[1.0, 0.0]]);
        set("lm_head.weight", array![[half_log], [-half_log]]);
        Training::new(config, method, tensors, BTreeMap::new()).unwrap()
    }

    #[test]
    fn example_of_t2() {
        let mut training = example();
        let optimizer = Optimizer {
            spec: AdamWSpec::new(0.9, 0.999, 1e-30).unwrap(),
            lr: 0.5,
            weight_decay: 0.0,
        };
        let trained = "model.layers.0.self_attn.o_proj.lora_b";
        let tokens = array![[0, 0]];
        let step = training.step(tokens.view(), &optimizer, 1).unwrap();
        let gradient = -3.0 * 3.0_f64.ln() / 16.0;
        assert_relative_eq!(step.loss, (4.0_f64 / 3.0).ln(), epsilon = 1e-15);
        for (name, found) in &step.gradients {
            let expected = if name == trained { gradient } else { 0.0 };
            found.iter().for_each(|d| assert_relative_eq!(*d, expected, epsilon = 1e-15));
            let moved = if name == trained { 0.5 } else { example().tensors[name].sum() };
            assert_relative_eq!(training.tensors[name].sum(), moved, epsilon = 1e-15);
        }
        assert_eq!(step.gradients.len(), 14);
        assert_relative_eq!(training.moments[trained].first.sum(), 0.1 * gradient, epsilon = 1e-15);
        let logit = 3.0_f64.ln() / 2.0 * 3.0 / 5.25_f64.sqrt();
        let logits = training.logits(tokens.view()).unwrap();
        assert_relative_eq!(logits[[0, 0, 0]], logit, epsilon = 1e-15);
        assert_relative_eq!(logits[[0, 0, 1]], -logit, epsilon = 1e-15);
    }

    #[test]
    fn foreign_missing_and_misshapen_tensors_are_refused_by_name() {
        let Training { config, method, tensors, .. } = example();
        let refused = |tensors: &BTreeMap<String, ArrayD<f64>>, codes: BTreeMap<_, _>| {
            let training = Training::new(config.clone(), method, tensors.clone(), codes);
            training.unwrap_err().to_string()
        };
        let name = "model.layers.0.mlp.up_proj.lora_b";
        let mut changed = tensors.clone();
        let lora_b = changed.remove(name).unwrap();
        let missing = format!("weights: missing [{name}], unexpected []");
        assert_eq!(refused(&changed, BTreeMap::new()), missing);
        changed.insert(name.to_owned(), ArrayD::zeros(IxDyn(&[1, 2])));
        let shape = format!("llama.train: {name} has shape [1, 2], expected [1, 1]");
        assert_eq!(refused(&changed, BTreeMap::new()), shape);
        let codes = BTreeMap::from([("codes".to_owned(), array![[1_u8]])]);
        assert_eq!(refused(&tensors, codes), "weights: missing [], unexpected [codes]");

        let moments = Moments { first: lora_b.clone(), second: lora_b };
        let frozen = example().with_moments("model.norm.weight", moments).unwrap_err();
        assert_eq!(frozen.to_string(), "weights: missing [], unexpected [model.norm.weight]");
    }
}
