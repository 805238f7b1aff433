"""Programs in turn: processes, records, and the table of their ratios.

Every measurement is a fresh process, so that peak memory is one measurement's, and the sides take
turns, so that a machine that slows down slows both. A process prints one line of JSON with the
medians over its repeats; a table has the median over rounds, and the ratio of each round's pair.
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

import torch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
WARM_UP = 3
# Dense peaks as their maker states them, in FLOP/s: products of f32 and of bf16.
PEAKS = {
    "H200": (67e12, 989e12),
    "H100": (67e12, 989e12),
    "A100": (19.5e12, 312e12),
}


class Failed(Exception):
    """A measurement that gave no record."""


# --- In a measuring process -----------------------------------------------------------------------


class Clock:
    """Seconds on the device: it has finished when a reading is taken."""

    def __init__(self, device):
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def read(self):
        self.wait()
        return time.perf_counter()


def peak_rss() -> int:
    # Not ru_maxrss: that survives exec, so a child would report its parent's peak.
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: this needs Linux")


def products(device, compute):
    """The context in which products are of that type."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=compute == "bf16")


def check_close(actual, expected, name, limit):
    """A compiled step beside the eager one, in the norm: a code at a tie may be another one."""
    difference = (actual - expected).float().norm() / expected.float().norm().clamp(min=1e-30)
    if not difference <= limit:
        message = f"{name} of the compiled step is {difference:.1e} from the eager one"
        raise SystemExit(f"error: {message}, expected {limit:.0e}")


def describe(options):
    """What every record of PyTorch says of itself."""
    found = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if options["device"] == "cuda":
        found["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return found | {"peak_rss_bytes": peak_rss()}


# --- The sides, in turn -----------------------------------------------------------------------


def measure(command, threads: int) -> dict:
    """Runs one measurement; its last line of output is the record."""
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | dict.fromkeys(variables, str(threads))
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        if run.returncode == 0:
            return json.loads(run.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        pass
    raise Failed(f"exit code {run.returncode} and no record from: {' '.join(command)}")


def torch_sides(script, settings, compiled):
    """The script again, measuring PyTorch in processes of their own."""
    command = [sys.executable, str(script), "--worker"]
    ways = {"eager": False, "compiled": True} if compiled else {"eager": False}
    return {
        way: [*command, json.dumps(settings | {"compiled": is_compiled})]
        for way, is_compiled in ways.items()
    }


def arguments(settings):
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def program(name, given):
    """The path of a program of this workspace: as given, or built by cargo."""
    if given:
        return str(given)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    return str(target / "release" / name)


def build(*cargo_arguments):
    """Not `cargo run` in each round, which would wait for other builds between them."""
    command = ["cargo", "build", "--release", "--quiet", *cargo_arguments]
    if subprocess.run(command, cwd=REPOSITORY).returncode != 0:
        raise Failed(f"{' '.join(command)} failed")


def alternate(sides, rounds, threads):
    """{name: records}, where every second round goes through the sides in reverse."""
    records = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            records[name].append(measure(sides[name], threads))
    return records


# --- Tables ---------------------------------------------------------------------------------------


SIDES = {"eager": "PyTorch eager", "compiled": "PyTorch compiled", "plumbline": "Plumbline"}


def milliseconds(seconds) -> str:
    return f"{1000 * statistics.median(seconds):.2f} ms" if seconds else "-"


def mebibytes(sizes) -> str:
    sizes = [size for size in sizes if size]
    return f"{statistics.median(sizes) / 2**20:.0f} MiB" if sizes else "-"


def ratio(ours, peers) -> str:
    """Of each round's pair, the peer's seconds over ours: above 1, Plumbline is faster."""
    if not ours or not peers:
        return "-"
    ratios = [peer / own for own, peer in zip(ours, peers, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def times(records, key):
    """Cells of a row: the median of every side, then the ratio of each of PyTorch's to ours."""
    found = {side: [each[key] for each in records.get(side, []) if key in each] for side in SIDES}
    ratios = [ratio(found["plumbline"], found[side]) for side in SIDES if side != "plumbline"]
    return [*(milliseconds(seconds) for seconds in found.values()), *ratios]


TIME_COLUMNS = [*SIDES.values(), "ratio to eager (min to max)", "ratio to compiled"]


def floor_seconds(flops, compute, device):
    """The least time for that many operations at the GPU's peak; None where it is not known."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peaks = next((peaks for known, peaks in PEAKS.items() if known in name), None)
    return flops / peaks[compute == "bf16"] if peaks else None


def markdown(header, rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def machine(device) -> str:
    """On what; for the head of a table."""
    rustc = subprocess.run("rustc --version || true", shell=True, capture_output=True, text=True)
    rust = rustc.stdout.strip() or "no rustc here"
    gpu = f"{torch.cuda.get_device_name()}; " if device == "cuda" else ""
    return (
        f"{gpu}{processor()}, {os.cpu_count()} logical cores; PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}, {rust}.\n"
    )


def processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def add_options(parser):
    """What both scripts let the caller say."""
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps in a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--compute", choices=("f32", "bf16"), default="f32", help="type of the products' operands"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="PyTorch through torch.compile as a third side"
    )
    parser.add_argument("--golden", type=pathlib.Path, default=REPOSITORY / "golden")
    parser.add_argument("--only-torch", action="store_true", help="leave our program out")
    parser.add_argument("--json", type=pathlib.Path, help="also write every record here")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
