"""Learnable weight clipping: a grid between learned fractions of a weight's extremes."""

from decimal import ROUND_HALF_EVEN, Decimal

from . import derivative as d
from .quantize import code_range, group_size_of

LEAST_SCALE, GREATEST_SCALE = Decimal("1e-5"), Decimal("1e4")
GREATEST_ZERO_POINT = Decimal("1e4")


def sigmoid(logit):
    return 1 / (d.exp(-logit) + 1)


def nearest_integer(number):
    return number.to_integral_value(ROUND_HALF_EVEN)


def magnitude(number):
    return -number if d.value(number) < 0 else number


def grid(group, upper, lower, params):
    """(scale, zero_point, scale before the clamp) of one group; the zero point is a constant."""
    high, low = sigmoid(upper) * max(group), sigmoid(lower) * min(group)
    _, qmax = code_range(params["bits"])
    if params.get("symmetric", False):
        larger = magnitude(high)
        if d.value(magnitude(low)) > d.value(larger):
            larger = magnitude(low)
        scale = larger / Decimal(qmax)
    else:
        scale = (high - low) / Decimal(2 ** params["bits"] - 1)
    clamped = d.clamp(scale, LEAST_SCALE, GREATEST_SCALE)
    if params.get("symmetric", False):
        return clamped, Decimal(qmax), scale
    zero_point = -d.value(low) / d.value(clamped)
    zero_point = max(-GREATEST_ZERO_POINT, min(GREATEST_ZERO_POINT, zero_point))
    return clamped, nearest_integer(zero_point), scale


def code(weight, scale, zero_point, bits):
    """(integer, the same as a function of weight and scale); a constant beyond the grid's ends."""
    argument = weight / scale
    place = nearest_integer(d.value(argument)) + zero_point
    held = max(Decimal(0), min(Decimal(2**bits - 1), place))
    return held, argument + (place - d.value(argument)) if place == held else held


def quantized(params, inputs):
    """Codes, scales, zero points and outputs. Extremes are taken from plain numbers: constants."""
    weight, size = inputs["weight"], group_size_of(params, inputs["weight"])
    codes, scales, zero_points, output = [], [], [], []
    for o, row in enumerate(weight):
        grids = []
        for g, start in enumerate(range(0, len(row), size)):
            group = [d.value(element) for element in row[start : start + size]]
            grids.append(grid(group, inputs["upper"][o][g], inputs["lower"][o][g], params))
        scales.append([scale for scale, _, _ in grids])
        zero_points.append([zero_point for _, zero_point, _ in grids])
        codes.append([])
        output.append([])
        for i, element in enumerate(row):
            scale, zero_point, _ = grids[i // size]
            integer, place = code(element, scale, zero_point, params["bits"])
            codes[-1].append(integer)
            output[-1].append(scale * (place - zero_point))
    return codes, scales, zero_points, output


def forward(params, inputs):
    codes, scale, zero_point, output = quantized(params, inputs)
    return {"codes": codes, "scale": scale, "zero_point": zero_point, "output": output}


def backward(params, inputs):
    names = ("weight", "upper", "lower")
    trained = {name: d.variables(inputs[name]) for name in names}
    *_, output = quantized(params, {**inputs, **trained})
    loss = d.weighted_sum(inputs["d_output"], output)
    gradients = d.gradients(loss, *trained.values())
    return {f"d_{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
