"""Cases of learnable weight clipping. Logits of 0 keep half of a range, and halves are exact."""

import math

from case_text import GoldenFile, case

from .spread import spread

REFUSED = {
    "non_finite": "a NaN that least and greatest skip, or a logit that saturates in silence",
    "shape": "a broadcast, transposed or truncated tensor instead of a refusal",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
}
SHARED = {
    "each_end": "upper and lower exchanged, or one fraction for both ends",
    "sigmoid": "the logit itself in place of its sigmoid",
    "symmetric": "a zero point or a divisor of the other kind of grid",
    "zero_point": "a zero point from the range before it was clipped, or none",
    "clipped": "a weight beyond the clipped range that is not held at the grid's end",
    "scale_range": "a scale beyond 1e-5 and 1e4",
    "group_index": "logits or extremes of another group",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "grid_width": "a range hard-coded for one width",
    "odd_size": "a kernel that handles only whole vectors",
    **REFUSED,
}
FORWARD_NOTES = {
    **SHARED,
    "tie": "round half away from zero, or floor(x + 0.5)",
    "rounded_apart": "round(weight / scale + zero_point), which differs at ties of odd zero points",
    "zero_point_tie": "a zero point rounded half away from zero",
    "zero_point_range": "a zero point held to the grid, or not held at 1e4",
}
BACKWARD_NOTES = {
    **SHARED,
    "zero_point_gradient": "a gradient through the rounding of the zero point",
    "rounding_residual": "a scale gradient without - weight / scale, or without clipped weights",
    "unmasked": "the unmasked gradient handed on for clipped weights",
    "larger_end": "in a symmetric grid, a gradient for the logit of the smaller end",
}

# Halves of the range are 2 and -1: scale 1 at 2 bits.
HAND = {"weight": [[-2.0, 0.75, 4.0]], "upper": [[0.0]], "lower": [[0.0]]}
# Halves 1.5 and -1.5: scale 1, zero point round(1.5) = 2.
TIED = {"weight": [[-3.0, 0.5, 3.0, 1.5, -0.5]], "upper": [[0.0]], "lower": [[0.0]]}
# Halves 2.5 and -0.5: scale 1, zero point round(0.5) = 0.
DOWN = {"weight": [[-1.0, 0.5, 5.0, 1.5]], "upper": [[0.0]], "lower": [[0.0]]}
START = {
    "weight": spread([2, 8], seed=71, step=0.0625, reach=30),
    "upper": [[4.0, 4.0], [4.0, 4.0]],
    "lower": [[4.0, 4.0], [4.0, 4.0]],
}
LEARNED = {
    "weight": spread([5, 9], seed=72, step=0.125, reach=25),
    "upper": [[1.5 - 0.25 * (3 * o + g) for g in range(3)] for o in range(5)],
    "lower": [[-0.75 + 0.375 * (o + 2 * g) for g in range(3)] for o in range(5)],
}
ODD = {
    "weight": spread([3, 7], seed=73, step=0.25, reach=18),
    "upper": [[0.5], [2.0], [-1.0]],
    "lower": [[3.0], [-0.5], [0.25]],
}
POSITIVE = {"weight": [[1.0, 1.5, 3.0]], "upper": [[1.0]], "lower": [[-1.0]]}
CROSSED = {"weight": [[2.0, 2.25, 2.5]], "upper": [[-2.0]], "lower": [[3.0]]}
ZERO = {"weight": [[0.0, 0.0]], "upper": [[0.0]], "lower": [[0.0]]}
HUGE = {"weight": [[-(2.0**20), 2.0**20, 1024.0]], "upper": [[1.0]], "lower": [[2.0]]}
ONE = {"weight": [[0.75]], "upper": [[0.0]], "lower": [[0.0]]}
SYMMETRIC = {"symmetric": True}


def forward(id, flags, inputs, *, error=None, remark=None, bits=2, **params):
    return case(id, flags, {"bits": bits, **params}, **inputs, error=error, remark=remark)


def backward(id, flags, inputs, d_output, *, error=None, remark=None, bits=2, **params):
    params = {"bits": bits, **params}
    return case(id, flags, params, **inputs, d_output=d_output, error=error, remark=remark)


FORWARD = [
    forward("by_hand", "sigmoid clipped zero_point", HAND, remark="scale 1, zero point 1"),
    forward("by_hand_symmetric", "symmetric", HAND, **SYMMETRIC, remark="scale 2 / 1"),
    forward("asymmetric_by_name", "symmetric", HAND, symmetric=False),
    forward(
        "zero_point_at_a_tie",
        "zero_point_tie tie clipped",
        TIED,
        remark="zero point round(1.5) = 2; 1.5 rounds to 2, and 2 + 2 is held at 3",
    ),
    forward("zero_point_at_a_tie_that_goes_down", "zero_point_tie tie", DOWN),
    forward(
        "odd_zero_point",
        "rounded_apart tie",
        {"weight": [[-2.0, 0.5, 1.5, 4.0]], "upper": [[0.0]], "lower": [[0.0]]},
        remark="zero point 1: round(0.5) + 1 = 1, where round(0.5 + 1) would be 2",
    ),
    forward("start", "each_end group_index", START, bits=4, group_size=4),
    forward("start_symmetric", "symmetric group_index", START, bits=4, group_size=4, **SYMMETRIC),
    forward("learned", "each_end sigmoid group_index clipped", LEARNED, bits=3, group_size=3),
    forward("learned_symmetric", "symmetric each_end", LEARNED, bits=3, group_size=3, **SYMMETRIC),
    forward("one_group_per_row", "one_group_per_row odd_size", ODD, bits=4),
    forward("eight_bits", "grid_width", ODD, bits=8),
    forward("all_above_zero", "zero_point each_end", POSITIVE, remark="a negative zero point"),
    forward(
        "fractions_that_cross",
        "scale_range zero_point_range",
        CROSSED,
        remark="high is below low: the scale is held at 1e-5, the zero point at -1e4",
    ),
    forward("zero_group", "scale_range", ZERO, remark="scale 1e-5, not 1"),
    forward("huge_range", "scale_range clipped", HUGE, remark="the scale is held at 1e4"),
    forward("one_weight", "odd_size scale_range zero_point_range", ONE),
    forward("nan_in_upper", "non_finite", {**HAND, "upper": [[math.nan]]}, error="upper"),
    forward(
        "infinity_in_weight",
        "non_finite",
        {**HAND, "weight": [[1.0, 2.0, math.inf]]},
        error="weight",
    ),
    forward("lower_for_two_groups", "shape", {**HAND, "lower": [[0.0, 0.0]]}, error="lower"),
    forward("group_size_does_not_divide", "group_divides", HAND, group_size=2, error="group_size"),
]
BACKWARD = [
    backward(
        "by_hand",
        "sigmoid each_end rounding_residual unmasked zero_point_gradient clipped zero_point",
        HAND,
        [[1.0, 8.0, 2.0]],
        remark="d_scale = 1 * (0 - 1) + 8 * (1 - 0.75) + 2 * (3 - 1)",
    ),
    backward(
        "by_hand_symmetric",
        "symmetric larger_end",
        HAND,
        [[1.0, 8.0, 2.0]],
        **SYMMETRIC,
        remark="everything inside, d_scale = 8 * -0.375; all of it to upper",
    ),
    backward(
        "lower_end_is_larger",
        "symmetric larger_end",
        {"weight": [[-4.0, 0.75, 2.0]], "upper": [[0.0]], "lower": [[0.0]]},
        [[1.0, 8.0, 2.0]],
        **SYMMETRIC,
    ),
    backward(
        "ends_of_one_size",
        "symmetric larger_end",
        {"weight": [[-4.0, 0.75, 4.0]], "upper": [[0.0]], "lower": [[0.0]]},
        [[1.0, 8.0, 2.0]],
        **SYMMETRIC,
        remark="both are 2: upper has it",
    ),
    backward("start", "each_end group_index", START, spread([2, 8], seed=74), bits=4, group_size=4),
    backward(
        "learned",
        "each_end sigmoid group_index unmasked",
        LEARNED,
        spread([5, 9], seed=75),
        bits=3,
        group_size=3,
    ),
    backward(
        "learned_symmetric",
        "symmetric larger_end",
        LEARNED,
        spread([5, 9], seed=75),
        bits=3,
        group_size=3,
        **SYMMETRIC,
    ),
    backward(
        "one_group_per_row", "one_group_per_row odd_size", ODD, spread([3, 7], seed=76), bits=4
    ),
    backward("eight_bits", "grid_width", ODD, spread([3, 7], seed=76), bits=8),
    backward("zero_group", "scale_range", ZERO, [[1.0, 2.0]], remark="the logits get nothing"),
    backward("huge_range", "scale_range", HUGE, [[1.0, 2.0, 4.0]], remark="the logits get nothing"),
    backward("nan_in_d_output", "non_finite", HAND, [[1.0, math.nan, 2.0]], error="d_output"),
    backward("d_output_of_another_width", "shape", HAND, [[1.0, 2.0]], error="d_output"),
    backward(
        "group_size_does_not_divide",
        "group_divides",
        HAND,
        [[1.0, 2.0, 4.0]],
        group_size=2,
        error="group_size",
    ),
]

FILES = [
    GoldenFile("quantize/lwc.forward.toml", "lwc.forward", FORWARD_NOTES, FORWARD),
    GoldenFile("quantize/lwc.backward.toml", "lwc.backward", BACKWARD_NOTES, BACKWARD),
]
