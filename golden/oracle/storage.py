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
