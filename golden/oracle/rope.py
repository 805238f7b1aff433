"""Rotary position embedding, half-split: element j turns with element j + head_dim/2."""

from decimal import Decimal

from . import derivative as d
from .precise import cos, exp, ln, sin


def angle(position, pair, head_dim, theta):
    """position * theta^(-2 pair / head_dim)"""
    return position * exp(-ln(theta) * 2 * pair / head_dim)


def rotated_head(head, position, theta):
    """(a, b) -> (a cos - b sin, b cos + a sin)"""
    half = len(head) // 2
    result = [None] * len(head)
    for j in range(half):
        turn = angle(position, j, len(head), theta)
        c, s = cos(turn), sin(turn)
        result[j] = head[j] * c - head[j + half] * s
        result[j + half] = head[j + half] * c + head[j] * s
    return result


def forward(params, inputs):
    theta = Decimal(params["theta"])
    output = [
        [rotated_head(head, params["first_position"] + t, theta) for head in heads]
        for t, heads in enumerate(inputs["x"])
    ]
    return {"output": output}


def backward(params, inputs):
    """A rotation does not depend on x, so any x gives its derivative."""
    x = d.variables(d.over(lambda _: Decimal(0), inputs["d_output"]))
    output = forward(params, {"x": x})["output"]
    (d_x,) = d.gradients(d.weighted_sum(inputs["d_output"], output), x)
    return {"d_x": d_x}
