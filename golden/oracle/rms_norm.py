"""Root-mean-square normalisation of rows."""

from decimal import Decimal

from . import derivative as d


def normalised_row(row, weight, eps):
    """output[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]"""
    square = row[0] * row[0]
    for element in row[1:]:
        square = square + element * element
    root = d.sqrt(square / Decimal(len(row)) + eps)
    return [element / root * factor for element, factor in zip(row, weight, strict=True)]


def forward(params, inputs):
    eps = Decimal(params["eps"])
    return {"output": [normalised_row(row, inputs["weight"], eps) for row in inputs["x"]]}


def backward(params, inputs):
    x, weight = d.variables(inputs["x"]), d.variables(inputs["weight"])
    output = forward(params, {"x": x, "weight": weight})["output"]
    d_x, d_weight = d.gradients(d.weighted_sum(inputs["d_output"], output), x, weight)
    return {"d_x": d_x, "d_weight": d_weight}
