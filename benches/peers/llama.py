"""A LLaMA whose linear layers are a method's, and its training step. Eqs. (N1) to (N8), (T1)."""

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from methods import amid_training

# The layers of a block: name, (rows, columns) as names of sizes.
PROJECTIONS = {
    "self_attn.q_proj": ("queries", "hidden"),
    "self_attn.k_proj": ("keys", "hidden"),
    "self_attn.v_proj": ("keys", "hidden"),
    "self_attn.o_proj": ("hidden", "queries"),
    "mlp.gate_proj": ("intermediate", "hidden"),
    "mlp.up_proj": ("intermediate", "hidden"),
    "mlp.down_proj": ("hidden", "intermediate"),
}
WITHOUT_DECAY = (".scale", ".offset")


class Block(torch.nn.Module):
    """One block: its two norms and its seven layers."""

    def __init__(self, config, norms, layers):
        super().__init__()
        self.config, self.norms, self.layers = config, norms, layers

    def forward(self, hidden, turn):
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        a = self.norm(hidden, "input_layernorm")
        q, k, v = (
            self.layers[f"self_attn.{own}_proj"](a).unflatten(-1, (count, -1)).transpose(1, 2)
            for own, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        mixed = functional.scaled_dot_product_attention(
            rope(q, turn), rope(k, turn), v, is_causal=True, enable_gqa=heads != kv_heads
        )
        hidden = hidden + self.layers["self_attn.o_proj"](mixed.transpose(1, 2).flatten(2))
        f = self.norm(hidden, "post_attention_layernorm")
        gate, up = (self.layers[f"mlp.{own}_proj"](f) for own in ("gate", "up"))
        return hidden + self.layers["mlp.down_proj"](functional.silu(gate) * up)

    def norm(self, x, name):
        return rms_norm(x, self.norms[name], self.config)


class Llama:
    """Tensors under the names of a Hugging Face checkpoint, and one Layer for each projection."""

    def __init__(self, config, base, layers):
        self.config, self.base, self.layers = config, base, layers
        self.blocks, self.loss_of = [], loss_of_hidden
        for number in range(config["num_hidden_layers"]):
            name = f"model.layers.{number}"
            norms = {
                own: base[f"{name}.{own}.weight"]
                for own in ("input_layernorm", "post_attention_layernorm")
            }
            own_layers = {own: layers[f"{name}.{own}"] for own in PROJECTIONS}
            self.blocks.append(Block(config, norms, own_layers))
        for _, tensor in self.trained():
            tensor.requires_grad_()

    def trained(self):
        """(name, tensor) of all that training moves."""
        for name, layer in self.layers.items():
            for own_name, tensor in layer.trained.items():
                yield f"{name}.{own_name}", tensor

    def compiled(self):
        """The same model through torch.compile: once for all blocks, whose shapes are the same."""
        twin = Llama(self.config, self.base, self.layers)
        twin.blocks = [torch.compile(block) for block in twin.blocks]
        twin.loss_of = torch.compile(loss_of_hidden)
        return twin

    def loss(self, tokens, recompute=False):
        """Mean over the `length - 1` predictions of each sequence; `recompute` keeps only what
        enters each block, which is computed again for its gradients."""
        hidden = self.base["model.embed_tokens.weight"][tokens]
        turn = rope_angles(self.config, tokens.shape[1], hidden.device)
        for block in self.blocks:
            if recompute:
                hidden = checkpoint(block, hidden, turn, use_reentrant=False)
            else:
                hidden = block(hidden, turn)
        tied = self.config["tie_word_embeddings"]
        head = self.base["model.embed_tokens.weight" if tied else "lm_head.weight"]
        return self.loss_of(hidden, self.base["model.norm.weight"], head, tokens, self.config)


def loss_of_hidden(hidden, norm, head, tokens, config):
    """Final norm, output projection and Eq. (N7)."""
    logits = functional.linear(rms_norm(hidden, norm, config), head)[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def rms_norm(x, weight, config):
    return functional.rms_norm(x, weight.shape, weight, config["rms_norm_eps"])


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_angles(config, tokens, device):
    """cos and sin, `[tokens, head_dim / 2]`, from angles in float64."""
    half = head_dim(config) // 2
    pair = torch.arange(half, device=device, dtype=torch.float64)
    theta = torch.tensor(config["rope_theta"], device=device, dtype=torch.float64)
    position = torch.arange(tokens, device=device, dtype=torch.float64)
    angle = torch.outer(position, theta ** (-pair / half))
    return angle.cos().float(), angle.sin().float()


def rope(x, turn):
    """Half-split rotary embedding of `[batch, heads, tokens, head_dim]`."""
    cos, sin = turn
    left, right = x.chunk(2, dim=-1)
    turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    return turned.to(x.dtype)


def adamw(model, *, weight_decay, **settings):
    """Scales and offsets do not decay. Eq. (T2)."""
    decaying = [tensor for name, tensor in model.trained() if not name.endswith(WITHOUT_DECAY)]
    others = [tensor for name, tensor in model.trained() if name.endswith(WITHOUT_DECAY)]
    groups = [{"params": decaying, "weight_decay": weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, **settings)


def random_model(config, method, device, **layer_settings):
    """Weights of the config's shapes, drawn on the device from a fixed seed."""
    generator = torch.Generator(device).manual_seed(1)
    sizes = {
        "hidden": config["hidden_size"],
        "intermediate": config["intermediate_size"],
        "queries": config["num_attention_heads"] * head_dim(config),
        "keys": config["num_key_value_heads"] * head_dim(config),
    }

    def normal(*shape):
        return torch.empty(shape, device=device).normal_(std=0.02, generator=generator)

    ones = torch.ones(sizes["hidden"], device=device)
    base = {"model.embed_tokens.weight": normal(config["vocab_size"], sizes["hidden"])}
    if not config["tie_word_embeddings"]:
        base["lm_head.weight"] = normal(config["vocab_size"], sizes["hidden"])
    base["model.norm.weight"] = ones
    layers = {}
    for number in range(config["num_hidden_layers"]):
        block = f"model.layers.{number}"
        base[f"{block}.input_layernorm.weight"] = ones
        base[f"{block}.post_attention_layernorm.weight"] = ones
        for name, (rows, columns) in PROJECTIONS.items():
            weight = normal(sizes[rows], sizes[columns])
            layer = amid_training(method, weight, generator=generator, **layer_settings)
            layers[f"{block}.{name}"] = layer
    return Llama(config, base, layers)
