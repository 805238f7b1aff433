"""Checks that a case means the same in f32 as in exact arithmetic.

A golden code or mask is a discrete value. It may be demanded of an f32 implementation only where
rounding on the way cannot change it: either every step of the quantizer argument is exact in f32,
or the exact argument keeps its distance from every tie and from both ends of the range.
"""

import struct
from fractions import Fraction
from itertools import pairwise

from oracle import gptq, init_scale, lora, nf4, quantize

MARGIN = Fraction(1, 10**5)


def f32(number: Fraction) -> Fraction:
    """The nearest f32. Going through a double is harmless for one operation on f32 operands."""
    return Fraction(struct.unpack("f", struct.pack("f", float(number)))[0])


def check(op: str, params: dict, inputs: dict) -> None:
    if op == "init_scale" and params["rule"] == "lp":
        check_lp(params, inputs["weight"])
    elif op == "nf4.quantize":
        check_nf4(params, inputs["weight"])
    elif op == "gptq.quantize":
        check_gptq(params, inputs)
    elif op.startswith(("fake_quantize", "l4q")):
        check_arguments(op, params, inputs)


def check_arguments(op, params, inputs):
    weight = inputs["weight"]
    if op.startswith("l4q"):
        scaling = Fraction(params["lora_scaling"])
        exact = lora.adapted(weight, inputs["lora_a"], inputs["lora_b"], scaling)
        rounded = adapted_f32(weight, inputs["lora_a"], inputs["lora_b"], scaling)
    else:
        exact = rounded = weight
    size = quantize.group_size_of(params, weight)
    for o, row in enumerate(exact):
        for i, element in enumerate(row):
            scale, offset = inputs["scale"][o][i // size], inputs["offset"][o][i // size]
            v = quantize.argument(element, scale, offset)
            v_f32 = argument_f32(rounded[o][i], scale, offset)
            distance = distance_to_decision(v, params["bits"])
            assert v_f32 == v or distance > MARGIN * max(1, abs(v)), (op, o, i, float(v))


def adapted_f32(weight, lora_a, lora_b, scaling):
    """The contract's order: the products added from zero in rank order, scaled, then the weight."""
    result = []
    for o, row in enumerate(weight):
        result.append([])
        for i, element in enumerate(row):
            total = Fraction(0)
            for r, factor in enumerate(lora_b[o]):
                total = f32(total + f32(factor * lora_a[r][i]))
            result[o].append(f32(element + f32(scaling * total)))
    return result


def argument_f32(weight, scale, offset):
    return f32(f32(weight - offset) / f32(quantize.raised(scale)))


def distance_to_decision(v, bits):
    """How far v is from the nearest tie inside the range and from the nearer end of the range."""
    qmin, qmax = quantize.code_range(bits)
    decisions = [Fraction(2 * code + 1, 2) for code in range(qmin, qmax)]
    return min(abs(v - point) for point in [*decisions, qmin, qmax])


def check_lp(params, weight):
    """The best scale wins clearly, or ties with a later one exactly."""
    size = quantize.group_size_of(params, weight)
    for row in weight:
        for start in range(0, len(row), size):
            errors = init_scale.lp_errors(row[start : start + size], params)
            best = min(error for error, _ in errors)
            others = [error for error, _ in errors if error != best]
            assert all(error - best > best / 1000 for error in others), (params, start)


def check_nf4(params, weight):
    """Every quotient is a number of binary32, or far from halfway between two levels."""
    flat = [element for row in weight for element in row]
    absmax = []
    for block in nf4.blocks_of(flat, params["block_size"]):
        absmax.append(max(abs(element) for element in block))
        for element in block:
            if absmax[-1]:
                assert_apart(nf4.LEVELS, element / absmax[-1], f32(element / absmax[-1]))
    if params["double_quantize"]:
        exact_sum = sum(absmax)
        total = Fraction(0)
        for magnitude in absmax:
            total = f32(total + magnitude)
        offset, offset_f32 = exact_sum / len(absmax), f32(total / len(absmax))
        for block in nf4.blocks_of(absmax, 256):
            scale = max(abs(magnitude - offset) for magnitude in block)
            scale_f32 = max(abs(f32(magnitude - offset_f32)) for magnitude in block)
            for magnitude in block if scale else []:
                rounded = f32(f32(magnitude - offset_f32) / scale_f32)
                assert_apart(nf4.MAP, (magnitude - offset) / scale, rounded)


def assert_apart(table, value, rounded):
    halves = [(low + high) / 2 for low, high in pairwise(table)]
    distance = min(abs(value - half) for half in halves)
    assert rounded == value or distance > MARGIN, float(value)


def check_gptq(params, inputs):
    """An argument that no update reached is exact in f32 or far from a tie; the others are further,
    because the errors of two factors and of an inverse are in them."""
    for rounding in gptq.traced(params, inputs)[1]:
        v = rounding.dividend / rounding.divisor
        ties = [Fraction(2 * n + 1, 2) for n in range(int(rounding.low), int(rounding.high))]
        distance = min(abs(v - tie) for tie in ties)
        if rounding.moved:
            assert distance > 10 * MARGIN * max(1, abs(v)), (params, float(v))
        else:
            exact = f32(rounding.divisor) == rounding.divisor and f32(v) == v
            assert exact or distance > MARGIN * max(1, abs(v)), (params, float(v))


def flips_code(right: Fraction, wrong: Fraction, bits: int) -> bool:
    """Whether a mistaken argument gives another code than the right one."""
    return quantize.nearest_code(right, bits) != quantize.nearest_code(wrong, bits)


def by_reciprocal_f32(weight, scale):
    """The mistake `weight * (1 / scale)`."""
    return f32(weight * f32(1 / scale))


def divided_separately_f32(weight, offset, scale):
    """The mistake `weight / scale - offset / scale`."""
    return f32(f32(weight / scale) - f32(offset / scale))
