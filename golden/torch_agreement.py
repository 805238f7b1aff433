#!/usr/bin/env python3
"""Compares the reference with PyTorch: fresh cases, computed again in float64 by autograd.

    conform generate --out DIR --count 100 --seed 7
    python3 golden/torch_agreement.py DIR [--json]

The expected outputs in DIR are the Rust reference's. Here every case is computed a second time,
from the definitions in torch_definitions: forwards as formulas, gradients by autograd. golden/ may
be given as DIR too: then the exact oracles are compared. Exit 0: every differentiable operation has
a case and every output agrees to TOLERANCE; 1: something does not; 2: DIR has no cases.
requirements.txt pins packages.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import re
import sys

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import case_file  # noqa: E402
from torch_definitions import OPERATIONS, Decisions, evaluate  # noqa: E402

TOLERANCE = 1e-11  # of an element, relative to max(1, largest expected element of its tensor)
WORST = sys.float_info.max  # error of an output of another shape, not a number, or on one side only
WITHOUT_BACKWARD = {
    "init_scale",
    "affine.quantize",
    "affine.dequantize",
    "rtn.quantize",
    "cast",
    "pack",
    "unpack",
    "lr_qat.downcast",
    "nf4.quantize",
    "gptq.quantize",
    "awq.scale",
    "awq.clip",
    "svd_init",
    "loftq_init",
}


@dataclasses.dataclass
class Output:
    elements: int = 0
    error: float = 0.0


@dataclasses.dataclass
class Row:
    """What was seen of one operation."""

    cases: int = 0
    not_evaluated: int = 0
    roundings: int = 0
    on_edge: int = 0  # arguments exactly on a tie or an end: nothing excuses a difference there
    open: int = 0  # arguments so close to one that two float64 evaluations may differ
    settled_otherwise: int = 0  # cases that agree only when an open argument is decided otherwise
    outputs: dict = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if self.not_evaluated:
            return "NOT EVALUATED"
        if not self.cases:
            return "NO CASE"
        agrees = all(output.error <= TOLERANCE for output in self.outputs.values())
        return "agrees" if agrees else "DIFFERS"


def largest_error(computed, expected) -> float:
    if computed.shape != expected.shape:
        return WORST
    if not expected.numel():
        return 0.0
    expected = expected.double()
    error = ((computed - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    return error if math.isfinite(error) else WORST


def errors_of(computed, expected) -> dict[str, float]:
    names = sorted(computed.keys() | expected.keys())
    return {
        name: largest_error(computed[name], expected[name])
        if name in computed and name in expected
        else WORST
        for name in names
    }


def judge(row: Row, op, params, inputs, expected) -> float:
    """Adds a case to its row and returns its largest error."""
    decisions = Decisions()
    errors = errors_of(evaluate(op, params, inputs, decisions), expected)
    row.cases += 1
    row.roundings += decisions.made
    row.on_edge += decisions.on_edge
    row.open += decisions.open
    if max(errors.values()) > TOLERANCE:
        for other in decisions.alternatives():
            retried = errors_of(evaluate(op, params, inputs, other), expected)
            if max(retried.values()) <= TOLERANCE:
                errors = retried
                row.settled_otherwise += 1
                break
    for name, error in errors.items():
        output = row.outputs.setdefault(summary_name(name), Output())
        output.elements += expected[name].numel() if name in expected else 0
        output.error = max(output.error, error)
    return max(errors.values())


def summary_name(name: str) -> str:
    """The gradients of a whole model share one line, and so do the layers of one in training."""
    if name.startswith("d_") and name.endswith(".weight"):
        return "d_<weight>"
    return re.sub(r"model\.layers\.\d+\.\w+\.\w+_proj", "<layer>", name)


def cases_under(folder: pathlib.Path):
    """(name, op, params, inputs, expected) of every case; those to be refused have no answer."""
    for path in sorted(folder.rglob("*.safetensors")):
        yield path, *case_file.decode(path.read_bytes())
    for path in sorted(folder.rglob("*.toml")):
        if path.name != "MANIFEST.toml":
            for name, *case in case_file.decode_text(path.read_text()):
                yield f"{path}: {name}", *case


def compare(folder: pathlib.Path):
    """(rows by operation, what went wrong in words)."""
    rows, problems = {op: Row() for op in OPERATIONS}, []
    for name, op, params, inputs, expected in cases_under(folder):
        if op in WITHOUT_BACKWARD:
            continue
        if op not in OPERATIONS:
            problems.append(f"{name}: {op} is neither known nor listed as without a backward")
            continue
        try:
            error = judge(rows[op], op, params, inputs, expected)
        except Exception as cause:  # an unknown param or tensor, a shape: never a case passed over
            rows[op].not_evaluated += 1
            problems.append(f"{name}: {op}: not evaluated: {type(cause).__name__}: {cause}")
            continue
        if error > TOLERANCE:
            problems.append(f"{name}: {op}: largest error {error:.3g}")
    problems += [f"{op}: no case" for op, row in rows.items() if row.verdict == "NO CASE"]
    return rows, problems


def table(rows) -> str:
    lines = [
        f"{'operation':26}{'cases':>6}{'roundings':>11}{'on edge':>9}{'open':>6}{'otherwise':>11}"
        f"  {'output':16}{'elements':>9}{'error':>10}  verdict"
    ]
    for op, row in rows.items():
        counts = f"{op:26}{row.cases:6}{row.roundings:11}{row.on_edge:9}{row.open:6}"
        counts += f"{row.settled_otherwise:11}"
        for name, output in row.outputs.items() or [("-", Output())]:
            result = f"  {name:16}{output.elements:9}{output.error:10.1e}"
            lines.append(f"{counts}{result}  {row.verdict}")
            counts = " " * len(counts)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", type=pathlib.Path, help="folder that conform generate wrote")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args()
    rows, problems = compare(options.cases)
    if all(row.verdict == "NO CASE" for row in rows.values()):
        print(f"{options.cases}: no cases", file=sys.stderr)
        return 2
    if options.json:
        operations = {
            op: dataclasses.asdict(row) | {"verdict": row.verdict} for op, row in rows.items()
        }
        print(json.dumps({"tolerance": TOLERANCE, "operations": operations, "problems": problems}))
    else:
        print(table(rows))
        print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
