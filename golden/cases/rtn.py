"""Cases of round to nearest."""

import math

from case_text import GoldenFile, case

from .init_scale import LONG, ROWS
from .spread import long

NOTES = {
    "zero_in_range": "a range without zero: min and max of the weights alone",
    "zero_point_tie": "a zero point rounded half up, or away from zero",
    "zero_point_rounded": "a zero point that is cut, or kept real",
    "zero_point_middle": "2^(bits-1) - 1 or 0 for the zero point of a symmetric grid",
    "levels": "2^bits levels where there are 2^bits - 1 steps, or the other way round",
    "sign": "max(w) in place of max(|w|)",
    "convention": "the scale of the other convention",
    "gptq_extremes": "the positive extreme half a step above the grid with a code of its own",
    "tie": "round half away from zero, or floor(x + 0.5), or after adding the zero point",
    "clipping": "a zero point that was rounded up and codes that wrap at the ends",
    "degenerate": "a division by zero for a group of zeros: scale 1, and the code of zero",
    "scale_floor": "a scale below the floor that is raised in one place and not in the other",
    "group_index": "statistics over another group, over the row, or over the tensor",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "grid_width": "a range hard-coded for one width",
    "long_group": "a kernel that sees the beginning of a group, or the first groups, only",
    "group_of_one": "a group of one weight, whose range has one end at zero",
    "clipping_error": "an error that leaves out clipped weights",
    "exponent": "a fixed exponent of 2",
    "first_minimum": "the last of two equal minima",
    "steps": "ranges that start at 0, stop before the widest, or are counted from another end",
    "both_ends": "one end of the range shrunk and the other kept",
    "non_finite": "a NaN that min and max skip",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
    "rule_params": "p or steps that are missing or out of range, replaced by a default in silence",
    "rule_name": "an unknown range or convention replaced by a default in silence",
    "shape": "a tensor of another rank, flattened",
    "bits_range": "a grid of a width that the code type cannot hold",
}


def one(id, flags, weight, symmetric=False, *, bits=4, error=None, remark=None, **params):
    params = {"bits": bits, "symmetric": symmetric, **params}
    return case(id, flags, params, weight=weight, error=error, remark=remark)


OUTLIER = [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.0]]

CASES = [
    one("asymmetric_of_70_weights", "long_group", LONG),
    one("symmetric_of_70_weights", "long_group", LONG, symmetric=True),
    one("asymmetric_of_130_groups", "long_group", long([1, 260], seed=93), group_size=2),
    one(
        "asymmetric_on_the_grid",
        "levels zero_point_rounded",
        [[-3.0, 4.5, 0.0, 1.25]],
        remark="scale 7.5/15, zero point 6; 1.25 is a tie at 2.5",
    ),
    one("asymmetric_by_groups", "group_index zero_in_range", ROWS, group_size=4),
    one(
        "positive_weights_keep_zero",
        "zero_in_range",
        [[7.5, 3.0, 5.25]],
        remark="low is 0: scale 7.5/15, zero point 0",
    ),
    one(
        "negative_weights_keep_zero",
        "zero_in_range clipping",
        [[-7.5, -3.0, -5.25]],
        remark="high is 0: zero point 15",
    ),
    one(
        "zero_point_tie_goes_to_the_even_code",
        "zero_point_tie clipping tie",
        [[-2.5, 12.5, 0.0], [-3.5, 11.5, 0.0]],
        remark="scale 1; zero points 2.5 and 3.5 become 2 and 4; 12.5 - 2 and -3.5 + 4",
    ),
    one(
        "zero_point_is_rounded_and_not_cut",
        "zero_point_rounded clipping",
        [[-2.75, 12.25, 3.0], [-2.25, 12.75, 3.0]],
        remark="zero points 3 and 2: one end falls off the grid",
    ),
    one("symmetric_by_groups", "group_index sign", ROWS, True, group_size=4),
    one(
        "symmetric_on_the_grid",
        "zero_point_middle levels tie",
        [[-3.5, 1.75, 0.75, 3.5, 0.25]],
        True,
        remark="scale 0.5, zero point 8; 3.5, 1.5 and 0.5 are ties",
    ),
    one("symmetric_negative_extreme", "sign levels", [[1.0, -14.0, 3.0]], True, remark="scale 2"),
    one(
        "gptq_scale",
        "convention gptq_extremes tie",
        [[7.5, -7.5, 2.0, -3.5]],
        True,
        convention="gptq",
        remark="scale 1: 7.5 clips to 7, -7.5 is a tie and goes to -8",
    ),
    one(
        "gptq_is_not_the_paper",
        "convention",
        [[15.0, 3.25, -7.25]],
        True,
        convention="gptq",
        remark="scale 2; the paper's is 15/7",
    ),
    one("paper_by_name", "convention", [[7.0, 3.25, -6.25]], True, convention="paper"),
    one(
        "convention_does_not_touch_asymmetric",
        "convention",
        [[-3.0, 4.5, 1.0]],
        convention="gptq",
    ),
    one("one_group_per_row", "one_group_per_row", [[-1.0, 14.0, 3.0], [-2.0, 5.5, 1.0]]),
    one("two_bits", "grid_width clipping", [[-1.0, 2.0, 0.25, 1.75]], bits=2),
    one("two_bits_symmetric", "grid_width zero_point_middle", [[-1.0, 0.75, 0.25]], True, bits=2),
    one(
        "eight_bits", "grid_width", [[-1.0, 254.0, 100.25, 3.5]], bits=8, remark="scale 1, tie 3.5"
    ),
    one("eight_bits_symmetric", "grid_width", [[-127.0, 63.25, 1.5]], True, bits=8),
    one("groups_of_one", "group_of_one", [[4.0, -2.0, 0.0]], group_size=1),
    one("groups_of_one_symmetric", "group_of_one", [[4.0, -2.0, 0.0]], True, group_size=1, bits=3),
    one("zeros", "degenerate", [[0.0, -0.0, 0.0, 7.5, -7.5, 0.0]], group_size=3),
    one("zeros_symmetric", "degenerate", [[0.0, -0.0, 0.0, 7.0, -3.5, 0.0]], True, group_size=3),
    one("zeros_gptq", "degenerate", [[0.0, 0.0]], True, convention="gptq"),
    one("zeros_searched", "degenerate", [[0.0, 0.0]], range="lp", p=2.0, steps=4),
    one(
        "scale_below_the_floor",
        "scale_floor",
        [[-(2.0**-27), 2.0**-27, 0.0]],
        remark="the scale is 2^-26/15; 1e-8 divides, in the zero point too: 0.745 becomes 1",
    ),
    one(
        "lp_by_groups",
        "clipping_error steps group_index",
        ROWS,
        group_size=4,
        range="lp",
        p=2.0,
        steps=8,
    ),
    one(
        "lp_symmetric_by_groups",
        "clipping_error steps group_index",
        ROWS,
        True,
        group_size=4,
        range="lp",
        p=2.0,
        steps=8,
    ),
    one(
        "lp_clips_an_outlier",
        "clipping_error exponent",
        OUTLIER,
        True,
        bits=2,
        range="lp",
        p=1.0,
        steps=4,
        remark="range 1 costs 3, range 2 costs 7 + 2, range 3 costs 7 + 1, range 4 costs 7",
    ),
    one(
        "lp_keeps_it_at_a_high_exponent",
        "exponent clipping_error",
        OUTLIER,
        True,
        bits=2,
        range="lp",
        p=4.0,
        steps=4,
        remark="range 1 costs 81, range 2 costs 7 + 16, range 3 costs 7 + 1, range 4 costs 7",
    ),
    one(
        "lp_first_of_equal_minima",
        "first_minimum",
        [[1.0, 0.5]],
        True,
        bits=2,
        range="lp",
        p=2.0,
        steps=2,
        remark="range 0.5 loses 1 - 0.5, range 1 loses 0.5 - 0: equal, the smaller range wins",
    ),
    one(
        "lp_shrinks_both_ends",
        "both_ends clipping_error",
        [[-4.0, 8.0, 0.5, 0.5, -0.5, 1.0, 0.5, -0.5, 1.0, 0.5]],
        bits=2,
        range="lp",
        p=0.5,
        steps=4,
    ),
    one(
        "lp_exponent_2_4",
        "exponent",
        [[1.0, 0.625, -0.375, 0.875]],
        bits=3,
        range="lp",
        p=2.4,
        steps=5,
    ),
    one(
        "lp_exponent_2_4_is_not_2",
        "exponent",
        [[1.125, -1.75, 1.75, -0.125]],
        True,
        bits=2,
        range="lp",
        p=2.4,
        steps=4,
        remark="range 3/4 of the largest; squares would choose all of it",
    ),
    one(
        "lp_of_gptq_scales",
        "convention steps",
        [[7.5, -2.0, 0.25, 1.0]],
        True,
        convention="gptq",
        range="lp",
        p=2.0,
        steps=3,
    ),
    one("lp_one_step_is_min_max", "steps", [[3.5, -1.5]], range="lp", p=2.0, steps=1),
    one("min_max_by_name", "steps", [[3.5, -1.5]], range="min_max"),
    one("nan_in_weight", "non_finite", [[1.0, math.nan]], error="weight"),
    one("infinity_in_weight", "non_finite", [[1.0, -math.inf]], True, error="weight"),
    one(
        "group_size_does_not_divide",
        "group_divides",
        [[1.0, 2.0, 3.0]],
        group_size=2,
        error="group_size",
    ),
    one("lp_without_p", "rule_params", [[1.0, 2.0]], range="lp", steps=4, error="p is"),
    one("lp_without_steps", "rule_params", [[1.0, 2.0]], range="lp", p=2.0, error="steps"),
    one(
        "lp_with_zero_steps", "rule_params", [[1.0, 2.0]], range="lp", p=2.0, steps=0, error="steps"
    ),
    one("p_without_lp", "rule_params", [[1.0, 2.0]], p=2.0, error="p is"),
    one("unknown_range", "rule_name", [[1.0, 2.0]], range="percentile", error="range"),
    one(
        "unknown_convention", "rule_name", [[1.0, 2.0]], True, convention="awq", error="convention"
    ),
    one("a_vector", "shape", [1.0, 2.0], error="weight"),
    one("nine_bits", "bits_range", [[1.0, 2.0]], bits=9, error="bits"),
    one("one_bit", "bits_range", [[1.0, 2.0]], True, bits=1, error="bits"),
]

FILES = [GoldenFile("rtn/rtn.quantize.toml", "rtn.quantize", NOTES, CASES)]
