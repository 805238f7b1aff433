"""Full-model quantization-aware training: the weight is trained through its quantizer."""

from fractions import Fraction

from . import derivative as d
from . import lora, quantize


def quantized_weight(params, inputs):
    """Without an offset (LSQ) the offset is zero."""
    weight, scale = inputs["weight"], inputs["scale"]
    offset = inputs.get("offset", [[Fraction(0)] * len(row) for row in scale])
    group_size = quantize.group_size_of(params, weight)
    mask = quantize.mask_of(params)
    return quantize.fake_quantize(weight, scale, offset, params["bits"], group_size, mask)[1]


def forward(params, inputs):
    """y = x @ fake_quantized^T"""
    return {"y": lora.matmul_transposed(inputs["x"], quantized_weight(params, inputs))}


def backward(params, inputs):
    names = ["x", "weight", "scale"] + (["offset"] if "offset" in inputs else [])
    trained = {name: d.variables(inputs[name]) for name in names}
    y = forward(params, {**inputs, **trained})["y"]
    loss = d.weighted_sum(inputs["d_y"], y)
    result = dict(zip(names, d.gradients(loss, *trained.values()), strict=True))
    factor = quantize.factor_for(params, inputs["weight"])
    for name in names[2:]:
        result[name] = quantize.scaled(factor, result[name])
    return {f"d_{name}": gradient for name, gradient in result.items()}
