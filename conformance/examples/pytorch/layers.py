"""L4Q, LR-QAT and QA-LoRA as plain PyTorch modules, differentiated by autograd.

This is the file to replace by your own. Labels such as (Q1) are sections of docs/spec.md. A weight
is [out, in]; a group is `group_size` consecutive inputs of one row and has one scale.
"""

import math

import torch
from torch import nn
from torch.nn.functional import linear

SCALE_FLOOR = 1e-8


class Round(torch.autograd.Function):
    """To the nearest integer, ties to even; the gradient passes straight through."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, d_output):
        return d_output


def clamp(x, low, high):
    """The gradient passes from low to high, both included.

    torch.clamp has the same values. Its gradient at an end is 0, or a half where the ends are
    tensors, and weights that lie exactly on an end are common.
    """
    in_range = (low <= x) & (x <= high)
    return torch.where(in_range, x, x.detach().clamp(low, high))


def raised(scale):
    """What a quantizer divides by, (Q1); below the floor it does not move with the scale."""
    return torch.where(scale >= SCALE_FLOOR, scale, SCALE_FLOOR)


def expand(per_group, group_size):
    """[out, groups] to [out, in]."""
    return per_group.repeat_interleave(group_size, dim=1)


def scale_gradient(x, factor):
    """The value of x, whose gradient is multiplied by the factor."""
    scaled = x * factor
    return x.detach() + (scaled - scaled.detach())


def gradient_factor(rule, bits, group_size, groups):
    """(Q7)"""
    qmax = 2 ** (bits - 1) - 1
    return {
        "none": 1.0,
        "lsq": 1 / math.sqrt(group_size * qmax),
        "lit_gpt": 1 / math.sqrt(groups * qmax),
        "peft": 1 / (math.sqrt(group_size) * qmax),
    }[rule]


class FakeQuantize(nn.Module):
    """(Q1) to (Q7): a weight moved to a signed grid whose scale and offset are trained."""

    def __init__(self, scale, offset, bits, group_size, grad_scale="none", mask="pre_round"):
        super().__init__()
        self.scale, self.offset = nn.Parameter(scale), nn.Parameter(offset)
        self.qmin, self.qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.group_size, self.mask = group_size, mask
        self.factor = gradient_factor(grad_scale, bits, group_size, scale.shape[1])

    def grid(self):
        """Scale and offset of every weight."""
        scale = scale_gradient(raised(self.scale), self.factor)
        offset = scale_gradient(self.offset, self.factor)
        return expand(scale, self.group_size), expand(offset, self.group_size)

    def argument(self, weight, scale, offset):
        return (weight - offset) / scale

    def in_range(self, argument):
        """Which weights pass their gradient, (Q1)."""
        if self.mask == "open":
            return (self.qmin < argument) & (argument < self.qmax)
        tested = argument.round() if self.mask == "rounded" else argument
        return (self.qmin <= tested) & (tested <= self.qmax)

    def forward(self, weight):
        """Codes, and the weight that they stand for.

        Straight through: the rounding is a constant that was added. Then scale and offset cancel
        from what is differentiated, on paper and here: dividing by the scale and multiplying with
        it again would cost the last bits of d_weight, and leave some in d_offset that is zero.
        """
        scale, offset = self.grid()
        with torch.no_grad():
            argument = self.argument(weight, scale, offset)
            codes = argument.clamp(self.qmin, self.qmax).round()
            output = codes * scale + offset
            in_range = self.in_range(argument)
            slope = torch.where(in_range, codes - argument, codes)
        straight = scale * slope + torch.where(in_range, weight, offset)
        return codes, output + (straight - straight.detach())


class LowRank(nn.Module):
    """(A1): the update as a weight.

    The specification sums in ascending rank, so that codes are equal everywhere. A product that
    sums in another order conforms as well: its codes may flip where the precision leaves them open.
    """

    def __init__(self, lora_a, lora_b, lora_scaling):
        super().__init__()
        self.lora_a, self.lora_b = nn.Parameter(lora_a), nn.Parameter(lora_b)
        self.lora_scaling = lora_scaling

    def forward(self):
        return self.lora_scaling * (self.lora_b @ self.lora_a)


class L4q(nn.Module):
    """(M1) to (M3): the update is added to the frozen weight, and the sum is quantized."""

    def __init__(self, weight, update, quantizer):
        super().__init__()
        self.register_buffer("weight", weight)
        self.update, self.quantizer = update, quantizer

    def quantized(self):
        return self.quantizer(self.weight + self.update())

    def forward(self, x):
        _, fake_quantized = self.quantized()
        return linear(x, fake_quantized)

    @torch.no_grad()
    def merge(self):
        """Codes, scale and offset: the layer without its adapter."""
        codes, _ = self.quantizer(self.weight + self.update())
        return codes, raised(self.quantizer.scale), self.quantizer.offset


def init_scale(weight, bits, group_size, rule):
    """(Q8), the rules l4q and lsq."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = weight.reshape(weight.shape[0], -1, group_size)
    if rule == "l4q":
        scale = torch.maximum((groups.amin(-1) / qmin).abs(), (groups.amax(-1) / qmax).abs())
    else:
        scale = 2 * groups.abs().mean(-1) / math.sqrt(qmax)
    # A group of zeros has no scale of its own.
    return torch.where(scale > 0, scale, 1.0)


def in_narrow_type(x, dtype):
    """x as `dtype` stores it, in the type of x, (Q9).

    For float32 that is x.to(dtype).to(x.dtype). From float64 torch converts by way of float32 and
    so rounds twice; here it is done once.
    """
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(x.double())
    exponent = exponent.double().clamp(min=math.log2(info.tiny) + 1)
    quantum = (exponent - 1 + math.log2(info.eps)).exp2()
    nearest = (x.double() / quantum).round() * quantum
    return torch.where(nearest.abs() <= info.max, nearest, nearest * math.inf).to(x.dtype)


def grid_ends(zero_point, bits, group_size):
    """(M4d): the smallest and the largest code; without a zero point those of the signed grid."""
    low = -(2 ** (bits - 1)) if zero_point is None else -expand(zero_point, group_size)
    return low, low + 2**bits - 1


@torch.no_grad()
def downcast(weight, initial_scale, zero_point, bits, group_size, kind):
    """(M4): the frozen weight in units of its first grid, `phi`, and the bytes it is kept in."""
    argument = weight / expand(raised(initial_scale), group_size)
    if kind in ("f32", "bf16", "f16"):
        types = {"bf16": torch.bfloat16, "f16": torch.float16}
        return argument if kind == "f32" else in_narrow_type(argument, types[kind]), None
    low, high = grid_ends(zero_point, bits, group_size)
    unit = 2 ** (8 - bits) if kind == "fixed8" else 1
    fixed = (unit * argument.clamp(low, high)).round()
    shift = low + 2 ** (bits - 1)
    stored = (fixed - unit * shift).to(torch.int8)
    return fixed / unit, stored if kind == "fixed8" else pack_nibbles(stored)


def pack_nibbles(codes):
    """Two codes of a row in a byte, the even input in its low half; a last one alone."""
    nibbles = nn.functional.pad(codes, (0, codes.shape[1] % 2)).view(torch.uint8) & 0xF
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


class LrQat(nn.Module):
    """(M5) to (M7): the update is a number of steps of the grid, the scale multiplies outside.

    `phi` is the downcast weight, or None for a live inner scale.
    """

    def __init__(
        self,
        weight,
        phi,
        update,
        scale,
        zero_point=None,
        *,
        bits,
        group_size,
        mask="rounded",
        dialect="paper",
    ):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("phi", phi)
        self.update, self.scale = update, nn.Parameter(scale)
        self.low, self.high = grid_ends(zero_point, bits, group_size)
        self.group_size, self.mask, self.dialect = group_size, mask, dialect

    def quantized(self):
        scale = expand(raised(self.scale), self.group_size)
        inner = self.weight / scale if self.phi is None else self.phi
        if self.dialect == "lr_qat_code":
            codes = clamp(inner + Round.apply(self.update()), self.low, self.high)
        elif self.mask == "rounded":
            codes = clamp(Round.apply(inner + self.update()), self.low, self.high)
        else:
            codes = Round.apply(clamp(inner + self.update(), self.low, self.high))
        return codes, codes * scale

    def forward(self, x):
        _, fake_quantized = self.quantized()
        return linear(x, fake_quantized)

    @torch.no_grad()
    def merge(self):
        codes, _ = self.quantized()
        return codes, raised(self.scale)


class QaLora(nn.Module):
    """(M8) to (M10): a frozen weight on an unsigned grid; the adapter sees the pool of a group."""

    def __init__(self, codes, scale, zero_point, update, group_size, pool, dialect="paper"):
        super().__init__()
        for name, tensor in (("codes", codes), ("scale", scale), ("zero_point", zero_point)):
            self.register_buffer(name, tensor)
        self.update, self.group_size = update, group_size
        self.pool, self.dialect = pool, dialect

    def pooled(self, x):
        pooled = x.reshape(x.shape[0], -1, self.group_size).sum(-1)
        if self.pool == "mean":
            pooled = pooled / self.group_size
        if self.dialect == "hf_peft_qalora":
            pooled = pooled * self.scale.shape[1]
        return pooled

    def forward(self, x):
        scale = expand(raised(self.scale), self.group_size)
        zero_point = expand(self.zero_point, self.group_size)
        base = linear(x, scale * (self.codes - zero_point))
        low = linear(self.pooled(x), self.update.lora_a)
        return base + self.update.lora_scaling * linear(low, self.update.lora_b)

    @torch.no_grad()
    def merge(self):
        """The zero point that takes up the adapter; codes and scale stay."""
        delta = self.update()
        if self.pool == "mean":
            delta = delta / self.group_size
        return self.zero_point - delta / raised(self.scale)
