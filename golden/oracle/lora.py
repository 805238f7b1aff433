"""A linear layer with a low-rank adapter beside it."""

from fractions import Fraction

from . import derivative as d


def matmul_transposed(left, right):
    """left @ right^T: every row of `left` with every row of `right`."""
    return [[dot(a, b) for b in right] for a in left]


def dot(a, b):
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total = total + x * y
    return total


def transposed(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def adapted(weight, lora_a, lora_b, lora_scaling):
    """weight + lora_scaling * (lora_b @ lora_a)"""
    columns = transposed(lora_a)
    return [
        [weight[o][i] + dot(lora_b[o], columns[i]) * lora_scaling for i in range(len(columns))]
        for o in range(len(weight))
    ]


def forward(params, inputs):
    """y = x @ (weight + lora_scaling * (lora_b @ lora_a))^T"""
    weight = adapted(
        inputs["weight"], inputs["lora_a"], inputs["lora_b"], Fraction(params["lora_scaling"])
    )
    return {"y": matmul_transposed(inputs["x"], weight)}


def backward(params, inputs):
    x, lora_a, lora_b = (d.variables(inputs[name]) for name in ("x", "lora_a", "lora_b"))
    y = forward(params, {**inputs, "x": x, "lora_a": lora_a, "lora_b": lora_b})["y"]
    d_x, d_lora_a, d_lora_b = d.gradients(d.weighted_sum(inputs["d_y"], y), x, lora_a, lora_b)
    return {"d_x": d_x, "d_lora_a": d_lora_a, "d_lora_b": d_lora_b}
