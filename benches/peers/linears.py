#!/usr/bin/env python3
"""Linear layers of L4Q, LR-QAT and QA-LoRA: PyTorch beside Plumbline, on this machine, in turn.

    python3 benches/peers/linears.py                  every method, five rounds, a Markdown table
    python3 benches/peers/linears.py --method l4q     one of them
    python3 benches/peers/linears.py --only-torch     without the Rust program
    python3 benches/peers/linears.py --device cuda    projections of LLaMA-2 7B on a GPU
    python3 benches/peers/linears.py --compiled       torch.compile as a third side

One training step of one layer: forward, then the gradients of x and of every trained tensor. Before
anything is timed, the PyTorch layers are checked against the golden cases of their operations; a
compiled one is checked beside the eager one in every process that times it.
"""

import argparse
import json
import statistics
import sys

import torch

import golden_cases
import harness
import methods

METHODS = ("l4q", "lr_qat", "qa_lora")
RANK, BITS, LORA_SCALING = 16, 4, 2.0
TOKENS = {"cpu": 512, "cuda": 2048}
SHAPES = {  # in, out, group
    "cpu": [(576, 1536, 64), (2048, 2048, 128)],
    "cuda": [(4096, 4096, 128), (4096, 11008, 128)],
}
# Products with the weight in a step: forward, d_x and, where the grid is trained, d_weight.
PRODUCTS = {"l4q": 3, "lr_qat": 3, "qa_lora": 2}


# --- PyTorch's side -------------------------------------------------------------------------------


def worker(settings) -> None:
    """Measures one shape in this process and prints one line of JSON."""
    torch.set_num_threads(settings["threads"])
    idle_rss, device = harness.peak_rss(), settings["device"]
    layer, x, d_y = layer_and_data(settings)
    run = torch.compile(layer) if settings["compiled"] else layer
    trained = [x, *layer.trained.values()]
    if settings["compiled"]:
        limit = 2e-2 if settings["compute"] == "bf16" else 1e-3
        results = [gradients(each, x, d_y, trained, settings) for each in (run, layer)]
        for name, actual, expected in zip(("x", *layer.trained), *results, strict=True):
            harness.check_close(actual, expected, f"d_{name}", limit)
    clock, forward, forward_backward = harness.Clock(device), [], []
    for repeat in range(harness.WARM_UP + settings["repeats"]):
        for tensor in trained:
            tensor.grad = None
        start = clock.read()
        with harness.products(device, settings["compute"]):
            y = run(x)
        middle = clock.read()
        y.backward(d_y.to(y.dtype))
        end = clock.read()
        if repeat >= harness.WARM_UP:
            forward.append(middle - start)
            forward_backward.append(end - start)
    record = {
        "seconds_forward_backward_median": statistics.median(forward_backward),
        "seconds_forward_median": statistics.median(forward),
        "idle_rss_bytes": idle_rss,
    }
    print(json.dumps(record | harness.describe(settings)))


def layer_and_data(settings):
    """A layer, its input and the gradient of its output, from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    in_features, out_features, group_size = settings["shape"]
    tokens, device = TOKENS[settings["device"]], settings["device"]
    weight = torch.empty(out_features, in_features).normal_(std=0.02, generator=generator)
    layer = methods.amid_training(
        settings["method"],
        weight,
        bits=BITS,
        group_size=group_size,
        rank=RANK,
        lora_scaling=LORA_SCALING,
        generator=generator,
    )
    x = torch.empty(tokens, in_features).normal_(generator=generator).to(device)
    d_y = torch.empty(tokens, out_features).normal_(generator=generator).to(device)
    frozen = {name: tensor.to(device) for name, tensor in layer.frozen.items()}
    trained = {name: tensor.to(device).requires_grad_() for name, tensor in layer.trained.items()}
    moved = methods.Layer(layer.linear, frozen, trained, layer.settings)
    return moved, x.requires_grad_(), d_y


def gradients(run, x, d_y, trained, settings):
    with harness.products(settings["device"], settings["compute"]):
        y = run(x)
    return torch.autograd.grad(y, trained, d_y.to(y.dtype))


# --- Both sides -----------------------------------------------------------------------------------


def sides(method, shape, options):
    """{name: command}"""
    own = {"method": method, "shape": shape, "device": options.device, "compute": options.compute}
    own |= {"threads": options.threads, "repeats": options.repeats}
    found = harness.torch_sides(__file__, own, options.compiled)
    if not options.only_torch:
        ours = {"method": method} | dict(zip(("in", "out", "group"), shape, strict=True))
        ours |= {"tokens": TOKENS[options.device], "rank": RANK, "bits": BITS}
        ours |= {"repeats": options.repeats, "device": options.device, "compute": options.compute}
        program = harness.program("linear", options.binary)
        found["plumbline"] = [program, *harness.arguments(ours)]
    return found


MEMORY_COLUMNS = [f"peak memory {side}" for side in harness.SIDES.values()]
HEADER = ["method", "in x out, group", "step", "floor", *harness.TIME_COLUMNS, *MEMORY_COLUMNS]


def table(results, options) -> str:
    rows = []
    for (method, (in_features, out_features, group_size)), records in results.items():
        product_flops = 2 * TOKENS[options.device] * in_features * out_features
        for label, key, products in (
            ("forward + backward", "seconds_forward_backward_median", PRODUCTS[method]),
            ("forward", "seconds_forward_median", 1),
        ):
            flops = products * product_flops
            floor = harness.floor_seconds(flops, options.compute, options.device)
            row = [method, f"{in_features} x {out_features}, {group_size}", label]
            row += [harness.milliseconds([floor] if floor else []), *harness.times(records, key)]
            rows.append(row + [peak(records.get(side, []), options) for side in harness.SIDES])
    return harness.markdown(HEADER, rows)


def peak(records, options) -> str:
    """On the processor with what PyTorch's process had before the layer was made."""
    if options.device == "cuda":
        return harness.mebibytes([record.get("peak_device_bytes") for record in records])
    of_process = harness.mebibytes([record["peak_rss_bytes"] for record in records])
    idle = harness.mebibytes([record.get("idle_rss_bytes") for record in records])
    return of_process if idle == "-" else f"{of_process} ({idle} idle)"


def heading(options) -> str:
    """What was compared with what, on what."""
    return (
        f"{TOKENS[options.device]} tokens, rank {RANK}, {BITS} bits, {options.compute} products, "
        f"{options.threads} threads a side; {options.rounds} rounds of {options.repeats} repeats, "
        "sides alternating. The floor is the products with the weight at the GPU's stated peak.\n"
        + harness.machine(options.device)
    )


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    harness.add_options(parser)
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated")
    parser.add_argument(
        "--shape", action="append", nargs=3, type=int, metavar=("IN", "OUT", "GROUP")
    )
    parser.add_argument("--binary", help="our program `linear`, already built")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    if options.worker:
        worker(options.worker)
        return 0
    shapes = [tuple(shape) for shape in options.shape or SHAPES[options.device]]
    chosen = [(method, shape) for method in options.method or METHODS for shape in shapes]
    try:
        for method in dict.fromkeys(method for method, _ in chosen):
            golden_cases.check_linear(method, options.golden)
        if not (options.only_torch or options.binary):
            harness.build("-p", "plumbline-benches", "--bin", "linear")
        results = {
            each: harness.alternate(sides(*each, options), options.rounds, options.threads)
            for each in chosen
        }
    except (harness.Failed, AssertionError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(heading(options))
    print(table(results, options))
    if options.json:
        records = [
            {"method": method, "shape": shape} | of_sides
            for (method, shape), of_sides in results.items()
        ]
        options.json.write_text(json.dumps(records, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
