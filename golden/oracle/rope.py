"""Rotary position embedding, half-split: element j turns with element j + head_dim/2."""

from decimal import Decimal

from . import derivative as d
from .precise import PI, cos, exp, ln, sin


def frequency(pair, head_dim, theta, scaling):
    """theta^(-2 pair / head_dim), then what `rope_scaling` of a config.json says.

    With llama3 the length of a pair's wave decides, in positions: short waves stay, long ones are
    stretched by the factor, and those between are a mixture by how often they fit into the
    original context.
    """
    rate = exp(-ln(theta) * 2 * pair / head_dim)
    if scaling is None:
        return rate
    factor = Decimal(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return rate / factor
    assert scaling["rope_type"] == "llama3", scaling
    original = scaling["original_max_position_embeddings"]
    low, high = Decimal(scaling["low_freq_factor"]), Decimal(scaling["high_freq_factor"])
    wavelength = 2 * PI / rate
    if wavelength < original / high:
        return rate
    if wavelength > original / low:
        return rate / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * rate / factor + smooth * rate


def rotated_head(head, position, theta, scaling=None):
    """(a, b) -> (a cos - b sin, b cos + a sin)"""
    half = len(head) // 2
    result = [None] * len(head)
    for j in range(half):
        turn = position * frequency(j, len(head), theta, scaling)
        c, s = cos(turn), sin(turn)
        result[j] = head[j] * c - head[j + half] * s
        result[j + half] = head[j + half] * c + head[j] * s
    return result


def forward(params, inputs):
    theta, scaling = Decimal(params["theta"]), params.get("rope_scaling")
    output = [
        [rotated_head(head, params["first_position"] + t, theta, scaling) for head in heads]
        for t, heads in enumerate(inputs["x"])
    ]
    return {"output": output}


def backward(params, inputs):
    """A rotation does not depend on x, so any x gives its derivative."""
    x = d.variables(d.over(lambda _: Decimal(0), inputs["d_output"]))
    output = forward(params, {"x": x})["output"]
    (d_x,) = d.gradients(d.weighted_sum(inputs["d_output"], output), x)
    return {"d_x": d_x}
