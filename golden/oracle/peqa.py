"""PEQA: a quantized layer whose scales are trained."""

from . import derivative as d
from .affine import weights
from .lora import matmul_transposed
from .quantize import group_size_of


def forward(params, inputs):
    """y = x @ weight^T"""
    size = group_size_of(params, inputs["codes"])
    return {"y": matmul_transposed(inputs["x"], weights(inputs, size))}


def backward(params, inputs):
    x, scale = d.variables(inputs["x"]), d.variables(inputs["scale"])
    y = forward(params, {**inputs, "x": x, "scale": scale})["y"]
    d_x, d_scale = d.gradients(d.weighted_sum(inputs["d_y"], y), x, scale)
    return {"d_x": d_x, "d_scale": d_scale}
