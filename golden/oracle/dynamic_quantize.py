"""Activations on a grid between the extremes of each token."""

from fractions import Fraction

from . import derivative as d
from .quantize import SCALE_FLOOR, group_size_of


def grid(group, params):
    """(scale, zero_point) of one group of one token, constants."""
    low, high = min(group), max(group)
    if low < high:
        scale = max((high - low) / (2 ** params["bits"] - 1), SCALE_FLOOR)
    else:
        scale = max(abs(low), SCALE_FLOOR) if low else Fraction(1)
    zero_point = -low / scale
    # Python rounds a fraction to the nearest integer, ties to even.
    return scale, zero_point if params.get("zero_point") == "float" else Fraction(round(zero_point))


def level(x, scale, zero_point, bits):
    """The place of x among the steps, held between the first and the last; straight through."""
    argument = x / scale
    rounding_error = round(d.value(argument)) - d.value(argument)
    return d.clamp(argument + rounding_error + zero_point, Fraction(0), Fraction(2**bits - 1))


def quantized(params, x):
    """Levels, scales, zero points and outputs; `x` may be variables."""
    size = group_size_of(params, x)
    levels, scales, zero_points, output = [], [], [], []
    for token in x:
        grids = [
            grid([d.value(element) for element in token[start : start + size]], params)
            for start in range(0, len(token), size)
        ]
        scales.append([scale for scale, _ in grids])
        zero_points.append([zero_point for _, zero_point in grids])
        levels.append([level(x, *grids[i // size], params["bits"]) for i, x in enumerate(token)])
        output.append(
            [
                (place - grids[i // size][1]) * grids[i // size][0]
                for i, place in enumerate(levels[-1])
            ]
        )
    return levels, scales, zero_points, output


def forward(params, inputs):
    levels, scale, zero_point, output = quantized(params, inputs["x"])
    result = {"scale": scale, "zero_point": zero_point, "output": output}
    # A zero point that is not rounded leaves levels between the integers: there are no codes.
    return result if params.get("zero_point") == "float" else {"codes": levels, **result}


def backward(params, inputs):
    x = d.variables(inputs["x"])
    *_, output = quantized(params, x)
    (d_x,) = d.gradients(d.weighted_sum(inputs["d_output"], output), x)
    return {"d_x": d_x}
