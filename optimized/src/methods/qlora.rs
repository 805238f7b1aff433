//! QLoRA: LoRA on a frozen weight that is kept in NF4. Eqs. (A2), (A3) on the weight of (Q18b).
//!
//! Products multiply the dequantized weight, which is made anew in shared scratch memory each time;
//! the update is a path of its own in full precision. The trained layer has no integer codes: to
//! merge is to quantize again, and the result is another function.

use plumbline_reference::spec::{BlockSize, QuantSpec, RtnSpec};
use rand::Rng;

use super::low_rank_path::LowRankPath;
use super::{
    AdapterDropout, AffineTensors, BackwardCall, LayerCost, LinearMethod, LoraOptions, Scratch,
    ScratchNeed, Trainable, Update, kaiming_uniform,
};
use crate::backend::Backend;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::linear::LinearArgs;
use crate::ops::nf4::{Nf4Weight, kept_bytes};

/// What a recipe decides about a QLoRA layer.
#[derive(Debug, Clone, Copy)]
pub struct QloraOptions {
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    pub lora_scaling: f32,
    /// Weights that share a magnitude.
    pub block_size: BlockSize,
    /// Whether the magnitudes are kept in eight bits.
    pub double_quantize: bool,
    /// Bits and groups that the merged weight is rounded to, and the layer's inputs.
    pub spec: QuantSpec,
    /// How it is rounded.
    pub rtn: RtnSpec,
}

impl QloraOptions {
    /// What a layer of `out_features` costs.
    pub fn cost(&self, out_features: usize) -> LayerCost {
        let &Self { rank, lora_scaling, block_size, double_quantize, spec, .. } = self;
        let shape = (out_features, spec.in_features());
        let len = shape.0 * shape.1;
        LayerCost {
            shape,
            frozen_bytes: kept_bytes(len, block_size, double_quantize),
            trained: LoraOptions { rank, lora_scaling }.factors(shape),
            scratch: ScratchNeed { effective: len, rank, ..ScratchNeed::default() },
            weight_gradient: false,
            update: Update::Beside { rank, inputs: shape.1 },
        }
    }
}

/// `y = x @ dequantize(weight)^T + lora_scaling * (x @ lora_a^T) @ lora_b^T`.
pub struct Qlora<B: Backend> {
    options: QloraOptions,
    out_features: usize,
    weight: Nf4Weight<B>,
    path: LowRankPath<B>,
}

impl<B: Backend> Qlora<B> {
    /// Starts from a full-precision `weight [out, in]`: `lora_a` Kaiming-uniform, `lora_b` zero.
    ///
    /// # Errors
    /// `NonFinite` for a bad weight; when the device has no room.
    pub fn new(
        backend: &B,
        weight: &[f32],
        out_features: usize,
        options: QloraOptions,
        random: &mut impl Rng,
    ) -> Result<Self> {
        let in_features = options.spec.in_features();
        let lora_a = kaiming_uniform(options.rank * in_features, in_features, random);
        let lora_b = vec![0.0; out_features * options.rank];
        Self::from_tensors(backend, weight, out_features, options, &lora_a, &lora_b)
    }

    /// Continues from saved factors; the frozen weight is quantized from the full-precision one.
    ///
    /// # Errors
    /// As [`Qlora::new`].
    ///
    /// # Panics
    /// When a tensor's length is not what the options say.
    pub fn from_tensors(
        backend: &B,
        weight: &[f32],
        out_features: usize,
        options: QloraOptions,
        lora_a: &[f32],
        lora_b: &[f32],
    ) -> Result<Self> {
        let QloraOptions { rank, lora_scaling, block_size, double_quantize, spec, .. } = options;
        let sizes = (out_features, spec.in_features());
        assert_eq!(weight.len(), sizes.0 * sizes.1, "weight");
        let weight = Nf4Weight::quantize(weight, block_size, double_quantize)?;
        let path = LoraOptions { rank, lora_scaling };
        Ok(Self {
            options,
            out_features,
            weight: weight.upload(backend)?,
            path: LowRankPath::new(backend, sizes, path, lora_a, lora_b)?,
        })
    }

    /// Drops some of what the adapter reads, in training, or nothing.
    #[must_use]
    pub fn with_dropout(mut self, dropout: Option<AdapterDropout>) -> Self {
        self.path.drop_inputs(dropout);
        self
    }

    /// The weight with its update, rounded to nearest on the options' grid. Eq. (Q13). This is not
    /// the trained layer: it is off by up to half a step in every weight.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor.
    pub fn merge(self, backend: &B) -> Result<AffineTensors> {
        // In full precision, whatever type the backend multiplies.
        let mut weight = backend.zeros(self.weight.elements())?;
        backend.nf4_dequantize(&self.weight, &mut weight)?;
        let mut weight = backend.download(&weight, self.weight.elements())?;
        for (weight, delta) in weight.iter_mut().zip(self.path.delta(backend)?) {
            *weight += delta;
        }
        let QloraOptions { spec, rtn, .. } = self.options;
        AffineTensors::round_to_nearest(backend, &weight, self.out_features, spec, rtn)
    }

    fn linear_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.options.spec.in_features(), self.out_features)
    }
}

impl<B: Backend> LinearMethod<B> for Qlora<B> {
    fn cost(&self) -> LayerCost {
        self.path.cost(self.options.cost(self.out_features))
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        backend.nf4_dequantize(&self.weight, &mut scratch.effective)?;
        backend.linear(self.linear_args(tokens), x, &scratch.effective, y)?;
        self.path.add_forward(backend, tokens, x, y, &mut scratch.path)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        backend.nf4_dequantize(&self.weight, &mut scratch.effective)?;
        let to_input = LinearArgs { write: call.write, ..self.linear_args(call.tokens) };
        backend.linear_input_gradient(to_input, call.d_y, &scratch.effective, call.d_x)?;
        let call = BackwardCall { write: Write::Add, ..call };
        self.path.backward(backend, call, &mut scratch.path)
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        self.path.trainable().collect()
    }
}
