//! The whole model: its tensors, construction from them, change of representation.

use std::collections::BTreeMap;
use std::sync::Arc;

use plumbline_reference::spec::{ActivationSpec, LlamaConfig};

use super::block::Block;
use crate::backend::Backend;
use crate::error::Result;
use crate::methods::{LinearMethod, Parameter, ParameterKind, ScratchNeed, Trainable};
use crate::ops::rope::RopeTable;

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
    pub(super) activations: Option<ActivationSpec>,
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

/// A tensor whose values come to the host when they are asked for.
pub struct LazyTensor<'a> {
    /// Name in the checkpoint.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Gives the row-major values.
    pub values: Box<dyn FnOnce() -> Result<Vec<f32>> + 'a>,
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
        let activations = None;
        Ok(Self { backend, config, embed_tokens, blocks, norm, lm_head, rope, activations })
    }

    /// The same model with its activations rounded to grids of their own, or not. Eq. (N8d).
    #[must_use]
    pub fn with_activations(mut self, spec: Option<ActivationSpec>) -> Self {
        self.activations = spec;
        self
    }

    /// How its activations are rounded, if they are.
    pub fn activations(&self) -> Option<ActivationSpec> {
        self.activations
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
            activations: self.activations,
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
        let host =
            |LazyTensor { name, shape, values }| Ok(NamedTensor { name, shape, values: values()? });
        self.trained_tensors().into_iter().map(host).collect()
    }

    /// The same, to be fetched one after the other.
    pub fn trained_tensors(&mut self) -> Vec<LazyTensor<'_>> {
        let backend = self.backend.clone();
        let trained = self.trainable().into_iter();
        let lazy = trained.map(|Trainable { name, shape, len, value, .. }| {
            let backend = backend.clone();
            let values = Box::new(move || backend.download(value, len));
            LazyTensor { name, shape: shape.to_vec(), values }
        });
        lazy.collect()
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
}
