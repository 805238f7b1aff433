#!/usr/bin/env python3
"""Golden cases that are too large to check by hand, from PyTorch autograd in float64.

    python3 golden/torch_oracle.py            rewrite the safetensors files
    python3 golden/torch_oracle.py --check    recompute and compare; exit 1 on a difference

Run generate.py afterwards: it enters the files in MANIFEST.toml. requirements.txt pins packages.
The formulas are written here, forward only; autograd differentiates them. Each result is checked
against a second source before it is written: the model against transformers' LlamaForCausalLM, the
L4Q layer and the attention against the exact oracles of generate.py.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import struct
import sys
from decimal import Decimal
from fractions import Fraction

import torch
from torch.overrides import TorchFunctionMode

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import case_text  # noqa: E402
import oracle  # noqa: E402
import stability  # noqa: E402
from cases.spread import spread  # noqa: E402

TORCH = f"torch {importlib.metadata.version('torch')}"
TRANSFORMERS = f"transformers {importlib.metadata.version('transformers')}"
AGREEMENT = 1e-10  # with the second source, relative to the largest element of a tensor
REPRODUCTION = 1e-12  # of a file on another machine, likewise


# --- The model, from its formulas -----------------------------------------------------------------


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight"""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rope(x, theta):
    """Half-split rotary embedding of [batch, tokens, heads, head_dim], positions from 0."""
    tokens, head_dim = x.shape[1], x.shape[3]
    pair = torch.arange(head_dim // 2, dtype=torch.float64)
    position = torch.arange(tokens, dtype=torch.float64)
    angle = torch.outer(position, theta ** (-2 * pair / head_dim))[None, :, None, :]
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


def llama_logits(config, weights, tokens):
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    hidden = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        w = {
            name.removeprefix(f"model.layers.{layer}."): tensor for name, tensor in weights.items()
        }

        def project(x, name, w=w):
            return x @ w[f"{name}.weight"].T

        x = rms_norm(hidden, w["input_layernorm.weight"], eps)
        q = project(x, "self_attn.q_proj").unflatten(-1, (heads, -1))
        k = project(x, "self_attn.k_proj").unflatten(-1, (kv_heads, -1))
        v = project(x, "self_attn.v_proj").unflatten(-1, (kv_heads, -1))
        mixed = attention(rope(q, theta), rope(k, theta), v).flatten(-2)
        hidden = hidden + project(mixed, "self_attn.o_proj")
        x = rms_norm(hidden, w["post_attention_layernorm.weight"], eps)
        gate, up = project(x, "mlp.gate_proj"), project(x, "mlp.up_proj")
        hidden = hidden + project(gate / (1 + torch.exp(-gate)) * up, "mlp.down_proj")
    hidden = rms_norm(hidden, weights["model.norm.weight"], eps)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return hidden @ weights[head].T


def next_token_loss(logits, tokens):
    """Mean over the batch and the length - 1 predictions of -log softmax at the next token."""
    log_probability = logits[:, :-1] - torch.logsumexp(logits[:, :-1], dim=-1, keepdim=True)
    return -log_probability.gather(-1, tokens[:, 1:, None]).mean()


def llama(config, weights, tokens):
    """Outputs of llama.loss_and_gradients."""
    weights = {name: tensor.double().requires_grad_() for name, tensor in weights.items()}
    logits = llama_logits(config, weights, tokens.long())
    loss = next_token_loss(logits, tokens.long())
    gradients = torch.autograd.grad(loss, list(weights.values()))
    outputs = {"loss": loss.detach(), "logits": logits.detach()}
    return outputs | {f"d_{name}": d for name, d in zip(weights, gradients, strict=True)}


# --- The second source of the model ---------------------------------------------------------------


class StayInDouble(TorchFunctionMode):
    """Turns every request for float32 into one for float64.

    The library computes norms, softmax, angles and loss in float32 whatever the model's type is.
    Only the type is replaced: which operations run, and on what, stays the library's.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = [torch.float64 if arg is torch.float32 else arg for arg in args]
        kwargs = {
            name: torch.float64 if arg is torch.float32 else arg
            for name, arg in (kwargs or {}).items()
        }
        return function(*args, **kwargs)


def library_llama(config, weights, tokens):
    """The same outputs from transformers."""
    import transformers

    settings = {name: value for name, value in config.items() if name != "rope_theta"}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    settings["attn_implementation"] = "eager"
    torch.set_default_dtype(torch.float64)
    with StayInDouble():
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        model.tie_weights()
        result = model.train()(input_ids=tokens.long(), labels=tokens.long())
        result.loss.backward()
    torch.set_default_dtype(torch.float32)
    gradients = {f"d_{name}": parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": result.loss.detach(), "logits": result.logits.detach(), **gradients}


# --- The L4Q layer, from its formulas -------------------------------------------------------------


def l4q_layer(params, inputs):
    """(y, codes, fake_quantized), straight through with the rounding error as a constant."""
    size, qmax = params["group_size"], 2 ** (params["bits"] - 1) - 1
    scale = inputs["scale"].repeat_interleave(size, dim=1)
    offset = inputs["offset"].repeat_interleave(size, dim=1)
    adapter = params["lora_scaling"] * (inputs["lora_b"] @ inputs["lora_a"])
    v = (inputs["weight"] + adapter - offset) / scale
    in_range = (v >= -qmax - 1) & (v <= qmax)
    # Not torch.clamp: what its derivative is at the ends is the library's affair, here it is ours.
    clamped = torch.where(in_range, v, v.clamp(-qmax - 1, qmax).detach())
    rounding_error = (clamped.round() - clamped).detach()
    fake_quantized = (clamped + rounding_error) * scale + offset
    codes = clamped.detach().round().to(torch.int8)
    return inputs["x"] @ fake_quantized.T, codes, fake_quantized


def l4q_forward(params, inputs):
    y, codes, fake_quantized = l4q_layer(params, doubles(inputs))
    return {"y": y, "codes": codes, "fake_quantized": fake_quantized}


def l4q_backward(params, inputs):
    assert params["grad_scale"] == "lsq"
    inputs = doubles(inputs)
    trained = {
        name: inputs[name].requires_grad_() for name in ("x", "lora_a", "lora_b", "scale", "offset")
    }
    y, _, _ = l4q_layer(params, inputs)
    gradients = torch.autograd.grad(y, list(trained.values()), inputs["d_y"])
    outputs = {f"d_{name}": d for name, d in zip(trained, gradients, strict=True)}
    factor = 1 / math.sqrt(params["group_size"] * (2 ** (params["bits"] - 1) - 1))
    for name in ("d_scale", "d_offset"):
        outputs[name] = factor * outputs[name]
    return outputs


def attention_backward(params, inputs):
    inputs = doubles(inputs)
    variables = [inputs[name].requires_grad_() for name in "qkv"]
    gradients = torch.autograd.grad(attention(*variables), variables, inputs["d_output"])
    return dict(zip(("d_q", "d_k", "d_v"), gradients, strict=True))


def doubles(inputs):
    return {name: tensor.double() for name, tensor in inputs.items()}


def exact_oracle(op, params, inputs):
    """The outputs of generate.py's oracle for the same case, after its stability check."""
    origin, operation = oracle.OPERATIONS[op]
    number_type = case_text.number_type(origin)
    assert number_type in (Fraction, Decimal)
    inputs = {name: case_text.exact(t.tolist(), number_type) for name, t in inputs.items()}
    stability.check(op, params, inputs)
    outputs = operation(params, inputs)
    return {
        name: torch.tensor(oracle.derivative.over(float, tensor), dtype=torch.float64)
        for name, tensor in outputs.items()
    }


# --- Cases ----------------------------------------------------------------------------------------


def tensor(shape, seed, step, reach):
    """Multiples of a power of two: the same numbers on every machine, and exact in f32."""
    return torch.tensor(spread(shape, seed, step, reach), dtype=torch.float32)


def llama_weights(config, seed):
    hidden, ffn, vocab = (config[f"{name}_size"] for name in ("hidden", "intermediate", "vocab"))
    q_width = config["num_attention_heads"] * config["head_dim"]
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (q_width, hidden),
            prefix + "self_attn.k_proj.weight": (kv_width, hidden),
            prefix + "self_attn.v_proj.weight": (kv_width, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, q_width),
            prefix + "mlp.gate_proj.weight": (ffn, hidden),
            prefix + "mlp.up_proj.weight": (ffn, hidden),
            prefix + "mlp.down_proj.weight": (hidden, ffn),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    weights = {}
    for index, (name, shape) in enumerate(shapes.items()):
        # Norms lie around 1; queries and keys are large enough for attention to choose.
        is_norm = len(shape) == 1
        reach = 512 if is_norm or "q_proj" in name or "k_proj" in name else 320
        weights[name] = tensor(shape, seed + index, 2.0**-10, reach) + (1.0 if is_norm else 0.0)
    return weights


def llama_case(note, seed, batch, length, **config):
    config = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, **config}
    weights = llama_weights(config, seed)
    half = config["vocab_size"] // 2
    tokens = (tensor((batch, length), seed + 100, 1.0, half).int() + half) % config["vocab_size"]
    outputs = llama(config, weights, tokens)
    agree(outputs, library_llama(config, weights, tokens), note)
    origin = f"{TORCH} float64 autograd, agrees with {TRANSFORMERS}"
    params = {"config": config}
    return "llama.loss_and_gradients", params, {"tokens": tokens, **weights}, outputs, origin, note


def judged_case(op, function, params, inputs, note):
    outputs = function(params, inputs)
    agree(outputs, exact_oracle(op, params, inputs), note)
    origin = f"{TORCH} float64 autograd, agrees with {oracle.OPERATIONS[op][0]}"
    return op, params, inputs, outputs, origin, note


def build():
    """File name -> (op, params, inputs, outputs, origin, note)."""
    layer = {
        "x": tensor((9, 40), 201, 2.0**-6, 100),
        "weight": tensor((24, 40), 202, 2.0**-10, 300),
        "lora_a": tensor((4, 40), 203, 2.0**-8, 60),
        "lora_b": tensor((24, 4), 204, 2.0**-8, 60),
        "scale": tensor((24, 5), 205, 2.0**-10, 32) + 80 * 2.0**-10,
        "offset": tensor((24, 5), 206, 2.0**-10, 48),
    }
    quantizer = {"bits": 3, "group_size": 8, "lora_scaling": 2.0}
    heads = {"heads": 6, "kv_heads": 2}
    qkv = {
        "q": tensor((2, 7, 6, 4), 211, 2.0**-6, 120),
        "k": tensor((2, 7, 2, 4), 212, 2.0**-6, 120),
        "v": tensor((2, 7, 2, 4), 213, 2.0**-6, 120),
        "d_output": tensor((2, 7, 6, 4), 214, 2.0**-6, 120),
    }
    return {
        "llama/tied_grouped_query.safetensors": llama_case(
            "tied embeddings, two query heads for each key head, two layers, two sequences",
            seed=1000,
            batch=2,
            length=9,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=40,
            max_position_embeddings=16,
            rope_theta=10000.0,
            tie_word_embeddings=True,
        ),
        "llama/untied_own_head_dim.safetensors": llama_case(
            "own output projection, head_dim that is not hidden_size / heads, theta 500000",
            seed=2000,
            batch=1,
            length=6,
            hidden_size=20,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=24,
            max_position_embeddings=16,
            rope_theta=500000.0,
            tie_word_embeddings=False,
        ),
        "l4q/l4q.forward.24x40.safetensors": judged_case(
            "l4q.forward", l4q_forward, quantizer, layer, "3 bits, five groups in a row, rank 4"
        ),
        "l4q/l4q.backward.24x40.safetensors": judged_case(
            "l4q.backward",
            l4q_backward,
            {**quantizer, "grad_scale": "lsq"},
            {**layer, "d_y": tensor((9, 24), 207, 2.0**-6, 100)},
            "3 bits, five groups in a row, rank 4, with the LSQ gradient scale",
        ),
        "transformer/attention.backward.2x7x6.safetensors": judged_case(
            "attention.backward",
            attention_backward,
            heads,
            qkv,
            "six query heads share two, batch 2",
        ),
    }


# --- Files and comparison -------------------------------------------------------------------------


def agree(ours, theirs, what, tolerance=AGREEMENT):
    assert set(ours) == set(theirs), (what, set(ours) ^ set(theirs))
    for name, tensor in ours.items():
        mine, other = tensor.double(), theirs[name].double()
        assert mine.shape == other.shape, (what, name, mine.shape, other.shape)
        difference, size = (mine - other).abs().max(), other.abs().max()
        assert difference <= tolerance * size, (what, name, float(difference), float(size))


TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int32: "I32", torch.int8: "I8"}


def encode(op, params, inputs, outputs, origin, note) -> bytes:
    """A safetensors file whose bytes depend on nothing but the case."""
    tensors = {f"in.{name}": t for name, t in inputs.items()}
    tensors |= {f"out.{name}": t for name, t in outputs.items()}
    metadata = {"format": case_text.FORMAT, "op": op, "params": json.dumps(params)}
    header, payload = {"__metadata__": metadata | {"origin": origin, "note": note}}, b""
    # Widest elements first keeps every tensor aligned.
    for name, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        data = t.detach().contiguous().numpy().tobytes()
        offsets = [len(payload), len(payload) + len(data)]
        header[name] = {"dtype": TYPES[t.dtype], "shape": list(t.shape), "data_offsets": offsets}
        payload += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + payload


def decode(data: bytes):
    """(op, params, inputs, outputs) of such a file."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata, body = header.pop("__metadata__"), bytearray(data[8 + length :])
    types = {name: dtype for dtype, name in TYPES.items()}
    groups = {"in": {}, "out": {}}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        group, _, rest = name.partition(".")
        flat = torch.frombuffer(body[start:end], dtype=types[entry["dtype"]])
        groups[group][rest] = flat.reshape(entry["shape"])
    return metadata["op"], json.loads(metadata["params"]), groups["in"], groups["out"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    failed = False
    for name, case in build().items():
        path = HERE / name
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(*case))
            print(f"written: {name}, {path.stat().st_size} bytes")
            continue
        try:
            op, params, inputs, outputs = decode(path.read_bytes())
            assert (op, params) == case[:2], "op or params differ"
            agree(inputs, case[2], "inputs", tolerance=0)
            agree(outputs, case[3], "outputs", tolerance=REPRODUCTION)
            print(f"{name}: agrees")
        except (OSError, AssertionError) as error:
            print(f"{name}: {error}")
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
