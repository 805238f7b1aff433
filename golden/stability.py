"""Checks that a case means the same in f32 as in exact arithmetic.

A golden code or mask is a discrete value. It may be demanded of an f32 implementation only where
rounding on the way cannot change it: either every step of the quantizer argument is exact in f32,
or the exact argument keeps its distance from every tie and from both ends of the range.
"""

import struct
from decimal import Decimal
from fractions import Fraction

from oracle import awq, init_scale, lora, low_rank_init, quantize

MARGIN = Fraction(1, 10**5)


def f32(number: Fraction) -> Fraction:
    """The nearest f32. Going through a double is harmless for one operation on f32 operands."""
    return Fraction(struct.unpack("f", struct.pack("f", float(number)))[0])


def check(op: str, params: dict, inputs: dict) -> None:
    if op == "init_scale" and params["rule"] == "lp":
        check_lp(params, inputs["weight"])
    elif op == "svd_init":
        check_singular(inputs["weight"], params["rank"])
    elif op == "loftq_init":
        check_loftq(params, inputs)
    elif op == "awq.scale":
        check_awq_scale(params, inputs)
    elif op == "awq.clip":
        check_awq_clip(params, inputs)
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


def check_singular(matrix, rank):
    """Kept singular values stand apart, and the sign of a pair is that of one clear element."""
    triples = low_rank_init.singular(matrix)
    values = [value for value, _, _ in triples] + [Decimal(0)]
    for k, (value, left, _) in enumerate(triples[:rank]):
        if value == 0:
            continue
        assert value - values[k + 1] > values[0] / 100, [float(value) for value in values]
        largest = max(left, key=abs)
        against = [abs(element) for element in left if (element < 0) != (largest < 0)]
        assert all(abs(largest) - other > Decimal("0.01") for other in against), (k, left)


def check_loftq(params, inputs):
    """Codes keep their distance from ties, but for those of a first turn that is exact in f32."""
    _, qmax = quantize.code_range(params["bits"])
    for turn, found in enumerate(low_rank_init.turns(params, inputs)):
        check_singular(found["residual"], params["rank"])
        size = quantize.group_size_of(params, found["target"])
        for o, row in enumerate(found["target"]):
            for i, element in enumerate(row):
                scale = found["scale"][o][i // size]
                exact = turn == 0 and f32(scale) == scale and f32(element / scale) == element / scale
                near = distance_to_tie(element / scale)
                # A turn passes on the error of a decomposition.
                assert exact or near > (1 if turn == 0 else 100) * MARGIN * qmax, (turn, o, i)


def distance_to_tie(v):
    """How far v is from the nearest number half way between two integers."""
    v = Fraction(v)
    return abs(v - (v.numerator // v.denominator) - Fraction(1, 2))


def check_winner(errors):
    """The least error is clear, or met exactly by others."""
    least = min(errors)
    others = [error for error in errors if error - least > least / 10**60]
    assert all(error - least > least / 1000 for error in others), [float(e) for e in errors]


def check_span(group, bits, exact_in_f32):
    """No code and no zero-point of a group that the other side of a near tie would change."""
    scale, zero_point, codes = awq.spans(group, bits)
    last_code = 2**bits - 1
    for w, code in zip([*group, min(group)], [*codes, None], strict=True):
        v = Fraction(w) / Fraction(scale)
        exact = exact_in_f32 and f32(Fraction(scale)) == Fraction(scale) and f32(v) == v
        if exact or distance_to_tie(v) > MARGIN * max(1, abs(v)):
            continue
        below = v.numerator // v.denominator
        either = [-below, -below - 1]
        if code is not None:
            either = [below + zero_point, below + 1 + zero_point]
        reached = {min(max(number, 0), last_code) for number in either}
        assert len(reached) == 1, (float(w), float(v))


def check_awq_scale(params, inputs):
    candidates = awq.scale_candidates(params, inputs)
    check_winner([error for error, _, _, _ in candidates])
    size = quantize.group_size_of(params, inputs["weight"])
    for _, _, scales, _ in candidates:
        plain = all(scale == 1 for scale in scales)
        for row in awq.scaled(inputs["weight"], scales):
            for start in range(0, len(row), size):
                check_span(row[start : start + size], params["bits"], plain)


def check_awq_clip(params, inputs):
    size = quantize.group_size_of(params, inputs["weight"])
    for row in inputs["weight"]:
        for start in range(0, len(row), size):
            group = row[start : start + size]
            channels = [token[start : start + size] for token in inputs["x"]]
            candidates = awq.clip_candidates(group, channels, params)
            check_winner([error for error, _, _, _ in candidates])
            for _, _, max_value, _ in candidates:
                clipped = [min(max(w, -max_value), max_value) for w in group]
                check_span(clipped, params["bits"], f32(max_value) == max_value)


def flips_code(right: Fraction, wrong: Fraction, bits: int) -> bool:
    """Whether a mistaken argument gives another code than the right one."""
    return quantize.nearest_code(right, bits) != quantize.nearest_code(wrong, bits)


def by_reciprocal_f32(weight, scale):
    """The mistake `weight * (1 / scale)`."""
    return f32(weight * f32(1 / scale))


def divided_separately_f32(weight, offset, scale):
    """The mistake `weight / scale - offset / scale`."""
    return f32(f32(weight / scale) - f32(offset / scale))
