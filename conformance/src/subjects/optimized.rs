//! The optimized crate on any of its backends: each operation of the registry, as the model and
//! the methods call it.
//!
//! The crate's operations take flat buffers and sizes. Shapes, and values that the operations do
//! not promise to notice, are refused here, at the boundary, as the crate's own callers do.

mod activations;
mod affine;
mod layers;
mod stored;
mod train;
mod transformer;

use std::collections::BTreeMap;
use std::sync::Arc;

use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::methods::Dense;
use plumbline::model::{Batch, IGNORE, Llama, Recompute};
use plumbline::ops::fake_quantize::FakeQuantizeArgs;
use plumbline::ops::fake_quantize_backward::FakeQuantizeGradients;
use plumbline::ops::widen::WeightView;
use plumbline_reference::spec::QuantSpec;

use crate::case::Request;
use crate::ops::Operation;
use crate::params::{self, Quantizer};
use crate::precision::{Precision, Products};
use crate::subject::{Subject, SubjectError, Support};
use crate::tensor::{Data, Tensor, Tensors};

/// A backend of the optimized crate.
pub(super) struct Optimized<B> {
    name: String,
    backend: Arc<B>,
    products: Products,
}

impl<B: Backend> Optimized<B> {
    /// On a backend, which says itself in how many bytes it keeps the factors of products.
    pub(super) fn on(backend: Arc<B>) -> Self {
        let (products, suffix) = match backend.operand_bytes() {
            2 => (Products::Bf16, "-bf16"),
            _ => (Products::AsStored, ""),
        };
        Self { name: format!("{}{suffix}", B::NAME), backend, products }
    }

    fn implementation(op: &str) -> Option<Implementation<B>> {
        let implementation: Implementation<B> = match op {
            "dynamic_quantize.forward" => |call| call.dynamic_quantize(),
            "dynamic_quantize.backward" => |call| call.dynamic_quantize_backward(),
            "fake_quantize.forward" => |call| call.fake_quantize(),
            "fake_quantize.backward" => |call| call.fake_quantize_backward(),
            "init_scale" => |call| call.init_scale(),
            "round_scale.forward" => |call| call.round_scale(),
            "round_scale.backward" => |call| call.round_scale_backward(),
            "l4q.forward" => |call| call.l4q_forward(),
            "l4q.backward" => |call| call.gradients_of(&mut call.layer().l4q()?),
            "l4q.merge" => |call| call.l4q_merge(),
            "lora.forward" => |call| call.output_of(&call.layer().lora()?),
            "lora.backward" => |call| call.gradients_of(&mut call.layer().lora()?),
            "lr_qat.downcast" => |call| call.lr_qat_downcast(),
            "lr_qat.forward" => |call| call.lr_qat_forward(),
            "lr_qat.backward" => |call| call.gradients_of(&mut call.layer().lr_qat()?),
            "lr_qat.merge" => |call| call.lr_qat_merge(),
            "qa_lora.forward" => |call| call.output_of(&call.layer().qa_lora()?),
            "qa_lora.backward" => |call| call.gradients_of(&mut call.layer().qa_lora()?),
            "qa_lora.merge" => |call| call.qa_lora_merge(),
            "qat.forward" => |call| call.output_of(&call.layer().qat()?),
            "qat.backward" => |call| call.gradients_of(&mut call.layer().qat()?),
            "qat_lora.forward" => |call| call.output_of(&call.layer().qat_lora()?),
            "qat_lora.backward" => |call| call.gradients_of(&mut call.layer().qat_lora()?),
            "peqa.forward" => |call| call.output_of(&call.layer().peqa()?),
            "peqa.backward" => |call| call.gradients_of(&mut call.layer().peqa()?),
            "affine.quantize" => |call| call.affine_quantize(),
            "affine.dequantize" => |call| call.affine_dequantize(),
            "rtn.quantize" => |call| call.rtn(),
            // On the host whatever the device: the cpu answers for it.
            "gptq.quantize" if B::NAME == Cpu::NAME => |call| call.gptq(),
            "nf4.quantize" => |call| call.nf4(),
            "pack" => |call| call.pack(),
            "unpack" => |call| call.unpack(),
            "rms_norm.forward" => |call| call.rms_norm(),
            "rms_norm.backward" => |call| call.rms_norm_backward(),
            "rope.forward" => |call| call.rope(),
            "rope.backward" => |call| call.rope_backward(),
            "attention.forward" => |call| call.attention(),
            "attention.backward" => |call| call.attention_backward(),
            "swiglu.forward" => |call| call.swiglu(),
            "swiglu.backward" => |call| call.swiglu_backward(),
            "cross_entropy.forward" => |call| call.cross_entropy(),
            "cross_entropy.backward" => |call| call.cross_entropy_backward(),
            "adamw.step" => |call| call.adamw(),
            "llama.loss_and_gradients" => |call| call.llama(),
            "llama.train" => |call| call.train(),
            _ => return None,
        };
        Some(implementation)
    }
}

type Implementation<B> = fn(&Call<'_, B>) -> Result<Tensors, Refused>;

impl<B: Backend> Subject for Optimized<B> {
    fn name(&self) -> &str {
        &self.name
    }

    fn products(&self) -> Products {
        self.products
    }

    fn precisions(&self) -> &[Precision] {
        &[Precision::F32]
    }

    fn supports(&self, op: &Operation, _: Precision) -> Support {
        match Self::implementation(op.name) {
            Some(_) => Support::Yes,
            None => Support::No("not implemented by the optimized crate".to_owned()),
        }
    }

    fn run(&mut self, request: &Request, _: Precision) -> Result<Tensors, SubjectError> {
        let Some(implementation) = Self::implementation(request.op.name) else {
            return Err(SubjectError::Skip("not implemented".to_owned()));
        };
        if let Some(why) = layers::skipped(request).map_err(SubjectError::Refused)? {
            return Err(SubjectError::Skip(why));
        }
        let call = Call { backend: &self.backend, request };
        call.check().and_then(|()| implementation(&call)).map_err(|e| SubjectError::Refused(e.0))
    }
}

/// Why a request was refused, by the boundary or by the crate.
struct Refused(String);

impl From<String> for Refused {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl From<plumbline::error::Error> for Refused {
    fn from(error: plumbline::error::Error) -> Self {
        use plumbline::error::Error;
        match error {
            // A refusal has the tensor's name and its index beside it.
            Error::NonFinite { tensor, index, value } => {
                Self(format!("{tensor}[{index}] is {value}"))
            }
            other => Self(other.to_string()),
        }
    }
}

struct Call<'a, B> {
    backend: &'a Arc<B>,
    request: &'a Request,
}

impl<B: Backend> Call<'_, B> {
    /// Shapes of everything; finiteness of what the operation itself does not look at.
    fn check(&self) -> Result<(), Refused> {
        let Request { op, params, inputs } = self.request;
        op.check_inputs(self.request, &op.tensors(params)?)?;
        let quantizes = ["fake_quantize.", "l4q.", "lr_qat.", "init_scale", "round_scale.forward"];
        let is_one_of = |prefixes: &[&str]| prefixes.iter().any(|one| op.name.starts_with(one));
        let looked_at: &[&str] = if is_one_of(&quantizes) {
            &["weight", "lora_a", "lora_b", "scale", "offset"]
        } else if is_one_of(&["dynamic_quantize."]) {
            &["x"]
        } else {
            &[]
        };
        for (name, tensor) in inputs {
            if looked_at.contains(&name.as_str()) {
                continue;
            }
            if let Some(index) = tensor.first_non_finite() {
                let (position, value) = (tensor.position(index), tensor.value(index));
                return Err(Refused(format!("in.{name}{position:?} is {value}")));
            }
        }
        Ok(())
    }

    /// Rows and columns of the layer's weight, whatever holds it.
    fn weight_shape(&self) -> Result<[usize; 2], String> {
        let is_codes = self.request.inputs.contains_key("codes");
        self.request.sizes(if is_codes { "codes" } else { "weight" })
    }

    fn shape(&self, name: &str) -> Result<&[usize], String> {
        Ok(self.request.tensor(name)?.shape())
    }

    fn host(&self, name: &str) -> Result<Vec<f32>, String> {
        match self.request.tensor(name)?.data() {
            Data::F32(values) => Ok(values.clone()),
            _ => Err(format!("in.{name} is not F32")),
        }
    }

    fn unsigned(&self, name: &str) -> Result<Vec<u8>, String> {
        match self.request.tensor(name)?.data() {
            Data::U8(codes) => Ok(codes.clone()),
            _ => Err(format!("in.{name} is not U8")),
        }
    }

    fn floats(&self, name: &str) -> Result<B::Floats, Refused> {
        Ok(self.backend.upload(&self.host(name)?)?)
    }

    /// A zeroed buffer for an output shaped like an input.
    fn like(&self, name: &str) -> Result<B::Floats, Refused> {
        Ok(self.backend.zeros(self.request.tensor(name)?.len())?)
    }

    fn download(&self, buffer: &B::Floats, shape: &[usize]) -> Result<Tensor, Refused> {
        let values = self.backend.download(buffer, shape.iter().product())?;
        Ok(Tensor::new(shape.to_vec(), Data::F32(values))?)
    }

    fn download_codes(&self, codes: &B::Codes, shape: &[usize]) -> Result<Tensor, Refused> {
        let codes = self.backend.download_codes(codes)?;
        Ok(Tensor::new(shape.to_vec(), Data::I8(codes))?)
    }

    fn ids(&self, name: &str) -> Result<Vec<i32>, Refused> {
        match self.request.tensor(name)?.data() {
            Data::I32(ids) => Ok(ids.clone()),
            _ => Err(Refused(format!("in.{name} is not I32"))),
        }
    }

    /// Parameters of the quantizer, its groups, and the shape of its weight.
    fn quantizer(&self) -> Result<(Quantizer, QuantSpec, [usize; 2]), Refused> {
        let quantizer = Quantizer::read(&self.request.params)?;
        let weight = self.shape("weight")?;
        let spec = quantizer.spec(weight[1])?;
        Ok((quantizer, spec, [weight[0], weight[1]]))
    }

    fn fake_quantize(&self) -> Result<Tensors, Refused> {
        let (_, spec, shape) = self.quantizer()?;
        let (weight, scale) = (self.floats("weight")?, self.floats("scale")?);
        let offset = self.floats("offset")?;
        let args = FakeQuantizeArgs {
            spec,
            out_features: shape[0],
            weight: WeightView::F32(&weight),
            low_rank: None,
            scale: &scale,
            offset: &offset,
        };
        let mut output = self.like("weight")?;
        let mut codes = self.backend.zero_codes(shape[0] * shape[1])?;
        self.backend.fake_quantize(&args, &mut output, Some(&mut codes))?;
        Ok(crate::ops::tensors([
            ("codes", self.download_codes(&codes, &shape)?),
            ("output", self.download(&output, &shape)?),
        ]))
    }

    fn fake_quantize_backward(&self) -> Result<Tensors, Refused> {
        let (quantizer, spec, shape) = self.quantizer()?;
        let (weight, scale) = (self.floats("weight")?, self.floats("scale")?);
        let offset = self.floats("offset")?;
        let args = FakeQuantizeArgs {
            spec,
            out_features: shape[0],
            weight: WeightView::F32(&weight),
            low_rank: None,
            scale: &scale,
            offset: &offset,
        };
        let mut d_weight = self.floats("d_output")?;
        let (mut d_scale, mut d_offset) = (self.like("scale")?, self.like("offset")?);
        let gradients = FakeQuantizeGradients {
            d_scale: Some(&mut d_scale),
            d_offset: Some(&mut d_offset),
            d_low_rank: None,
        };
        let grad_scale = quantizer.grad_scale;
        self.backend.fake_quantize_backward(&args, grad_scale, &mut d_weight, gradients)?;
        let groups = self.shape("scale")?;
        Ok(crate::ops::tensors([
            ("d_weight", self.download(&d_weight, &shape)?),
            ("d_scale", self.download(&d_scale, groups)?),
            ("d_offset", self.download(&d_offset, groups)?),
        ]))
    }

    fn init_scale(&self) -> Result<Tensors, Refused> {
        let (_, spec, [out_features, _]) = self.quantizer()?;
        let rule = params::init_rule(&self.request.params)?;
        let weight = self.floats("weight")?;
        let groups = [out_features, spec.groups()];
        let mut scale = self.backend.zeros(groups[0] * groups[1])?;
        let mut offset = self.backend.zeros(groups[0] * groups[1])?;
        self.backend.init_scale(spec, rule, out_features, &weight, &mut scale, &mut offset)?;
        Ok(crate::ops::tensors([
            ("scale", self.download(&scale, &groups)?),
            ("offset", self.download(&offset, &groups)?),
        ]))
    }

    fn round_scale(&self) -> Result<Tensors, Refused> {
        let rule = params::scale_rule(&self.request.params)?;
        let (scale, mut rounded) = (self.floats("scale")?, self.like("scale")?);
        let shape = self.shape("scale")?;
        self.backend.round_scale(rule, shape.iter().product(), &scale, &mut rounded)?;
        Ok(crate::ops::tensors([("rounded_scale", self.download(&rounded, shape)?)]))
    }

    fn round_scale_backward(&self) -> Result<Tensors, Refused> {
        let rule = params::scale_rule(&self.request.params)?;
        let (scale, mut d_scale) = (self.floats("scale")?, self.floats("d_rounded_scale")?);
        let shape = self.shape("scale")?;
        self.backend.round_scale_backward(rule, shape.iter().product(), &scale, &mut d_scale)?;
        Ok(crate::ops::tensors([("d_scale", self.download(&d_scale, shape)?)]))
    }

    fn model(&self) -> Result<Llama<B, Dense<B>>, Refused> {
        let config = params::llama_config(&self.request.params)?;
        let names = self.request.inputs.keys().filter(|name| *name != "tokens");
        let weights: BTreeMap<String, Vec<f32>> = names
            .map(|name| self.host(name).map(|values| (name.clone(), values)))
            .collect::<Result<_, String>>()?;
        let weight = |name: &str| {
            let missing = || plumbline::error::Error::Invalid(format!("in.{name} is missing"));
            weights.get(name).cloned().ok_or_else(missing)
        };
        Ok(Llama::build(
            Arc::clone(self.backend),
            config,
            true,
            |name, _| weight(name),
            |projection| {
                let shape = (projection.out_features, projection.in_features);
                let values = weight(&format!("{}.weight", projection.name))?;
                Dense::new(&**self.backend, &values, shape, true)
            },
        )?)
    }

    fn llama(&self) -> Result<Tensors, Refused> {
        let mut model = self.model()?;
        let tokens = self.ids("tokens")?;
        let [batch, length] = self.request.sizes("tokens")?;
        let targets: Vec<i32> = tokens
            .chunks(length.max(1))
            .flat_map(|row| row.iter().skip(1).copied().chain([IGNORE]))
            .collect();
        let counted = batch * length.saturating_sub(1);
        if counted == 0 {
            return Err(Refused("no target is counted".to_owned()));
        }
        let mut workspace = model.training_workspace(tokens.len(), Recompute::Blocks)?;
        let logits = model.logits(batch, &tokens, &mut workspace)?;
        let work = Batch { batch, tokens: &tokens, targets: &targets, documents: None };
        let loss = model.loss_and_gradients(&work, 1.0 / counted as f32, &mut workspace)?;
        let vocab_size = model.config().vocab_size;
        let logits = Tensor::new(vec![batch, length, vocab_size], Data::F32(logits))?;
        let loss = scalar(loss.sum / loss.counted as f64);
        let mut outputs = crate::ops::tensors([("loss", loss), ("logits", logits)]);
        for trained in model.trainable() {
            let gradient = self.download(trained.gradient, trained.shape)?;
            outputs.insert(format!("d_{}", trained.name), gradient);
        }
        Ok(outputs)
    }
}

fn scalar(value: f64) -> Tensor {
    Tensor::from_f64s(Vec::new(), std::iter::once(value), Precision::F32)
}
