"""Cases of the gradient of fake_quantize. At 4 bits the codes run from -8 to 7."""

import math

from case_text import GoldenFile, case

from .quantize import ABOVE_FLOOR, AROUND_ENDS, AROUND_TIES, BELOW_FLOOR, ENDS, LONG, REFUSED
from .spread import beside_reciprocals, long, spread

BACKWARD_NOTES = {
    "closed_mask": "a mask that is open at an end of the range",
    "true_division": "multiplying by the reciprocal of the scale: it passes the end",
    "pre_round_mask": "a mask taken on the rounded code: it passes up to half a step outside",
    "mask_rule": "one mask for every rule, or a rule that changes codes or only one gradient",
    "mask_name": "an unknown mask replaced by a default in silence",
    "unmasked": "the unmasked gradient handed on for clipped weights",
    "one_ulp": "a mask with a tolerance in it",
    "tie": "round half away from zero, or floor(x + 0.5)",
    "rounding_residual": "d_scale without the - v, or with v in place of code - v",
    "clipped_scale": "d_scale that is zero, or code - v, where the weight is clipped",
    "offset_gradient": "d_offset that counts weights inside the range instead of clipped ones",
    "group_sum": "gradients summed over the wrong group, or d_offset transposed before grouping",
    "grad_scale": "a gradient scale with another count: of the tensor, of the row, or rounded",
    "grad_scale_default": "a gradient scale where none was asked for",
    "one_precision": "sums over a group of fewer bits than f32 has",
    "scale_floor": "a gradient for a scale that was raised to the floor",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "grid_width": "a range hard-coded for one width",
    "odd_size": "a kernel that handles only whole vectors or even rows",
    "non_finite": "a NaN that a mask of zeros hides",
    "shape": REFUSED["shape"],
    "group_divides": REFUSED["group_divides"],
}

# Eight weights at scale 1 of which four are clipped, with gradients that name their element.
POWERS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
MIXED = {
    "weight": [
        [1.25, -9.0, 3.5, 12.0, 0.25, 30.0],
        [-0.75, 7.0, -17.0, 4.25, 2.5, -40.0],
        [20.0, 1.75, -6.5, -33.0, 5.25, 0.5],
    ],
    "scale": [[1.0, 1.0, 2.0], [0.5, 2.0, 4.0], [2.0, 4.0, 0.5]],
    "offset": [[0.25, -0.5, 1.0], [0.125, -1.0, 0.5], [-0.25, 0.75, 0.0]],
    "d_output": spread([3, 6], seed=7, step=0.25),
}


def mixed(id, flags, **params):
    return case(id, flags, {"bits": 4, "group_size": 2, **params}, **MIXED)


# Seven steps exactly, which a product with the reciprocal passes.
LAST = {size: beside_reciprocals(8, 8 // size, size, [(7.0, 1)]) for size in (2, 4)}

# Both ends, both ties beyond them, a quarter of a step beyond, and the inside.
AROUND_BOTH_ENDS = {
    "weight": [[-8.0, 7.0, -8.5, 7.5, -8.25, 7.25, -7.5, 6.5, -8.75, 7.75]],
    "scale": [[1.0]],
    "offset": [[0.0]],
    "d_output": [[2.0**k for k in range(10)]],
}


def masked(id, mask, remark, **params):
    params = {"bits": 4, "mask": mask, **params}
    return case(id, "mask_rule", params, remark=remark, **AROUND_BOTH_ENDS)


BACKWARD = [
    *[
        case(
            f"the_last_code_in_groups_of_{group_size}",
            "true_division closed_mask",
            {"bits": 4, "group_size": group_size},
            remark="everything is inside; over the scale it is 7, times the reciprocal more",
            weight=LAST[group_size][0],
            scale=LAST[group_size][1],
            offset=[[0.0] * (8 // group_size)] * 8,
            d_output=spread([8, 8], seed=84),
        )
        for group_size in (2, 4)
    ],
    case(
        "numbers_of_18_bits",
        "one_precision group_sum",
        {"bits": 8, "group_size": 8},
        **LONG,
        d_output=long([3, 16], seed=83),
    ),
    masked("mask_pre_round", "pre_round", "passes: -8, 7, -7.5, 6.5"),
    masked(
        "mask_rounded",
        "rounded",
        "passes also -8.25, 7.25 and -8.5, which rounds to -8; 7.5 rounds to 8 and does not",
    ),
    masked("mask_open", "open", "passes: -7.5, 6.5; the ends themselves are clipped"),
    masked("mask_rounded_with_a_factor", "rounded", "the weight has no factor", grad_scale="lsq"),
    *[
        mixed(f"mask_{mask}_in_groups", "mask_rule group_sum", mask=mask)
        for mask in ("rounded", "open")
    ],
    case(
        "mask_rounded_at_the_ends_of_two_bits",
        "mask_rule grid_width",
        {"bits": 2, "mask": "rounded"},
        remark="passes: -2.5, -2.25, 1.25; not 1.5, -2.75",
        weight=[[-2.5, -2.25, 1.25, 1.5, -2.75]],
        scale=[[1.0]],
        offset=[[0.0]],
        d_output=[[1.0, 2.0, 4.0, 8.0, 16.0]],
    ),
    case(
        "mask_open_one_ulp_around_the_ends",
        "mask_rule one_ulp",
        {"bits": 4, "mask": "open"},
        remark="inside: the first and the third",
        weight=[AROUND_ENDS],
        scale=[[1.0]],
        offset=[[0.0]],
        d_output=[[1.0, 2.0, 4.0, 8.0]],
    ),
    case(
        "mask_rounded_one_ulp_around_the_ties",
        "mask_rule one_ulp",
        {"bits": 4, "mask": "rounded"},
        remark="outside: the second and the fifth",
        weight=[AROUND_TIES],
        scale=[[1.0]],
        offset=[[0.0]],
        d_output=[[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]],
    ),
    case(
        "mask_of_another_name",
        "mask_name",
        {"bits": 4, "mask": "closed"},
        **AROUND_BOTH_ENDS,
        error="mask",
    ),
    case(
        "mask_at_the_ends",
        "closed_mask pre_round_mask",
        {"bits": 4, "group_size": 8},
        remark="passes: -8, 7, -7.5, 6.5; does not: -8.5 and 7.5 although -8.5 rounds to -8",
        weight=[ENDS],
        scale=[[1.0]],
        offset=[[0.0]],
        d_output=[POWERS],
    ),
    case(
        "mask_within_half_a_step_of_the_ends",
        "pre_round_mask",
        {"bits": 4, "group_size": 4},
        remark="these round to 7 and -8, yet lie outside",
        weight=[[7.25, 7.0, -8.25, -8.0]],
        scale=[[1.0]],
        offset=[[0.0]],
        d_output=[[1.0, 2.0, 4.0, 8.0]],
    ),
    case(
        "mask_one_ulp_around_the_ends",
        "one_ulp",
        {"bits": 4, "group_size": 4},
        remark="inside: the first and the third",
        weight=[AROUND_ENDS],
        scale=[[1.0]],
        offset=[[0.0]],
        d_output=[[1.0, 2.0, 4.0, 8.0]],
    ),
    case(
        "residual_of_a_tie",
        "tie rounding_residual",
        {"bits": 4, "group_size": 2},
        remark="v = 2.5, -2.5; code - v = -0.5, 0.5; half away from zero has the other signs",
        weight=[[1.25, -1.25]],
        scale=[[0.5]],
        offset=[[0.0]],
        d_output=[[1.0, 3.0]],
    ),
    case(
        "everything_inside",
        "rounding_residual offset_gradient",
        {"bits": 4, "group_size": 4},
        remark="d_offset is 0",
        weight=[[0.375, -0.625, 1.125, 2.0]],
        scale=[[0.5]],
        offset=[[0.0]],
        d_output=[[1.0, 2.0, 4.0, 8.0]],
    ),
    case(
        "everything_clipped",
        "clipped_scale unmasked offset_gradient",
        {"bits": 4, "group_size": 4},
        remark="d_scale = 7*1 - 8*2 + 7*4 - 8*8, d_offset = 15",
        weight=[[4.0, -5.0, 6.0, -7.0]],
        scale=[[0.5]],
        offset=[[0.0]],
        d_output=[[1.0, 2.0, 4.0, 8.0]],
    ),
    mixed("clipped_and_not_in_every_group", "unmasked clipped_scale group_sum grad_scale_default"),
    mixed("grad_scale_none", "grad_scale_default group_sum", grad_scale="none"),
    mixed("grad_scale_lsq", "grad_scale", grad_scale="lsq"),
    mixed("grad_scale_lit_gpt", "grad_scale", grad_scale="lit_gpt"),
    mixed("grad_scale_peft", "grad_scale", grad_scale="peft"),
    case(
        "one_group_per_row",
        "one_group_per_row odd_size grad_scale",
        {"bits": 4, "grad_scale": "lsq"},
        remark="1 / sqrt(7 * 7): group_size is the length of the row",
        weight=[[0.5, 1.0, 9.5, 2.25, -8.75, 3.0, 3.5], [0.5, 1.25, 1.5, -2.0, 2.5, 3.0, -9.5]],
        scale=[[1.0], [0.5]],
        offset=[[0.25], [-0.75]],
        d_output=[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]],
    ),
    case(
        "group_size_one",
        "group_sum odd_size",
        {"bits": 3, "group_size": 1},
        weight=[[1.0, -1.25, 21.0], [-3.0, 1.125, 0.5]],
        scale=[[0.5, 0.25, 4.0], [0.5, 0.25, 0.25]],
        offset=[[0.0, 0.5, 1.0], [0.0, 0.0, 0.125]],
        d_output=[[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]],
    ),
    case(
        "scale_below_the_floor",
        "scale_floor",
        {"bits": 4, "group_size": 2},
        remark="raised scales get 0; 2^-26 is above the floor and gets its gradient",
        weight=[[1.0, 0.0], [1.0, -1.0], [0.0, 2.0], [2.0**-25, -1.0]],
        scale=[[BELOW_FLOOR], [0.0], [-1.0], [ABOVE_FLOOR]],
        offset=[[0.0], [0.0], [0.0], [0.0]],
        d_output=[[1.0, 2.0], [4.0, 8.0], [16.0, 32.0], [64.0, 128.0]],
    ),
    case(
        "two_bits",
        "grid_width closed_mask pre_round_mask",
        {"bits": 2, "group_size": 8},
        weight=[[-3.0, -2.0, -2.5, -1.5, 0.75, 1.0, 1.25, 1.5]],
        scale=[[1.0]],
        offset=[[0.0]],
        d_output=[POWERS],
    ),
    case(
        "eight_bits",
        "grid_width closed_mask pre_round_mask",
        {"bits": 8, "group_size": 8},
        weight=[[-129.0, -128.0, -128.25, -127.75, 126.5, 127.0, 127.25, 128.0]],
        scale=[[1.0]],
        offset=[[0.0]],
        d_output=[POWERS],
    ),
    case(
        "nan_in_d_output",
        "non_finite",
        {"bits": 4, "group_size": 2},
        remark="on a clipped weight, where the mask would multiply it by zero",
        weight=[[1.0, 100.0]],
        scale=[[0.5]],
        offset=[[0.0]],
        d_output=[[1.0, math.nan]],
        error="d_output",
    ),
    case(
        "infinity_in_weight",
        "non_finite",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, math.inf]],
        scale=[[0.5]],
        offset=[[0.0]],
        d_output=[[1.0, 1.0]],
        error="weight",
    ),
    case(
        "d_output_is_transposed",
        "shape",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, 2.0]],
        scale=[[0.5]],
        offset=[[0.0]],
        d_output=[[1.0], [2.0]],
        error="d_output",
    ),
    case(
        "group_size_does_not_divide",
        "group_divides",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, 2.0, 3.0]],
        scale=[[0.5]],
        offset=[[0.0]],
        d_output=[[1.0, 1.0, 1.0]],
        error="group_size",
    ),
]

FILES = [
    GoldenFile(
        "quantize/fake_quantize.backward.toml", "fake_quantize.backward", BACKWARD_NOTES, BACKWARD
    ),
]
