"""Rounding, clamping and scales, with the derivative that straight-through training gives them.

Every constant is added in a way that leaves the value exact: a value that moved by one rounding
would move ties.
"""

import itertools
import math

import torch

SCALE_FLOOR = 1e-8
DOUBT = 1e-12  # an argument closer than this to a decision, but not on it, is open


class Decisions:
    """Watches the roundings of a case: how near an argument comes to a tie or to an end.

    Two float64 evaluations may differ in the last bits of an argument. Where one lies off a
    decision by less than DOUBT either code is right; such elements are counted, in order, and those
    numbered in `crossed` are taken to lie on the other side. An argument exactly on a decision is
    not in doubt: the rule for ties and ends says what it gives.
    """

    def __init__(self, crossed=()):
        self.crossed = frozenset(crossed)
        self.made = self.on_edge = self.open = self.clipped = 0
        self.margin = math.inf  # smallest distance, relative to max(1, |argument|)

    def settle(self, argument, low, high, mask):
        """The argument of a rounding onto low..high, after the doubtful ones are decided."""
        decision = nearest_decision(argument.detach(), low, high, mask)
        signed = decision - argument.detach()
        distance = signed.abs()
        doubtful = (distance > 0) & (distance < DOUBT)
        self.made += distance.numel()
        self.on_edge += int((distance == 0).sum())
        if mask != "none":
            self.clipped += int(((argument < low) | (argument > high)).sum())
        relative = distance / argument.detach().abs().clamp(min=1)
        self.margin = min(self.margin, float(relative.min())) if distance.numel() else self.margin
        moves = torch.zeros_like(distance)
        for index in doubtful.nonzero().tolist():
            if self.open in self.crossed:
                moves[tuple(index)] = 2 * signed[tuple(index)]
            self.open += 1
        return argument + moves

    def alternatives(self, most=6):
        """Every other way to decide the open elements, while they are few."""
        if self.open > most:
            return
        for count in range(1, self.open + 1):
            for crossed in itertools.combinations(range(self.open), count):
                yield Decisions(crossed)


def nearest_decision(argument, low, high, mask):
    """The nearest point at which the code changes, or the mask; `none` is for constants."""
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (low, high))
    reach = 0.5 if mask == "rounded" else -0.5
    tie = (argument.floor() + 0.5).clamp(low - reach, high + reach)
    if mask in ("rounded", "none"):
        return tie
    end = torch.where((argument - low).abs() < (argument - high).abs(), low, high)
    return torch.where((argument - tie).abs() < (argument - end).abs(), tie, end)


def rounded(argument):
    """To the nearest integer, ties to even; the difference, which is exact, is a constant."""
    return argument + (argument.round() - argument).detach()


def clamped(argument, low, high, closed=True):
    """Not torch.clamp: what its derivative is at the ends is the library's affair, here ours."""
    if closed:
        inside = (argument >= low) & (argument <= high)
    else:
        inside = (argument > low) & (argument < high)
    return torch.where(inside, argument, argument.detach().clamp(low, high))


def codes_of(argument, low, high, mask, decisions):
    """Integer codes that the gradient passes through: where the mask holds, as if not rounded."""
    argument = decisions.settle(argument, low, high, mask)
    if mask == "rounded":
        return clamped(rounded(argument), low, high)
    assert mask in ("pre_round", "open"), mask
    return rounded(clamped(argument, low, high, closed=mask == "pre_round"))


def raised(scale):
    """max(scale, SCALE_FLOOR), constant below the floor."""
    return torch.where(scale >= SCALE_FLOOR, scale, SCALE_FLOOR)


def spread(per_group, group_size, columns):
    """[out, groups] to [out, in]: each value over the consecutive inputs of its group."""
    wide = per_group.repeat_interleave(group_size or columns, dim=-1)
    assert wide.shape[-1] == columns, (per_group.shape, group_size, columns)
    return wide


def with_gradient_times(factor, parameter):
    """The parameter's value; its gradient is multiplied by the factor."""
    scaled = factor * parameter
    return parameter.detach() + (scaled - scaled.detach())


def gradient_factor(rule, bits, group_size, columns):
    size, qmax = group_size or columns, signed_range(bits)[1]
    return {
        "none": 1.0,
        "lsq": 1 / math.sqrt(size * qmax),
        "lit_gpt": 1 / math.sqrt(columns // size * qmax),
        "peft": 1 / (math.sqrt(size) * qmax),
    }[rule]


def signed_range(bits):
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def to_binary(argument, precision, least_exponent):
    """Rounded once to a binary type of `precision` significant bits, its subnormals included."""
    _, exponent = torch.frexp(argument)  # 0.5 <= mantissa < 1
    step = (exponent.clamp(min=least_exponent) - precision).double().exp2()
    return (argument / step).round() * step
