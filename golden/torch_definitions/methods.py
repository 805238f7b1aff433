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


SCALE_ENDS = {"f16": (2.0**-24, 65504.0), "bf16_in_f16": (2.0**-17, 65280.0)}
NARROW = {"f16": torch.float16, "bf16_in_f16": torch.bfloat16}


def round_scale(decisions, *, scale, scale_rule):
    """The nearest scale that a file can hold; the rounding is a constant that is added."""
    low, high = SCALE_ENDS[scale_rule]
    inside = (scale >= low) & (scale <= high)
    held = torch.where(inside, scale, scale.detach().clamp(low, high))
    plain = held.detach()
    # A case is f32, so that going by way of f32 rounds once.
    nearest = plain.float().to(NARROW[scale_rule]).double()
    return {"rounded_scale": held + (nearest - plain)}


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
        assert offset is None
        offset = torch.zeros_like(scale)
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
    if dialect == "lr_qat_code":
        assert downcast == "int" and mask == "rounded"
        # The public code rounds the update alone: another code where the sum is a tie.
        update = decisions.settle(update, low - phi, high - phi, "rounded")
        grid = clamped(phi + rounded(update), low, high)
    else:
        assert dialect == "paper", dialect
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
    """What multiplies the sum of a group's inputs; both public codes pool the mean."""
    assert dialect == "paper" or pool == "mean", (pool, dialect)
    factor = {"sum": 1.0, "mean": 1 / group_size}[pool]
    return factor * {"paper": 1, "qa_lora_code": 1, "hf_peft_qalora": groups}[dialect]


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


def on_affine_grid(decisions, tensor, scale, zero, top, group_size):
    """scale * (clamp(round(tensor / scale) + zero, 0, top) - zero), and the codes."""
    scale, zero = (spread(t, group_size, tensor.shape[1]) for t in (scale, zero))
    argument = decisions.settle(tensor / scale, (-zero).floor(), (top - zero).ceil(), "rounded")
    codes = clamped(rounded(argument) + zero, 0, top)
    return scale * (codes - zero), codes


def dynamic_quantize(decisions, *, x, bits, group_size=None, zero_point="integer"):
    """Range of each token, or of each group of it; scale and zero point carry no gradient."""
    top = 2**bits - 1
    groups = x.detach().unflatten(1, (-1, group_size or x.shape[1]))
    smallest, largest = groups.amin(-1), groups.amax(-1)
    # A constant group is one step away from zero, and a group of zeros has the step 1.
    constant = torch.where(smallest == 0, 1.0, raised(smallest.abs()))
    scale = torch.where(largest > smallest, raised((largest - smallest) / top), constant)
    zero = -smallest / scale
    if zero_point == "integer":
        zero = decisions.settle(zero, -torch.inf, torch.inf, "none").round()
    else:
        assert zero_point == "float", zero_point
    output, codes = on_affine_grid(decisions, x, scale, zero, top, group_size)
    results = {"output": output, "codes": codes, "scale": scale, "zero_point": zero}
    if zero_point == "float":
        del results["codes"]  # they are no integers
    return results


def lwc(decisions, *, weight, upper, lower, bits, group_size=None, symmetric=False):
    """Learned clipping: a part of each group's range, by two sigmoids; the zero point is fixed."""
    top, qmax = 2**bits - 1, signed_range(bits)[1]
    groups = weight.detach().unflatten(1, (-1, group_size or weight.shape[1]))
    high = torch.sigmoid(upper) * groups.amax(-1)
    low = torch.sigmoid(lower) * groups.amin(-1)
    if symmetric:
        range_scale = torch.where(high.abs() >= low.abs(), high.abs(), low.abs()) / qmax
    else:
        range_scale = (high - low) / top
    scale = clamped(range_scale, 1e-5, 1e4)
    if symmetric:
        zero = torch.full_like(scale, qmax)
    else:
        quotient = (-low / scale).detach().clamp(-1e4, 1e4)
        zero = decisions.settle(quotient, -torch.inf, torch.inf, "none").round()
    output, codes = on_affine_grid(decisions, weight, scale, zero, top, group_size)
    return {"output": output, "codes": codes, "scale": scale, "zero_point": zero}
