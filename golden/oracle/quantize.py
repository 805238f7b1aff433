"""The uniform quantizer, its straight-through gradient and its gradient scale."""

from fractions import Fraction

from . import derivative as d
from .precise import sqrt_rational

SCALE_FLOOR = Fraction(1, 10**8)


def code_range(bits):
    """qmin = -2^(bits-1), qmax = 2^(bits-1) - 1"""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def group_size_of(params, weight):
    """Absent means one group per row."""
    return params.get("group_size", len(weight[0]))


def raised(scale):
    """max(scale, 1e-8); a scale below the floor does not move the result, so it is a constant."""
    return SCALE_FLOOR if d.value(scale) < SCALE_FLOOR else scale


def argument(weight, scale, offset):
    """v = (weight - offset) / scale"""
    return (weight - offset) / raised(scale)


def nearest_code(v, bits):
    """The code of the grid that is nearest to v, the even one of two equally near."""
    qmin, qmax = code_range(bits)
    return min(range(qmin, qmax + 1), key=lambda code: (abs(v - code), code % 2))


def passes(v, bits, mask):
    """Whether the gradient of a weight with this argument passes."""
    qmin, qmax = code_range(bits)
    if mask == "rounded":
        return qmin <= round(v) <= qmax
    if mask == "open":
        return qmin < v < qmax
    assert mask == "pre_round"
    return qmin <= v <= qmax


def reconstruct(weight, scale, offset, bits, mask="pre_round"):
    """(code, scale * code + offset), differentiable with the rounding error frozen.

    Straight through: the code is the argument plus a constant where the mask passes, and a constant
    elsewhere. Then the derivative is calculus and no convention is left to choose but the mask.
    """
    v = argument(weight, scale, offset)
    code = nearest_code(d.value(v), bits)
    if not passes(d.value(v), bits, mask):
        return code, raised(scale) * code + offset
    rounding_error = code - d.value(v)
    return code, (v + rounding_error) * raised(scale) + offset


def fake_quantize(weight, scale, offset, bits, group_size, mask="pre_round"):
    """(codes, output) of a matrix; scale and offset are indexed [row][i // group_size]."""
    codes, output = [], []
    for o, row in enumerate(weight):
        pairs = [
            reconstruct(element, scale[o][i // group_size], offset[o][i // group_size], bits, mask)
            for i, element in enumerate(row)
        ]
        codes.append([code for code, _ in pairs])
        output.append([element for _, element in pairs])
    return codes, output


def mask_of(params):
    return params.get("mask", "pre_round")


def grad_scale_factor(name, bits, group_size, groups):
    """The constant on the gradients of scale and offset."""
    _, qmax = code_range(bits)
    if name == "none":
        return Fraction(1)
    if name == "lsq":
        return 1 / sqrt_rational(Fraction(group_size * qmax))
    if name == "lit_gpt":
        return 1 / sqrt_rational(Fraction(groups * qmax))
    if name == "peft":
        return 1 / (sqrt_rational(Fraction(group_size)) * qmax)
    raise ValueError(name)


def scaled(factor, tensor):
    return d.over(lambda element: factor * element, tensor)


def factor_for(params, weight):
    group_size = group_size_of(params, weight)
    groups = len(weight[0]) // group_size
    return grad_scale_factor(params.get("grad_scale", "none"), params["bits"], group_size, groups)


def forward(params, inputs):
    weight = inputs["weight"]
    codes, output = fake_quantize(
        weight, inputs["scale"], inputs["offset"], params["bits"], group_size_of(params, weight)
    )
    return {"codes": codes, "output": output}


def backward(params, inputs):
    weight, scale, offset = (d.variables(inputs[name]) for name in ("weight", "scale", "offset"))
    group_size = group_size_of(params, weight)
    mask = mask_of(params)
    _, output = fake_quantize(weight, scale, offset, params["bits"], group_size, mask)
    loss = d.weighted_sum(inputs["d_output"], output)
    d_weight, d_scale, d_offset = d.gradients(loss, weight, scale, offset)
    factor = factor_for(params, weight)
    outputs = {
        "d_weight": d_weight,
        "d_scale": scaled(factor, d_scale),
        "d_offset": scaled(factor, d_offset),
    }
    assert outputs == closed_form_backward(params, inputs)
    return outputs


def closed_form_backward(params, inputs):
    """The published closed form, as a check of the differentiated one.

    in_range = 1 where the mask passes (by default qmin <= v <= qmax), else 0
    d_weight = in_range * d_output
    d_scale[group]  = grad_scale * sum over the group of d_output * (code - in_range * v)
    d_offset[group] = grad_scale * sum over the group of d_output * (1 - in_range)
    """
    weight, scale, offset = inputs["weight"], inputs["scale"], inputs["offset"]
    group_size, factor = group_size_of(params, weight), factor_for(params, weight)
    d_weight = [[Fraction(0)] * len(row) for row in weight]
    d_scale = [[Fraction(0)] * len(row) for row in scale]
    d_offset = [[Fraction(0)] * len(row) for row in scale]
    for o, row in enumerate(weight):
        for i, element in enumerate(row):
            g, given = i // group_size, inputs["d_output"][o][i]
            v = argument(element, scale[o][g], offset[o][g])
            in_range = 1 if passes(v, params["bits"], mask_of(params)) else 0
            d_weight[o][i] = in_range * given
            d_offset[o][g] += factor * given * (1 - in_range)
            if scale[o][g] >= SCALE_FLOOR:
                code = nearest_code(v, params["bits"])
                d_scale[o][g] += factor * given * (code - in_range * v)
    return {"d_weight": d_weight, "d_scale": d_scale, "d_offset": d_offset}
