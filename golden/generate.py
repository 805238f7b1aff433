#!/usr/bin/env python3
"""Writes the golden vectors: inputs from cases/, expected outputs from oracle/.

    python3 golden/generate.py            rewrite every TOML file and MANIFEST.toml
    python3 golden/generate.py --check    compare with what is here; exit 1 on any difference

Python 3.11 and its standard library; no package of this repository and none from elsewhere. The
safetensors files are torch_oracle.py's and those under onnx/ are onnx_vectors.py's; here they are
only entered in the manifest.
"""

import argparse
import hashlib
import json
import pathlib
import struct
import sys
import tomllib
from decimal import Decimal
from fractions import Fraction

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import case_text  # noqa: E402
import oracle  # noqa: E402
import stability  # noqa: E402
from cases import FILES, dynamic_quantize  # noqa: E402
from oracle.derivative import over  # noqa: E402


def compute(file: case_text.GoldenFile) -> str:
    """The text of one file."""
    case_text.lint(file)
    origin, operation = oracle.OPERATIONS[file.op]
    number_type = case_text.number_type(origin)
    outputs = []
    for case in file.cases:
        if case.error:
            outputs.append(None)
            continue
        inputs = {
            name: tensor
            if name in case_text.INTEGER_TENSORS
            else case_text.exact(tensor, number_type)
            for name, tensor in case.inputs.items()
        }
        stability.check(file.op, case.params, inputs)
        result = operation(case.params, inputs)
        outputs.append({name: over(settled, tensor) for name, tensor in result.items()})
    return case_text.render(file, origin, outputs)


def settled(number):
    """What a Decimal is to 60 places: the guard digits of a sum that cancels are not a result."""
    return round(number, 60) if isinstance(number, Decimal) else number


def check_named_mistakes() -> None:
    """The cases that are about f32 rounding do catch what their notes say, in f32."""
    by_id = {case.id: case for file in FILES[:1] for case in file.cases}
    case = by_id["division_is_not_by_reciprocal"]
    weight, scale = (case_text.exact(case.inputs[name], Fraction) for name in ("weight", "scale"))
    for row, (s,) in zip(weight, scale, strict=True):
        for w in row:
            wrong = stability.by_reciprocal_f32(w, s)
            assert stability.flips_code(w / s, wrong, case.params["bits"]), case.id
    tokens = {case.id: case for case in dynamic_quantize.FORWARD}
    case = tokens["division_is_not_by_reciprocal"]
    (token,) = case_text.exact(case.inputs["x"], Fraction)
    scale = oracle.dynamic_quantize.grid(token, case.params)[0]
    wrong = [stability.by_reciprocal_f32(number, scale) for number in token]
    right = [number / scale for number in token]
    assert [round(v) for v in wrong] != [round(v) for v in right], case.id
    case = by_id["offset_is_subtracted_before_dividing"]
    weight, scale, offset = (
        case_text.exact(case.inputs[name], Fraction)[0][0] for name in ("weight", "scale", "offset")
    )
    wrong = stability.divided_separately_f32(weight, offset, scale)
    assert stability.flips_code((weight - offset) / scale, wrong, case.params["bits"]), case.id


def check_flag_table() -> None:
    """Every flag stands once in the table of the README, and every class of mistakes has one row."""
    _, _, text = (HERE / "README.md").read_text().partition("| class | flags |")
    rows = [line.split("|") for line in text.partition("\n\n")[0].splitlines()[2:]]
    classes = [row[1].strip() for row in rows]
    assert len(set(classes)) == len(classes), f"README.md: {classes}"
    listed = [flag.strip("` ") for row in rows for flag in row[2].split(",")]
    used = {flag for file in FILES for flag in file.notes}
    for path in converted():
        used.update(tomllib.loads(path.read_text())["notes"])
    assert sorted(listed) == sorted(used), f"README.md: flags differ: {set(listed) ^ used}"


def converted() -> list[pathlib.Path]:
    """The text files that are not written here."""
    return sorted(HERE.glob("onnx/*.toml"))


def manifest(texts: dict[str, str]) -> str:
    """One entry for each golden file, with its digest, operation, origin and number of cases."""
    entries = {}
    for file in FILES:
        origin, _ = oracle.OPERATIONS[file.op]
        entries[file.path] = (texts[file.path].encode(), file.op, origin, len(file.cases))
    for path in sorted(HERE.glob("**/*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        name = path.relative_to(HERE).as_posix()
        entries[name] = (data, metadata["op"], metadata["origin"], 1)
    for path in converted():
        data = path.read_bytes()
        file = tomllib.loads(data.decode())
        name = path.relative_to(HERE).as_posix()
        entries[name] = (data, file["op"], file["origin"], len(file["case"]))
    lines = ["# Written by golden/generate.py."]
    for name, (data, op, origin, count) in sorted(entries.items()):
        lines += [
            "",
            "[[file]]",
            f'path = "{name}"',
            f'sha256 = "{hashlib.sha256(data).hexdigest()}"',
        ]
        lines += [f'op = "{op}"', f'origin = "{origin}"', f"cases = {count}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    check_named_mistakes()
    check_flag_table()
    texts = {file.path: compute(file) for file in FILES}
    texts["MANIFEST.toml"] = manifest(texts)
    written_here = set(HERE.glob("**/*.toml")) - set(converted())
    present = {path.relative_to(HERE).as_posix() for path in written_here}
    stale = [f"{name}: no case makes this file" for name in sorted(present - set(texts))]
    for name, text in texts.items():
        path = HERE / name
        if path.exists() and path.read_bytes() == text.encode():
            continue
        stale.append(f"{name}: differs from what the oracles give")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
            print(f"written: {name}")
    if not options.check:
        return 0
    print("\n".join(stale) if stale else f"{len(texts)} files are up to date")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
