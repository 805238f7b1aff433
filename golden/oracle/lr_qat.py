"""LR-QAT: codes of a stored weight plus a low-rank update in units of the grid."""

from fractions import Fraction

from . import derivative as d
from . import lora, quantize, storage


def ends(params, inputs, o, g):
    """Smallest and largest code of a group."""
    low, high = quantize.code_range(params["bits"])
    if "zero_point" in inputs:
        move = int(inputs["zero_point"][o][g]) + low
        low, high = low - move, high - move
    return low, high


def stored_as(params, quotient, low, high):
    """(phi, what is stored) of one weight over its first scale.

    Bytes and nibbles hold -128..127 and qmin..qmax whatever the ends of the grid are: every stored
    value is tried, and the nearest one that lies on the grid wins, the even multiple of its unit of
    two equally near.
    """
    kind = params["downcast"]
    if kind == "f32":
        return quotient, None
    if kind in ("bf16", "f16"):
        return storage.nearest_stored(quotient, kind), None
    qmin, qmax = quantize.code_range(params["bits"])
    unit = 2 ** (8 - params["bits"]) if kind == "fixed8" else 1
    candidates = range(-128, 128) if kind == "fixed8" else range(qmin, qmax + 1)
    # In units of the stored type, with code 0 at 0.
    grid = [(byte + (low - qmin) * unit, byte) for byte in candidates]
    grid = [(value, byte) for value, byte in grid if low * unit <= value <= high * unit]
    clipped = min(max(quotient, low), high) * unit
    value, byte = min(grid, key=lambda pair: (abs(pair[0] - clipped), pair[0] % 2))
    return Fraction(value, unit), byte


def over_groups(params, inputs, function):
    """`function(weight, o, i, g)` of every weight."""
    size = quantize.group_size_of(params, inputs["weight"])
    return [
        [function(weight, o, i, i // size) for i, weight in enumerate(row)]
        for o, row in enumerate(inputs["weight"])
    ]


def downcast(params, inputs):
    def one(weight, o, _, g):
        quotient = weight / quantize.raised(inputs["initial_scale"][o][g])
        return stored_as(params, quotient, *ends(params, inputs, o, g))

    pairs = over_groups(params, inputs, one)
    outputs = {"phi": [[phi for phi, _ in row] for row in pairs]}
    stored = [[byte for _, byte in row] for row in pairs]
    if params["downcast"] == "fixed8":
        outputs["stored"] = stored
    if params["downcast"] == "int":
        outputs["stored"] = [storage.packed_row([byte % 16 for byte in row], 4) for row in stored]
    return outputs


def inner_weight(params, inputs):
    """The frozen weight in units of the grid."""
    if params.get("inner_scale", "frozen") == "frozen":
        return downcast(params, inputs)["phi"]
    return over_groups(
        params, inputs, lambda weight, o, _, g: weight / quantize.raised(inputs["scale"][o][g])
    )


def residual(x):
    """What rounding x to the nearest integer, ties to even, adds to it: a constant."""
    return round(d.value(x)) - d.value(x)


def clamped_code(params, inner, update, low, high):
    """The code, straight through the rounding, clamped after it or before it."""
    if params.get("dialect", "paper") == "lr_qat_code":
        return d.clamp(inner + (update + residual(update)), low, high)
    argument = inner + update
    if params.get("mask", "rounded") == "rounded":
        return d.clamp(argument + residual(argument), low, high)
    clamped = d.clamp(argument, low, high)
    return clamped + residual(clamped)


def code_values(params, inputs):
    inner = inner_weight(params, inputs)
    columns = lora.transposed(inputs["lora_a"])
    scaling = Fraction(params["lora_scaling"])

    def one(_, o, i, g):
        update = lora.dot(inputs["lora_b"][o], columns[i]) * scaling
        return clamped_code(params, inner[o][i], update, *ends(params, inputs, o, g))

    return over_groups(params, inputs, one)


def forward(params, inputs):
    """y = x @ (scale * codes)^T"""
    codes = code_values(params, inputs)
    fake_quantized = over_groups(
        params,
        inputs,
        lambda _, o, i, g: codes[o][i] * quantize.raised(inputs["scale"][o][g]),
    )
    y = lora.matmul_transposed(inputs["x"], fake_quantized)
    return {"y": y, "codes": d.over(d.value, codes), "fake_quantized": fake_quantized}


def backward(params, inputs):
    """The weight, its first scale and its zero-points are frozen."""
    names = ("x", "lora_a", "lora_b", "scale")
    trained = {name: d.variables(inputs[name]) for name in names}
    y = forward(params, {**inputs, **trained})["y"]
    loss = d.weighted_sum(inputs["d_y"], y)
    result = dict(zip(names, d.gradients(loss, *trained.values()), strict=True))
    if params.get("inner_scale", "frozen") == "frozen":
        assert result["scale"] == published_d_scale(params, inputs)
    return {f"d_{name}": gradient for name, gradient in result.items()}


def published_d_scale(params, inputs):
    """d_scale[group] = sum over the group of d_fake_quantized * code: no residual."""
    codes = code_values(params, inputs)
    d_weight = lora.matmul_transposed(lora.transposed(inputs["d_y"]), lora.transposed(inputs["x"]))
    d_scale = [[Fraction(0)] * len(row) for row in inputs["scale"]]

    def add(_, o, i, g):
        if inputs["scale"][o][g] >= quantize.SCALE_FLOOR:
            d_scale[o][g] += d_weight[o][i] * codes[o][i]

    over_groups(params, inputs, add)
    return d_scale


def merge(params, inputs):
    """The codes of the forward, with the scale that multiplies them."""
    codes = code_values(params, inputs)
    return {"codes": codes, "scale": d.over(quantize.raised, inputs["scale"])}
