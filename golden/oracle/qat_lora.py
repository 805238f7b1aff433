"""QAT-LoRA: a quantized frozen weight with the adapter beside it."""

from . import derivative as d
from . import lora, qat, quantize


def forward(params, inputs):
    """y = x @ (fake_quantized + lora_scaling * (lora_b @ lora_a))^T"""
    return lora.forward(params, {**inputs, "weight": qat.quantized_weight(params, inputs)})


def backward(params, inputs):
    names = ("x", "lora_a", "lora_b", "scale", "offset")
    trained = {name: d.variables(inputs[name]) for name in names}
    y = forward(params, {**inputs, **trained})["y"]
    loss = d.weighted_sum(inputs["d_y"], y)
    result = dict(zip(names, d.gradients(loss, *trained.values()), strict=True))
    factor = quantize.factor_for(params, inputs["weight"])
    for name in ("scale", "offset"):
        result[name] = quantize.scaled(factor, result[name])
    return {f"d_{name}": gradient for name, gradient in result.items()}
