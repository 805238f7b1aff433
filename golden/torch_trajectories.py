#!/usr/bin/env python3
"""Golden trajectories: ten steps of training a tiny LLaMA by each method, in float64.

    python3 golden/torch_trajectories.py                 rewrite the safetensors files
    python3 golden/torch_trajectories.py --check         recompute and compare; exit 1 on a difference
    python3 golden/torch_trajectories.py --search l4q    the first seed that is fit for a method

Run generate.py afterwards: it enters the files in MANIFEST.toml. requirements.txt pins packages.
The answers come from torch_definitions (training.py): model, methods and AdamW as formulas, every
gradient by autograd. They must agree with a second source before they are written: the same run
in transformers' LlamaForCausalLM with torch.optim.AdamW, where only the linear layers are ours.

A seed is fit if nothing on all of the way hangs on a rounding: no argument of a quantizer comes
closer than MARGIN to a tie or to an end of its grid, relative to max(1, |argument|). And it must
not be vacuous: weights are clipped, and codes are others after the steps than before.
"""

import argparse
import itertools
import sys

import torch

sys.dont_write_bytecode = True

import torch_oracle  # noqa: E402
from torch_definitions import Decisions, evaluate, methods  # noqa: E402
from torch_definitions.training import (  # noqa: E402
    METHODS,
    MOMENTS,
    WITHOUT_DECAY,
    layer_of,
    trained_names,
)

MARGIN = 1e-4
STEPS, BATCH, LENGTH, RANK = 10, 2, 6, 2
GRID = {"bits": 3, "group_size": 4}
UPDATE = {"lora_scaling": 0.75}
ADAMW = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 0.01, "weight_decay": 0.1}
# Method -> its params, blocks of the model, and the first seed that --search finds.
CASES = {
    "lora": (UPDATE, 2, 0),
    "l4q": (GRID | UPDATE | {"grad_scale": "lsq"}, 2, 33),
    "lr_qat": (GRID | UPDATE | {"downcast": "int"}, 1, 4),
    "qa_lora": (GRID | UPDATE | {"pool": "mean"}, 2, 0),
    "qat": (GRID | {"grad_scale": "lsq"}, 1, 9),
    "qat_lora": (GRID | UPDATE, 1, 2),
    "peqa": (GRID, 2, 0),
}


def config(blocks):
    return {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": 12,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "tie_word_embeddings": False,
    }


def around(shape, seed, mean, reach):
    """Within `reach` of the mean, on a lattice so fine that few arguments come near a tie."""
    step = 2.0**-18
    return mean + torch_oracle.tensor(shape, seed, step, int(reach / step))


def start(method, blocks, seed):
    """The inputs of a case; the step of the grid is such that the largest weights lie beyond it."""
    weights = torch_oracle.llama_weights(config(blocks), seed)
    factors_in_grid_units = method == "lr_qat"
    unsigned = method in ("qa_lora", "peqa")
    inputs = {"tokens": torch_oracle.tensor((STEPS, BATCH, LENGTH), seed + 50, 1.0, 6).int() + 6}
    inputs["tokens"] = inputs["tokens"] % config(blocks)["vocab_size"]
    for index, (name, weight) in enumerate(weights.items()):
        layer, is_layer, _ = name.rpartition("_proj.weight")
        layer += "_proj"
        if not is_layer:
            inputs[name] = weight
            continue
        (out, width), own = weight.shape, seed + 100 * (index + 1)
        groups = out, width // GRID["group_size"]
        small = 0.8 if factors_in_grid_units else 0.3
        tensors = {
            "weight": around((out, width), own, 0.0, 0.5),
            "lora_a": around((RANK, groups[1] if unsigned else width), own + 1, 0.0, small),
            "lora_b": around((out, RANK), own + 2, 0.0, small),
            "scale": around(groups, own + 3, 0.13, 0.02),
            "initial_scale": around(groups, own + 4, 0.13, 0.02),
            "offset": around(groups, own + 5, 0.0, 0.05),
            "codes": (torch_oracle.tensor((out, width), own + 6, 1.0, 4) + 4).clamp(max=7).byte(),
            "zero_point": around(groups, own + 7, 3.5, 0.5),
        }
        inputs |= {f"{layer}.{own_name}": tensors[own_name] for own_name in tensors_of(method)}
    return inputs


def tensors_of(method):
    """Every tensor that a layer has under the method."""
    _, trained = METHODS[method]
    if method in ("qa_lora", "peqa"):
        frozen = ("codes", "scale", "zero_point")
    else:
        frozen = ("weight", "initial_scale") if method == "lr_qat" else ("weight",)
    return dict.fromkeys((*frozen, *trained))


# --- The second source ----------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """The method's layer in the place of a torch.nn.Linear."""

    def __init__(self, linear, name):
        super().__init__()
        self.linear, self.name = linear, name

    def forward(self, x):
        return self.linear(x, self.name)


def library_run(params, inputs):
    """The same run by transformers and torch.optim."""
    import transformers

    method, run = params["method"], {**params}
    settings = run.pop("config") | {"attn_implementation": "eager"}
    theta = settings.pop("rope_theta")
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    optimizer = {name: run.pop(name) for name in ADAMW}
    run.pop("method")
    tensors = {
        name: tensor.double() if tensor.is_floating_point() else tensor.long()
        for name, tensor in inputs.items()
    }
    tokens = tensors.pop("tokens")
    names = trained_names(method, tensors)
    for name in names:
        tensors[name].requires_grad_()
    torch.set_default_dtype(torch.float64)
    with torch_oracle.StayInDouble():
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).train()
        linear = layer_of(Decisions(), method, tensors, run)
        layers = [name for name, _ in model.named_modules() if name.endswith("_proj")]
        for name in layers:
            model.set_submodule(name, Layer(linear, name))
        base = {name: t for name, t in tensors.items() if "_proj." not in name}
        model.load_state_dict(base, strict=True)
        decaying = [name for name in names if not name.endswith(WITHOUT_DECAY)]
        others = [name for name in names if name.endswith(WITHOUT_DECAY)]
        decay = optimizer.pop("weight_decay")
        betas = optimizer.pop("beta1"), optimizer.pop("beta2")
        adamw = torch.optim.AdamW(
            [
                {"params": [tensors[name] for name in group], "weight_decay": of_group}
                for group, of_group in ((decaying, decay), (others, 0.0))
                if group
            ],
            betas=betas,
            foreach=False,
            **optimizer,
        )
        losses, gradients = [], {name: [] for name in names}
        for batch in tokens:
            adamw.zero_grad()
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            losses.append(loss.detach())
            for name in names:
                gradients[name].append(tensors[name].grad.clone())
            adamw.step()
        logits = model(input_ids=tokens[-1]).logits.detach()
    torch.set_default_dtype(torch.float32)
    results = {"loss": torch.stack(losses), "logits": logits}
    for name in names:
        results[f"d_{name}"] = torch.stack(gradients[name])
        results[name] = tensors[name].detach()
        state = adamw.state[tensors[name]]
        for moment, own_name in zip(MOMENTS, ("exp_avg", "exp_avg_sq"), strict=True):
            results[moment + name] = state[own_name]
    return results


# --- What a seed must fulfil ----------------------------------------------------------------------


def codes_of(params, tensors, layers):
    """The codes of each of the layers."""
    method = params["method"]
    settings = {name: params[name] for name in (*GRID, "lora_scaling", "downcast") if name in params}
    found = {}
    for layer in layers:
        own = {name: tensors[f"{layer}.{name}"].double() for name in tensors_of(method)}
        x = torch.zeros(1, own["weight"].shape[1], dtype=torch.float64)
        if method in ("l4q", "lr_qat"):
            definition = getattr(methods, method)
            found[layer] = definition(Decisions(), x=x, **own, **settings)["codes"]
        else:
            on_grid = {name: own[name] for name in ("weight", "scale", "offset")}
            found[layer] = methods.fake_quantize(Decisions(), **on_grid, **GRID)["codes"]
    return found


def is_fit(params, inputs, outputs, decisions):
    """Clear of every tie and end on all of the way; clipped somewhere; and codes that changed."""
    if decisions.margin <= MARGIN:
        return False
    if params["method"] not in ("l4q", "lr_qat", "qat", "qat_lora"):
        return True  # nothing is rounded
    weights = [name for name in inputs if name.endswith("_proj.weight")]
    layers = [name.removesuffix(".weight") for name in weights]
    before = codes_of(params, inputs, layers)
    after = codes_of(params, inputs | outputs, layers)
    changed = sum(int((after[layer] != before[layer]).sum()) for layer in layers)
    return decisions.clipped > 0 and changed > 0


def run(method, seed):
    """(params, inputs, outputs, whether the seed is fit)"""
    own, blocks, _ = CASES[method]
    params = {"config": config(blocks), "method": method, **own, **ADAMW}
    inputs = start(method, blocks, seed)
    decisions = Decisions()
    outputs = evaluate("llama.train", params, inputs, decisions)
    return params, inputs, outputs, is_fit(params, inputs, outputs, decisions)


def build(method):
    """(op, params, inputs, outputs, origin, note). The moments are left to the step that has its
    own golden cases; what they do is in every later tensor."""
    _, blocks, seed = CASES[method]
    params, inputs, outputs, fit = run(method, seed)
    assert fit, f"{method}: seed {seed} is not fit, see --search"
    torch_oracle.agree(outputs, library_run(params, inputs), method)
    kept = {name: tensor for name, tensor in outputs.items() if not name.startswith(MOMENTS)}
    origin = (
        f"{torch_oracle.TORCH} float64 autograd, agrees with {torch_oracle.TRANSFORMERS} and"
        " torch.optim.AdamW"
    )
    note = f"{STEPS} steps, {blocks} blocks, every linear layer by {method}; seed {seed}"
    return "llama.train", params, inputs, kept, origin, note


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--search", choices=CASES, help="print the first seed that is fit")
    options = parser.parse_args()
    if options.search:
        print(next(seed for seed in itertools.count() if run(options.search, seed)[-1]))
        return 0
    failed = False
    for method in CASES:
        name, case = f"llama/llama.train.{method}.safetensors", build(method)
        if options.check:
            failed |= not torch_oracle.is_reproduced(name, case)
        else:
            torch_oracle.write(name, case)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
