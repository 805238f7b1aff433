"""Checks that a case means the same in f32 as in exact arithmetic.

A golden code or mask is a discrete value. It may be demanded of an f32 implementation only where
rounding on the way cannot change it: either every step of the quantizer argument is exact in f32,
or the exact argument keeps its distance from every tie and from both ends of the range.
"""

import math
import struct
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

from oracle import affine, awq, dynamic_quantize, gptq, init_scale, lora, low_rank_init, lr_qat, lwc
from oracle import nf4, quantize, rtn

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
    elif op == "nf4.quantize":
        check_nf4(params, inputs["weight"])
    elif op == "gptq.quantize":
        check_gptq(params, inputs)
    elif op.startswith(("fake_quantize", "l4q", "qat")):
        check_arguments(op, params, inputs)
    elif op.startswith("lr_qat"):
        check_lr_qat(op, params, inputs)
    elif op == "affine.quantize":
        size = quantize.group_size_of(params, inputs["weight"])
        for o, row in enumerate(inputs["weight"]):
            for g, (scale, zero_point) in enumerate(
                zip(inputs["scale"][o], inputs["zero_point"][o], strict=True)
            ):
                group = row[g * size : (g + 1) * size]
                check_unsigned(group, scale, f32(scale), zero_point, params["bits"])
    elif op == "rtn.quantize":
        check_rtn(params, inputs["weight"])
    elif op.startswith("dynamic_quantize"):
        check_tokens(params, inputs["x"])
    elif op.startswith("lwc"):
        check_clipped_ranges(params, inputs)


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
            scale = inputs["scale"][o][i // size]
            offset = inputs["offset"][o][i // size] if "offset" in inputs else Fraction(0)
            v = quantize.argument(element, scale, offset)
            v_f32 = argument_f32(rounded[o][i], scale, offset)
            distance = distance_to_decision(v, params["bits"], quantize.mask_of(params))
            assert v_f32 == v or distance > MARGIN * max(1, abs(v)), (op, o, i, float(v))


def adapted_f32(weight, lora_a, lora_b, scaling):
    """The contract's order: the products added from zero in rank order, scaled, then the weight."""
    return [
        [
            f32(element + update_f32(lora_b[o], [row[i] for row in lora_a], scaling))
            for i, element in enumerate(row)
        ]
        for o, row in enumerate(weight)
    ]


def update_f32(row, column, scaling):
    total = Fraction(0)
    for left, right in zip(row, column, strict=True):
        total = f32(total + f32(left * right))
    return f32(scaling * total)


def argument_f32(weight, scale, offset):
    return f32(f32(weight - offset) / f32(quantize.raised(scale)))


def distance_to_decision(v, bits, mask):
    """How far v is from the nearest tie inside the range and from the nearer end of the mask."""
    qmin, qmax = quantize.code_range(bits)
    decisions = [Fraction(2 * code + 1, 2) for code in range(qmin, qmax)]
    half = Fraction(1, 2) if mask == "rounded" else 0
    return min(abs(v - point) for point in [*decisions, qmin - half, qmax + half])


def check_rounding(v, v_f32, *where):
    """Either f32 computes v exactly, or it is far from every tie."""
    to_tie = abs(v - math.floor(v) - Fraction(1, 2))
    assert v_f32 == v or to_tie > MARGIN * max(1, abs(v)), (*where, float(v))


def check_tokens(params, x):
    size = quantize.group_size_of(params, x)
    for t, token in enumerate(x):
        for start in range(0, len(token), size):
            group = token[start : start + size]
            low, high = min(group), max(group)
            scale, zero_point = dynamic_quantize.grid(group, params)
            steps = 2 ** params["bits"] - 1
            rounded = f32(f32(high - low) / steps) if low < high else scale
            rounded = max(rounded, f32(quantize.SCALE_FLOOR))
            check_rounding(-low / scale, f32(-low / rounded), "zero_point", t, start)
            for number in group:
                v, v_f32 = number / scale, f32(number / rounded)
                check_rounding(v, v_f32, t, start)
                place = round(v) + zero_point
                end = min(abs(place), abs(place - steps))
                exact = f32(round(v_f32) + f32(-low / rounded)) == place
                assert zero_point.denominator == 1 or exact or end > MARGIN, (t, start)


def check_clipped_ranges(params, inputs):
    """Where both logits are 0 the fractions are halves, and f32 may compute everything exactly."""
    weight, size = inputs["weight"], quantize.group_size_of(params, inputs["weight"])
    for o, row in enumerate(weight):
        for g, start in enumerate(range(0, len(row), size)):
            group = row[start : start + size]
            upper, lower = inputs["upper"][o][g], inputs["lower"][o][g]
            scale, zero_point, unclamped = lwc.grid(group, upper, lower, params)
            for end in (lwc.LEAST_SCALE, lwc.GREATEST_SCALE):
                clear = abs(unclamped - end) > end * Decimal(str(float(MARGIN)))
                assert clear, (o, g, "end of the scale")
            scale, zero_point = Fraction(scale), Fraction(zero_point)
            rounded = clipped_scale_f32(group, upper, lower, params)
            v = Fraction(-lwc.sigmoid(lower) * min(group)) / scale
            if not params.get("symmetric", False) and abs(v) < lwc.GREATEST_ZERO_POINT:
                v_f32 = rounded and f32(f32(-Fraction(min(group)) / 2) / rounded)
                check_rounding(v, v_f32, "zero_point", o, g)
            for number in map(Fraction, group):
                v = number / scale
                # Far beyond an end of the grid every rounding gives the code of that end.
                to_grid = max(-zero_point - v, v + zero_point - (2 ** params["bits"] - 1))
                if to_grid < 1 + 2 * MARGIN * abs(v):
                    check_rounding(v, rounded and f32(number / rounded), o, g)


def clipped_scale_f32(group, upper, lower, params):
    """The scale as f32 computes it from halves; None where the fractions are not exact."""
    if upper != 0 or lower != 0:
        return None
    high, low = f32(Fraction(max(group)) / 2), f32(Fraction(min(group)) / 2)
    _, qmax = quantize.code_range(params["bits"])
    if params.get("symmetric", False):
        scale = f32(max(abs(high), abs(low)) / qmax)
    else:
        scale = f32(f32(high - low) / (2 ** params["bits"] - 1))
    return max(scale, f32(Fraction(lwc.LEAST_SCALE)))


def check_lr_qat(op, params, inputs):
    """The stored weight first, which the rounded quotient decides, then the sum that is rounded."""
    frozen = params.get("inner_scale", "frozen") == "frozen"
    scaling = Fraction(params.get("lora_scaling", 0))

    def one(weight, o, i, g):
        low, high = lr_qat.ends(params, inputs, o, g)
        scale = quantize.raised(inputs["initial_scale" if frozen else "scale"][o][g])
        inner, inner_f32 = weight / scale, f32(weight / f32(scale))
        if frozen:
            inner, inner_f32 = stored_stably(params, inner, inner_f32, low, high)
        if op == "lr_qat.downcast":
            return
        column = [row[i] for row in inputs["lora_a"]]
        update = lora.dot(inputs["lora_b"][o], column) * scaling
        rounded_update = update_f32(inputs["lora_b"][o], column, scaling)
        if params.get("dialect") == "lr_qat_code":
            assert rounded_update == update or beside(update, update - Fraction(1, 2)), (o, i)
        v, v_f32 = inner + update, f32(inner_f32 + rounded_update)
        # Ties of the range and around it, where the mask is decided, and the ends themselves.
        decisions = [Fraction(2 * code - 1, 2) for code in range(low, high + 2)]
        margin = MARGIN * max(1, abs(v))
        nearest = min(abs(v - point) for point in [*decisions, low, high])
        assert v_f32 == v or nearest > margin, (op, o, i, float(v))

    lr_qat.over_groups(params, inputs, one)


def stored_stably(params, exact, rounded, low, high):
    """What is stored of a quotient, where f32 stores the same."""
    phi, _ = lr_qat.stored_as(params, exact, low, high)
    if params["downcast"] == "f32":
        return phi, rounded
    if exact != rounded:
        for off in (1 - MARGIN, 1 + MARGIN):
            assert lr_qat.stored_as(params, exact * off, low, high)[0] == phi, float(exact)
    return phi, phi


def beside(number, tie):
    """Whether a number keeps its distance from every whole number of steps beside the tie."""
    return abs((number - tie) - round(number - tie)) > MARGIN


def check_lp(params, weight):
    """The best scale wins clearly, or ties with a later one exactly."""
    size = quantize.group_size_of(params, weight)
    for row in weight:
        for start in range(0, len(row), size):
            errors = init_scale.lp_errors(row[start : start + size], params)
            best = min(error for error, _ in errors)
            others = [error for error, _ in errors if error != best]
            assert all(error - best > best / 1000 for error in others), (params, start)


def check_unsigned(group, scale, scale_f32, zero_point, bits):
    """The quotients keep their distance from the ties between codes, or are exact."""
    low, high = -zero_point, affine.largest_code(bits) - zero_point
    for weight in group:
        exact = weight / quantize.raised(scale)
        rounded = f32(weight / f32(quantize.raised(scale_f32)))
        distance = distance_to_tie(exact, low, high)
        assert rounded == exact or distance > MARGIN * max(1, abs(exact)), (weight, float(exact))


def distance_to_tie(v, low, high):
    """From the nearest tie between two integers of the range."""
    tie = min(max(v // 1, low), high - 1) + Fraction(1, 2)
    return abs(v - tie)


def check_rtn(params, weight):
    """The range wins clearly or ties exactly, and its zero point and codes are no matter of f32."""
    size = quantize.group_size_of(params, weight)
    for row in weight:
        for start in range(0, len(row), size):
            group = row[start : start + size]
            tried = rtn.grids_tried(group, params)
            if len(tried) > 1:
                errors = [rtn.error(group, *grid, params) for grid in tried]
                others = [error for error in errors if error != min(errors)]
                assert all(error - min(errors) > min(errors) / 1000 for error in others), start
            scale, zero_point = rtn.best_grid(group, params)
            if not params["symmetric"]:
                low = min([*group, Fraction(0)])
                ends = Fraction(0), Fraction(affine.largest_code(params["bits"]))
                exact = f32(-low / f32(scale)) == -low / scale
                distance = distance_to_tie(-low / quantize.raised(scale), *ends)
                assert exact or distance > MARGIN * max(1, ends[1]), (start, float(-low / scale))
            check_unsigned(group, scale, f32(scale), zero_point, params["bits"])


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
                near = distance_to_half(element / scale)
                # A turn passes on the error of a decomposition.
                assert exact or near > (1 if turn == 0 else 100) * MARGIN * qmax, (turn, o, i)


def distance_to_half(v):
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
        if exact or distance_to_half(v) > MARGIN * max(1, abs(v)):
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
