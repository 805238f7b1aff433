"""The linear layers of four methods, as a PyTorch user writes them from docs/spec.md.

Each is the formula in tensor operations, rounding passed straight through, and autograd for the
rest. What decides a code is f32 under torch.autocast too, as it is in every implementation here.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import linear


class RoundStraightThrough(torch.autograd.Function):
    """Half to even; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx, argument):
        return torch.round(argument)

    @staticmethod
    def backward(ctx, d_codes):
        return d_codes


class RoundThenClamp(torch.autograd.Function):
    """Codes from qmin to qmax; the gradient passes where the rounded argument is one of them."""

    @staticmethod
    def forward(ctx, argument, qmin, qmax):
        rounded = torch.round(argument)
        ctx.save_for_backward((rounded >= qmin) & (rounded <= qmax))
        return torch.clamp(rounded, qmin, qmax)

    @staticmethod
    def backward(ctx, d_codes):
        (in_range,) = ctx.saved_tensors
        return torch.where(in_range, d_codes, 0.0), None, None


def grid_ends(bits):
    """qmin and qmax."""
    return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1


def one_further_out(end):
    """The f32 after an end of a range, away from zero."""
    return torch.nextafter(torch.tensor(end), torch.tensor(torch.inf * end)).item()


# The derivative of torch.clamp is 0 at its ends (2.15), and must be 1 at qmin and qmax. So they are
# one f32 further out; the rounding that follows takes the step back. Made once: a compiled layer
# reads no number from a tensor.
CLAMP_ENDS = {bits: [one_further_out(end) for end in grid_ends(bits)] for bits in range(2, 9)}


def in_full_precision(x):
    """A context in which products are of f32."""
    return torch.autocast(device_type=x.device.type, enabled=False)


def lora_linear(x, weight, lora_a, lora_b, *, lora_scaling):
    """A full-precision weight and a path beside it. Eq. (A2)."""
    return linear(x, weight) + lora_scaling * linear(linear(x, lora_a), lora_b)


def l4q_linear(x, weight, lora_a, lora_b, scale, offset, *, bits, lora_scaling):
    """The update is added to the weight first, and the sum is quantized. Eq. (M1)."""
    with in_full_precision(x):
        out_features, groups = scale.shape
        scale, offset = scale.unsqueeze(-1), offset.unsqueeze(-1)
        combined = torch.addmm(weight, lora_b, lora_a, alpha=lora_scaling)
        argument = (combined.view(out_features, groups, -1) - offset) / scale
        codes = RoundStraightThrough.apply(torch.clamp(argument, *CLAMP_ENDS[bits]))
        fake_quantized = torch.addcmul(offset, codes, scale).view_as(weight)
    return linear(x, fake_quantized)


def lr_qat_linear(x, stored, lora_a, lora_b, scale, *, bits, lora_scaling, fraction=1):
    """The update is rounded with the stored weight; the scale multiplies outside. Eq. (M5)."""
    with in_full_precision(x):
        out_features, groups = scale.shape
        phi = stored.to(lora_a.dtype) / fraction
        argument = torch.addmm(phi, lora_b, lora_a, alpha=lora_scaling)
        codes = RoundThenClamp.apply(argument, *grid_ends(bits))
        on_grid = codes.view(out_features, groups, -1) * scale.unsqueeze(-1)
        fake_quantized = on_grid.view_as(phi)
    return linear(x, fake_quantized)


def qa_lora_linear(x, codes, scale, zero_point, lora_a, lora_b, *, lora_scaling, pool="sum"):
    """Frozen codes, and an adapter that reads one number of each group of inputs. Eq. (M8)."""
    out_features, groups = scale.shape
    shifted = codes.view(out_features, groups, -1) - zero_point.unsqueeze(-1)
    weight = (scale.unsqueeze(-1) * shifted).view_as(codes)
    grouped = x.unflatten(-1, (groups, -1))
    pooled = grouped.sum(-1) if pool == "sum" else grouped.mean(-1)
    return linear(x, weight) + lora_scaling * linear(linear(pooled, lora_a), lora_b)


def lr_qat_stored(weight, initial_scale, bits, downcast):
    """The frozen weight as LR-QAT keeps it, and the fraction that it is in. Eq. (M4)."""
    out_features, groups = initial_scale.shape
    grouped = weight.view(out_features, groups, -1) / initial_scale.unsqueeze(-1)
    argument = grouped.view_as(weight)
    if downcast in ("f32", "bf16", "f16"):
        kept = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[downcast]
        return argument.to(kept), 1
    fraction = {"fixed8": 2 ** (8 - bits), "int": 1}[downcast]
    clipped = argument.clamp(*grid_ends(bits))
    return torch.round(fraction * clipped).to(torch.int8), fraction


def round_to_nearest(weight, group_size, bits):
    """codes, scale and zero_point of a weight on an unsigned grid. Eq. (Q13), asymmetric."""
    grouped = weight.view(weight.shape[0], -1, group_size)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    top = 2**bits - 1
    scale = (high - low) / top
    zero_point = torch.round(-low / scale)
    codes = torch.round(grouped / scale.unsqueeze(-1)) + zero_point.unsqueeze(-1)
    return codes.clamp(0, top).view_as(weight).to(torch.uint8), scale, zero_point


@dataclass(frozen=True)
class Layer:
    """One layer of a method: what it does, and what it does it with."""

    linear: object  # (x, **frozen, **trained, **settings) -> y
    frozen: dict
    trained: dict
    settings: dict

    def __call__(self, x):
        return self.linear(x, **self.frozen, **self.trained, **self.settings)


def amid_training(method, weight, *, bits, group_size, rank, lora_scaling, generator):
    """A layer whose update and offsets are no longer zero, so that a few weights are clipped.

    The numbers have the distributions of benches/src/lib.rs.
    """
    out_features, in_features = weight.shape

    def normal(*shape, deviation):
        drawn = torch.empty(shape, device=weight.device).normal_(generator=generator)
        return drawn * deviation

    def factors(inputs, deviation=0.002):
        return {
            "lora_a": normal(rank, inputs, deviation=inputs**-0.5),
            "lora_b": normal(out_features, rank, deviation=deviation),
        }

    settings = {"lora_scaling": lora_scaling}
    if method == "lora":
        return Layer(lora_linear, {"weight": weight}, factors(in_features), settings)
    if method == "qa_lora":
        codes, scale, zero_point = round_to_nearest(weight, group_size, bits)
        frozen = {"codes": codes, "scale": scale, "zero_point": zero_point}
        return Layer(qa_lora_linear, frozen, factors(in_features // group_size), settings)
    grouped = weight.view(out_features, -1, group_size)
    qmin, qmax = grid_ends(bits)
    scale = torch.maximum(grouped.amax(-1) / qmax, grouped.amin(-1) / qmin)
    settings |= {"bits": bits}
    if method == "lr_qat":
        stored, fraction = lr_qat_stored(weight, scale, bits, "fixed8")
        # The update is in steps of the grid; this one moves a weight by about a fifth of one.
        trained = factors(in_features, deviation=0.025 * in_features**0.5) | {"scale": scale}
        return Layer(lr_qat_linear, {"stored": stored}, trained, settings | {"fraction": fraction})
    assert method == "l4q", method
    offset = normal(*scale.shape, deviation=0.001)
    trained = factors(in_features) | {"scale": scale, "offset": offset}
    return Layer(l4q_linear, {"weight": weight}, trained, settings)


METHODS = ("lora", "l4q", "lr_qat", "qa_lora")
