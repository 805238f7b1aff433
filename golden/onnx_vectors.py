#!/usr/bin/env python3
"""Converts the quantization node tests of onnx to golden cases under onnx/.

    python3 golden/onnx_vectors.py VECTORS.json            rewrite the TOML files
    python3 golden/onnx_vectors.py VECTORS.json --check    compare; exit 1 on any difference

VECTORS.json holds the node tests of onnx 1.22 as a list of {case, nodes, sets}, with every tensor
as {name, dtype, shape, data}. It is not kept here; the converted cases are, under the licence of
onnx (onnx/LICENSE). Run generate.py afterwards, which enters the files in the manifest.

A tensor of any rank becomes rows and groups: a scale for the whole tensor makes one row of one
group, a scale for each index of an axis makes that index the row, and scales for blocks of an axis
make that axis the inputs. Codes of signed types move by 2^(bits-1), and so does their zero point;
where that was 0 the case also becomes one of fake_quantize. Every converted answer is compared with
the exact oracle, except where a remark says why it cannot be.
"""

import argparse
import itertools
import json
import math
import pathlib
import sys
from fractions import Fraction

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import case_text  # noqa: E402
import oracle  # noqa: E402
import stability  # noqa: E402
from case_text import Case, GoldenFile  # noqa: E402

ORIGIN = "onnx 1.22 node tests (Apache-2.0, golden/onnx/LICENSE), agree with exact-rational 1"
HEADER = "# Written by golden/onnx_vectors.py from the node tests of onnx 1.22; see onnx/LICENSE."
OPERATIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
BITS = {"UINT8": 8, "INT8": 8, "UINT4": 4, "INT4": 4, "UINT2": 2, "INT2": 2}
SIXTEEN_BITS = "codes of 16 bits: a grid here has 8 at most"
FLOAT_GRID = "a grid of floating-point codes, which is not uniform"
LEFT_OUT = {
    "test_dequantizelinear_e4m3fn": FLOAT_GRID,
    "test_dequantizelinear_e4m3fn_float16": FLOAT_GRID,
    "test_dequantizelinear_e4m3fn_zero_point": FLOAT_GRID,
    "test_dequantizelinear_e5m2": FLOAT_GRID,
    "test_dequantizelinear_float4e2m1": FLOAT_GRID,
    "test_dequantizelinear_int16": SIXTEEN_BITS,
    "test_dequantizelinear_uint16": SIXTEEN_BITS,
    "test_quantizelinear_blocked_symmetric": SIXTEEN_BITS,
    "test_quantizelinear_e4m3fn": FLOAT_GRID,
    "test_quantizelinear_e5m2": FLOAT_GRID,
    "test_quantizelinear_float4e2m1": FLOAT_GRID,
    "test_quantizelinear_int16": SIXTEEN_BITS,
    "test_quantizelinear_uint16": SIXTEEN_BITS,
}
# Its third weight lies on a tie in exact arithmetic, which the rounding of the scale decides.
WITHOUT_CODES = {"test_dynamicquantizelinear"}

NOTES = {
    "per_tensor": "a zero point that is forgotten, added, or read as signed",
    "per_axis": "scale and zero point of another row",
    "blocked": "scale and zero point of another group: strided instead of consecutive",
    "signed": "codes of a signed type whose zero point was not moved with them",
    "dynamic": "a range without zero, or a zero point that is cut instead of rounded",
}
PATHS = {
    "affine.quantize": "onnx/affine.quantize.toml",
    "affine.dequantize": "onnx/affine.dequantize.toml",
    "fake_quantize.forward": "onnx/fake_quantize.forward.toml",
    "rtn.quantize": "onnx/rtn.quantize.toml",
}


class Layout:
    """Where the elements of a tensor stand in rows, and what they share a scale with."""

    def __init__(self, shape, scale_shape, axis, block_size):
        self.shape = shape
        if math.prod(scale_shape) == 1:
            self.flag, last, self.group_size = "per_tensor", range(len(shape)), None
        elif block_size:
            self.flag, last, self.group_size = "blocked", [axis], block_size
        else:
            rest = [a for a in range(len(shape)) if a != axis]
            self.flag, last, self.group_size = "per_axis", rest, None
        self.last = list(last)
        self.first = [a for a in range(len(shape)) if a not in self.last]

    def rows(self, shape, data):
        """The elements of a row-major tensor, [row][input]."""
        order = [*self.first, *self.last]
        strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
        row_length = math.prod(shape[a] for a in self.last)
        moved = [
            data[sum(index * strides[a] for index, a in zip(place, order, strict=True))]
            for place in itertools.product(*(range(shape[a]) for a in order))
        ]
        return [moved[start : start + row_length] for start in range(0, len(moved), row_length)]

    def groups(self, tensor):
        """Scales or zero points, [row][group]."""
        if self.flag == "blocked":
            return self.rows(tensor["shape"], tensor["data"])
        return [[element] for element in tensor["data"]]


def convert(vector):
    """(operation, case, outputs) of one node test."""
    (node,), (tensors,) = vector["nodes"], vector["sets"]
    given = dict(zip(node["inputs"], tensors["inputs"], strict=True))
    x, *grid = given.values()
    y, *rest = tensors["outputs"]
    name = vector["case"].removeprefix("test_")
    if node["op"] == "DynamicQuantizeLinear":
        yield dynamic(name, vector["case"], x, y, rest[1])
        return
    scale, zero_point = grid
    layout = Layout(
        x["shape"], scale["shape"], node["attrs"].get("axis", 1), node["attrs"].get("block_size")
    )
    codes = y if node["op"] == "QuantizeLinear" else x
    bits = BITS[codes["dtype"]]
    signed = codes["dtype"].startswith("INT")
    shift = 2 ** (bits - 1) if signed else 0
    params = {"bits": bits} | ({"group_size": layout.group_size} if layout.group_size else {})
    flags = [layout.flag] + ["signed"] * signed
    scales = layout.groups(scale)
    zero_points = [[float(z + shift) for z in row] for row in layout.groups(zero_point)]
    unsigned = [
        [int(code) + shift for code in row] for row in layout.rows(x["shape"], codes["data"])
    ]
    shared = {"scale": scales, "zero_point": zero_points}
    if node["op"] == "DequantizeLinear":
        output = layout.rows(x["shape"], y["data"])
        case = Case(name, flags, params, {"codes": unsigned, **shared})
        yield "affine.dequantize", case, {"output": output}
        return
    weight = layout.rows(x["shape"], x["data"])
    yield (
        "affine.quantize",
        Case(name, flags, params, {"weight": weight, **shared}),
        {"codes": unsigned},
    )
    if signed and not any(zero_point["data"]):
        offset = [[0.0] * len(row) for row in scales]
        case = Case(name, flags, params, {"weight": weight, "scale": scales, "offset": offset})
        codes = [[code - shift for code in row] for row in unsigned]
        yield "fake_quantize.forward", case, {"codes": codes}


def dynamic(name, source, x, y, zero_point):
    """The scale is left out: the source gives it rounded to f32."""
    outputs = {"zero_point": [[float(zero_point["data"][0])]]}
    remark = "scale and codes are left out: f32 rounds the scale, which decides a tie"
    if source not in WITHOUT_CODES:
        outputs["codes"] = [y["data"]]
        remark = "the scale is left out: the source rounds it to f32"
    params = {"bits": 8, "symmetric": False}
    case = Case(name, ["dynamic"], params, {"weight": [x["data"]]}, remark=remark)
    return "rtn.quantize", case, outputs


def assert_agrees(operation, case, outputs):
    """The oracle gives the same, and no f32 rounding decides a code."""
    inputs = {
        name: tensor if name in case_text.INTEGER_TENSORS else case_text.exact(tensor, Fraction)
        for name, tensor in case.inputs.items()
    }
    if "codes" in outputs:
        stability.check(operation, case.params, inputs)
    _, forward = oracle.OPERATIONS[operation]
    expected = forward(case.params, inputs)
    for name, tensor in outputs.items():
        assert expected[name] == tensor, (operation, case.id, name)


def texts(vectors):
    files = {operation: ([], []) for operation in PATHS}
    for vector in vectors:
        if not any(node["op"] in OPERATIONS for node in vector["nodes"]):
            continue
        if vector["case"] in LEFT_OUT:
            continue
        for operation, case, outputs in convert(vector):
            assert_agrees(operation, case, outputs)
            cases, answers = files[operation]
            cases.append(case)
            answers.append(outputs)
    result = {}
    for operation, (cases, answers) in files.items():
        used = {flag for case in cases for flag in case.flags}
        notes = {flag: text for flag, text in NOTES.items() if flag in used}
        file = GoldenFile(PATHS[operation], operation, notes, cases)
        case_text.lint(file)
        result[file.path] = case_text.render(file, ORIGIN, answers, HEADER)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("vectors", type=pathlib.Path, help="the node tests as JSON")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    stale = []
    for name, text in texts(json.loads(options.vectors.read_text())).items():
        path = HERE / name
        if path.exists() and path.read_bytes() == text.encode():
            continue
        stale.append(f"{name}: differs from what the node tests say")
        if not options.check:
            path.write_bytes(text.encode())
            print(f"written: {name}")
    if not options.check:
        return 0
    print("\n".join(stale) if stale else f"{len(PATHS)} files are up to date")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
