"""L4Q: the adapted weight is quantized, and that is what the layer multiplies by."""

from fractions import Fraction

from . import derivative as d
from . import lora, quantize


def effective_weight(params, inputs):
    """(codes, fake_quantized) of weight + lora_scaling * (lora_b @ lora_a)"""
    combined = lora.adapted(
        inputs["weight"], inputs["lora_a"], inputs["lora_b"], Fraction(params["lora_scaling"])
    )
    group_size = quantize.group_size_of(params, combined)
    return quantize.fake_quantize(
        combined,
        inputs["scale"],
        inputs["offset"],
        params["bits"],
        group_size,
        quantize.mask_of(params),
    )


def forward(params, inputs):
    """y = x @ fake_quantized^T"""
    codes, fake_quantized = effective_weight(params, inputs)
    y = lora.matmul_transposed(inputs["x"], fake_quantized)
    return {"y": y, "codes": codes, "fake_quantized": fake_quantized}


def backward(params, inputs):
    """The weight is frozen; scale and offset gradients carry the gradient scale."""
    names = ("x", "lora_a", "lora_b", "scale", "offset")
    trained = {name: d.variables(inputs[name]) for name in names}
    y = forward(params, {**inputs, **trained})["y"]
    loss = d.weighted_sum(inputs["d_y"], y)
    result = dict(zip(names, d.gradients(loss, *trained.values()), strict=True))
    factor = quantize.factor_for(params, inputs["weight"])
    result["scale"] = quantize.scaled(factor, result["scale"])
    result["offset"] = quantize.scaled(factor, result["offset"])
    return {f"d_{name}": gradient for name, gradient in result.items()}


def merge(params, inputs):
    """The codes of the forward, with the scale that it divided by, and the offset."""
    codes, _ = effective_weight(params, inputs)
    scale = d.over(quantize.raised, inputs["scale"])
    return {"codes": codes, "scale": scale, "offset": inputs["offset"]}
