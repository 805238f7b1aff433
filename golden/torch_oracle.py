#!/usr/bin/env python3
"""Golden cases that are too large to check by hand, from PyTorch autograd in float64.

    python3 golden/torch_oracle.py            rewrite the safetensors files
    python3 golden/torch_oracle.py --check    recompute and compare; exit 1 on a difference

Run generate.py afterwards: it enters the files in MANIFEST.toml. requirements.txt pins packages.
The formulas are in torch_definitions, forward only; autograd differentiates them. Each result is
checked against a second source before it is written: the model against transformers'
LlamaForCausalLM, the other operations against the exact oracles of generate.py.
"""

import argparse
import importlib.metadata
import pathlib
import sys
from decimal import Decimal
from fractions import Fraction

import torch
from torch.overrides import TorchFunctionMode

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import case_file  # noqa: E402
import case_text  # noqa: E402
import oracle  # noqa: E402
import stability  # noqa: E402
from cases.spread import spread  # noqa: E402
from torch_definitions import Decisions, evaluate  # noqa: E402

TORCH = f"torch {importlib.metadata.version('torch')}"
TRANSFORMERS = f"transformers {importlib.metadata.version('transformers')}"
AGREEMENT = 1e-10  # with the second source, relative to the largest element of a tensor
REPRODUCTION = 1e-12  # of a file on another machine, likewise
MARGIN = 1e-5  # from every tie and end, relative to max(1, |argument|): f32 cannot reach it


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

    settings = {name: value for name, value in config.items() if not name.startswith("rope_")}
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    settings["rope_parameters"] = {**scaling, "rope_theta": config["rope_theta"]}
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


# --- The second source of one operation -----------------------------------------------------------


def exact_oracle(op, params, inputs):
    """The outputs of generate.py's oracle for the same case, after its stability check."""
    origin, operation = oracle.OPERATIONS[op]
    number_type = case_text.number_type(origin)
    assert number_type in (Fraction, Decimal)
    inputs = {
        name: case_text.exact(t.tolist(), number_type) if t.is_floating_point() else t.tolist()
        for name, t in inputs.items()
    }
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
    params, inputs = {"config": config}, {"tokens": tokens, **weights}
    outputs = evaluate("llama.loss_and_gradients", params, inputs)
    agree(outputs, library_llama(config, weights, tokens), note)
    origin = f"{TORCH} float64 autograd, agrees with {TRANSFORMERS}"
    return "llama.loss_and_gradients", params, inputs, outputs, origin, note


def judged_case(op, params, inputs, note):
    decisions = Decisions()
    outputs = evaluate(op, params, inputs, decisions)
    assert decisions.margin > MARGIN, (op, decisions.margin)
    if "codes" in outputs:
        outputs["codes"] = outputs["codes"].to(torch.int8)
    agree(outputs, exact_oracle(op, params, inputs), note)
    origin = f"{TORCH} float64 autograd, agrees with {oracle.OPERATIONS[op][0]}"
    return op, params, inputs, outputs, origin, note


def build():
    """File name -> (op, params, inputs, outputs, origin, note)."""
    return {**model_cases(), **method_cases(), **attention_cases(), **block_cases()}


def model_cases():
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
        "llama/llama3_frequencies.safetensors": llama_case(
            "frequencies scaled as in LLaMA 3.1: one pair stays, one is mixed, two are slowed down",
            seed=3000,
            batch=1,
            length=14,
            hidden_size=24,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=8,
            vocab_size=24,
            max_position_embeddings=128,
            rope_theta=500.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            tie_word_embeddings=True,
        ),
    }


def method_cases():
    """Layers of 24 outputs and 40 inputs in five groups, on nine tokens; adapters of rank 4."""
    x, d_y = tensor((9, 40), 201, 2.0**-6, 100), tensor((9, 24), 207, 2.0**-6, 100)
    weight = tensor((24, 40), 202, 2.0**-10, 300)
    lora_a, lora_b = tensor((4, 40), 203, 2.0**-8, 60), tensor((24, 4), 204, 2.0**-8, 60)
    scale = tensor((24, 5), 205, 2.0**-10, 32) + 80 * 2.0**-10
    learned = {"scale": scale, "offset": tensor((24, 5), 206, 2.0**-10, 48)}
    factors = {"lora_a": lora_a, "lora_b": lora_b}
    l4q = {"x": x, "weight": weight, **factors, **learned}
    # On a fine lattice no argument falls on a tie, where f32 would have to be exact.
    fine = tensor((24, 40), 230, 2.0**-19, 180_000)
    # Factors in units of the grid, so that the update moves codes, and a scale that has trained.
    lr_qat = {
        "x": x,
        "weight": fine,
        "initial_scale": scale,
        "lora_a": tensor((4, 40), 221, 2.0**-6, 80),
        "lora_b": tensor((24, 4), 222, 2.0**-6, 80),
        "scale": scale + tensor((24, 5), 223, 2.0**-10, 8),
    }
    qat = {"x": x, "weight": fine, **learned}
    peqa = {
        "x": x,
        "codes": (tensor((24, 40), 224, 1.0, 4).int() + 4).clamp(max=7).to(torch.uint8),
        "scale": scale,
        "zero_point": tensor((24, 5), 225, 2.0**-6, 100) + 3.5,
    }
    pooled = {**peqa, "lora_a": tensor((4, 5), 226, 2.0**-8, 60), "lora_b": lora_b}
    group = {"bits": 3, "group_size": 8}
    update, lsq, gradient = {"lora_scaling": 2.0}, {"grad_scale": "lsq"}, {"d_y": d_y}
    fixed = {**group, "lora_scaling": 0.3, "downcast": "fixed8"}
    summed = {**group, **update, "pool": "sum"}
    rows = [
        ("l4q.forward", {**group, **update}, l4q, "rank 4"),
        (
            "l4q.backward",
            {**group, **update, **lsq},
            l4q | gradient,
            "rank 4, with the LSQ gradient scale",
        ),
        ("lr_qat.forward", fixed, lr_qat, "fixed point, factors that move codes"),
        ("lr_qat.backward", fixed, lr_qat | gradient, "fixed point, a scale that has trained"),
        ("qa_lora.forward", summed, pooled, "real zero points"),
        ("qa_lora.backward", summed, pooled | gradient, "real zero points"),
        ("qat.forward", group, qat, "clipped weights"),
        ("qat.backward", {**group, **lsq}, qat | gradient, "with the LSQ gradient scale"),
        (
            "qat_lora.backward",
            {**group, **update, **lsq},
            qat | factors | gradient,
            "rank 4, with the LSQ gradient scale",
        ),
        ("peqa.backward", group, peqa | gradient, "real zero points"),
    ]
    cases = {}
    for op, params, inputs, note in rows:
        family = op.partition(".")[0].replace("qat_lora", "qat")
        cases[f"{family}/{op}.24x40.safetensors"] = judged_case(
            op, params, inputs, f"3 bits, five groups in a row, {note}"
        )
    # Powers of two go through the scale and back exactly: d_x is the copy that it should be.
    powers = torch.tensor([[(-2.0) ** int(k) for k in row] for row in spread((9, 40), 227, 1, 15)])
    cases["quantize/dynamic_quantize.backward.9x40.safetensors"] = judged_case(
        "dynamic_quantize.backward",
        {"bits": 4, "group_size": 8, "zero_point": "integer"},
        {
            "x": tensor((9, 40), 228, 2.0**-16, 2**17) + tensor((9, 1), 229, 2.0, 2),
            "d_output": powers,
        },
        "4 bits, five groups in a token, ranges on one side of zero among them",
    )
    return cases


def attention_cases():
    def inputs(batch, tokens, heads, kv_heads, width, seed):
        query, key = (batch, tokens, heads, width), (batch, tokens, kv_heads, width)
        shapes = {"q": query, "k": key, "v": key, "d_output": query}
        return {
            name: tensor(shape, seed + number, 2.0**-6, 120)
            for number, (name, shape) in enumerate(shapes.items())
        }

    def case(op, heads, kv_heads, inputs, note):
        own = {name: inputs[name] for name in inputs if name != "d_output" or "backward" in op}
        return judged_case(op, {"heads": heads, "kv_heads": kv_heads}, own, note)

    shared = inputs(2, 7, 6, 2, 4, 211)
    # As wide as the heads of models, and more queries of a key head than a tile has rows.
    wide, width = inputs(1, 19, 2, 1, 64, 231), "heads of 64, 38 queries for a key head"
    shared_note = "six query heads share two, batch 2"
    return {
        "transformer/attention.backward.2x7x6.safetensors": case(
            "attention.backward", 6, 2, shared, shared_note
        ),
        "transformer/attention.forward.wide.safetensors": case(
            "attention.forward", 2, 1, wide, width
        ),
        "transformer/attention.backward.wide.safetensors": case(
            "attention.backward", 2, 1, wide, width
        ),
    }


def block_cases():
    """Sizes beyond what a block of a kernel takes at once: rows longer than its threads, more
    tokens than a tile, tails everywhere.
    """

    def long(shape, seed, size=1.0):
        return tensor(shape, seed, size * 2.0**-17, 2**17)

    rows, odd, tokens = (3, 1100), (2, 391), (133, 5)
    norms = {
        f"transformer/rms_norm.{direction}.{shape[0]}x{shape[1]}.safetensors": judged_case(
            f"rms_norm.{direction}",
            {"eps": 2.0**-10},
            {"x": long(shape, seed), "weight": long(shape[1:], seed + 1)}
            | ({"d_output": long(shape, seed + 2)} if direction == "backward" else {}),
            note,
        )
        for seed, shape, note in [
            (301, rows, "rows longer than a block has threads"),
            (311, odd, "the same, not of whole vectors"),
            (321, tokens, "more tokens than a partial sum takes"),
        ]
        for direction in ("forward", "backward")
        if shape is not tokens or direction == "backward"
    }
    many = (1100,)
    adamw = {
        "parameter": long(many, 331),
        "gradient": long(many, 332),
        "first_moment": long(many, 333, 0.25),
        "second_moment": long(many, 334, 0.25).abs(),
    }
    settings = {"lr": 0.125, "beta1": 0.875, "beta2": 0.96875, "eps": 2.0**-20}
    vocabularies = {
        "3x1100": {
            "logits": long((3, 1100), 341, 8.0),
            "targets": torch.tensor([1099, -100, 7], dtype=torch.int32),
        },
        "2x391": {
            "logits": long(odd, 342, 8.0),
            "targets": torch.tensor([390, 255], dtype=torch.int32),
        },
    }
    gated = {"gate": long((2, 1100), 351, 4.0), "up": long((2, 1100), 352, 4.0)}
    queries = (1, 70, 2, 8)
    attention = {
        name: long((1, 70, heads, 8), 361 + number, 2.0)
        for number, (name, heads) in enumerate([("q", 2), ("k", 1), ("v", 1)])
    }
    heads = {"heads": 2, "kv_heads": 1}
    cases = {
        "training/adamw.step.1100.safetensors": judged_case(
            "adamw.step",
            {**settings, "weight_decay": 0.125, "step": 3},
            adamw,
            "more numbers than a block has threads",
        ),
        "transformer/attention.forward.70.safetensors": judged_case(
            "attention.forward", heads, attention, "more keys and queries than a tile"
        ),
        "transformer/attention.backward.70.safetensors": judged_case(
            "attention.backward",
            heads,
            {**attention, "d_output": long(queries, 364)},
            "more keys and queries than a tile",
        ),
    }
    for direction in ("forward", "backward"):
        gradient = {"d_output": long((2, 1100), 353)} if direction == "backward" else {}
        cases[f"transformer/swiglu.{direction}.2x1100.safetensors"] = judged_case(
            f"swiglu.{direction}", {}, gated | gradient, "more numbers than a block has threads"
        )
        for size, vocabulary in vocabularies.items():
            cases[f"training/cross_entropy.{direction}.{size}.safetensors"] = judged_case(
                f"cross_entropy.{direction}",
                {"ignore_index": -100},
                vocabulary,
                "rows of many warps",
            )
    return {**norms, **cases, **tile_cases(long), **many_tokens(long)}


def tile_cases(long):
    """Layers of 150 inputs in three groups, with adapters of rank 18, on 33 tokens."""
    columns, groups, rank, tokens = 150, 3, 18, 33
    cases = {}

    def layer(rows, seed):
        factors = {
            "lora_a": long((rank, columns), seed + 2),
            "lora_b": long((rows, rank), seed + 3),
        }
        scale = long((rows, groups), seed + 4, 0.25).abs() + 0.5
        return long((rows, columns), seed + 1, 8.0), factors, scale

    def gradient(op, rows, seed):
        return {"d_y": long((tokens, rows), seed + 5)} if op.endswith("backward") else {}

    def add(op, rows, params, inputs, seed):
        family = op.partition(".")[0]
        name = f"{family}/{op}.{rows}x{columns}.safetensors"
        inputs = {"x": long((tokens, columns), seed), **inputs, **gradient(op, rows, seed)}
        note = "more rows, columns, tokens and ranks than a tile"
        params = {"bits": 4, "group_size": columns // groups, **params}
        cases[name] = judged_case(op, params, inputs, note)

    for op, rows, seed in [("l4q.forward", 35, 1400), ("l4q.backward", 130, 10410)]:
        weight, factors, scale = layer(rows, seed)
        learned = {"scale": scale, "offset": long((rows, groups), seed + 6, 0.25)}
        inputs = {"weight": weight, **factors, **learned}
        add(op, rows, {"lora_scaling": 0.5}, inputs, seed)
    for op, seed in [("lr_qat.forward", 420), ("lr_qat.backward", 1430)]:
        weight, factors, scale = layer(35, seed)
        inputs = {"weight": weight, "initial_scale": scale, **factors, "scale": scale * 1.125}
        add(op, 35, {"lora_scaling": 2.0, "downcast": "f32"}, inputs, seed)
    for op, seed in [("qa_lora.forward", 440), ("qa_lora.backward", 450)]:
        _, factors, scale = layer(35, seed)
        inputs = {
            "codes": (tensor((35, columns), seed + 1, 1.0, 7).int() + 8).to(torch.uint8),
            "scale": scale,
            "zero_point": long((35, groups), seed + 6) + 8.0,
            "lora_a": long((rank, groups), seed + 2, 0.5),
            "lora_b": factors["lora_b"],
        }
        add(op, 35, {"lora_scaling": 0.5, "pool": "sum"}, inputs, seed)
    return cases


def many_tokens(long):
    """Four steps of 32 tokens, the last of 4: what a step has read is copied over more than once. By
    groups of whole quadruples of inputs and by others."""
    rows, groups, rank, tokens = 40, 3, 18, 100
    cases = {}
    for columns, seed in [(72, 2500), (75, 2600)]:
        inputs = {
            "x": long((tokens, columns), seed),
            "weight": long((rows, columns), seed + 1, 8.0),
            "lora_a": long((rank, columns), seed + 2),
            "lora_b": long((rows, rank), seed + 3),
            "scale": long((rows, groups), seed + 4, 0.25).abs() + 0.5,
            "offset": long((rows, groups), seed + 6, 0.25),
            "d_y": long((tokens, rows), seed + 5),
        }
        params = {"bits": 4, "group_size": columns // groups, "lora_scaling": 0.5}
        case = judged_case("l4q.backward", params, inputs, "more tokens than two steps have")
        cases[f"l4q/l4q.backward.{rows}x{columns}.safetensors"] = case
    return cases


# --- Files and comparison -------------------------------------------------------------------------


def agree(ours, theirs, what, tolerance=AGREEMENT):
    assert set(ours) == set(theirs), (what, set(ours) ^ set(theirs))
    for name, tensor in ours.items():
        mine, other = tensor.double(), theirs[name].double()
        assert mine.shape == other.shape, (what, name, mine.shape, other.shape)
        difference, size = (mine - other).abs().max(), other.abs().max()
        assert difference <= tolerance * size, (what, name, float(difference), float(size))


def write(name, case) -> None:
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(case_file.encode(*case))
    print(f"written: {name}, {path.stat().st_size} bytes")


def is_reproduced(name, case) -> bool:
    """Whether the file holds this case, and says what differs."""
    try:
        op, params, inputs, outputs = case_file.decode((HERE / name).read_bytes())
        assert (op, params) == case[:2], "op or params differ"
        agree(inputs, case[2], "inputs", tolerance=0)
        agree(outputs, case[3], "outputs", tolerance=REPRODUCTION)
    except (OSError, AssertionError) as error:
        print(f"{name}: {error}")
        return False
    print(f"{name}: agrees")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    if options.check:
        return 0 if all([is_reproduced(name, case) for name, case in build().items()]) else 1
    for name, case in build().items():
        write(name, case)
    return 0


if __name__ == "__main__":
    sys.exit(main())
