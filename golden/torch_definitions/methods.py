"""Quantizers and the methods that train through them."""

import torch

from .grids import (
    clamped,
    codes_of,
    gradient_factor,
    raised,
    rounded,
    signed_range,
    spread,
    to_binary,
    with_gradient_times,
)


def delta_weight(lora_a, lora_b, lora_scaling):
    """lora_scaling * (lora_b @ lora_a), each sum in ascending rank: it decides codes."""
    total = torch.zeros(lora_b.shape[0], lora_a.shape[1], dtype=torch.float64)
    for rank in range(lora_a.shape[0]):
        total = total + lora_b[:, rank, None] * lora_a[rank]
    return lora_scaling * total


def linear(x, weight):
    return x @ weight.T


# --- Learned scale and offset ---------------------------------------------------------------------


def fake_quantize(
    decisions, *, weight, scale, offset, bits, group_size=None, grad_scale="none", mask="pre_round"
):
    """LSQ+: round(clamp((weight - offset) / scale)) * scale + offset."""
    columns = weight.shape[1]
    factor = gradient_factor(grad_scale, bits, group_size, columns)
    scale, offset = (
        spread(with_gradient_times(factor, parameter), group_size, columns)
        for parameter in (raised(scale), offset)
    )
    argument = (weight - offset) / scale
    codes = codes_of(argument, *signed_range(bits), mask, decisions)
    return {"output": codes * scale + offset, "codes": codes}


def l4q(decisions, *, x, weight, lora_a, lora_b, lora_scaling, **quantizer):
    effective_weight = weight + delta_weight(lora_a, lora_b, lora_scaling)
    quantized = fake_quantize(decisions, weight=effective_weight, **quantizer)
    y = linear(x, quantized["output"])
    return {"y": y, "codes": quantized["codes"], "fake_quantized": quantized["output"]}


def l4q_merge(decisions, *, scale, offset, **layer):
    x = torch.zeros(1, layer["weight"].shape[1], dtype=torch.float64)
    codes = l4q(decisions, x=x, scale=scale, offset=offset, **layer)["codes"]
    return {"codes": codes, "scale": raised(scale), "offset": offset}


def qat(decisions, *, x, weight, scale, offset=None, quantizer="lsq_plus", **settings):
    """Every weight is trained. LSQ is LSQ+ without an offset."""
    assert quantizer in ("lsq", "lsq_plus")
    if quantizer == "lsq":
        offset = torch.zeros_like(scale) if offset is None else 0 * offset
    quantized = fake_quantize(decisions, weight=weight, scale=scale, offset=offset, **settings)
    return {"y": linear(x, quantized["output"])}


def qat_lora(decisions, *, x, weight, scale, offset, lora_a, lora_b, lora_scaling, **settings):
    """The weight is quantized without the update, which is a path beside it."""
    base = qat(decisions, x=x, weight=weight, scale=scale, offset=offset, **settings)["y"]
    return {"y": base + lora_scaling * linear(linear(x, lora_a), lora_b)}


def lora(_, *, x, weight, lora_a, lora_b, lora_scaling):
    return {"y": linear(x, weight) + lora_scaling * linear(linear(x, lora_a), lora_b)}


# --- LR-QAT ---------------------------------------------------------------------------------------


def stored(argument, bits, low, high, downcast, decisions):
    """The weight on its grid after the stored type: what is trained around, a constant."""
    if downcast == "f32":
        return argument  # in float64 nothing is lost
    if downcast == "bf16":
        return to_binary(argument, precision=8, least_exponent=-125)
    if downcast == "f16":
        return to_binary(argument, precision=11, least_exponent=-13)
    if downcast == "int":
        fraction = 1
    else:
        assert downcast == "fixed8", downcast
        fraction = 2 ** (8 - bits)
    low, high = low * fraction, high * fraction
    argument = decisions.settle(fraction * argument, low, high, "none")
    return rounded(argument.clamp(low, high)) / fraction


def lr_qat(
    decisions,
    *,
    x,
    weight,
    lora_a,
    lora_b,
    scale,
    initial_scale=None,
    zero_point=None,
    bits,
    group_size=None,
    lora_scaling,
    downcast,
    inner_scale="frozen",
    mask="rounded",
    dialect="paper",
):
    """scale * clip(round(Phi0 + lora_scaling * lora_b @ lora_a)); Phi0 has the frozen scale."""
    columns = weight.shape[1]
    low, high = signed_range(bits)
    if zero_point is not None:
        low = -spread(zero_point, group_size, columns)
        high = low + 2**bits - 1
    outer = spread(raised(scale), group_size, columns)
    if inner_scale == "live":
        assert initial_scale is None and downcast == "f32"
        phi = weight / outer
    else:
        assert inner_scale == "frozen", inner_scale
        inner = spread(raised(initial_scale), group_size, columns)
        phi = stored(weight / inner, bits, low, high, downcast, decisions).detach()
    update = delta_weight(lora_a, lora_b, lora_scaling)
    if dialect == "lr_qat_code" and downcast == "int":
        # The public code rounds the update alone: another code where the sum is a tie.
        update = decisions.settle(update, low - phi, high - phi, "rounded")
        grid = clamped(phi + rounded(update), low, high)
    else:
        assert dialect in ("paper", "lr_qat_code"), dialect
        grid = codes_of(phi + update, low, high, mask, decisions)
    fake_quantized = outer * grid
    return {"y": linear(x, fake_quantized), "codes": grid, "fake_quantized": fake_quantized}


def lr_qat_merge(decisions, *, scale, **layer):
    x = torch.zeros(1, layer["weight"].shape[1], dtype=torch.float64)
    return {"codes": lr_qat(decisions, x=x, scale=scale, **layer)["codes"], "scale": raised(scale)}


# --- Codes that stay as they are ------------------------------------------------------------------


def dequantized(codes, scale, zero_point, group_size):
    columns = codes.shape[1]
    zero_point = spread(zero_point, group_size, columns)
    return spread(raised(scale), group_size, columns) * (codes.double() - zero_point)


def peqa(_, *, x, codes, scale, zero_point, bits, group_size=None):
    del bits
    return {"y": linear(x, dequantized(codes, scale, zero_point, group_size))}


def pool_factor(pool, dialect, group_size, groups):
    """What multiplies the sum of a group's inputs."""
    if dialect == "hf_peft_qalora":
        return groups / group_size
    if dialect == "qa_lora_code":
        return 1 / group_size
    assert dialect == "paper", dialect
    return {"sum": 1.0, "mean": 1 / group_size}[pool]


def qa_lora(
    _,
    *,
    x,
    codes,
    scale,
    zero_point,
    lora_a,
    lora_b,
    bits,
    group_size=None,
    lora_scaling,
    pool="sum",
    dialect="paper",
):
    """The adapter reads one number for each group of inputs, so that it fits in the zero points."""
    del bits
    size, groups = group_size or x.shape[1], lora_a.shape[1]
    pooled = x.unflatten(1, (groups, size)).sum(-1) * pool_factor(pool, dialect, size, groups)
    base = linear(x, dequantized(codes, scale, zero_point, group_size))
    return {"y": base + lora_scaling * linear(linear(pooled, lora_a), lora_b)}


def qa_lora_merge(
    _,
    *,
    codes,
    scale,
    zero_point,
    lora_a,
    lora_b,
    bits,
    group_size=None,
    lora_scaling,
    pool="sum",
    dialect="paper",
):
    del bits
    size, groups = group_size or codes.shape[1], lora_a.shape[1]
    strength = lora_scaling * pool_factor(pool, dialect, size, groups)
    return {"zero_point": zero_point - strength * (lora_b @ lora_a) / raised(scale)}


# --- Grids from the tensor itself -----------------------------------------------------------------


def dynamic_quantize(decisions, *, x, bits, group_size=None, zero_point="integer"):
    """Range of each token, or of each group of it; scale and zero point carry no gradient."""
    columns, top = x.shape[1], 2**bits - 1
    groups = x.detach().unflatten(1, (-1, group_size or columns))
    smallest, largest = groups.amin(-1), groups.amax(-1)
    scale = raised((largest - smallest) / top)
    zero = -smallest / scale
    if zero_point == "integer":
        zero = decisions.settle(zero, -torch.inf, torch.inf, "rounded").round()
    else:
        assert zero_point == "float", zero_point
    wide_scale, wide_zero = (spread(t, group_size, columns) for t in (scale, zero))
    argument = decisions.settle(x / wide_scale, -wide_zero, top - wide_zero, "rounded")
    codes = clamped(rounded(argument) + wide_zero, 0, top)
    output = wide_scale * (codes - wide_zero)
    return {"output": output, "codes": codes, "scale": scale, "zero_point": zero}


def lwc(decisions, *, weight, upper, lower, bits, group_size=None):
    """Learned clipping: a part of each group's range, by two sigmoids; the zero point is fixed."""
    columns, top = weight.shape[1], 2**bits - 1
    groups = weight.unflatten(1, (-1, group_size or columns))
    largest = torch.sigmoid(upper) * groups.amax(-1)
    smallest = torch.sigmoid(lower) * groups.amin(-1)
    scale = clamped((largest - smallest) / top, 1e-5, 1e4)
    zero = decisions.settle((-smallest / scale).detach(), -torch.inf, torch.inf, "rounded").round()
    wide_scale, wide_zero = (spread(t, group_size, columns) for t in (scale, zero))
    argument = decisions.settle(weight / wide_scale, -wide_zero, top - wide_zero, "rounded")
    codes = clamped(rounded(argument) + wide_zero, 0, top)
    output = wide_scale * (codes - wide_zero)
    return {"output": output, "codes": codes, "scale": scale, "zero_point": zero}
