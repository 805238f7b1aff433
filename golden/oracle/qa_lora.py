"""QA-LoRA: an adapter on pooled groups of inputs, and the zero points that take it up."""

from fractions import Fraction

from . import derivative as d
from .affine import weights
from .lora import dot, matmul_transposed, transposed
from .quantize import group_size_of, raised


def pool_factor(params, group_size, groups):
    """What multiplies the sum of a group's inputs."""
    if params.get("dialect") == "hf_peft_qalora":
        return Fraction(groups, group_size)
    return Fraction(1, group_size) if params["pool"] == "mean" else Fraction(1)


def adapter_weight(params, inputs):
    """What the adapter adds to every weight of a group: [out][groups]."""
    groups = len(inputs["lora_a"][0])
    group_size = len(inputs["codes"][0]) // groups
    factor = Fraction(params["lora_scaling"]) * pool_factor(params, group_size, groups)
    columns = transposed(inputs["lora_a"])
    return [[dot(row, column) * factor for column in columns] for row in inputs["lora_b"]]


def forward(params, inputs):
    """y = x @ (weight + adapter)^T, the adapter's weight repeated over each group"""
    size = group_size_of(params, inputs["codes"])
    added = adapter_weight(params, inputs)
    weight = [
        [element + added[o][i // size] for i, element in enumerate(row)]
        for o, row in enumerate(weights(inputs, size))
    ]
    return {"y": matmul_transposed(inputs["x"], weight)}


def backward(params, inputs):
    x, lora_a, lora_b = (d.variables(inputs[name]) for name in ("x", "lora_a", "lora_b"))
    y = forward(params, {**inputs, "x": x, "lora_a": lora_a, "lora_b": lora_b})["y"]
    d_x, d_lora_a, d_lora_b = d.gradients(d.weighted_sum(inputs["d_y"], y), x, lora_a, lora_b)
    return {"d_x": d_x, "d_lora_a": d_lora_a, "d_lora_b": d_lora_b}


def merge(params, inputs):
    """scale * (code - merged) = scale * (code - zero_point) + added, solved for merged"""
    added = adapter_weight(params, inputs)
    merged = [
        [
            inputs["zero_point"][o][g] - added[o][g] / raised(inputs["scale"][o][g])
            for g in range(len(row))
        ]
        for o, row in enumerate(added)
    ]
    assert_merged(params, inputs, merged)
    return {"zero_point": merged}


def assert_merged(params, inputs, merged):
    """The adapted layer and the merged one give the same output for every unit input."""
    count = len(inputs["codes"][0])
    unit = [[Fraction(i == k) for i in range(count)] for k in range(count)]
    zero = [[Fraction(0)] * len(row) for row in inputs["lora_b"]]
    without = {**inputs, "zero_point": merged, "lora_b": zero}
    assert forward(params, {**inputs, "x": unit}) == forward(params, {**without, "x": unit})
