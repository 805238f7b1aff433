"""AWQ's two searches, on fractions where there is no power and on decimals where there is one."""

from decimal import Decimal

from .lora import dot, matmul_transposed
from .precise import sqrt
from .quantize import group_size_of

DEFAULT_STEPS = 20


def spans(group, bits):
    """(scale, zero_point, codes) of a group on the grid between its own least and largest element.

    range at least 1e-5, scale = range / (2^bits - 1), zero_point = -round(min / scale) on the grid,
    codes = round(w / scale) + zero_point on the grid. round() of Python goes to the even neighbour.
    """
    last_code = 2**bits - 1
    number = type(group[0])
    smallest_range = number(1) / number(100_000)
    scale = max(max(group) - min(group), smallest_range) / last_code
    zero_point = min(max(-round(min(group) / scale), 0), last_code)
    codes = [min(max(round(w / scale) + zero_point, 0), last_code) for w in group]
    return scale, zero_point, codes


def range_quantize(row, bits, size):
    """The row with every group on its own grid."""
    output = []
    for start in range(0, len(row), size):
        scale, zero_point, codes = spans(row[start : start + size], bits)
        output.extend(scale * (code - zero_point) for code in codes)
    return output


def magnitudes(x):
    """The mean of |x| over the tokens, by input channel."""
    return [sum(abs(value) for value in channel) / len(x) for channel in zip(*x, strict=True)]


def channel_scales(x, k, steps):
    """magnitude^(k / steps), at least 1e-4, over the geometric mean of the two extremes."""
    powers = []
    for magnitude in magnitudes(x):
        power = Decimal(1) if k == 0 else magnitude ** (Decimal(k) / Decimal(steps))
        powers.append(max(power, Decimal("1e-4")))
    middle = sqrt(max(powers) * min(powers))
    return [power / middle for power in powers]


def scale_candidates(params, inputs):
    """(error, k, channel scales, output) for every ratio."""
    weight, x = inputs["weight"], inputs["x"]
    steps = params.get("steps", DEFAULT_STEPS)
    size = group_size_of(params, weight)
    wanted = matmul_transposed(x, weight)
    result = []
    for k in range(steps):
        scales = channel_scales(x, k, steps)
        output = []
        for row in scaled(weight, scales):
            rounded = range_quantize(row, params["bits"], size)
            output.append([q / s for q, s in zip(rounded, scales, strict=True)])
        given = matmul_transposed(x, output)
        squares = [
            (a - b) ** 2
            for rows in zip(given, wanted, strict=True)
            for a, b in zip(*rows, strict=True)
        ]
        result.append((sum(squares) / len(squares), k, scales, output))
    return result


def scaled(weight, scales):
    return [[w * s for w, s in zip(row, scales, strict=True)] for row in weight]


def first_of_least(candidates):
    """The first candidate whose error nothing beats; 65 digits apart is equal."""
    least = min(candidate[0] for candidate in candidates)
    allowed = least + abs(least) / 10**65
    return next(candidate for candidate in candidates if candidate[0] <= allowed)


def scale(params, inputs):
    _, k, scales, output = first_of_least(scale_candidates(params, inputs))
    steps = params.get("steps", DEFAULT_STEPS)
    return {"channel_scale": scales, "ratio": Decimal(k) / Decimal(steps), "output": output}


def clip_candidates(group, x, params):
    """(error, k, max_value, output) for every range of one group; x has the group's channels."""
    steps = params.get("steps", DEFAULT_STEPS)
    absmax = max(abs(w) for w in group)
    number = type(absmax)
    wanted = [dot(token, group) for token in x]
    result = []
    for k in range(steps // 2):
        max_value = absmax * (1 - number(k) / number(steps))
        clipped = [min(max(w, -max_value), max_value) for w in group]
        output = range_quantize(clipped, params["bits"], len(group))
        errors = [(dot(token, output) - y) ** 2 for token, y in zip(x, wanted, strict=True)]
        result.append((sum(errors) / len(x), k, max_value, output))
    return result


def clip(params, inputs):
    weight, x = inputs["weight"], inputs["x"]
    size = group_size_of(params, weight)
    max_value, output = [], []
    for row in weight:
        best = []
        for start in range(0, len(row), size):
            channels = [token[start : start + size] for token in x]
            candidates = clip_candidates(row[start : start + size], channels, params)
            best.append(first_of_least(candidates))
        max_value.append([found[2] for found in best])
        output.append([element for found in best for element in found[3]])
    return {"max_value": max_value, "output": output}
