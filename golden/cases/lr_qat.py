"""Cases of LR-QAT: downcast, forward, backward and merge. At 4 bits the codes run from -8 to 7."""

import math

from case_text import GoldenFile, case

from .spread import spread

REFUSED = {
    "non_finite": "a NaN or infinity that clamps to an end of the range or is masked away",
    "shape": "a broadcast, transposed or truncated tensor instead of a refusal",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
}
DOWNCAST_NOTES = {
    "stored_tie": "half away from zero in the stored type",
    "fraction_bits": "a number of fractional bits that does not follow from the width",
    "stored_clip": "a clip to the byte in place of the grid, or none, or one of the float types",
    "one_rounding": "a weight that is cast before it is divided, or cast twice",
    "nibbles": "the even input in the high nibble, or no two's complement",
    "odd_size": "an odd row that runs into the next",
    "group_index": "the scale of another group",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "asymmetric": "a zero-point that is ignored, or added before the rounding to a stored unit",
    "asymmetric_ends": "an asymmetric range that does not fit the byte or the nibble",
    "scale_floor": "a first scale that was not raised to the floor",
    "overflow": "an infinity in f16 in place of a refusal",
    "bits_range": "a width that the stored type does not hold",
    "zero_point_integer": "a zero-point that is no code of the grid",
    "downcast_name": "a silent fallback for a type that is not known",
    **REFUSED,
}
FORWARD_NOTES = {
    "sum_tie": "rounding of weight and update apart, or half away from zero",
    "dialect": "the rounding of the public code in the paper's place, or the reverse",
    "grid_units": "an update in units of the weight, multiplied or divided by the scale",
    "frozen_inner": "the trained scale inside the rounding",
    "live_inner": "the first scale, or none, inside the rounding",
    "downcast_kept": "a forward from the weight itself and not from what is stored of it",
    "scaling": "lora_scaling forgotten, applied twice, or divided by the rank again",
    "saturation": "a clamp that is off by one or comes after the integer conversion",
    "zero_adapter": "an update that changes the codes although lora_b is zero",
    "asymmetric": "codes with the zero-point still in them, or clipped to the signed range",
    "group_index": "a scale or zero-point of another group",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "scale_floor": "a scale that was not raised to the floor",
    "grid_width": "a range hard-coded for one width",
    "odd_size": "a kernel that handles only whole tiles",
    "options": "options that contradict each other",
    **REFUSED,
}
BACKWARD_NOTES = {
    "rounded_mask": "a mask on the argument before rounding where the rounded one is asked for",
    "pre_round_mask": "a mask on the rounded argument where the one before is asked for",
    "unmasked": "gradients of clipped weights",
    "scale_in_factors": "factor gradients without the scale that multiplies outside",
    "no_residual": "the d_scale of LSQ, with the argument subtracted, for a frozen inner scale",
    "live_residual": "a live inner scale whose gradient lacks the weight over the scale, or has "
    "the update in it, or has it where it is clipped",
    "clipped_scale": "d_scale without the clipped weights",
    "dialect": "a mask of the paper's rounding in the public code's place",
    "scaling": "lora_scaling forgotten in one of the gradients, or applied to d_scale",
    "zero_adapter": "a d_lora_b that is zero at the usual start, lora_b = 0",
    "asymmetric": "the mask of the signed range",
    "group_index": "a scale or zero-point of another group",
    "all_tokens": "only one token of a batch in the weight gradient",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "scale_floor": "a gradient for a scale that was raised to the floor",
    "odd_size": "a kernel that handles only whole tiles",
    **REFUSED,
}
MERGE_NOTES = {
    "same_codes": "codes of the weight without the update, or rounded in another order",
    "dialect": "a merge that rounds otherwise than the forward",
    "asymmetric": "codes with the zero-point still in them",
    "scale_floor": "the stored scale left below the floor that the codes are multiplied by",
    "live_inner": "the first scale, or none, inside the rounding",
    "group_index": "a scale or zero-point of another group",
    "odd_size": "a kernel that handles only whole tiles",
    **REFUSED,
}

KINDS = ("f32", "bf16", "f16", "fixed8", "int")


def downcast(id, flags, inputs, *, error=None, remark=None, **params):
    params = {"bits": 4, "downcast": "fixed8", **params}
    return case(id, flags, params, **inputs, error=error, remark=remark)


# Over its scale of 0.5: a tie of 1/16, its neighbours, both ends and beyond, a tie of codes.
ENDS = {
    "weight": [
        [0.609375, 0.59375, 0.578125, 3.5, 3.625, 3.75, 4.5, -4.0],
        [-4.125, -4.25, -6.0, 0.015625, 0.046875, -0.015625, 1.25, -1.75],
    ],
    "initial_scale": [[0.5], [0.5]],
}
GROUPED_WEIGHT = {
    "weight": spread([3, 9], seed=41, step=0.03125, reach=100),
    "initial_scale": [[0.25 + 0.125 * (3 * o + g) for g in range(3)] for o in range(3)],
}
SHIFTED = {
    "weight": spread([2, 6], seed=42, step=0.03125, reach=80),
    "initial_scale": [[0.25, 0.5], [1.0, 0.125]],
}


def every_zero_point(bits):
    return {
        "weight": [spread([9], seed=43, step=0.125, reach=2**bits * 10)] * 2**bits,
        "initial_scale": [[1.0]] * 2**bits,
        "zero_point": [[float(zero_point)] for zero_point in range(2**bits)],
    }


DOWNCAST = [
    downcast(
        "fixed_point_of_4_bits",
        "stored_tie stored_clip fraction_bits",
        ENDS,
        remark="0.609375 over 0.5 is 19.5 sixteenths, which go to 20",
    ),
    *[
        downcast(
            f"fixed_point_of_{bits}_bits", "fraction_bits stored_clip stored_tie", ENDS, bits=bits
        )
        for bits in (2, 3, 5, 6, 7)
    ],
    *[
        downcast(
            f"codes_of_{bits}_bits",
            "stored_tie stored_clip nibbles",
            ENDS,
            downcast="int",
            bits=bits,
        )
        for bits in (2, 3, 4)
    ],
    downcast(
        "odd_rows_of_nibbles",
        "nibbles odd_size",
        {"weight": [[1.0, -1.0, 3.0], [-8.0, 7.0, -2.0]], "initial_scale": [[1.0], [1.0]]},
        downcast="int",
        remark="rows 0xf1 0x03 and 0x78 0x0e",
    ),
    downcast(
        "bf16_ties_do_not_clip",
        "stored_tie stored_clip one_rounding",
        {
            "weight": [[0.501953125, 0.505859375, 40.125, -300.75]],
            "initial_scale": [[0.5]],
        },
        downcast="bf16",
        remark="over 0.5: 1 + 1/256, 1 + 3/256, 80.25, -601.5",
    ),
    downcast(
        "f16_ties_do_not_clip",
        "stored_tie stored_clip one_rounding",
        {"weight": [[1024.5, 1025.5, -0.3125, 30000.0]], "initial_scale": [[0.5]]},
        downcast="f16",
    ),
    downcast(
        "thirds_in_bf16",
        "one_rounding",
        {"weight": [[1.0, 2.0, 5.0, -7.0]], "initial_scale": [[3.0]]},
        downcast="bf16",
    ),
    downcast("f32_is_the_quotient", "one_rounding stored_clip", ENDS, downcast="f32", group_size=8),
    *[
        downcast(
            f"three_groups_as_{kind}", "group_index", GROUPED_WEIGHT, downcast=kind, group_size=3
        )
        for kind in ("f16", "fixed8", "int")
    ],
    downcast(
        "one_group_per_row",
        "one_group_per_row odd_size",
        {
            "weight": spread([2, 5], seed=44, step=0.125, reach=30),
            "initial_scale": [[0.5], [0.25]],
        },
        downcast="int",
    ),
    *[
        downcast(
            f"every_zero_point_of_{bits}_bits_as_{kind}",
            "asymmetric asymmetric_ends stored_clip",
            every_zero_point(bits),
            bits=bits,
            downcast=kind,
        )
        for bits, kind in ((2, "fixed8"), (2, "int"), (3, "fixed8"), (4, "int"))
    ],
    downcast(
        "zero_points_by_group",
        "asymmetric group_index",
        {**SHIFTED, "zero_point": [[0.0, 3.0], [1.0, 2.0]]},
        bits=2,
        group_size=3,
    ),
    downcast(
        "zero_point_in_the_middle_is_the_signed_grid",
        "asymmetric",
        {**SHIFTED, "zero_point": [[8.0, 8.0], [8.0, 8.0]]},
        group_size=3,
    ),
    downcast(
        "zero_point_does_not_move_a_float",
        "asymmetric stored_clip",
        {**SHIFTED, "zero_point": [[0.0, 15.0], [1.0, 2.0]]},
        group_size=3,
        downcast="bf16",
    ),
    downcast(
        "scale_below_the_floor",
        "scale_floor",
        {"weight": [[1.0, -1.0, 0.0]], "initial_scale": [[2.0**-30]]},
    ),
    downcast(
        "too_large_for_f16",
        "overflow",
        {"weight": [[65520.0]], "initial_scale": [[1.0]]},
        downcast="f16",
        error="phi",
    ),
    downcast("int_of_5_bits", "bits_range", ENDS, downcast="int", bits=5, error="bits"),
    downcast("fixed_point_of_8_bits", "bits_range", ENDS, bits=8, error="bits"),
    downcast(
        "zero_point_of_8_bits",
        "bits_range",
        {**SHIFTED, "zero_point": [[1.0, 1.0], [1.0, 1.0]]},
        group_size=3,
        downcast="f32",
        bits=8,
        error="bits",
    ),
    *[
        downcast(
            f"zero_point_{name}",
            "zero_point_integer",
            {**SHIFTED, "zero_point": [[0.0, wrong], [1.0, 2.0]]},
            group_size=3,
            error="zero_point",
        )
        for name, wrong in (("of_a_half", 0.5), ("above_the_range", 16.0), ("negative", -1.0))
    ],
    downcast("another_type", "downcast_name", ENDS, downcast="fixed16", error="downcast"),
    downcast(
        "nan_in_weight",
        "non_finite",
        {"weight": [[math.nan]], "initial_scale": [[1.0]]},
        error="weight",
    ),
    downcast(
        "infinity_in_initial_scale",
        "non_finite",
        {"weight": [[1.0]], "initial_scale": [[math.inf]]},
        error="initial_scale",
    ),
    downcast(
        "initial_scale_for_two_groups",
        "shape",
        {"weight": [[1.0, 2.0]], "initial_scale": [[1.0, 1.0]]},
        error="initial_scale",
    ),
    downcast("group_size_does_not_divide", "group_divides", ENDS, group_size=3, error="group_size"),
]

# Two rows, two groups. The update in steps is [0.25, -0.25, 0, 4], [-0.5, 0.5, 0, -8].
HAND = {
    "weight": [[0.625, -1.125, 3.5, 5.0], [-2.0, 3.5, 0.0625, 9.0]],
    "initial_scale": [[0.5, 1.0], [0.25, 2.0]],
    "lora_a": [[0.125, -0.125, 0.0, 2.0]],
    "lora_b": [[1.0], [-2.0]],
    "scale": [[0.75, 0.5], [0.25, 1.5]],
}
HAND_X = [[1.0, 2.0, -1.0, 4.0], [0.5, -8.0, 1.0, 0.25]]
HAND_D_Y = [[1.0, -2.0], [0.5, 4.0]]
ASYMMETRIC = {**HAND, "zero_point": [[0.0, 3.0], [1.0, 2.0]]}
# What goes into a live layer.
LIVE = {name: tensor for name, tensor in HAND.items() if name != "initial_scale"}
# Ties of the sum that the stored code and the update make together: 1 + 0.5, 2 + 0.5, -3 - 0.5,
# and one beside it.
TIES = {
    "weight": [[1.0, 2.0, -3.0, -4.0, 1.0, 7.0, -8.0]],
    "initial_scale": [[1.0]],
    "lora_a": [[0.5, 0.5, -0.5, -0.5, 0.53125, 0.5, -0.5]],
    "lora_b": [[1.0]],
    "scale": [[0.5]],
}
# One row about both ends of the range; the update is zero.
EDGES = {
    "weight": [[-8.0, -8.25, -8.5, -8.53125, 7.0, 7.25, 7.46875, 7.5, 0.25]],
    "initial_scale": [[1.0]],
    "lora_a": [[1.0] * 9],
    "lora_b": [[0.0]],
    "scale": [[0.5]],
}
EDGES_X = [[2.0**power for power in range(9)]]
ODD = {
    "weight": spread([3, 7], seed=51, step=0.25, reach=20),
    "initial_scale": [[0.5], [0.25], [1.0]],
    "lora_a": spread([3, 7], seed=52, step=0.25, reach=4),
    "lora_b": spread([3, 3], seed=53, step=0.5, reach=2),
    "scale": [[0.25], [0.5], [0.375]],
}
GROUPED = {
    "weight": spread([5, 9], seed=61, step=0.25, reach=24),
    "initial_scale": [[0.25 * 2 ** ((o + g) % 3) for g in range(3)] for o in range(5)],
    "lora_a": spread([2, 9], seed=62, step=0.25, reach=4),
    "lora_b": spread([5, 2], seed=63, step=0.5, reach=2),
    "scale": [[0.25 + 0.0625 * (3 * o + g) for g in range(3)] for o in range(5)],
}
GROUPED_ZERO_POINT = [[float((7 * o + 4 * g) % 16) for g in range(3)] for o in range(5)]
FLOOR = {
    "weight": [[1.0, 0.0], [2.0, 0.5]],
    "initial_scale": [[0.5], [2.0**-30]],
    "lora_a": [[1.0, 0.0]],
    "lora_b": [[0.5], [-1.0]],
    "scale": [[2.0**-30], [0.5]],
}
UNIT = {
    "weight": [[0.5]],
    "initial_scale": [[0.25]],
    "lora_a": [[2.0]],
    "lora_b": [[0.5]],
    "scale": [[0.375]],
}
X7 = spread([5, 7], seed=54)
X9 = spread([4, 9], seed=64)


def with_defaults(params):
    return {"bits": 4, "downcast": "fixed8", "lora_scaling": 2.0, **params}


def forward(id, flags, inputs, x, *, error=None, remark=None, **params):
    return case(id, flags, with_defaults(params), x=x, **inputs, error=error, remark=remark)


def backward(id, flags, inputs, x, d_y, *, error=None, remark=None, **params):
    params = with_defaults(params)
    return case(id, flags, params, x=x, **inputs, d_y=d_y, error=error, remark=remark)


def merge(id, flags, inputs, *, error=None, remark=None, **params):
    return case(id, flags, with_defaults(params), **inputs, error=error, remark=remark)


FORWARD = [
    *[
        forward(
            f"by_hand_from_{kind}",
            "grid_units frozen_inner downcast_kept scaling",
            HAND,
            HAND_X,
            group_size=2,
            downcast=kind,
        )
        for kind in KINDS
    ],
    forward(
        "ties_of_the_sum",
        "sum_tie saturation",
        TIES,
        [[1.0] * 7],
        downcast="int",
        lora_scaling=1.0,
        remark="1.5, 2.5, -3.5, -4.5, 1.53125, 7.5, -8.5",
    ),
    forward(
        "ties_of_the_update",
        "sum_tie dialect",
        TIES,
        [[1.0] * 7],
        downcast="int",
        lora_scaling=1.0,
        dialect="lr_qat_code",
    ),
    forward("both_ends", "sum_tie saturation", EDGES, EDGES_X, downcast="f32"),
    forward(
        "live_inner_scale",
        "live_inner grid_units",
        LIVE,
        HAND_X,
        group_size=2,
        downcast="f32",
        inner_scale="live",
    ),
    forward(
        "live_below_the_floor",
        "live_inner scale_floor",
        {name: FLOOR[name] for name in FLOOR if name != "initial_scale"},
        [[1.0, 2.0]],
        downcast="f32",
        inner_scale="live",
    ),
    forward("asymmetric_of_4_bits", "asymmetric", ASYMMETRIC, HAND_X, group_size=2),
    *[
        forward(
            f"asymmetric_of_2_bits_from_{kind}",
            "asymmetric grid_width",
            ASYMMETRIC,
            HAND_X,
            group_size=2,
            bits=2,
            downcast=kind,
        )
        for kind in KINDS
    ],
    forward("scaling_of_a_half", "scaling", HAND, HAND_X, group_size=2, lora_scaling=0.5),
    forward(
        "lora_b_is_zero",
        "zero_adapter downcast_kept",
        {**HAND, "lora_b": [[0.0], [0.0]]},
        HAND_X,
        group_size=2,
    ),
    forward("two_bits_saturate", "saturation grid_width", HAND, HAND_X, group_size=2, bits=2),
    forward("eight_bits", "grid_width", HAND, HAND_X, group_size=2, bits=8, downcast="f16"),
    forward("three_groups_in_five_rows", "group_index", GROUPED, X9, group_size=3),
    forward(
        "zero_points_by_group",
        "group_index asymmetric",
        {**GROUPED, "zero_point": GROUPED_ZERO_POINT},
        X9,
        group_size=3,
        downcast="int",
    ),
    forward("one_group_per_row", "one_group_per_row odd_size", ODD, X7, lora_scaling=0.5),
    forward("one_of_everything", "odd_size", UNIT, [[3.0]], lora_scaling=1.0),
    forward("scale_below_the_floor", "scale_floor saturation", FLOOR, [[1.0, 2.0]]),
    forward(
        "live_with_a_narrow_type",
        "options",
        LIVE,
        HAND_X,
        group_size=2,
        inner_scale="live",
        error="inner_scale",
    ),
    forward(
        "code_dialect_of_fixed_point",
        "options",
        HAND,
        HAND_X,
        group_size=2,
        dialect="lr_qat_code",
        error="dialect",
    ),
    forward(
        "nan_in_lora_b",
        "non_finite",
        {**HAND, "lora_b": [[1.0], [math.nan]]},
        HAND_X,
        group_size=2,
        error="lora_b",
    ),
    forward(
        "infinity_in_scale", "non_finite", {**UNIT, "scale": [[math.inf]]}, [[3.0]], error="scale"
    ),
    forward(
        "infinity_in_zero_point",
        "non_finite",
        {**UNIT, "zero_point": [[math.inf]]},
        [[3.0]],
        error="zero_point",
    ),
    forward("x_of_another_width", "shape", HAND, [[1.0, 2.0]], group_size=2, error="x has"),
    forward(
        "zero_point_for_two_groups",
        "shape",
        {**UNIT, "zero_point": [[0.0, 0.0]]},
        [[3.0]],
        error="zero_point",
    ),
    forward(
        "group_size_does_not_divide",
        "group_divides",
        HAND,
        HAND_X,
        group_size=3,
        error="group_size",
    ),
]

BACKWARD = [
    *[
        backward(
            f"by_hand_from_{kind}",
            "no_residual scale_in_factors unmasked clipped_scale",
            HAND,
            HAND_X,
            HAND_D_Y,
            group_size=2,
            downcast=kind,
            bits=3,
        )
        for kind in KINDS
    ],
    backward(
        "mask_on_the_rounded_argument",
        "rounded_mask unmasked",
        EDGES,
        EDGES_X,
        [[1.0]],
        downcast="f32",
        remark="out of range: -8.53125 and 7.5, which goes to 8",
    ),
    backward(
        "mask_on_the_argument",
        "pre_round_mask unmasked",
        EDGES,
        EDGES_X,
        [[1.0]],
        downcast="f32",
        mask="pre_round",
        remark="in range: -8, 7 and 0.25",
    ),
    backward(
        "both_masks_where_the_sum_clips",
        "rounded_mask",
        GROUPED,
        X9,
        spread([4, 5], seed=65),
        group_size=3,
        bits=3,
    ),
    backward(
        "argument_mask_where_the_sum_clips",
        "pre_round_mask",
        GROUPED,
        X9,
        spread([4, 5], seed=65),
        group_size=3,
        bits=3,
        mask="pre_round",
    ),
    backward(
        "ties_of_the_update",
        "dialect",
        TIES,
        [[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]],
        [[1.0]],
        downcast="int",
        lora_scaling=1.0,
        dialect="lr_qat_code",
        remark="7 + round(0.5) is 7 and in range, which 7.5 is not",
    ),
    backward(
        "ties_of_the_sum",
        "rounded_mask dialect",
        TIES,
        [[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]],
        [[1.0]],
        downcast="int",
        lora_scaling=1.0,
    ),
    *[
        backward(
            f"live_inner_scale_with_{mask}_mask",
            f"live_residual {mask}_mask clipped_scale",
            LIVE,
            HAND_X,
            HAND_D_Y,
            group_size=2,
            downcast="f32",
            bits=3,
            inner_scale="live",
            mask=mask,
        )
        for mask in ("rounded", "pre_round")
    ],
    backward(
        "live_edges",
        "live_residual rounded_mask",
        {**{name: EDGES[name] for name in EDGES if name != "initial_scale"}, "scale": [[1.0]]},
        EDGES_X,
        [[1.0]],
        downcast="f32",
        inner_scale="live",
    ),
    backward(
        "asymmetric_of_2_bits",
        "asymmetric unmasked",
        ASYMMETRIC,
        HAND_X,
        HAND_D_Y,
        group_size=2,
        bits=2,
    ),
    backward(
        "zero_points_by_group",
        "asymmetric group_index",
        {**GROUPED, "zero_point": GROUPED_ZERO_POINT},
        X9,
        spread([4, 5], seed=65),
        group_size=3,
        downcast="int",
    ),
    backward(
        "scaling_of_a_half", "scaling", HAND, HAND_X, HAND_D_Y, group_size=2, lora_scaling=0.5
    ),
    backward(
        "lora_b_is_zero",
        "zero_adapter",
        {**HAND, "lora_b": [[0.0], [0.0]]},
        HAND_X,
        HAND_D_Y,
        group_size=2,
    ),
    backward(
        "three_groups_in_five_rows",
        "group_index all_tokens scale_in_factors",
        GROUPED,
        X9,
        spread([4, 5], seed=65),
        group_size=3,
    ),
    backward(
        "one_group_per_row",
        "one_group_per_row odd_size all_tokens",
        ODD,
        X7,
        spread([5, 3], seed=55),
        lora_scaling=0.5,
    ),
    backward("one_of_everything", "odd_size", UNIT, [[3.0]], [[2.0]], lora_scaling=1.0),
    backward("scale_below_the_floor", "scale_floor", FLOOR, [[1.0, 2.0]], [[1.0, 4.0]]),
    backward("nan_in_d_y", "non_finite", UNIT, [[3.0]], [[math.nan]], error="d_y"),
    backward(
        "infinity_in_initial_scale",
        "non_finite",
        {**UNIT, "initial_scale": [[math.inf]]},
        [[3.0]],
        [[2.0]],
        error="initial_scale",
    ),
    backward(
        "d_y_for_one_token_of_two", "shape", HAND, HAND_X, [[1.0, 1.0]], group_size=2, error="d_y"
    ),
    backward(
        "group_size_does_not_divide",
        "group_divides",
        HAND,
        HAND_X,
        HAND_D_Y,
        group_size=3,
        error="group_size",
    ),
]

MERGE = [
    *[
        merge(f"by_hand_from_{kind}", "same_codes", HAND, group_size=2, downcast=kind)
        for kind in KINDS
    ],
    merge("ties_of_the_sum", "same_codes dialect", TIES, downcast="int", lora_scaling=1.0),
    merge(
        "ties_of_the_update",
        "same_codes dialect",
        TIES,
        downcast="int",
        lora_scaling=1.0,
        dialect="lr_qat_code",
    ),
    merge(
        "live_inner_scale",
        "live_inner same_codes",
        LIVE,
        group_size=2,
        downcast="f32",
        inner_scale="live",
    ),
    merge("asymmetric_of_2_bits", "asymmetric", ASYMMETRIC, group_size=2, bits=2, downcast="int"),
    merge(
        "zero_points_by_group",
        "asymmetric group_index",
        {**GROUPED, "zero_point": GROUPED_ZERO_POINT},
        group_size=3,
    ),
    merge("one_group_per_row", "odd_size same_codes", ODD, lora_scaling=0.5),
    merge("one_of_everything", "odd_size", UNIT, lora_scaling=1.0),
    merge("scale_below_the_floor", "scale_floor", FLOOR),
    merge("nan_in_weight", "non_finite", {**UNIT, "weight": [[math.nan]]}, error="weight"),
    merge("lora_b_of_another_rank", "shape", {**UNIT, "lora_b": [[0.5, 1.0]]}, error="lora_b"),
    merge("group_size_does_not_divide", "group_divides", HAND, group_size=3, error="group_size"),
]

FILES = [
    GoldenFile("lr_qat/lr_qat.downcast.toml", "lr_qat.downcast", DOWNCAST_NOTES, DOWNCAST),
    GoldenFile("lr_qat/lr_qat.forward.toml", "lr_qat.forward", FORWARD_NOTES, FORWARD),
    GoldenFile("lr_qat/lr_qat.backward.toml", "lr_qat.backward", BACKWARD_NOTES, BACKWARD),
    GoldenFile("lr_qat/lr_qat.merge.toml", "lr_qat.merge", MERGE_NOTES, MERGE),
]
