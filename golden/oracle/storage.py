"""Narrow float types and packed codes."""

import bisect
import functools
import struct
from fractions import Fraction

from . import derivative as d


def decoded(pattern, dtype):
    """The number that a 16-bit pattern stands for; bfloat16 is the upper half of an f32."""
    if dtype == "bf16":
        return struct.unpack("<f", struct.pack("<I", pattern << 16))[0]
    return struct.unpack("<e", struct.pack("<H", pattern))[0]


@functools.cache
def positive_numbers(dtype):
    """Every finite number of the type from 0 up; the patterns are in the order of the numbers."""
    infinity = {"bf16": 0x7F80, "f16": 0x7C00}[dtype]
    return [Fraction(decoded(pattern, dtype)) for pattern in range(infinity)]


def nearest_stored(number, dtype):
    """The number of the type that is nearest, the one with the even pattern of two equally near."""
    numbers = positive_numbers(dtype)
    size = abs(number)
    above = bisect.bisect_left(numbers, size)
    assert above < len(numbers) or size - numbers[-1] < (numbers[-1] - numbers[-2]) / 2, "overflow"
    near = [pattern for pattern in (above - 1, above) if 0 <= pattern < len(numbers)]
    best = min(near, key=lambda pattern: (abs(numbers[pattern] - size), pattern % 2))
    return numbers[best] if number >= 0 else -numbers[best]


def cast(params, inputs):
    return {"output": d.over(lambda x: nearest_stored(x, params["dtype"]), inputs["input"])}


@functools.cache
def usable_scales(rule):
    """The numbers that a scale may be, ascending, each with whether its pattern is even.

    f16 has all that are above zero. bf16_in_f16 has those of bfloat16 that f16 holds as well, from
    the first on above which there is no gap: below 2^-17 only every second or fewer are there.
    """
    if rule == "f16":
        return [(x, p % 2 == 0) for p, x in enumerate(positive_numbers("f16")) if x > 0]
    assert rule == "bf16_in_f16"
    held = set(positive_numbers("f16"))
    numbers = list(enumerate(positive_numbers("bf16")))
    last = max(p for p, x in numbers if x in held)
    first = last
    while numbers[first - 1][1] in held:
        first -= 1
    return [(x, p % 2 == 0) for p, x in numbers[first : last + 1]]


def round_scale(scale, rule):
    """The usable scale that is nearest, differentiable: an end beyond an end, and rounded in between.

    Straight through: between the ends the result is the scale plus a constant.
    """
    numbers = usable_scales(rule)
    held = d.clamp(scale, numbers[0][0], numbers[-1][0])
    plain = d.value(held)
    above = bisect.bisect_left(numbers, plain, key=lambda entry: entry[0])
    near = numbers[max(above - 1, 0) : above + 1]
    nearest, _ = min(near, key=lambda entry: (abs(entry[0] - plain), not entry[1]))
    return held + (nearest - plain)


def round_scale_forward(params, inputs):
    rule = params["scale_rule"]
    return {"rounded_scale": d.over(lambda x: round_scale(x, rule), inputs["scale"])}


def round_scale_backward(params, inputs):
    scale = d.variables(inputs["scale"])
    rounded = d.over(lambda x: round_scale(x, params["scale_rule"]), scale)
    (d_scale,) = d.gradients(d.weighted_sum(inputs["d_rounded_scale"], rounded), scale)
    return {"d_scale": d_scale}


def packed_row(codes, bits):
    """The row as one number in base 2^bits, first code lowest, written in bytes, lowest first."""
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    return list(number.to_bytes(-(-len(codes) * bits // 8), "little"))


def pack(params, inputs):
    return {"packed": [packed_row(row, params["bits"]) for row in inputs["codes"]]}


def unpack(params, inputs):
    codes = []
    for row in inputs["packed"]:
        number = int.from_bytes(bytes(row), "little")
        codes.append([])
        for _ in range(params["in_features"]):
            number, code = divmod(number, 2 ** params["bits"])
            codes[-1].append(code)
        assert number == 0, "padding"
    return {"codes": codes}
