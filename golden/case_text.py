"""The text form of golden cases: what a case is made of, and how it is written as TOML."""

import dataclasses
import math
import struct
import textwrap
from decimal import Decimal
from fractions import Fraction

FORMAT = "plumbline-case-1"
INTEGER_TENSORS = {
    "absmax_codes",
    "codes",
    "group_index",
    "packed",
    "stored",
    "targets",
    "tokens",
}
LINE = 100


@dataclasses.dataclass
class Case:
    """Inputs of one case. `error` is a part of the message that a refusal must carry."""

    id: str
    flags: list[str]
    params: dict
    inputs: dict
    error: str | None = None
    remark: str | None = None


@dataclasses.dataclass
class GoldenFile:
    """All cases of one operation. `notes` says for every flag which mistake it would catch."""

    path: str
    op: str
    notes: dict[str, str]
    cases: list[Case]


def case(id, flags, params=None, *, error=None, remark=None, **inputs):
    return Case(id, flags.split(), params or {}, inputs, error, remark)


def lint(file: GoldenFile) -> None:
    """The rules that a file must keep, beyond what its cases compute."""
    ids = [case.id for case in file.cases]
    assert len(set(ids)) == len(ids), f"{file.path}: repeated id"
    used = {flag for case in file.cases for flag in case.flags}
    assert used == set(file.notes), f"{file.path}: notes and flags differ: {used ^ set(file.notes)}"
    for case in file.cases:
        where = f"{file.path}: {case.id}"
        assert case.flags, f"{where}: a case says what it would catch"
        for name, tensor in case.inputs.items():
            elements = list(leaves(tensor))
            if name in INTEGER_TENSORS:
                assert all(type(element) is int for element in elements), f"{where}: {name}"
                continue
            assert all(fits_f32(element) for element in elements), f"{where}: {name} is not f32"
            finite = all(math.isfinite(element) for element in elements)
            assert finite or case.error, f"{where}: {name} is not finite"


def leaves(tensor):
    if isinstance(tensor, list):
        for part in tensor:
            yield from leaves(part)
    else:
        yield tensor


def fits_f32(number) -> bool:
    if not math.isfinite(number):
        return True
    return struct.unpack("f", struct.pack("f", number))[0] == number


def exact(tensor, number_type):
    """The input as the oracle takes it: nested lists of Fraction or Decimal."""
    if isinstance(tensor, list):
        return [exact(part, number_type) for part in tensor]
    return number_type(tensor)


HEADER = "# Written by golden/generate.py from golden/cases; change those and run it again."


def render(file: GoldenFile, origin: str, outputs: list[dict | None], header: str = HEADER) -> str:
    lines = [header]
    lines += [f'format = "{FORMAT}"', f'op = "{file.op}"', f'origin = "{origin}"']
    for flag, catches in file.notes.items():
        lines += ["", f"[notes.{flag}]", f'catches = "{catches}"']
    for case, output in zip(file.cases, outputs, strict=True):
        lines += ["", "[[case]]", f'id = "{case.id}"']
        if case.remark:
            lines.append(f"# {case.remark}")
        lines.append("flags = [" + ", ".join(f'"{flag}"' for flag in case.flags) + "]")
        lines.append(f"params = {inline_table(case.params)}")
        lines += [tensor_line(f"in.{key(name)}", tensor, name) for name, tensor in case.inputs.items()]
        if case.error:
            lines.append(f'expect_error = "{case.error}"')
        else:
            lines += [tensor_line(f"out.{key(name)}", tensor, name) for name, tensor in output.items()]
    text = "\n".join(lines) + "\n"
    assert text.isascii()
    return text


def key(name: str) -> str:
    """Quoted where a dot belongs to the name."""
    return f'"{name}"' if "." in name else name


def inline_table(params: dict) -> str:
    if not params:
        return "{}"
    return "{ " + ", ".join(f"{name} = {scalar(value)}" for name, value in params.items()) + " }"


def tensor_line(key: str, tensor, name: str) -> str:
    as_integer = name in INTEGER_TENSORS
    short = f"{key} = {nested(tensor, as_integer)}"
    return short if len(short) <= LINE else f"{key} = {nested_lines(tensor, as_integer, '')}"


def nested(tensor, as_integer: bool) -> str:
    if isinstance(tensor, list):
        return "[" + ", ".join(nested(part, as_integer) for part in tensor) + "]"
    return scalar(int(tensor) if as_integer else float(tensor))


def nested_lines(tensor, as_integer: bool, indent: str) -> str:
    """Broken over lines: one row a line where rows fit, and a row that does not fit is filled."""
    inner = indent + "    "
    if not isinstance(tensor[0], list):
        numbers = textwrap.wrap(nested(tensor, as_integer)[1:-1] + ",", LINE - len(inner))
        return "[\n" + "".join(f"{inner}{line}\n" for line in numbers) + indent + "]"
    parts = []
    for part in tensor:
        short = nested(part, as_integer)
        fits = len(inner + short) < LINE
        parts.append(inner + (short if fits else nested_lines(part, as_integer, inner)) + ",\n")
    return "[\n" + "".join(parts) + indent + "]"


def scalar(value) -> str:
    """Integers, names and truth values; floats as the shortest decimal that reads back the same."""
    if isinstance(value, dict):
        return inline_table(value)
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    assert isinstance(value, int | float)
    return repr(value + 0.0 if isinstance(value, float) and value == 0 else value)


def number_type(origin: str):
    return Fraction if origin.startswith("exact-rational") else Decimal
