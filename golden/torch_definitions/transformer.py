"""A LLaMA from its formulas, its parts as operations, and the optimizer's step."""

import math

import torch


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight"""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def frequencies(head_dim, theta, scaling):
    """Radians per position of every pair."""
    pair = torch.arange(head_dim // 2, dtype=torch.float64)
    base = theta ** (-2 * pair / head_dim)
    kind = (scaling or {}).get("rope_type", "default")
    if kind == "default":
        return base
    if kind == "linear":
        return base / scaling["factor"]
    assert kind == "llama3", kind
    turns = scaling["original_max_position_embeddings"] * base / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * base / scaling["factor"] + kept * base


def rope(x, theta, first_position=0, scaling=None):
    """Half-split rotary embedding of [.., tokens, heads, head_dim]."""
    tokens, head_dim = x.shape[-3], x.shape[-1]
    position = first_position + torch.arange(tokens, dtype=torch.float64)
    angle = torch.outer(position, frequencies(head_dim, theta, scaling))[:, None, :]
    left, right = x.chunk(2, dim=-1)
    turned_left = left * angle.cos() - right * angle.sin()
    turned_right = right * angle.cos() + left * angle.sin()
    return torch.cat([turned_left, turned_right], dim=-1)


def attention(q, k, v):
    """Causal; query head h reads key and value head h // (heads / kv_heads)."""
    tokens, heads, head_dim = q.shape[1:]
    source = torch.arange(heads) // (heads // k.shape[2])
    score = torch.einsum("bthd,bshd->bhts", q, k[:, :, source]) / math.sqrt(head_dim)
    unseen = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    probability = torch.softmax(score.masked_fill(unseen, -math.inf), dim=-1)
    return torch.einsum("bhts,bshd->bthd", probability, v[:, :, source])


def swiglu(gate, up):
    return gate * torch.sigmoid(gate) * up


def cross_entropy(logits, targets, counted):
    """Mean over the counted tokens of -log softmax at the target."""
    log_probability = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    return -log_probability.gather(-1, targets[..., None])[..., 0][counted].mean()


def llama_logits(config, weights, tokens, linear=None):
    """Every linear layer is `linear(x, layer)`, or the product with its weight."""
    linear = linear or (lambda x, layer: x @ weights[f"{layer}.weight"].T)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    scaling = config.get("rope_scaling")
    hidden = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        w = {
            name.removeprefix(f"model.layers.{layer}."): tensor for name, tensor in weights.items()
        }

        def project(x, name, layer=layer):
            return linear(x, f"model.layers.{layer}.{name}")

        x = rms_norm(hidden, w["input_layernorm.weight"], eps)
        q = project(x, "self_attn.q_proj").unflatten(-1, (heads, -1))
        k = project(x, "self_attn.k_proj").unflatten(-1, (kv_heads, -1))
        v = project(x, "self_attn.v_proj").unflatten(-1, (kv_heads, -1))
        q, k = (rope(heads, theta, scaling=scaling) for heads in (q, k))
        mixed = attention(q, k, v).flatten(-2)
        hidden = hidden + project(mixed, "self_attn.o_proj")
        x = rms_norm(hidden, w["post_attention_layernorm.weight"], eps)
        gate, up = project(x, "mlp.gate_proj"), project(x, "mlp.up_proj")
        hidden = hidden + project(swiglu(gate, up), "mlp.down_proj")
    hidden = rms_norm(hidden, weights["model.norm.weight"], eps)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return hidden @ weights[head].T


# --- Operations -----------------------------------------------------------------------------------


def llama(_, *, tokens, config, **weights):
    """Logits, and the mean loss of the length - 1 predictions of each sequence."""
    logits = llama_logits(config, weights, tokens)
    return {"loss": next_token_loss(logits, tokens), "logits": logits}


def next_token_loss(logits, tokens):
    everywhere = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    return cross_entropy(logits[:, :-1], tokens[:, 1:], everywhere)


def rms_norm_op(_, *, x, weight, eps):
    return {"output": rms_norm(x, weight, eps)}


def rope_op(_, *, x, theta, first_position=0, rope_scaling=None):
    return {"output": rope(x, theta, first_position, rope_scaling)}


def attention_op(_, *, q, k, v, heads, kv_heads):
    assert (q.shape[2], k.shape[2], v.shape[2]) == (heads, kv_heads, kv_heads)
    return {"output": attention(q, k, v)}


def swiglu_op(_, *, gate, up):
    return {"output": swiglu(gate, up)}


def cross_entropy_op(_, *, logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    return {"loss": cross_entropy(logits, torch.where(counted, targets, 0), counted)}


def adamw_step(
    _,
    *,
    parameter,
    gradient,
    first_moment,
    second_moment,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    step,
):
    """AdamW: bias-corrected moments, and a decay of the weight that does not pass through them."""
    first_moment = beta1 * first_moment + (1 - beta1) * gradient
    second_moment = beta2 * second_moment + (1 - beta2) * gradient**2
    first, second = first_moment / (1 - beta1**step), second_moment / (1 - beta2**step)
    parameter = parameter - lr * weight_decay * parameter - lr * first / (second.sqrt() + eps)
    return {"parameter": parameter, "first_moment": first_moment, "second_moment": second_moment}
