"""Cases of the quantization of activations, token by token. At 2 bits the levels are 0 to 3."""

import math

from case_text import GoldenFile, case

from .spread import spread

REFUSED = {
    "non_finite": "a NaN that least and greatest skip",
    "shape": "a broadcast, transposed or truncated tensor instead of a refusal",
    "group_divides": "a group that crosses a token, or a silent fallback to one group per token",
    "bits_range": "a grid of a width that the code type cannot hold",
    "rule_name": "an unknown zero point rule replaced by a default in silence",
}
SHARED = {
    "rounded_apart": "round(x / scale + zero_point) in place of round(x / scale) + zero_point",
    "zero_point_tie": "a zero point rounded half away from zero, or not at all",
    "float_zero_point": "a zero point that is rounded, or levels that are, where neither must be",
    "clipped_extreme": "no clamp, as if the extremes could not leave the grid",
    "per_token": "one grid for all tokens",
    "group_index": "extremes of another group, or of the whole token",
    "grid_width": "2^bits steps where there are 2^bits - 1, or a width that is hard-coded",
    "odd_size": "a kernel that handles only whole vectors",
    **REFUSED,
}
FORWARD_NOTES = {
    **SHARED,
    "tie": "round half away from zero, or floor(x + 0.5)",
    "far_from_zero": "a range that is stretched to hold zero, or a zero point held to the grid",
    "constant": "a constant token that is lost, or divided by zero",
    "scale_floor": "a scale below 1e-8",
    "true_division": "multiplying by the reciprocal of the scale",
}
BACKWARD_NOTES = {
    **SHARED,
    "constants": "a gradient through the extremes",
    "true_division": "multiplying by the reciprocal of the scale",
    "unmasked": "the unmasked gradient handed on for an activation beyond the grid",
}

STEPS = [[-1.25, 0.25, 0.75, 1.75]]
BOTH_TIES = [[-1.5, 0.5, 1.5, -0.5]]
# -low / scale = 1, and arguments of -1, 0.5, 1.5, 2: rounding after adding 1 gives 2, 2, 3.
ODD_ZERO_POINT = [[-1.0, 0.5, 1.5, 2.0]]
TOKENS = [
    [0.0, 3.0, 10.0, 16.0, -1.0, 2.0],
    [-3.0, 0.0, 1.0, 1.0, -7.75, -7.75],
    [0.375, -0.25, -6.0, 0.0, 5.0, 4.0],
]
ODD = spread([5, 7], seed=61, step=0.25, reach=30)
# The extremes lie far apart, among values that reach half as far: several warps read a token.
LONG = spread([2, 262], seed=64, step=0.25, reach=60)
LONG[0][3], LONG[0][201] = -30.0, 33.75
LONG[1][3], LONG[1][201] = 33.75, -30.0


def extremes(width, places):
    """Two tokens whose ends are at these places, one each way round."""
    tokens = spread([2, width], seed=66, step=0.25, reach=60)
    for token, ends in zip(tokens, [(-30.0, 33.75), (33.75, -30.0)]):
        for place, end in zip(places, ends):
            token[place] = end
    return tokens


# Halfway and at the end of what 32 threads look at together: one or four numbers each.
EXTREMES = [(262, (31, 48)), (264, (127, 64))]
FLOATING = {"zero_point": "float"}
# In f32, 37.5 / 15 is the tie 2.5 and 37.5 * (1 / 15) lies above it.
QUOTIENT = [[0.0, 37.5, 22.5, 45.0, 7.5]]


def forward(id, flags, x, *, error=None, remark=None, bits=2, **params):
    return case(id, flags, {"bits": bits, **params}, x=x, error=error, remark=remark)


def backward(id, flags, x, d_output, *, error=None, remark=None, bits=2, **params):
    params = {"bits": bits, **params}
    return case(id, flags, params, x=x, d_output=d_output, error=error, remark=remark)


FORWARD = [
    forward("scale_one", "grid_width", STEPS, remark="zero point round(1.25) = 1"),
    forward(
        "zero_point_not_rounded",
        "float_zero_point clipped_extreme",
        STEPS,
        **FLOATING,
        remark="1.75: round is 2, 2 + 1.25 is above 3 and is held there",
    ),
    forward("integer_by_name", "grid_width", STEPS, zero_point="integer"),
    forward(
        "odd_zero_point",
        "rounded_apart tie",
        ODD_ZERO_POINT,
        remark="round(0.5) + 1 = 1 and round(1.5) + 1 = 3, where round(0.5 + 1) would be 2",
    ),
    forward(
        "zero_point_at_a_tie",
        "zero_point_tie clipped_extreme tie",
        BOTH_TIES,
        remark="zero point round(1.5) = 2; the greatest, round(1.5) + 2 = 4, is held at 3",
    ),
    forward(
        "zero_point_at_a_tie_that_goes_down",
        "zero_point_tie",
        [[-2.5, 0.0, 0.25, 0.5]],
        remark="round(2.5) = 2",
    ),
    forward(
        "all_above_zero",
        "far_from_zero",
        [[10.0, 11.0, 12.0, 13.0]],
        remark="zero point -10: it is not held to 0..3",
    ),
    forward("all_below_zero", "far_from_zero", [[-10.0, -13.0, -11.5, -12.0]]),
    forward(
        "all_above_zero_floating",
        "far_from_zero float_zero_point",
        [[10.5, 11.0, 13.5]],
        **FLOATING,
    ),
    forward(
        "groups_and_tokens",
        "per_token group_index constant",
        TOKENS,
        group_size=2,
        remark="the second token has two constant groups",
    ),
    forward("whole_tokens", "per_token", TOKENS, bits=4),
    forward("groups_floating", "group_index float_zero_point", TOKENS, group_size=3, **FLOATING),
    forward("odd_sizes", "odd_size per_token", ODD, bits=3),
    forward("odd_sizes_floating", "odd_size float_zero_point", ODD, bits=3, **FLOATING),
    forward(
        "constant_tokens",
        "constant",
        [[0.3125, 0.3125], [-7.0, -7.0], [0.0, 0.0], [2.0**60, 2.0**60]],
        remark="each comes back as it is: scale |x|, zero point -1 or 1, code 0; zero has scale 1",
    ),
    forward("constant_floating", "constant float_zero_point", [[0.3125, 0.3125]], **FLOATING),
    forward(
        "long_tokens",
        "odd_size per_token",
        LONG,
        bits=8,
        remark="scale 0.25, from extremes far apart",
    ),
    *[
        forward(f"ends_within_{width}", "per_token", extremes(width, places), bits=8)
        for width, places in EXTREMES
    ],
    forward("one_activation", "odd_size constant", [[-0.75]], bits=8),
    forward(
        "range_below_the_floor",
        "scale_floor",
        [[0.0, 2.0**-30, 2.0**-29]],
        remark="scale 1e-8: everything is code 0",
    ),
    forward(
        "constant_below_the_floor",
        "scale_floor constant",
        [[2.0**-27, 2.0**-27]],
        remark="7.45e-9 over 1e-8 rounds to 1, zero point -1: it comes back as 1e-8",
    ),
    forward("division_is_not_by_reciprocal", "true_division tie", QUOTIENT, remark="scale 15"),
    forward(
        "eight_bits",
        "grid_width tie",
        [[-127.5, 127.5, 0.5, 1.5, -2.5, 100.0]],
        bits=8,
        remark="scale 1, zero point round(127.5) = 128; 127.5 rounds to 128 and is held at 255",
    ),
    forward(
        "eight_bits_use_the_last_code",
        "grid_width",
        [[0.0, 255.0, 128.0, 254.5]],
        bits=8,
    ),
    forward("nan_in_x", "non_finite", [[1.0, math.nan]], error="x["),
    forward("infinity_in_x", "non_finite", [[1.0, -math.inf]], error="x["),
    forward(
        "group_size_does_not_divide", "group_divides", TOKENS, group_size=4, error="group_size"
    ),
    forward("nine_bits", "bits_range", STEPS, bits=9, error="bits"),
    forward("rule_of_another_name", "rule_name", STEPS, zero_point="real", error="zero_point"),
    forward("x_is_a_vector", "shape", [1.0, 2.0], error="shape"),
]

POWERS = [[1.0, 2.0, 4.0, 8.0]]
BACKWARD = [
    backward(
        "extremes_inside",
        "constants",
        STEPS,
        POWERS,
        remark="everything passes, and nothing else arrives at the least and the greatest",
    ),
    backward(
        "greatest_clipped_by_a_floating_zero_point",
        "float_zero_point clipped_extreme unmasked",
        STEPS,
        POWERS,
        **FLOATING,
    ),
    backward(
        "least_clipped_by_a_floating_zero_point",
        "float_zero_point clipped_extreme",
        [[-1.75, 0.25, 0.75, 1.25]],
        POWERS,
        **FLOATING,
        remark="round(-1.75) + 1.75 is below 0",
    ),
    backward(
        "greatest_clipped_by_an_integer_zero_point",
        "clipped_extreme zero_point_tie unmasked",
        BOTH_TIES,
        POWERS,
    ),
    backward(
        "division_is_not_by_reciprocal",
        "true_division clipped_extreme",
        [[-91.5, 30.5, 91.5]],
        [[1.0, 2.0, 4.0]],
        remark="scale 61: in f32, 91.5 / 61 is the tie 1.5 and 91.5 * (1 / 61) lies below it",
    ),
    backward("odd_zero_point", "rounded_apart", ODD_ZERO_POINT, POWERS),
    backward(
        "groups_and_tokens",
        "per_token group_index",
        TOKENS,
        spread([3, 6], seed=62),
        group_size=2,
    ),
    backward("odd_sizes", "odd_size per_token", ODD, spread([5, 7], seed=63), bits=3),
    backward(
        "odd_sizes_floating",
        "odd_size float_zero_point",
        ODD,
        spread([5, 7], seed=63),
        bits=3,
        **FLOATING,
    ),
    backward(
        "long_tokens",
        "odd_size per_token",
        LONG,
        spread([2, 262], seed=65),
        bits=8,
        **FLOATING,
        remark="scale 0.25, zero point 120: everything passes, and with other extremes not",
    ),
    *[
        backward(
            f"ends_within_{width}",
            "per_token",
            extremes(width, places),
            spread([2, width], seed=67),
            bits=8,
            **FLOATING,
        )
        for width, places in EXTREMES
    ],
    backward("eight_bits", "grid_width", [[-127.5, 127.5, 0.5, 1.5]], POWERS, bits=8),
    backward("nan_in_d_output", "non_finite", STEPS, [[1.0, math.nan, 0.0, 0.0]], error="d_output"),
    backward("d_output_of_another_width", "shape", STEPS, [[1.0, 2.0]], error="d_output"),
    backward(
        "group_size_does_not_divide",
        "group_divides",
        STEPS,
        POWERS,
        group_size=3,
        error="group_size",
    ),
    backward("one_bit", "bits_range", STEPS, POWERS, bits=1, error="bits"),
    backward(
        "rule_of_another_name", "rule_name", STEPS, POWERS, zero_point="none", error="zero_point"
    ),
]

FILES = [
    GoldenFile(
        "quantize/dynamic_quantize.forward.toml", "dynamic_quantize.forward", FORWARD_NOTES, FORWARD
    ),
    GoldenFile(
        "quantize/dynamic_quantize.backward.toml",
        "dynamic_quantize.backward",
        BACKWARD_NOTES,
        BACKWARD,
    ),
]
