"""Cases of LR-QAT: forward, backward and merge. At 4 bits the codes run from -8 to 7."""

import math

from case_text import GoldenFile, case

from .lr_qat_layers import (
    ASYMMETRIC,
    EDGES,
    EDGES_X,
    FLOOR,
    GROUPED,
    GROUPED_ZERO_POINT,
    HAND,
    HAND_D_Y,
    HAND_X,
    KINDS,
    LIVE,
    LONG,
    MANY,
    ODD,
    REFUSED,
    TIES,
    UNIT,
    X7,
    X8,
    X9,
    X20,
    quotients,
)
from .spread import TIED, long, spread

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
    "one_precision": "an argument or a product of fewer bits than f32 has",
    "true_division": "multiplying by the reciprocal of a live scale",
    "options": "options that contradict each other",
    **REFUSED,
}
BACKWARD_NOTES = {
    "true_division": "multiplying by the reciprocal of a live scale",
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
    "one_precision": "sums over tokens or the rank of fewer bits than f32 has",
    **REFUSED,
}
MERGE_NOTES = {
    "same_codes": "codes of the weight without the update, or rounded in another order, or of the "
    "weight where the forward has what is stored of it",
    "dialect": "a merge that rounds otherwise than the forward",
    "asymmetric": "codes with the zero-point still in them",
    "scale_floor": "the stored scale left below the floor that the codes are multiplied by",
    "live_inner": "the first scale, or none, inside the rounding",
    "group_index": "a scale or zero-point of another group",
    "odd_size": "a kernel that handles only whole tiles",
    **REFUSED,
}


def with_defaults(params):
    return {"bits": 4, "downcast": "fixed8", "lora_scaling": 2.0, **params}


def forward(id, flags, inputs, x, *, error=None, remark=None, **params):
    return case(id, flags, with_defaults(params), x=x, **inputs, error=error, remark=remark)


def backward(id, flags, inputs, x, d_y, *, error=None, remark=None, **params):
    params = with_defaults(params)
    return case(id, flags, params, x=x, **inputs, d_y=d_y, error=error, remark=remark)


def merge(id, flags, inputs, *, error=None, remark=None, **params):
    return case(id, flags, with_defaults(params), **inputs, error=error, remark=remark)


POWERS = [[2.0**power for power in range(8)]]
LONG_PARAMS = {"bits": 8, "group_size": 4, "downcast": "f32"}
MANY_KINDS = [
    (f"320_numbers_of_18_bits_in_groups_of_{size}{name}", size, without, params)
    for size in MANY
    for name, without, params in [
        ("", None, {}),
        ("_inside_a_live_scale", "initial_scale", {"inner_scale": "live"}),
    ]
]


def many(size, without):
    return {name: tensor for name, tensor in MANY[size].items() if name != without}


LONG_KINDS = [
    ("", LONG, {}),
    (
        "_inside_a_live_scale",
        {name: LONG[name] for name in LONG if name != "initial_scale"},
        {"inner_scale": "live"},
    ),
]

FORWARD = [
    *[
        forward(f"numbers_of_18_bits{name}", "one_precision", layer, X8, **LONG_PARAMS, **params)
        for name, layer, params in LONG_KINDS
    ],
    *[
        forward(
            id,
            "one_precision odd_size",
            many(size, without),
            X20,
            **{**LONG_PARAMS, "group_size": size},
            **params,
        )
        for id, size, without, params in MANY_KINDS
    ],
    *[
        forward(
            f"division_is_not_by_reciprocal_in_groups_of_{size}",
            "true_division live_inner",
            quotients(size, TIED),
            POWERS,
            group_size=size,
            downcast="f32",
            inner_scale="live",
        )
        for size in (2, 4)
    ],
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
        "frozen_without_its_scale",
        "options",
        LIVE,
        HAND_X,
        group_size=2,
        error="initial_scale",
    ),
    forward(
        "live_with_a_frozen_scale",
        "options",
        HAND,
        HAND_X,
        group_size=2,
        downcast="f32",
        inner_scale="live",
        error="initial_scale",
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
            f"numbers_of_18_bits{name}",
            "one_precision all_tokens",
            layer,
            X8,
            long([5, 3], seed=75),
            **LONG_PARAMS,
            **params,
        )
        for name, layer, params in LONG_KINDS
    ],
    *[
        backward(
            id,
            "one_precision all_tokens odd_size",
            many(size, without),
            X20,
            long([5, 16], seed=80),
            **{**LONG_PARAMS, "group_size": size},
            **params,
        )
        for id, size, without, params in MANY_KINDS
    ],
    *[
        backward(
            f"half_a_step_outside_in_groups_of_{size}",
            "true_division rounded_mask",
            quotients(size, [(7.5, -1)]),
            POWERS,
            POWERS,
            group_size=size,
            downcast="f32",
            inner_scale="live",
            remark="7.5 over the scale rounds to 8, outside; times the reciprocal less, to 7",
        )
        for size in (2, 4)
    ],
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
            "live_residual clipped_scale",
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
    *[
        backward(
            f"live_edges_with_{mask}_mask",
            f"live_residual {mask}_mask",
            {
                **{name: EDGES[name] for name in EDGES if name != "initial_scale"},
                "scale": [[1.0]],
            },
            EDGES_X,
            [[1.0]],
            downcast="f32",
            inner_scale="live",
            mask=mask,
        )
        for mask in ("rounded", "pre_round")
    ],
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
    GoldenFile("lr_qat/lr_qat.forward.toml", "lr_qat.forward", FORWARD_NOTES, FORWARD),
    GoldenFile("lr_qat/lr_qat.backward.toml", "lr_qat.backward", BACKWARD_NOTES, BACKWARD),
    GoldenFile("lr_qat/lr_qat.merge.toml", "lr_qat.merge", MERGE_NOTES, MERGE),
]
