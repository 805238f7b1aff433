//! The whole model: construction from named tensors, forward, backward, change of representation.

use std::collections::BTreeMap;
use std::sync::Arc;

use plumbline_reference::spec::LlamaConfig;

use super::activations::{Activations, Recompute, Workspace};
use super::block::{Block, Surroundings};
use super::head::LossSlot;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::{LinearMethod, Parameter, ParameterKind, ScratchNeed, Trainable};
use crate::ops::cross_entropy::LossSum;
use crate::ops::embedding::EmbeddingShape;
use crate::ops::rope::RopeTable;

/// A target that does not count.
pub const IGNORE: i32 = -100;

/// Token ids of equally long sequences, and what each should predict.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Sequences.
    pub batch: usize,
    /// `[batch, length]`.
    pub tokens: &'a [i32],
    /// `[batch, length]`; [`IGNORE`] where nothing is predicted.
    pub targets: &'a [i32],
    /// `[batch, length]`: for each token the place in its sequence where its document begins, which
    /// is where it stops looking back and its positions start. `None`: every sequence is one.
    pub documents: Option<&'a [i32]>,
}

/// A LLaMA on backend `B` whose linear layers are of type `L`.
pub struct Llama<B: Backend, L> {
    pub(super) backend: Arc<B>,
    pub(super) config: LlamaConfig,
    pub(super) embed_tokens: Parameter<B>,
    pub(super) blocks: Vec<Block<B, L>>,
    pub(super) norm: Parameter<B>,
    /// `None` where the embedding table is also the output projection.
    pub(super) lm_head: Option<Parameter<B>>,
    pub(super) rope: RopeTable<B::Floats>,
}

/// A tensor on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// A linear layer of the model: its place and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
}

impl Projection {
    /// The linear layers of one block in the order of the forward.
    pub fn of_block(config: &LlamaConfig, block: usize) -> [Self; 7] {
        let hidden = config.hidden_size;
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        [
            ("self_attn.q_proj", queries, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", config.intermediate_size, hidden),
            ("mlp.up_proj", config.intermediate_size, hidden),
            ("mlp.down_proj", hidden, config.intermediate_size),
        ]
        .map(|(name, out_features, in_features)| Self {
            name: format!("model.layers.{block}.{name}"),
            out_features,
            in_features,
        })
    }

    /// The linear layers of every block.
    pub fn all(config: &LlamaConfig) -> Vec<Self> {
        (0..config.num_hidden_layers).flat_map(|block| Self::of_block(config, block)).collect()
    }
}

/// Hugging Face name and shape of every tensor of a full-precision model.
pub fn tensor_shapes(config: &LlamaConfig) -> BTreeMap<String, Vec<usize>> {
    let table = vec![config.vocab_size, config.hidden_size];
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), table.clone()),
        ("model.norm.weight".to_owned(), vec![config.hidden_size]),
    ]);
    if !config.tie_word_embeddings {
        shapes.insert("lm_head.weight".to_owned(), table);
    }
    for block in 0..config.num_hidden_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            let name = format!("model.layers.{block}.{norm}.weight");
            shapes.insert(name, vec![config.hidden_size]);
        }
    }
    for linear in Projection::all(config) {
        let shape = vec![linear.out_features, linear.in_features];
        shapes.insert(format!("{}.weight", linear.name), shape);
    }
    shapes
}

impl<B: Backend, L: LinearMethod<B>> Llama<B, L> {
    /// Builds a model. `tensor` gives the values of embeddings and norms by name and shape;
    /// `linear` makes the linear layers; `train_base` keeps gradients for embeddings and norms.
    ///
    /// # Errors
    /// Whatever the two functions return; when the device has no room.
    pub fn build(
        backend: Arc<B>,
        config: LlamaConfig,
        train_base: bool,
        mut tensor: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
        mut linear: impl FnMut(&Projection) -> Result<L>,
    ) -> Result<Self> {
        let mut parameter = |name: &str, shape: &[usize], kind| {
            Parameter::taking(&*backend, tensor(name, shape)?, shape, kind, train_base)
        };
        let hidden = [config.hidden_size];
        let table = [config.vocab_size, config.hidden_size];
        let embed_tokens =
            parameter("model.embed_tokens.weight", &table, ParameterKind::Embedding)?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            let mut norm = |name: &str| {
                let name = format!("model.layers.{index}.{name}.weight");
                parameter(&name, &hidden, ParameterKind::Norm)
            };
            let input_layernorm = norm("input_layernorm")?;
            let post_attention_layernorm = norm("post_attention_layernorm")?;
            let [q, k, v, o, gate, up, down] = Projection::of_block(&config, index);
            blocks.push(Block {
                input_layernorm,
                q_proj: linear(&q)?,
                k_proj: linear(&k)?,
                v_proj: linear(&v)?,
                o_proj: linear(&o)?,
                post_attention_layernorm,
                gate_proj: linear(&gate)?,
                up_proj: linear(&up)?,
                down_proj: linear(&down)?,
            });
        }
        let norm = parameter("model.norm.weight", &hidden, ParameterKind::Norm)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(parameter("lm_head.weight", &table, ParameterKind::Weight)?),
        };
        let positions = config.longest_sequence();
        let rope = RopeTable::new(&*backend, config.rope, config.head_dim, positions)?;
        Ok(Self { backend, config, embed_tokens, blocks, norm, lm_head, rope })
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where the model lives.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The same, to be kept while the model is borrowed.
    pub fn shared_backend(&self) -> Arc<B> {
        self.backend.clone()
    }

    /// The same model with every linear layer turned into another representation.
    ///
    /// # Errors
    /// Whatever `convert` returns.
    pub fn map_linears<M>(
        self,
        mut convert: impl FnMut(&Projection, L) -> Result<M>,
    ) -> Result<Llama<B, M>> {
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (index, block) in self.blocks.into_iter().enumerate() {
            let [q, k, v, o, gate, up, down] = Projection::of_block(&self.config, index);
            blocks.push(Block {
                input_layernorm: block.input_layernorm,
                q_proj: convert(&q, block.q_proj)?,
                k_proj: convert(&k, block.k_proj)?,
                v_proj: convert(&v, block.v_proj)?,
                o_proj: convert(&o, block.o_proj)?,
                post_attention_layernorm: block.post_attention_layernorm,
                gate_proj: convert(&gate, block.gate_proj)?,
                up_proj: convert(&up, block.up_proj)?,
                down_proj: convert(&down, block.down_proj)?,
            });
        }
        Ok(Llama {
            backend: self.backend,
            config: self.config,
            embed_tokens: self.embed_tokens,
            blocks,
            norm: self.norm,
            lm_head: self.lm_head,
            rope: self.rope,
        })
    }

    /// Names and layers of every linear layer.
    pub fn linears(&self) -> Vec<(String, &L)> {
        let mut all = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            for (name, linear) in block.linears() {
                all.push((format!("model.layers.{index}.{name}"), linear));
            }
        }
        all
    }

    /// Embeddings and norms: name and parameter.
    pub fn base_parameters(&self) -> Vec<(String, &Parameter<B>)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), &self.embed_tokens)];
        for (index, block) in self.blocks.iter().enumerate() {
            let name = |norm: &str| format!("model.layers.{index}.{norm}.weight");
            all.push((name("input_layernorm"), &block.input_layernorm));
            all.push((name("post_attention_layernorm"), &block.post_attention_layernorm));
        }
        all.push(("model.norm.weight".to_owned(), &self.norm));
        if let Some(head) = &self.lm_head {
            all.push(("lm_head.weight".to_owned(), head));
        }
        all
    }

    /// Every trained tensor, in a fixed order.
    pub fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        let mut all = Vec::new();
        all.extend(self.embed_tokens.trainable("model.embed_tokens.weight"));
        for (index, block) in self.blocks.iter_mut().enumerate() {
            let prefix = format!("model.layers.{index}");
            let Block { input_layernorm, q_proj, k_proj, v_proj, o_proj, .. } = block;
            let Block { post_attention_layernorm, gate_proj, up_proj, down_proj, .. } = block;
            all.extend(input_layernorm.trainable(format!("{prefix}.input_layernorm.weight")));
            let norm = format!("{prefix}.post_attention_layernorm.weight");
            all.extend(post_attention_layernorm.trainable(norm));
            let linears = [
                ("self_attn.q_proj", q_proj),
                ("self_attn.k_proj", k_proj),
                ("self_attn.v_proj", v_proj),
                ("self_attn.o_proj", o_proj),
                ("mlp.gate_proj", gate_proj),
                ("mlp.up_proj", up_proj),
                ("mlp.down_proj", down_proj),
            ];
            for (name, linear) in linears {
                for mut tensor in linear.trainable() {
                    tensor.name = format!("{prefix}.{name}.{}", tensor.name);
                    all.push(tensor);
                }
            }
        }
        all.extend(self.norm.trainable("model.norm.weight"));
        if let Some(head) = &mut self.lm_head {
            all.extend(head.trainable("lm_head.weight"));
        }
        all
    }

    /// Tells every linear layer that so many updates are done.
    ///
    /// # Errors
    /// As [`LinearMethod::at_update`].
    pub fn at_update(&mut self, updates: u64) -> Result<()> {
        let backend = self.backend.clone();
        for Block { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } in
            &mut self.blocks
        {
            for linear in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] {
                linear.at_update(&backend, updates)?;
            }
        }
        Ok(())
    }

    /// Every trained tensor, on the host.
    ///
    /// # Errors
    /// When the device failed.
    pub fn trained_values(&mut self) -> Result<Vec<NamedTensor>> {
        let backend = self.backend.clone();
        let host = |tensor: Trainable<'_, B>| {
            let values = backend.download(tensor.value, tensor.len)?;
            Ok(NamedTensor { name: tensor.name, shape: tensor.shape.to_vec(), values })
        };
        self.trainable().into_iter().map(host).collect()
    }

    /// Overwrites every trained tensor with what `values` gives for its name and shape.
    ///
    /// # Errors
    /// Whatever `values` returns; when the device failed.
    pub fn write_trained(
        &mut self,
        mut values: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let backend = self.backend.clone();
        self.trainable().into_iter().try_for_each(|tensor| {
            backend.write(&values(&tensor.name, tensor.shape)?, tensor.value)
        })
    }

    pub(super) fn scratch_need(&self) -> ScratchNeed {
        self.blocks
            .iter()
            .flat_map(|block| block.linears().map(|(_, linear)| linear.scratch_need()))
            .fold(ScratchNeed::default(), ScratchNeed::max)
    }

    /// Memory for training on batches of up to `tokens` tokens in all.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn training_workspace(&self, tokens: usize, recompute: Recompute) -> Result<Workspace<B>> {
        let need = self.scratch_need();
        Workspace::new(&*self.backend, &self.config, need, tokens, Some(recompute))
    }

    /// Memory for forwards of up to `tokens` tokens in all.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn evaluation_workspace(&self, tokens: usize) -> Result<Workspace<B>> {
        Workspace::new(&*self.backend, &self.config, self.scratch_need(), tokens, None)
    }

    /// Logits `[batch * length, vocab_size]`, on the host.
    ///
    /// # Errors
    /// `TokenOutOfRange`; `Invalid` for sequences that do not fit the model or the workspace.
    pub fn logits(
        &self,
        batch: usize,
        tokens: &[i32],
        workspace: &mut Workspace<B>,
    ) -> Result<Vec<f32>> {
        self.batch_logits(&Batch { batch, tokens, targets: &[], documents: None }, workspace)
    }

    /// The same of a batch that may have several documents in a sequence; its targets are not read.
    ///
    /// # Errors
    /// As [`Llama::logits`]; `Invalid` where a document begins after its token or before the
    /// document ahead of it.
    pub fn batch_logits(
        &self,
        batch: &Batch<'_>,
        workspace: &mut Workspace<B>,
    ) -> Result<Vec<f32>> {
        self.hidden_states(batch, workspace)?;
        let Activations { hidden, head, .. } = &mut workspace.activations;
        self.head_logits(batch.tokens.len(), &hidden[self.blocks.len()], head)
    }

    /// Sum of the losses over the counted targets. Eq. (N7).
    ///
    /// # Errors
    /// As [`Llama::batch_logits`].
    pub fn loss(&self, batch: &Batch<'_>, workspace: &mut Workspace<B>) -> Result<LossSum> {
        check_targets(batch)?;
        self.hidden_states(batch, workspace)?;
        let Workspace { activations: Activations { hidden, head, .. }, ids, .. } = workspace;
        let mut sums = self.backend.upload_sums(&[0.0])?;
        let loss = LossSlot { sums: &mut sums, slot: 0 };
        let last = &hidden[self.blocks.len()];
        let counted = self.head_loss(batch, last, head, &mut ids.targets, loss)?;
        Ok(LossSum { sum: self.backend.read_sums(&mut sums)?[0], counted })
    }

    /// Sum of the losses; adds the gradient of `gradient_multiplier` times that sum to the buffers
    /// of the trained tensors. Eq. (N8).
    ///
    /// # Errors
    /// As [`Llama::batch_logits`], and `Invalid` when the workspace is for evaluation only.
    pub fn loss_and_gradients(
        &mut self,
        batch: &Batch<'_>,
        gradient_multiplier: f32,
        workspace: &mut Workspace<B>,
    ) -> Result<LossSum> {
        let mut sums = self.backend.upload_sums(&[0.0])?;
        let loss = LossSlot { sums: &mut sums, slot: 0 };
        let counted = self.add_gradients(batch, gradient_multiplier, workspace, loss)?;
        Ok(LossSum { sum: self.backend.read_sums(&mut sums)?[0], counted })
    }

    /// The same without waiting for the device: the losses are added to a slot, and the number of
    /// counted targets is returned. Eq. (N8).
    ///
    /// # Errors
    /// As [`Llama::loss_and_gradients`], without what only the device knows.
    pub fn add_gradients(
        &mut self,
        batch: &Batch<'_>,
        gradient_multiplier: f32,
        workspace: &mut Workspace<B>,
        loss: LossSlot<'_, B>,
    ) -> Result<usize> {
        check_targets(batch)?;
        self.hidden_states(batch, workspace)?;
        let Workspace { recompute, activations, ids, scratch, .. } = workspace;
        let Activations { hidden, blocks: saved, gradients, head } = activations;
        let Some(gradients) = gradients else {
            return Err(Error::Invalid("the workspace is for evaluation only".into()));
        };
        let last = self.blocks.len();
        let counted = self.head_loss_backward(
            (batch, gradient_multiplier),
            &hidden[last],
            head,
            &mut ids.targets,
            &mut gradients.d_hidden,
            loss,
        )?;
        let (backend, config) = (&*self.backend, &self.config);
        let around = Surroundings::of_batch(backend, config, &self.rope, batch, &ids.documents);
        for (index, block) in self.blocks.iter_mut().enumerate().rev() {
            let (inputs, outputs) = hidden.split_at_mut(index + 1);
            let input = &inputs[index];
            let saved = match recompute {
                Recompute::None => &mut saved[index],
                Recompute::Blocks => {
                    // The last block's activations are still there.
                    if index + 1 < last {
                        let output = &mut outputs[0];
                        block.forward(&around, input, output, &mut saved[0], None, scratch)?;
                    }
                    &mut saved[0]
                }
            };
            block.backward(&around, input, saved, gradients, scratch)?;
        }
        if let Some(d_table) = &mut self.embed_tokens.gradient {
            let shape = embedding_shape(&self.config, batch.tokens.len());
            self.backend.embedding_backward(shape, &ids.tokens, &gradients.d_hidden, d_table)?;
        }
        Ok(counted)
    }

    /// Runs the embedding and every block; the last hidden states are `workspace.hidden[blocks]`.
    fn hidden_states(&self, batch: &Batch<'_>, workspace: &mut Workspace<B>) -> Result<()> {
        self.check_fits(batch, workspace)?;
        let Workspace { activations, ids, scratch, .. } = workspace;
        let Activations { hidden, blocks: saved, .. } = activations;
        self.embed(batch.tokens, &mut ids.tokens, &mut hidden[0])?;
        if let Some(documents) = batch.documents {
            self.backend.write_tokens(documents, &mut ids.documents)?;
        }
        let (backend, config) = (&*self.backend, &self.config);
        let around = Surroundings::of_batch(backend, config, &self.rope, batch, &ids.documents);
        for (index, block) in self.blocks.iter().enumerate() {
            let (inputs, outputs) = hidden.split_at_mut(index + 1);
            let saved = if saved.len() == 1 { &mut saved[0] } else { &mut saved[index] };
            block.forward(&around, &inputs[index], &mut outputs[0], saved, None, scratch)?;
        }
        Ok(())
    }

    /// Looks up tokens given by the host, and leaves them in `ids`.
    pub(super) fn embed(
        &self,
        tokens: &[i32],
        ids: &mut B::Tokens,
        output: &mut B::Floats,
    ) -> Result<()> {
        let shape = embedding_shape(&self.config, tokens.len());
        self.backend.write_tokens(tokens, ids)?;
        self.backend.embedding(shape, ids, &self.embed_tokens.value, output)
    }

    pub(super) fn check_fits(&self, batch: &Batch<'_>, workspace: &Workspace<B>) -> Result<()> {
        let Batch { batch, tokens, documents, .. } = *batch;
        let tokens = tokens.len();
        if batch == 0 || tokens == 0 || !tokens.is_multiple_of(batch) {
            let reason = format!("{tokens} tokens are not {batch} sequences of equal length");
            return Err(Error::Invalid(reason));
        }
        self.config.check_length(tokens / batch)?;
        if tokens > workspace.tokens {
            let room = workspace.tokens;
            let reason = format!("{tokens} tokens exceed the workspace's {room}");
            return Err(Error::Invalid(reason));
        }
        if let Some(documents) = documents.filter(|documents| documents.len() != tokens) {
            let reason = format!("{tokens} tokens with {} documents' places", documents.len());
            return Err(Error::Invalid(reason));
        }
        Ok(())
    }
}

fn check_targets(batch: &Batch<'_>) -> Result<()> {
    if batch.tokens.len() == batch.targets.len() {
        return Ok(());
    }
    let (tokens, targets) = (batch.tokens.len(), batch.targets.len());
    Err(Error::Invalid(format!("{tokens} tokens with {targets} targets")))
}

fn embedding_shape(config: &LlamaConfig, tokens: usize) -> EmbeddingShape {
    EmbeddingShape { tokens, vocab_size: config.vocab_size, hidden: config.hidden_size }
}
