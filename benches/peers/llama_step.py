#!/usr/bin/env python3
"""A training step of a LLaMA: PyTorch beside Plumbline, on this machine, in turn.

    python3 benches/peers/llama_step.py --config CONFIG.json     a Markdown table; default tiny.json
    python3 benches/peers/llama_step.py --config llama-2-7b --device cuda --compute bf16 --recompute
    python3 benches/peers/llama_step.py --only-torch             without our program

Random weights of the config's shapes, one sequence of random tokens; a step is forward, backward
and AdamW of what the method trains. Before anything is timed, ten steps of the PyTorch model are
checked against the golden trajectory of its method. Our side is `plumbline bench step`.
"""

import argparse
import json
import pathlib
import statistics
import sys

import torch

import golden_cases
import harness
import llama
import methods

RANK, BITS, LORA_SCALING = 16, 4, 2.0
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


TINY = pathlib.Path(__file__).with_name("tiny.json")
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)


def preset(*sizes, theta=10000.0):
    """Named as our program names them."""
    return dict(zip(SHAPE, (*sizes, 1e-5, theta, False), strict=True))


PRESETS = {
    "llama-2-7b": preset(4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": preset(5120, 13824, 40, 40, 40, 32000),
    "llama-3-8b": preset(4096, 14336, 32, 32, 8, 128256, theta=500000.0),
}


def read_config(text):
    """A preset, or the config.json of a checkpoint."""
    if text in PRESETS:
        return PRESETS[text]
    try:
        config = json.loads(pathlib.Path(text).read_text())
    except (OSError, ValueError) as error:
        raise harness.Failed(f"--config {text}: {error}; or one of {', '.join(PRESETS)}") from error
    defaults = {"num_key_value_heads": config.get("num_attention_heads"), "rope_theta": 10000.0}
    config = defaults | {"tie_word_embeddings": False} | config
    missing = [name for name in SHAPE if config.get(name) is None]
    if missing or config.get("rope_scaling"):
        what = f"has no {', '.join(missing)}" if missing else "has rope_scaling"
        raise harness.Failed(f"--config {text} {what}")
    return config


# --- PyTorch's side -------------------------------------------------------------------------------


def worker(settings) -> None:
    """Measures steps in this process and prints one line of JSON."""
    torch.set_num_threads(settings["threads"])
    try:
        record = timed_steps(settings)
    except torch.cuda.OutOfMemoryError as error:
        record = {"out_of_memory": str(error).partition("\n")[0]}
    print(json.dumps(record | harness.describe(settings)))


def timed_steps(settings):
    device, config = settings["device"], settings["config"]
    layer_settings = {"bits": BITS, "group_size": settings["group"], "rank": RANK}
    layer_settings["lora_scaling"] = LORA_SCALING
    model = llama.random_model(config, settings["method"], device, **layer_settings)
    optimizer = llama.adamw(model, **ADAMW)
    generator = torch.Generator().manual_seed(2)
    shape = (1, settings["tokens"])
    tokens = torch.randint(config["vocab_size"], shape, generator=generator).to(device)
    if settings["compiled"]:
        eager, model = model, model.compiled()
        check_compiled(model, eager, tokens, settings)
    clock, seconds, value = harness.Clock(device), [], None
    for repeat in range(harness.WARM_UP + settings["repeats"]):
        start = clock.read()
        value = loss_of(model, tokens, settings)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        end = clock.read()
        if repeat >= harness.WARM_UP:
            seconds.append(end - start)
    step = statistics.median(seconds)
    return {
        "seconds": step,
        "tokens_per_second": tokens.numel() / step,
        "loss": value.item(),
        "trained_parameters": sum(tensor.numel() for _, tensor in model.trained()),
    }


def loss_of(model, tokens, settings):
    with harness.products(settings["device"], settings["compute"]):
        return model.loss(tokens, settings["recompute"])


def check_compiled(compiled, eager, tokens, settings):
    """Loss and gradients of the compiled model beside the eager one's."""
    limit = 5e-2 if settings["compute"] == "bf16" else 1e-3
    names, trained = zip(*eager.trained(), strict=True)
    values, found = [], []
    for model in (compiled, eager):
        value = loss_of(model, tokens, settings)
        values.append(value.detach())
        found.append(torch.autograd.grad(value, trained))
    harness.check_close(*values, "the loss", limit)
    for kind in {name.rpartition(".")[2] for name in names}:
        chosen = [index for index, name in enumerate(names) if name.endswith(f".{kind}")]
        sides = (torch.cat([side[index].flatten() for index in chosen]) for side in found)
        harness.check_close(*sides, f"d_{kind}", limit)


# --- Both sides -----------------------------------------------------------------------------------


def sides(options, config):
    """{name: command}"""
    names = ("device", "compute", "threads", "method", "tokens", "group", "repeats", "recompute")
    own = {name: getattr(options, name) for name in names} | {"config": config}
    found = harness.torch_sides(__file__, own, options.compiled)
    if not options.only_torch:
        ours = {"config": options.config, "method": options.method, "tokens": options.tokens}
        ours |= {"rank": RANK, "bits": BITS, "group-size": options.group}
        ours |= {"recompute": "blocks" if options.recompute else "none"}
        ours |= {"device": options.device, "compute": options.compute, "steps": options.repeats}
        program = harness.program("plumbline", options.binary)
        found["plumbline"] = [program, "bench", "step", *harness.arguments(ours), "--json"]
    return found


HEADER = ["method", "measured", "floor", *harness.TIME_COLUMNS]


def table(records, options) -> str:
    floors = [record.get("floor_seconds") for record in records.get("plumbline", [])]
    floors = [seconds for seconds in floors if seconds]
    memory = "peak_device_bytes" if options.device == "cuda" else "peak_rss_bytes"
    memory_of = {"eager": memory, "compiled": memory, "plumbline": "measured_bytes"}
    speeds, peaks = [], []
    for side in harness.SIDES:
        of_side = records.get(side, [])
        key = "tokens_per_second"
        speeds.append(rate([record[key] for record in of_side if key in record]))
        peaks.append(harness.mebibytes([record.get(memory_of[side]) for record in of_side]))
    rows = [
        [
            "step",
            harness.milliseconds(floors),
            *harness.times(records, "seconds"),
        ],
        [
            "tokens per second",
            rate([options.tokens / seconds for seconds in floors]),
            *speeds,
            "",
            "",
        ],
        ["peak memory", "", *peaks, "", ""],
    ]
    trouble = {
        f"\n\n{harness.SIDES[side]}: {record['out_of_memory']}"
        for side, of_side in records.items()
        for record in of_side
        if "out_of_memory" in record
    }
    table_text = harness.markdown(HEADER, [[options.method, *row] for row in rows])
    return table_text + "".join(sorted(trouble))


def rate(values) -> str:
    return f"{statistics.median(values):.0f}" if values else "-"


def heading(options) -> str:
    return (
        f"{options.config}: one sequence of {options.tokens} tokens, rank {RANK}, {BITS} bits in "
        f"groups of {options.group}, products of {options.compute}, "
        f"{'activations computed again' if options.recompute else 'activations kept'}, "
        f"{options.threads} threads a side; {options.rounds} rounds of {options.repeats} steps, "
        "sides alternating. The floor is what our program says of the device.\n"
        + harness.machine(options.device)
    )


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    harness.add_options(parser)
    parser.add_argument("--config", default=str(TINY), help="a preset, or a config.json")
    parser.add_argument("--method", choices=methods.METHODS, default="l4q")
    parser.add_argument("--tokens", type=int, default=512, help="length of the sequence")
    parser.add_argument("--group", type=int, default=32, help="inputs that share a scale")
    parser.add_argument(
        "--recompute", action="store_true", help="PyTorch keeps only what enters each block"
    )
    parser.add_argument("--binary", help="our program `plumbline`, already built")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    if options.worker:
        worker(options.worker)
        return 0
    try:
        config = read_config(options.config)
        golden_cases.check_linear(options.method, options.golden)
        golden_cases.check_training(options.method, options.golden)
        if not (options.only_torch or options.binary):
            harness.build("-p", "plumbline")
        records = harness.alternate(sides(options, config), options.rounds, options.threads)
        for record in records.get("plumbline", []):
            record["seconds"] = record["step_seconds"]["median"]
            record["measured_bytes"] = record["memory"]["measured_bytes"]
    except (harness.Failed, AssertionError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(heading(options))
    print(table(records, options))
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items() if value is not None}
        options.json.write_text(json.dumps({"settings": settings} | records, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
