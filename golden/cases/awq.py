"""Cases of AWQ's two searches. Magnitudes are squares or fourth powers where a ratio is tried."""

import math

from case_text import GoldenFile, case

from .spread import spread

REFUSED = {
    "steps_range": "a search without candidates that answers something",
    "shape": "a broadcast, transposed or truncated tensor instead of a refusal",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
    "non_finite": "a NaN that a maximum skips",
}
GRID = {
    "tie": "round half away from zero, or floor(x + 0.5)",
    "zero_point": "a zero-point that is not rounded, not clamped, or of the other sign",
    "one_sign": "a range that is widened to contain 0, or a zero-point beyond the grid",
    "no_extent": "a division by a range of zero, or a floor on the scale instead of the range",
    "group_index": "the range of another group",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "grid_width": "a range hard-coded for one width",
    "first_minimum": "the last of equal errors",
    "odd_size": "a kernel that handles only whole tiles",
}
SCALE_NOTES = {
    "ratio": "a ratio of k / (steps - 1), or one that starts at 1 / steps",
    "balanced": "channel scales that are not divided by the root of max * min",
    "mean_magnitude": "means without the magnitude, the largest magnitude, or one token",
    "silent_channel": "a channel scale of zero, or another floor",
    "divided_out": "an output in the units of the scaled weight, or x that is not divided",
    "output_error": "an error of the weight in place of one of the output",
    "default_steps": "another number of ratios where none is given",
    **GRID,
    **REFUSED,
}
CLIP_NOTES = {
    "shrink": "ranges counted from the other end, or tried below half of the largest magnitude",
    "half": "all of the steps, or half rounded up",
    "two_sided": "a clamp on one side, or by max and min instead of the largest magnitude",
    "own_group": "an error over the whole row in place of the group's",
    "output_error": "an error of the weight in place of one of the output",
    "all_tokens": "an error of one token, or of the mean token",
    "default_steps": "another number of ranges where none is given",
    **GRID,
    **REFUSED,
}

TIES = [[-2.0, -0.5, 0.5, 1.0]]
ROWS = spread([3, 6], seed=63, step=2.0**-10, reach=3500)
# One side of every group reaches at least twice as far as the other: where a range clips both ends,
# min / scale is half of an odd number, which only exact arithmetic keeps.
LOPSIDED = [
    [3.1875, -0.703125, 1.296875, -0.40625, 0.890625, -3.609375],
    [-0.9375, 2.546875, 1.109375, 2.921875, -0.265625, 1.484375],
    [0.171875, -2.234375, 0.578125, -0.328125, 1.046875, 2.796875],
]
X = [
    [1.0, 16.0, 0.25, 4.0, 1.0, 2.25],
    [-1.0, 16.0, -0.25, -4.0, 1.0, -2.25],
]
TOKENS = spread([5, 6], seed=64, step=0.375, reach=9)
FOURTHS = [[256.0, -256.0, -0.0625, 0.00390625, -0.0625, 81.0]]


def one(id, flags, weight, x, *, error=None, remark=None, **params):
    params = {"bits": 4, **params}
    return case(id, flags, params, weight=weight, x=x, error=error, remark=remark)


SCALE = [
    one(
        "by_hand",
        "ratio balanced divided_out",
        [[-4.0, 0.5, 2.0]],
        [[1.0, 16.0, 1.0]],
        bits=2,
        steps=2,
        remark="ratio 0 loses 16 * 0.5, ratio 0.5 scales by 0.5, 2, 0.5 and loses nothing",
    ),
    one("one_step_is_plain", "ratio tie", TIES, [[1.0, 2.0, 4.0, 8.0]], bits=2, steps=1),
    one("squares", "ratio balanced", ROWS, X, steps=2),
    one(
        "fourth_powers",
        "ratio balanced",
        ROWS,
        FOURTHS,
        bits=3,
        steps=4,
        remark="ratio 0.25: powers 4 4 1/2 1/4 1/2 3, and 4 * 1/4 = 1",
    ),
    one(
        "magnitudes_of_tokens",
        "mean_magnitude",
        ROWS,
        [[2.0, -30.0, 0.5, 1.0, 2.0, 2.5], [0.0, 2.0, 0.0, -7.0, 0.0, -2.0]],
        steps=2,
        remark="means 1, 16, 0.25, 4, 1, 2.25",
    ),
    one("two_bits_of_groups", "group_index grid_width", ROWS, X, bits=2, group_size=3, steps=2),
    one("a_row_is_a_group", "one_group_per_row", ROWS, X, bits=3, steps=2),
    one("eight_bits", "grid_width", ROWS, X, bits=8, group_size=2, steps=2),
    one("general", "default_steps odd_size output_error", ROWS, TOKENS, group_size=3),
    one("general_three_bits", "default_steps output_error", ROWS, TOKENS, bits=3, steps=7),
    one(
        "silent_channel",
        "silent_channel",
        [[1.0, -2.25, 0.5]],
        [[0.0, 1.0, 4.0]],
        bits=3,
        steps=2,
    ),
    one(
        "equal_magnitudes",
        "first_minimum",
        [[-1.0, 0.375, 2.0]],
        [[1.0, -1.0, 1.0]],
        bits=2,
        steps=5,
        remark="every ratio scales by 1",
    ),
    one("all_silent", "first_minimum silent_channel", ROWS, [[0.0] * 6], steps=3),
    one("positive_group", "one_sign zero_point", [[5.0, 6.0]], [[1.0, 1.0]], bits=2, steps=2),
    one("negative_group", "one_sign zero_point", [[-5.0, -6.0]], [[1.0, 1.0]], bits=2, steps=2),
    one("constant_group", "no_extent", [[0.5, 0.5, 0.0, 0.0]], [[1.0] * 4], group_size=2, steps=2),
    one("no_steps", "steps_range", ROWS, X, steps=0, error="steps"),
    one("narrow_x", "shape", ROWS, [[1.0, 2.0]], steps=2, error="shape"),
    one("group_size_does_not_divide", "group_divides", ROWS, X, group_size=4, error="group_size"),
    one("nan_in_x", "non_finite", TIES, [[1.0, math.nan, 1.0, 1.0]], error="x["),
    one("infinite_weight", "non_finite", [[1.0, -math.inf]], [[1.0, 1.0]], error="weight"),
]
CLIP = [
    one(
        "by_hand",
        "shrink output_error",
        [[0.0, 1.0, 4.0]],
        [[1.0, 4.0, 1.0]],
        bits=2,
        steps=4,
        remark="range 4 costs (4/3)^2, range 3 costs 1",
    ),
    one(
        "both_ends",
        "two_sided tie",
        [[-3.5, 1.75, 0.5, 4.0]],
        [[0.25, 4.0, 2.0, 0.25]],
        bits=2,
        steps=4,
        remark="range 3 is scale 2: both ends are ties, zero_point 2, output -4 2 0 2",
    ),
    one(
        "negative_end",
        "two_sided zero_point",
        [[-4.0, 1.0, 0.25]],
        [[0.125, 4.0, 1.0]],
        bits=2,
        steps=8,
    ),
    one("ties", "tie shrink", TIES, [[1.0, 1.0, 1.0, 2.0]], bits=2, steps=2),
    one(
        "odd_steps_round_down",
        "half",
        [[0.0, 1.0, 5.0]],
        [[0.0, 4.0, 0.0]],
        bits=2,
        steps=5,
        remark="k is 0 or 1; k = 2 with range 3 would lose nothing",
    ),
    one(
        "groups_apart",
        "own_group group_index",
        [[0.0, 1.0, 4.0, -3.0, 0.5, 3.0], [2.0, -1.0, 0.0, 8.0, 2.0, 0.0]],
        [[1.0, 4.0, 1.0, -1.0, 2.0, 1.0], [2.0, 0.0, -1.0, 0.5, -8.0, 0.0]],
        bits=2,
        group_size=3,
        steps=4,
    ),
    one(
        "tokens_do_not_cancel",
        "all_tokens",
        [[0.0, 1.0, 4.0]],
        [[0.0, 4.0, 0.0], [0.0, -4.0, 0.0]],
        bits=2,
        steps=4,
    ),
    one(
        "the_first_token_would_not_clip",
        "all_tokens",
        [[1.21875, -0.578125, -2.171875]],
        [[0.0, -3.0, 2.0], [-3.0, 3.0, 4.0]],
        bits=2,
        steps=4,
        remark="neither would the mean of both",
    ),
    one("general", "default_steps odd_size", LOPSIDED, TOKENS, group_size=3, bits=3),
    one("a_row_is_a_group", "one_group_per_row default_steps", LOPSIDED[1:2], TOKENS, bits=2),
    one("eight_bits", "grid_width", LOPSIDED, TOKENS, bits=8, group_size=2, steps=6),
    one(
        "silent_group",
        "first_minimum",
        [[0.8125, -1.0, 3.0]],
        [[0.0, 0.0, 0.0]],
        steps=20,
        remark="no range is better than another",
    ),
    one("positive_group", "one_sign zero_point", [[5.0, 6.0]], [[1.0, 1.0]], bits=2, steps=4),
    one("zero_group", "no_extent", [[0.0, 0.0, 0.5, 0.5]], [[1.0] * 4], group_size=2, steps=2),
    one("one_step", "steps_range", ROWS, X, steps=1, error="steps"),
    one("narrow_x", "shape", ROWS, [[1.0, 2.0]], steps=2, error="shape"),
    one("group_size_does_not_divide", "group_divides", ROWS, X, group_size=4, error="group_size"),
    one("infinity_in_x", "non_finite", TIES, [[1.0, math.inf, 1.0, 1.0]], error="x["),
    one("nan_in_weight", "non_finite", [[1.0, math.nan]], [[1.0, 1.0]], error="weight"),
]

FILES = [
    GoldenFile("awq/awq.scale.toml", "awq.scale", SCALE_NOTES, SCALE),
    GoldenFile("awq/awq.clip.toml", "awq.clip", CLIP_NOTES, CLIP),
]
