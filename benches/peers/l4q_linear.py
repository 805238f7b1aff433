#!/usr/bin/env python3
"""The L4Q linear layer: PyTorch beside Plumbline, on this machine, alternately.

    python3 benches/peers/l4q_linear.py                  both, five rounds, a Markdown table
    python3 benches/peers/l4q_linear.py --only-torch     without the Rust binary
    python3 benches/peers/l4q_linear.py --device cuda    projections of LLaMA-2 7B on a GPU
    python3 benches/peers/l4q_linear.py --compiled       PyTorch through torch.compile

One training step of one layer in f32: forward, then the gradients of x, lora_a, lora_b,
scale and offset. The PyTorch side is what its user would write: the formulas in tensor operations,
rounding passed straight through, and autograd for the rest. Before anything is timed it is checked
against the golden cases of l4q.backward.

Every measurement is a fresh process, so that peak memory is one layer's, and the two sides take
turns, so that a machine that slows down slows both. A process reports the median over its repeats;
the table gives the median over rounds, and the ratio of each round's pair.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import tomllib

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
RANK, BITS, LORA_SCALING = 16, 4, 2.0
TOKENS = {"cpu": 512, "cuda": 2048}
SHAPES = {  # in, out, group
    "cpu": [(576, 1536, 64), (2048, 2048, 128)],
    "cuda": [(4096, 4096, 128), (4096, 11008, 128)],
}
WARM_UP = 3


# --- The PyTorch side -----------------------------------------------------------------------------


def layer_functions():
    """The layer, in a function of its own so that the parent process need not load PyTorch."""
    import torch

    class RoundStraightThrough(torch.autograd.Function):
        """Half to even; the gradient passes unchanged."""

        @staticmethod
        def forward(ctx, v):
            return torch.round(v)

        @staticmethod
        def backward(ctx, d_codes):
            return d_codes

    def clamp_ends(bits):
        """The ends of the range, one f32 further out.

        The derivative of torch.clamp is 0 at its ends (2.15), and must be 1 at qmin and qmax. The
        rounding that follows takes the step back.
        """
        infinity = torch.tensor(torch.inf)
        low, high = torch.tensor(-(2.0 ** (bits - 1))), torch.tensor(2.0 ** (bits - 1) - 1)
        return torch.nextafter(low, -infinity).item(), torch.nextafter(high, infinity).item()

    def l4q_linear(x, weight, lora_a, lora_b, scale, offset, bits, lora_scaling):
        """y = x @ (scale * codes + offset)^T, codes of weight + lora_scaling * lora_b @ lora_a."""
        out_features, groups = scale.shape
        scale, offset = scale.unsqueeze(-1), offset.unsqueeze(-1)
        combined = torch.addmm(weight, lora_b, lora_a, alpha=lora_scaling)
        v = (combined.view(out_features, groups, -1) - offset) / scale
        codes = RoundStraightThrough.apply(torch.clamp(v, *clamp_ends(bits)))
        fake_quantized = torch.addcmul(offset, codes, scale).view_as(weight)
        return torch.nn.functional.linear(x, fake_quantized)

    return torch, l4q_linear


def check_against_golden(golden) -> None:
    """Every case of l4q.backward with plain gradients: the peer computes the same thing."""
    torch, l4q_linear = layer_functions()
    text = (golden / "l4q/l4q.backward.toml").read_text()
    checked = 0
    for case in tomllib.loads(text)["case"]:
        params = case["params"]
        has_grad_scale = params.get("grad_scale", "none") != "none"
        below_floor = case["id"] == "scale_below_the_floor"  # a PyTorch user's layer has no floor
        other_mask = params.get("mask", "pre_round") != "pre_round"
        if "out" not in case or has_grad_scale or below_floor or other_mask:
            continue
        tensors = {name: torch.tensor(values) for name, values in case["in"].items()}
        names = ("x", "lora_a", "lora_b", "scale", "offset")
        trained = [tensors[name].requires_grad_() for name in names]
        x, lora_a, lora_b, scale, offset = trained
        y = l4q_linear(
            x,
            tensors["weight"],
            lora_a,
            lora_b,
            scale,
            offset,
            params["bits"],
            params["lora_scaling"],
        )
        gradients = torch.autograd.grad(y, trained, tensors["d_y"])
        for name, gradient in zip(names, gradients, strict=True):
            expected = torch.tensor(case["out"][f"d_{name}"])
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5, msg=case["id"])
        checked += 1
    assert checked >= 5, f"only {checked} golden cases were found"


def layer_tensors(torch, in_features, out_features, group, tokens):
    """A layer amid its training: lora_b is no longer zero and a few weights are clipped."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape, deviation):
        return torch.randn(shape, generator=generator) * deviation

    weight = normal(out_features, in_features, deviation=0.02)
    grouped = weight.view(out_features, -1, group)
    qmax = 2 ** (BITS - 1) - 1
    scale = torch.maximum(grouped.amax(-1) / qmax, -grouped.amin(-1) / (qmax + 1))
    return {
        "x": normal(tokens, in_features, deviation=1.0),
        "weight": weight,
        "lora_a": normal(RANK, in_features, deviation=in_features**-0.5),
        "lora_b": normal(out_features, RANK, deviation=0.002),
        "scale": scale,
        "offset": normal(*scale.shape, deviation=0.001),
    }, normal(tokens, out_features, deviation=1.0)


def worker(options) -> None:
    """Measures one shape in this process and prints one line of JSON."""
    torch, l4q_linear = layer_functions()
    torch.set_num_threads(options.threads)
    idle_rss = peak_rss()
    sizes = (options.in_features, options.out_features, options.group, TOKENS[options.device])
    tensors, d_y = layer_tensors(torch, *sizes)
    tensors = {name: tensor.to(options.device) for name, tensor in tensors.items()}
    d_y = d_y.to(options.device)
    if options.compiled:
        l4q_linear = torch.compile(l4q_linear)

    def wait():
        if options.device == "cuda":
            torch.cuda.synchronize()

    trained = [tensors[name] for name in tensors if name != "weight"]
    for tensor in trained:
        tensor.requires_grad_()
    forward, forward_backward = [], []
    for repeat in range(WARM_UP + options.repeats):
        for tensor in trained:
            tensor.grad = None
        wait()
        start = time.perf_counter()
        y = l4q_linear(**tensors, bits=BITS, lora_scaling=LORA_SCALING)
        wait()
        middle = time.perf_counter()
        y.backward(d_y)
        wait()
        end = time.perf_counter()
        if repeat >= WARM_UP:
            forward.append(middle - start)
            forward_backward.append(end - start)
    record = {
        "seconds_forward_backward_median": statistics.median(forward_backward),
        "seconds_forward_median": statistics.median(forward),
        "peak_rss_bytes": peak_rss(),
        "idle_rss_bytes": idle_rss,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(record))


def peak_rss() -> int:
    # Not ru_maxrss: that survives exec, so a child would report its parent's peak.
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: this needs Linux")


# --- Both sides, in turn --------------------------------------------------------------------------


def measure(command, threads: int) -> dict:
    """Runs one measurement in its own process; its last line of output is the record."""
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | dict.fromkeys(variables, str(threads))
    run = subprocess.run(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.strip().splitlines()[-1])


def torch_command(shape, options):
    in_features, out_features, group = shape
    numbers = {"in": in_features, "out": out_features, "group": group, "repeats": options.repeats}
    arguments = [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    arguments += ["--threads", str(options.threads), "--device", options.device]
    compiled = ["--compiled"] if options.compiled else []
    return [sys.executable, __file__, "--worker", *arguments, *compiled]


def plumbline_command(shape, options):
    numbers = dict(zip(("in", "out", "group"), shape, strict=True))
    numbers |= {"tokens": TOKENS[options.device], "rank": RANK, "bits": BITS}
    numbers |= {"repeats": options.repeats, "device": options.device}
    arguments = [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    if options.binary:
        return [str(options.binary), *arguments]
    # Not `cargo run`, which would wait for other builds between the rounds.
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    return [str(target / "release" / "l4q_linear"), *arguments]


def cargo(subcommand):
    chosen = ["--release", "--quiet", "-p", "plumbline-benches", "--bin", "l4q_linear"]
    return ["cargo", subcommand, *chosen]


def rounds(shape, options):
    """A list of (torch record, plumbline record or None), the first side alternating."""
    pairs = []
    for number in range(options.rounds):
        sides = [torch_command(shape, options)]
        if not options.only_torch:
            sides.append(plumbline_command(shape, options))
        turned = number % 2 == 1
        records = [measure(side, options.threads) for side in (sides[::-1] if turned else sides)]
        records = records[::-1] if turned else records
        pairs.append((records[0], records[1] if len(records) > 1 else None))
    return pairs


def table(results) -> str:
    """The ratio is torch / plumbline: above 1, Plumbline is faster."""
    lines = [
        "| in x out, group | measured | PyTorch | Plumbline | ratio (min to max) "
        "| peak memory PyTorch (of it, import) | peak memory Plumbline |",
        "|---|---|---|---|---|---|---|",
    ]
    for (in_features, out_features, group), pairs in results.items():
        for label, key in (
            ("forward + backward", "seconds_forward_backward_median"),
            ("forward", "seconds_forward_median"),
        ):
            cells = [f"{in_features} x {out_features}, {group}", label]
            cells.append(milliseconds([torch[key] for torch, _ in pairs]))
            ours = [plumbline for _, plumbline in pairs if plumbline]
            ratios = [torch[key] / plumbline[key] for torch, plumbline in pairs if plumbline]
            cells.append(milliseconds([record[key] for record in ours]))
            cells.append(
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                if ratios
                else "-"
            )
            peak, idle = (
                mebibytes([torch[name] for torch, _ in pairs])
                for name in ("peak_rss_bytes", "idle_rss_bytes")
            )
            cells += [f"{peak} ({idle})", mebibytes([record["peak_rss_bytes"] for record in ours])]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def milliseconds(seconds) -> str:
    return f"{1000 * statistics.median(seconds):.2f} ms" if seconds else "-"


def mebibytes(sizes) -> str:
    return f"{statistics.median(sizes) / 2**20:.0f} MiB" if sizes else "-"


def heading(options, torch_version) -> str:
    """What was compared with what, on what."""
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True)
    rust = rustc.stdout.strip() or "rustc not found"
    return (
        f"{TOKENS[options.device]} tokens, rank {RANK}, {BITS} bits, f32 on {device(options)}, "
        f"PyTorch {'compiled' if options.compiled else 'eager'}, {options.threads} threads a side; "
        f"{options.rounds} rounds of {options.repeats} repeats, sides alternating.\n"
        f"{processor()}, {os.cpu_count()} logical cores; PyTorch {torch_version}, "
        f"Python {platform.python_version()}, {rust}.\n"
    )


def device(options) -> str:
    if options.device == "cpu":
        return "the processor"
    import torch

    return torch.cuda.get_device_name()


def processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes a shape")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps in a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=list(SHAPES), default="cpu")
    parser.add_argument("--compiled", action="store_true", help="PyTorch through torch.compile")
    parser.add_argument("--binary", type=pathlib.Path, help="l4q_linear, already built")
    parser.add_argument("--golden", type=pathlib.Path, default=REPOSITORY / "golden")
    parser.add_argument("--only-torch", action="store_true", help="leave the Rust binary out")
    parser.add_argument("--json", type=pathlib.Path, help="also write every record here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="in_features", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", dest="out_features", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--group", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    if options.worker:
        worker(options)
        return 0
    check_against_golden(options.golden)
    shapes = SHAPES[options.device]
    try:
        if not (options.only_torch or options.binary):
            subprocess.run(cargo("build"), cwd=REPOSITORY, check=True)
        results = {shape: rounds(shape, options) for shape in shapes}
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    first_record = results[shapes[0]][0][0]
    print(heading(options, first_record["torch"]))
    print(table(results))
    if options.json:
        records = [
            {"in": shape[0], "out": shape[1], "group": shape[2], "torch": torch, "plumbline": ours}
            for shape, pairs in results.items()
            for torch, ours in pairs
        ]
        options.json.write_text(json.dumps(records, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
