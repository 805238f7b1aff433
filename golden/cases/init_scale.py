"""Cases of init_scale, by rule."""

import math

from case_text import GoldenFile, case

from .spread import long

NOTES = {
    "each_end": "one bound for both signs, or qmin and qmax exchanged",
    "sign": "max(w) in place of max(|w|), or a scale that comes out negative",
    "root_of_qmax": "2 * mean(|w|) / qmax, or a mean that keeps the signs",
    "unbiased": "sigma with n in place of n - 1",
    "two_sided": "one of |mean - 3 sigma| and |mean + 3 sigma| left out",
    "levels": "2^bits levels where there are 2^bits - 1 steps, or the other way round",
    "offset_choice": "an offset of min, of the middle, or with qmin in place of qmax",
    "degenerate": "scale 0 or at the floor for a group without extent: it gets 1 and code 0",
    "long_group": "a kernel that sees the beginning of a group, or the first groups, only",
    "group_of_one": "0 / 0 in the deviation of a single weight",
    "group_index": "statistics over another group, over the row, or over the tensor",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "grid_width": "a range hard-coded for one width",
    "width_rule": "one divisor for every width",
    "clipping_error": "an error that leaves out clipped weights",
    "exponent": "a fixed exponent of 2",
    "first_minimum": "the last of two equal minima",
    "steps": "ranges that start at 0, stop before absmax, or are counted from another end",
    "non_finite": "a NaN that min and max skip",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
    "rule_params": "p or steps that are missing or out of range, replaced by a default in silence",
    "rule_name": "an unknown rule replaced by a default in silence",
}

ROWS = [
    [1.0, -2.0, 0.5, 3.5, -0.25, 0.125, 0.75, -1.0],
    [-4.0, 1.0, 1.5, -0.5, 2.0, 5.25, 3.0, 2.5],
    [0.5, 0.25, 0.125, 1.75, -8.0, -6.0, -1.0, -2.0],
]


def by_rule(rule, flags, **params):
    return case(
        f"{rule}_by_groups",
        flags,
        {"bits": 4, "group_size": 4, "rule": rule, **params},
        weight=ROWS,
    )


def one(id, flags, rule, weight, error=None, remark=None, bits=4, **params):
    return case(
        id, flags, {"bits": bits, "rule": rule, **params}, weight=weight, error=error, remark=remark
    )


# Two groups of 70 weights of 18 bits.
LONG = long([2, 70], seed=91, size=4.0)
LONG_RULES = ["l4q", "lsq", "lsq_plus", "symmetric", "asymmetric", "min_max", "lit_gpt"]

CASES = [
    *[one(f"{rule}_of_70_weights", "long_group", rule, LONG) for rule in LONG_RULES],
    one("lp_of_70_weights", "long_group", "lp", LONG, p=2.0, steps=8),
    one("l4q_of_130_groups", "long_group", "l4q", long([1, 260], seed=92), group_size=2),
    by_rule("l4q", "each_end group_index"),
    one("l4q_positive_end_decides", "each_end", "l4q", [[7.0, -7.0]], remark="7/7 beats 7/8"),
    one(
        "l4q_negative_end_decides", "each_end sign", "l4q", [[3.5, -8.0]], remark="8/8 beats 3.5/7"
    ),
    one(
        "l4q_of_negative_weights", "sign", "l4q", [[-7.0, -14.0, -3.5]], remark="max |-3.5/7|, 14/8"
    ),
    one("l4q_zero_group", "degenerate", "l4q", [[0.0, -0.0, 0.0, 0.0, 1.75, 0.0]], group_size=3),
    one("l4q_two_bits", "grid_width", "l4q", [[0.75, -1.0, 0.25]], bits=2),
    one("l4q_eight_bits", "grid_width", "l4q", [[63.5, -32.0, 1.0]], bits=8),
    by_rule("lsq", "root_of_qmax group_index"),
    one("lsq_takes_magnitudes", "root_of_qmax sign", "lsq", [[1.0, -1.0, 3.0, -3.0]]),
    one("lsq_two_bits", "grid_width", "lsq", [[1.0, -2.0, 3.0]], bits=2, remark="qmax is 1"),
    one("lsq_zero_group", "degenerate", "lsq", [[0.0, 0.0]]),
    by_rule("lsq_plus", "unbiased two_sided group_index"),
    one("lsq_plus_of_two", "unbiased", "lsq_plus", [[1.0, 3.0]], remark="mean 2, sigma sqrt(2)"),
    one("lsq_plus_negative_mean", "two_sided", "lsq_plus", [[-1.0, -3.0, -5.0]], remark="sigma 2"),
    one(
        "lsq_plus_group_of_one",
        "group_of_one degenerate",
        "lsq_plus",
        [[4.0, -2.0, 0.0]],
        group_size=1,
        remark="sigma is 0; the zero is a group without extent",
    ),
    by_rule("symmetric", "sign group_index"),
    one("symmetric_divides_by_8", "levels", "symmetric", [[8.0, -1.0]], remark="clips 8 to 7"),
    one("symmetric_zero_group", "degenerate", "symmetric", [[0.0]]),
    by_rule("asymmetric", "offset_choice group_index"),
    one(
        "asymmetric_on_the_grid",
        "offset_choice levels",
        "asymmetric",
        [[1.0, 16.0, 4.0]],
        remark="scale 15/15, offset 16 - 7",
    ),
    one(
        "asymmetric_constant_group",
        "degenerate",
        "asymmetric",
        [[2.5, 2.5, -0.75, -0.75, 0.0, 0.0]],
        group_size=2,
        remark="code 0 gives the constant back",
    ),
    by_rule("min_max", "levels sign group_index"),
    one("min_max_zero_group", "degenerate", "min_max", [[0.0, 0.0, 0.0]]),
    one(
        "min_max_one_group_per_row",
        "one_group_per_row sign",
        "min_max",
        [[7.0, -14.0, 3.0], [1.75, 0.5, -1.0]],
    ),
    by_rule("lit_gpt", "width_rule sign group_index"),
    one("lit_gpt_three_bits", "width_rule", "lit_gpt", [[3.0, -1.0]], bits=3, remark="3 / 4"),
    one("lit_gpt_four_bits", "width_rule", "lit_gpt", [[3.5, -7.0]], remark="7 / 7"),
    one("lit_gpt_eight_bits", "width_rule", "lit_gpt", [[32.0, -64.0]], bits=8, remark="64 / 128"),
    one("lit_gpt_zero_group", "degenerate", "lit_gpt", [[0.0, 0.0]]),
    by_rule("lp", "clipping_error steps group_index", p=2.0, steps=8),
    one(
        "lp_clips_an_outlier",
        "clipping_error",
        "lp",
        [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.0]],
        bits=2,
        p=1.0,
        steps=4,
        remark="range 1 costs 3, range 2 costs 7 + 2, range 3 costs 7 + 1, range 4 costs 7",
    ),
    one(
        "lp_keeps_it_at_a_high_exponent",
        "exponent clipping_error",
        "lp",
        [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.0]],
        bits=2,
        p=4.0,
        steps=4,
        remark="range 1 costs 81, range 2 costs 7 + 16, range 3 costs 7 + 1, range 4 costs 7",
    ),
    one("lp_exponent_2_4", "exponent", "lp", [[1.0, 0.625, -0.375, 0.875]], bits=3, p=2.4, steps=5),
    one(
        "lp_first_of_equal_minima",
        "first_minimum",
        "lp",
        [[1.0, 0.5]],
        bits=2,
        p=2.0,
        steps=2,
        remark="range 0.5 loses 1 - 0.5, range 1 loses 0.5 - 0: equal, the smaller range wins",
    ),
    one("lp_one_step_is_min_max", "steps", "lp", [[3.5, -1.0]], p=2.0, steps=1),
    one("lp_zero_group", "degenerate", "lp", [[0.0, 0.0]], p=2.0, steps=4),
    one("nan_in_weight", "non_finite", "l4q", [[1.0, math.nan]], error="weight"),
    one("infinity_in_weight", "non_finite", "min_max", [[1.0, -math.inf]], error="weight"),
    one(
        "group_size_does_not_divide",
        "group_divides",
        "l4q",
        [[1.0, 2.0, 3.0]],
        "group_size",
        group_size=2,
    ),
    one("lp_without_p", "rule_params", "lp", [[1.0, 2.0]], "p is", steps=4),
    one("lp_without_steps", "rule_params", "lp", [[1.0, 2.0]], "steps", p=2.0),
    one("lp_with_zero_steps", "rule_params", "lp", [[1.0, 2.0]], "steps", p=2.0, steps=0),
    one("p_without_lp", "rule_params", "l4q", [[1.0, 2.0]], "p is", p=2.0),
    one("unknown_rule", "rule_name", "percentile", [[1.0, 2.0]], "rule"),
]

FILES = [GoldenFile("quantize/init_scale.toml", "init_scale", NOTES, CASES)]
