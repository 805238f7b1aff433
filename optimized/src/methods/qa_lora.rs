//! QA-LoRA: a frozen weight on an unsigned grid and an adapter that sees one number of each group
//! of inputs, which is what moving the group's zero point does. Eqs. (M8) to (M10).
//!
//! Of the frozen weight the packed codes are kept, and not the floats.

use plumbline_reference::spec::{GroupPool, Pool, QaLoraDialect, QuantSpec, SCALE_FLOOR};
use rand::Rng;

use super::low_rank_path::LowRankPath;
use super::{
    AdapterDropout, Affine, AffineTensors, BackwardCall, LayerCost, LinearMethod, LoraOptions,
    Scratch, ScratchNeed, Trainable, Update, codes_cost, kaiming_uniform,
};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::ops::Write;
use crate::ops::affine::packed_row_bytes;
use crate::ops::group_pool::GroupPoolArgs;
use crate::ops::refuse_non_finite;

/// What a recipe decides about a QA-LoRA layer, beside its grid.
#[derive(Debug, Clone, Copy)]
pub struct QaLoraOptions {
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    pub lora_scaling: f32,
    /// What the adapter sees of a group.
    pub pool: GroupPool,
}

impl QaLoraOptions {
    /// What a layer of so many rows costs.
    pub fn cost(&self, spec: QuantSpec, out_features: usize) -> LayerCost {
        let base = codes_cost(spec, out_features, packed_row_bytes(spec));
        let (groups, rank) = (spec.groups(), self.rank);
        let path = LoraOptions { rank, lora_scaling: self.lora_scaling };
        LayerCost {
            trained: path.factors((out_features, groups)),
            scratch: ScratchNeed { rank, groups, ..base.scratch },
            update: Update::Beside { rank, inputs: groups },
            ..base
        }
    }
}

/// `y = x @ weight^T + lora_scaling * (pooled @ lora_a^T) @ lora_b^T`, with the weight in codes.
pub struct QaLora<B: Backend> {
    pool: GroupPoolArgs,
    base: Affine<B>,
    path: LowRankPath<B>,
}

impl<B: Backend> QaLora<B> {
    /// Starts from codes: `lora_a [rank, groups]` Kaiming-uniform, `lora_b` zero.
    ///
    /// # Errors
    /// As [`Affine::new`].
    pub fn new(
        backend: &B,
        base: &AffineTensors,
        options: QaLoraOptions,
        random: &mut impl Rng,
    ) -> Result<Self> {
        let groups = base.spec.groups();
        let lora_a = kaiming_uniform(options.rank * groups, groups, random);
        let lora_b = vec![0.0; base.out_features * options.rank];
        Self::from_tensors(backend, base, options, &lora_a, &lora_b)
    }

    /// Continues from saved tensors.
    ///
    /// # Errors
    /// As [`Affine::new`].
    ///
    /// # Panics
    /// When a tensor's length is not what the options say.
    pub fn from_tensors(
        backend: &B,
        base: &AffineTensors,
        options: QaLoraOptions,
        lora_a: &[f32],
        lora_b: &[f32],
    ) -> Result<Self> {
        let QaLoraOptions { rank, lora_scaling, pool } = options;
        let sizes = (base.out_features, base.spec.groups());
        let path = LoraOptions { rank, lora_scaling };
        Ok(Self {
            pool: GroupPoolArgs { tokens: 0, spec: base.spec, pool },
            base: Affine::new(backend, base)?,
            path: LowRankPath::new(backend, sizes, path, lora_a, lora_b)?,
        })
    }

    /// Drops some of what the adapter reads, in training, or nothing.
    #[must_use]
    pub fn with_dropout(mut self, dropout: Option<AdapterDropout>) -> Self {
        self.path.drop_inputs(dropout);
        self
    }

    /// The layer without its adapter: codes and scale stay, the zero points move. Eq. (M10).
    ///
    /// # Errors
    /// `Invalid` for the dialect `hf_peft_qalora`, whose code does not merge; `NonFinite`.
    pub fn merge(self, backend: &B) -> Result<AffineTensors> {
        let GroupPoolArgs { spec, pool, .. } = self.pool;
        if pool.dialect() == QaLoraDialect::HfPeftQalora {
            let expected = "paper or qa_lora_code to merge: the code of this dialect refuses to";
            return Err(Error::Invalid(format!("dialect is hf_peft_qalora, expected {expected}")));
        }
        let divisor = match pool.pool() {
            Pool::Sum => 1.0,
            Pool::Mean => spec.group_size() as f32,
        };
        let mut merged = self.base.to_host(backend)?;
        let delta = self.path.delta(backend)?;
        let groups = merged.zero_point.iter_mut().zip(&delta).zip(&merged.scale);
        for ((zero_point, delta), scale) in groups {
            *zero_point -= delta / divisor / scale.max(SCALE_FLOOR as f32);
        }
        refuse_non_finite("qa_lora.merge", "zero_point", &merged.zero_point)?;
        Ok(merged)
    }
}

impl<B: Backend> LinearMethod<B> for QaLora<B> {
    fn cost(&self) -> LayerCost {
        let LayerCost { shape: (out_features, _), .. } = self.base.cost();
        let LoraOptions { rank, lora_scaling } = self.path.options();
        let options = QaLoraOptions { rank, lora_scaling, pool: self.pool.pool };
        self.path.cost(options.cost(self.pool.spec, out_features))
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.base.forward(backend, tokens, x, y, scratch)?;
        let pool = GroupPoolArgs { tokens, ..self.pool };
        backend.group_pool(pool, x, &mut scratch.pooled)?;
        self.path.add_forward(backend, tokens, &scratch.pooled, y, &mut scratch.path)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let BackwardCall { tokens, x, d_y, d_x, write } = call;
        let through_codes = BackwardCall { tokens, x, d_y, d_x: &mut *d_x, write };
        self.base.backward(backend, through_codes, scratch)?;
        let pool = GroupPoolArgs { tokens, ..self.pool };
        backend.group_pool(pool, x, &mut scratch.pooled)?;
        let Scratch { path, pooled, d_pooled, .. } = scratch;
        let through_path = BackwardCall::new(tokens, pooled, d_y, d_pooled, Write::Replace);
        self.path.backward(backend, through_path, path)?;
        backend.group_pool_backward(pool, d_pooled, d_x, Write::Add)
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        self.path.trainable().collect()
    }
}
