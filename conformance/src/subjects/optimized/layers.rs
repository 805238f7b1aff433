//! One linear layer under each method, by itself or as one of a model's.

use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::methods::{
    AffineTensors, BackwardCall, L4q, L4qOptions, L4qTensors, LinearMethod, Lora, LoraOptions,
    LrQat, LrQatOptions, LrQatTensors, MergedTensors, Peqa, QaLora, QaLoraOptions, Qat, QatLora,
    QatOptions, QatTensors, Scratch,
};
use plumbline::ops::Write;
use plumbline::ops::lr_qat_quantize::StoredWeight;
use plumbline::ops::widen::FrozenWeight;
use plumbline_reference::spec::{Downcast, InitScaleRule, MaskRule};

use super::{Call, Refused};
use crate::case::Request;
use crate::ops::llama_train::method_name;
use crate::params::{self, Quantizer};
use crate::tensor::{Data, Tensor, Tensors};

/// Why the crate has no answer to a request, if it has none: it has one mask, where the method has
/// no mask of its own.
pub(super) fn skipped(request: &Request) -> Result<Option<String>, String> {
    let own_mask = match request.op.name {
        "llama.train" => method_name(&request.params)? == "lr_qat",
        name => name.starts_with("lr_qat."),
    };
    if own_mask {
        return Ok(None);
    }
    let mask: Option<MaskRule> = request.params.optional("mask")?;
    let is_other = mask.is_some_and(|mask| mask != MaskRule::default());
    Ok(is_other.then(|| "masks other than pre_round".to_owned()))
}

/// The tensors of one layer: those of the request, or those whose names begin with the layer's.
pub(super) struct Layer<'a, B> {
    call: &'a Call<'a, B>,
    prefix: String,
}

impl<B: Backend> Layer<'_, B> {
    fn host(&self, name: &str) -> Result<Vec<f32>, String> {
        self.call.host(&format!("{}{name}", self.prefix))
    }

    fn where_given(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        let name = format!("{}{name}", self.prefix);
        let is_given = self.call.request.inputs.contains_key(&name);
        is_given.then(|| self.call.host(&name)).transpose()
    }

    fn sizes(&self, name: &str) -> Result<[usize; 2], String> {
        self.call.request.sizes(&format!("{}{name}", self.prefix))
    }

    fn rank(&self) -> Result<usize, String> {
        Ok(self.sizes("lora_a")?[0])
    }

    fn lora_scaling(&self) -> Result<f32, String> {
        Ok(params::lora_scaling(&self.call.request.params)? as f32)
    }

    fn quantizer(&self) -> Result<Quantizer, String> {
        Quantizer::read(&self.call.request.params)
    }

    /// Options and tensors that L4Q and QAT-LoRA have in common.
    fn l4q_parts(&self) -> Result<(L4qOptions, L4qTensors), String> {
        let [_, in_features] = self.sizes("weight")?;
        let quantizer = self.quantizer()?;
        let options = L4qOptions {
            spec: quantizer.spec(in_features)?,
            rank: self.rank()?,
            lora_scaling: self.lora_scaling()?,
            init: InitScaleRule::default(),
            grad_scale: quantizer.grad_scale,
            scale_rule: None,
        };
        let tensors = L4qTensors {
            lora_a: self.host("lora_a")?,
            lora_b: self.host("lora_b")?,
            scale: self.host("scale")?,
            offset: self.host("offset")?,
        };
        Ok((options, tensors))
    }

    fn weight(&self) -> Result<FrozenWeight<Cpu>, Refused> {
        Ok(FrozenWeight::F32(self.host("weight")?))
    }

    pub(super) fn l4q(&self) -> Result<L4q<B>, Refused> {
        let (options, tensors) = self.l4q_parts()?;
        let (weight, rows) = (self.weight()?, self.sizes("weight")?[0]);
        Ok(L4q::from_tensors(&**self.call.backend, &weight, rows, options, &tensors)?)
    }

    pub(super) fn qat_lora(&self) -> Result<QatLora<B>, Refused> {
        let (options, tensors) = self.l4q_parts()?;
        let (weight, rows) = (self.weight()?, self.sizes("weight")?[0]);
        Ok(QatLora::from_tensors(&**self.call.backend, &weight, rows, options, &tensors)?)
    }

    pub(super) fn lora(&self) -> Result<Lora<B>, Refused> {
        let [rows, columns] = self.sizes("weight")?;
        let options = LoraOptions { rank: self.rank()?, lora_scaling: self.lora_scaling()? };
        let (lora_a, lora_b) = (self.host("lora_a")?, self.host("lora_b")?);
        let (weight, shape) = (self.weight()?, (rows, columns));
        let backend = &**self.call.backend;
        Ok(Lora::from_tensors(backend, &weight, shape, options, &lora_a, &lora_b)?)
    }

    pub(super) fn qat(&self) -> Result<Qat<B>, Refused> {
        let [rows, in_features] = self.sizes("weight")?;
        let quantizer = self.quantizer()?;
        let options = QatOptions {
            spec: quantizer.spec(in_features)?,
            quantizer: self.call.request.params.optional("quantizer")?.unwrap_or_default(),
            init: InitScaleRule::default(),
            grad_scale: quantizer.grad_scale,
            scale_rule: None,
        };
        let tensors = QatTensors {
            weight: self.host("weight")?,
            scale: self.host("scale")?,
            offset: self.where_given("offset")?,
        };
        Ok(Qat::from_tensors(&**self.call.backend, rows, options, &tensors)?)
    }

    pub(super) fn lr_qat(&self) -> Result<LrQat<B>, Refused> {
        let [rows, in_features] = self.sizes("weight")?;
        let options = LrQatOptions {
            spec: params::lr_qat(&self.call.request.params, in_features)?,
            rank: self.rank()?,
            lora_scaling: self.lora_scaling()?,
            init: InitScaleRule::default(),
            scale_rule: None,
        };
        let tensors = LrQatTensors {
            initial_scale: self.where_given("initial_scale")?,
            zero_point: self.where_given("zero_point")?,
            lora_a: self.host("lora_a")?,
            lora_b: self.host("lora_b")?,
            scale: self.host("scale")?,
        };
        let weight = self.host("weight")?;
        Ok(LrQat::from_tensors(&**self.call.backend, &weight, rows, options, &tensors)?)
    }

    pub(super) fn affine(&self) -> Result<AffineTensors, String> {
        let [out_features, in_features] = self.sizes("codes")?;
        Ok(AffineTensors {
            spec: self.quantizer()?.spec(in_features)?,
            out_features,
            codes: self.call.unsigned(&format!("{}codes", self.prefix))?,
            scale: self.host("scale")?,
            zero_point: self.host("zero_point")?,
        })
    }

    pub(super) fn qa_lora(&self) -> Result<QaLora<B>, Refused> {
        let options = QaLoraOptions {
            rank: self.rank()?,
            lora_scaling: self.lora_scaling()?,
            pool: params::group_pool(&self.call.request.params)?,
        };
        let (lora_a, lora_b) = (self.host("lora_a")?, self.host("lora_b")?);
        let (backend, base) = (&**self.call.backend, self.affine()?);
        Ok(QaLora::from_tensors(backend, &base, options, &lora_a, &lora_b)?)
    }

    pub(super) fn peqa(&self) -> Result<Peqa<B>, Refused> {
        Ok(Peqa::new(&**self.call.backend, &self.affine()?, None)?)
    }
}

impl<'a, B: Backend> Call<'a, B> {
    /// The layer that the request is about.
    pub(super) fn layer(&'a self) -> Layer<'a, B> {
        Layer { call: self, prefix: String::new() }
    }

    /// A layer of the model that the request is about.
    pub(super) fn layer_named(&'a self, name: &str) -> Layer<'a, B> {
        Layer { call: self, prefix: format!("{name}.") }
    }

    /// Runs a layer forward; the output, and the scratch memory that it used.
    fn forward<L: LinearMethod<B>>(&self, layer: &L) -> Result<(Tensor, Scratch<B>), Refused> {
        let (tokens, [out_features, _]) = (self.shape("x")?[0], self.weight_shape()?);
        let mut scratch = layer.scratch_need().allocate(&**self.backend, tokens)?;
        let mut y = self.backend.zeros(tokens * out_features)?;
        layer.forward(self.backend, tokens, &self.floats("x")?, &mut y, &mut scratch)?;
        Ok((self.download(&y, &[tokens, out_features])?, scratch))
    }

    pub(super) fn output_of<L: LinearMethod<B>>(&self, layer: &L) -> Result<Tensors, Refused> {
        Ok(crate::ops::tensors([("y", self.forward(layer)?.0)]))
    }

    /// Runs a layer forward and backward; `d_x`, and the gradient of every trained tensor.
    pub(super) fn gradients_of<L: LinearMethod<B>>(
        &self,
        layer: &mut L,
    ) -> Result<Tensors, Refused> {
        let tokens = self.shape("x")?[0];
        let (_, mut scratch) = self.forward(layer)?;
        let (x, d_y, mut d_x) = (self.floats("x")?, self.floats("d_y")?, self.like("x")?);
        let call = BackwardCall::new(tokens, &x, &d_y, &mut d_x, Write::Replace);
        layer.backward(self.backend, call, &mut scratch)?;
        let mut outputs = crate::ops::tensors([("d_x", self.download(&d_x, self.shape("x")?)?)]);
        for trained in layer.trainable() {
            let gradient = self.download(trained.gradient, trained.shape)?;
            outputs.insert(format!("d_{}", trained.name), gradient);
        }
        Ok(outputs)
    }

    /// What a forward through codes answers. The forward keeps no codes; the merge of the same
    /// layer shows which they were.
    fn with_codes<L: LinearMethod<B>>(
        &self,
        layer: L,
        merge: impl FnOnce(L, &B) -> plumbline::error::Result<MergedTensors>,
    ) -> Result<Tensors, Refused> {
        let shape = self.weight_shape()?;
        let (y, scratch) = self.forward(&layer)?;
        let codes = merge(layer, self.backend)?.codes;
        Ok(crate::ops::tensors([
            ("y", y),
            ("codes", Tensor::new(shape.to_vec(), Data::I8(codes))?),
            ("fake_quantized", self.download(&scratch.effective, &shape)?),
        ]))
    }

    /// Codes and scale of a merged layer, and its offset.
    fn merged(&self, merged: MergedTensors) -> Result<(Tensors, Tensor), Refused> {
        let (shape, groups) = (self.weight_shape()?.to_vec(), self.shape("scale")?.to_vec());
        let tensors = crate::ops::tensors([
            ("codes", Tensor::new(shape, Data::I8(merged.codes))?),
            ("scale", Tensor::new(groups.clone(), Data::F32(merged.scale))?),
        ]);
        Ok((tensors, Tensor::new(groups, Data::F32(merged.offset))?))
    }

    pub(super) fn l4q_forward(&self) -> Result<Tensors, Refused> {
        self.with_codes(self.layer().l4q()?, L4q::merge)
    }

    pub(super) fn l4q_merge(&self) -> Result<Tensors, Refused> {
        let (mut tensors, offset) = self.merged(self.layer().l4q()?.merge(self.backend)?)?;
        tensors.insert("offset".to_owned(), offset);
        Ok(tensors)
    }

    pub(super) fn lr_qat_forward(&self) -> Result<Tensors, Refused> {
        self.with_codes(self.layer().lr_qat()?, LrQat::merge)
    }

    pub(super) fn lr_qat_merge(&self) -> Result<Tensors, Refused> {
        let (tensors, offset) = self.merged(self.layer().lr_qat()?.merge(self.backend)?)?;
        match offset.values().all(|offset| offset == 0.0) {
            true => Ok(tensors),
            false => Err(Refused("the merged layer has an offset".to_owned())),
        }
    }

    /// The weight in its cheap type is made on the host, for every backend.
    pub(super) fn lr_qat_downcast(&self) -> Result<Tensors, Refused> {
        let (_, spec, shape) = self.quantizer()?;
        let kind: Downcast = self.request.params.required("downcast")?;
        let (weight, initial_scale) = (self.host("weight")?, self.host("initial_scale")?);
        let zero_point = self.layer().where_given("zero_point")?;
        let zero_point = zero_point.as_deref();
        let stored =
            StoredWeight::<Cpu>::downcast(&weight, &initial_scale, zero_point, spec, kind)?;
        let phi = stored.phi(spec, zero_point)?;
        let phi = Tensor::new(shape.to_vec(), Data::F32(phi))?;
        let mut outputs = crate::ops::tensors([("phi", phi)]);
        let bytes = match stored {
            StoredWeight::Fixed8(bytes) => Tensor::new(shape.to_vec(), Data::I8(bytes))?,
            StoredWeight::Int(bytes) => {
                let bytes = bytes.into_iter().map(|byte| byte as u8).collect();
                Tensor::new(vec![shape[0], shape[1].div_ceil(2)], Data::U8(bytes))?
            }
            _ => return Ok(outputs),
        };
        outputs.insert("stored".to_owned(), bytes);
        Ok(outputs)
    }

    pub(super) fn qa_lora_merge(&self) -> Result<Tensors, Refused> {
        let merged = self.layer().qa_lora()?.merge(self.backend)?;
        let zero_point = Tensor::new(self.shape("scale")?.to_vec(), Data::F32(merged.zero_point))?;
        Ok(crate::ops::tensors([("zero_point", zero_point)]))
    }
}
