"""NF4 codes and their double quantization, over fractions."""

from fractions import Fraction
from itertools import pairwise

# Every one is a number of binary32, and a double prints it in full.
LEVELS = [
    Fraction(level)
    for level in (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    )
]


def nearest(table, value):
    """The place of the nearest entry, the lower of two that are equally near."""
    return min(range(len(table)), key=lambda place: (abs(value - table[place]), place))


def nearest_f32(number):
    """A positive fraction rounded once to 24 bits, ties to even; far from both ends of the type."""
    unit = Fraction(1)
    while number >= unit * 2**24:
        unit *= 2
    while number < unit * 2**23:
        unit /= 2
    return round(number / unit) * unit


def dynamic_map():
    """The 256 values: seven decades with both signs, 0 and 1.

    The decade that ends at 10^(e-6) is cut at 2^e + 1 equidistant points from a tenth of its end
    to its end, and the middles between the cuts are taken.
    """
    values = [Fraction(0), Fraction(1)]
    for e in range(7):
        end = Fraction(10) ** (e - 6)
        cuts = [end / 10 + (end - end / 10) * k / 2**e for k in range(2**e + 1)]
        for low, high in pairwise(cuts):
            middle = nearest_f32((low + high) / 2)
            values += [middle, -middle]
    assert len(values) == 256
    return sorted(values)


MAP = dynamic_map()


def blocks_of(numbers, size):
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def double_quantize(absmax):
    """(codes, scales, offset) of a list of block magnitudes."""
    offset = sum(absmax) / len(absmax)
    codes, scales = [], []
    for block in blocks_of(absmax, 256):
        scale = max(abs(magnitude - offset) for magnitude in block)
        scales.append(scale)
        for magnitude in block:
            codes.append(nearest(MAP, (magnitude - offset) / scale) if scale else MAP.index(0))
    return codes, scales, offset


def quantize(params, inputs):
    weight = inputs["weight"]
    size, columns = params["block_size"], len(weight[0])
    blocks = blocks_of([element for row in weight for element in row], size)
    absmax = [max(abs(element) for element in block) for block in blocks]
    codes = [
        nearest(LEVELS, element / magnitude) if magnitude else LEVELS.index(0)
        for block, magnitude in zip(blocks, absmax, strict=True)
        for element in block
    ]
    outputs = {"codes": blocks_of(codes, columns)}
    if params["double_quantize"]:
        absmax_codes, scales, offset = double_quantize(absmax)
        absmax = [MAP[code] * scales[b // 256] + offset for b, code in enumerate(absmax_codes)]
        outputs["absmax_codes"] = absmax_codes
        outputs["absmax_scale"], outputs["absmax_offset"] = scales, offset
    output = [LEVELS[code] * absmax[n // size] for n, code in enumerate(codes)]
    return {**outputs, "absmax": absmax, "output": blocks_of(output, columns)}
