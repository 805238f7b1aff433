"""Cases of the L4Q layer: forward, backward and merge. At 4 bits the codes run from -8 to 7."""

import math

from case_text import GoldenFile, case

from .spread import TIED, beside_reciprocals, long, spread

REFUSED = {
    "non_finite": "a NaN or infinity that clamps to an end of the range or is masked away",
    "shape": "a broadcast, transposed or truncated tensor instead of a refusal",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
}
FORWARD_NOTES = {
    "combined_tie": "rounding of the weight and the adapter apart, or half away from zero",
    "scaling": "lora_scaling forgotten, applied twice, or divided by the rank again",
    "adapter_inside": "the adapter beside the quantizer (QAT-LoRA) in place of inside it",
    "offset_outside": "an offset that is forgotten on one side, or rounded to whole codes",
    "saturation": "a clamp that is off by one or comes after the integer conversion",
    "group_index": "scale or offset of another group",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "zero_adapter": "an adapter that changes the codes although lora_b is zero",
    "scale_floor": "a scale that was not raised to the floor",
    "grid_width": "a range hard-coded for one width",
    "odd_size": "a kernel that handles only whole tiles",
    "one_precision": "a quantizer argument or a product of fewer bits than f32 has",
    "true_division": "multiplying by the reciprocal of the scale",
    **REFUSED,
}
BACKWARD_NOTES = {
    "unmasked": "adapter gradients from the unmasked weight gradient",
    "closed_mask": "a mask that is open at an end, or taken on the rounded code",
    "true_division": "multiplying by the reciprocal of the scale: it passes the end",
    "mask_rule": "one mask for every rule, or a rule that reaches the scale and not the adapter",
    "offset_in_d_x": "d_x from codes * scale without the offset",
    "quantized_d_x": "d_x from the weights before quantization",
    "offset_gradient": "d_offset from weights inside the range, or transposed before grouping",
    "rounding_residual": "d_scale without the - v, or without the clipped weights",
    "all_tokens": "only one token, or one sequence of a batch, in the weight gradient",
    "scaling": "lora_scaling forgotten in one of the adapter gradients, or applied to d_scale",
    "grad_scale": "a gradient scale with another count, or on the adapter too",
    "grad_scale_default": "a gradient scale where none was asked for",
    "zero_adapter": "a d_lora_b that is zero at the usual start, lora_b = 0",
    "scale_floor": "a gradient for a scale that was raised to the floor",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "odd_size": "a kernel that handles only whole tiles",
    "one_precision": "sums over tokens of fewer bits than f32 has",
    **REFUSED,
}
MERGE_NOTES = {
    "scaling": "a merge that forgets lora_scaling, or divides it by the rank",
    "same_codes": "codes of the base weight, or of a merge that rounds in another order",
    "combined_tie": "half away from zero in the merge where the forward rounds to even",
    "one_precision": "a merge in another precision than training: bf16 gives other codes",
    "scale_floor": "the stored scale left below the floor that the codes were divided by",
    "offset_kept": "an offset turned into a rounded zero-point, or dropped",
    "group_index": "scale or offset of another group",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "odd_size": "a kernel that handles only whole tiles",
    **REFUSED,
}

# Two rows, two groups. weight + 2 * (lora_b @ lora_a) = [[1.25, -1.25, 3.5, 9], [-2.5, 4, 0, 1]]
HAND = {
    "weight": [[1.0, -1.0, 3.5, 5.0], [-2.0, 3.5, 0.0, 9.0]],
    "lora_a": [[0.125, -0.125, 0.0, 2.0]],
    "lora_b": [[1.0], [-2.0]],
    "scale": [[0.5, 1.0], [0.25, 2.0]],
    "offset": [[0.0, 0.5], [0.125, -1.0]],
}
HAND_X = [[1.0, 2.0, -1.0, 4.0], [0.5, -8.0, 1.0, 0.25]]
HAND_D_Y = [[1.0, -2.0], [0.5, 4.0]]

# Rank 3, three rows, seven inputs, some of them clipped in every row.
ODD = {
    "weight": spread([3, 7], seed=21, step=0.25, reach=10),
    "lora_a": spread([3, 7], seed=22, step=0.25, reach=4),
    "lora_b": spread([3, 3], seed=23, step=0.5, reach=2),
    "scale": [[0.25], [0.5], [0.375]],
    "offset": [[0.125], [-0.25], [0.0625]],
}
# Rank 2, five rows, three groups of three: out differs from groups, no two scales are equal.
GROUPED = {
    "weight": spread([5, 9], seed=31, step=0.25, reach=12),
    "lora_a": spread([2, 9], seed=32, step=0.25, reach=4),
    "lora_b": spread([5, 2], seed=33, step=0.5, reach=2),
    "scale": [[0.25 + 0.0625 * (3 * o + g) for g in range(3)] for o in range(5)],
    "offset": [[0.125 * (3 * o - 2 * g) for g in range(3)] for o in range(5)],
}
START = {**HAND, "lora_b": [[0.0], [0.0]]}
FLOOR = {
    "weight": [[1.0, 0.0], [2.0, 0.5]],
    "lora_a": [[1.0, 0.0]],
    "lora_b": [[0.5], [-1.0]],
    "scale": [[2.0**-30], [0.5]],
    "offset": [[0.0], [0.0]],
}
# Each row has one tensor that bf16 does not hold: weight, factors, scale, offset. Without the bits
# that it lacks, every argument is a tie or on the other side of one.
BEYOND_BF16 = {
    "weight": [
        [6.5 + 2.0**-8, 5.5 - 2.0**-8, -2.5 - 2.0**-9],
        [2.0, -4.0, 0.5],
        [2.5, -4.5, 0.5],
        [1.5, -5.5, -0.5],
    ],
    "lora_a": [[0.0, 0.0, 0.0], [0.5 + 2.0**-10, -0.5 - 2.0**-10, 0.0]],
    "lora_b": [[1.0, 0.0], [0.5, 1.0 + 2.0**-10], [0.5, 0.0], [-0.25, 0.0]],
    "scale": [[1.0], [1.0], [1.0 - 2.0**-9], [1.0]],
    "offset": [[0.0], [0.0], [0.0], [-1.0 - 2.0**-8 + 2.0**-12]],
}
BEYOND_BF16_X = [[1.0 + 2.0**-13, -3.0 - 2.0**-12, 0.5], [2.0**-14 - 1.0, 0.75, 7.0 - 2.0**-11]]
# Rank 4, updates of some fifty codes of 8 bits: what one product or sum loses moves codes.
LONG = {
    "weight": long([3, 8], seed=51, size=8.0),
    "lora_a": long([4, 8], seed=52, size=2.0),
    "lora_b": long([3, 4], seed=53, size=2.0),
    "scale": [[0.125 + 2.0**-9 * (2 * o + g) for g in range(2)] for o in range(3)],
    "offset": long([3, 2], seed=54),
}
UNIT = {
    "weight": [[0.5]],
    "lora_a": [[2.0]],
    "lora_b": [[0.5]],
    "scale": [[0.25]],
    "offset": [[0.125]],
}


def forward(id, flags, inputs, x, *, error=None, remark=None, **params):
    params = {"bits": 4, **params}
    params.setdefault("lora_scaling", 2.0)
    return case(id, flags, params, x=x, **inputs, error=error, remark=remark)


def backward(id, flags, inputs, x, d_y, *, error=None, remark=None, **params):
    params = {"bits": 4, **params}
    params.setdefault("lora_scaling", 2.0)
    return case(id, flags, params, x=x, **inputs, d_y=d_y, error=error, remark=remark)


def merge(id, flags, inputs, *, error=None, remark=None, **params):
    params = {"bits": 4, **params}
    params.setdefault("lora_scaling", 2.0)
    return case(id, flags, params, **inputs, error=error, remark=remark)


def quotients(size, steps):
    """A layer whose weights are exactly these steps of their scales, which a reciprocal misses."""
    weight, scale = beside_reciprocals(8, 8 // size, size, steps)
    adapter = {"lora_a": [[1.0] * 8], "lora_b": [[0.0]] * 8}
    return {"weight": weight, **adapter, "scale": scale, "offset": [[0.0] * (8 // size)] * 8}


POWERS = [[2.0**power for power in range(8)]]
X7 = spread([5, 7], seed=24)
X9 = spread([4, 9], seed=34)
X8 = long([5, 8], seed=55)

FORWARD = [
    forward("numbers_of_18_bits", "one_precision", LONG, X8, bits=8, group_size=4),
    *[
        forward(
            f"division_is_not_by_reciprocal_in_groups_of_{size}",
            "true_division combined_tie",
            quotients(size, TIED),
            POWERS,
            group_size=size,
        )
        for size in (2, 4)
    ],
    forward(
        "ties_that_the_adapter_makes",
        "combined_tie scaling adapter_inside offset_outside",
        HAND,
        HAND_X,
        group_size=2,
        remark="weight + 2 * lora_b @ lora_a = [1.25, -1.25, 3.5, 9], [-2.5, 4, 0, 1]",
    ),
    forward("scaling_of_a_half", "scaling", HAND, HAND_X, group_size=2, lora_scaling=0.5),
    forward(
        "scaling_of_zero", "scaling zero_adapter", HAND, HAND_X, group_size=2, lora_scaling=0.0
    ),
    forward("lora_b_is_zero", "zero_adapter", START, HAND_X, group_size=2),
    forward("two_bits_saturate", "saturation grid_width", HAND, HAND_X, group_size=2, bits=2),
    forward("eight_bits", "grid_width", HAND, HAND_X, group_size=2, bits=8),
    forward(
        "three_groups_in_five_rows", "group_index offset_outside scaling", GROUPED, X9, group_size=3
    ),
    forward("one_group_per_row", "one_group_per_row odd_size", ODD, X7, lora_scaling=0.5),
    forward(
        "group_size_one",
        "group_index odd_size",
        {
            "weight": [[1.0, -2.0, 0.5]],
            "lora_a": [[0.5, 0.25, -1.0]],
            "lora_b": [[0.5]],
            "scale": [[0.25, 0.5, 2.0]],
            "offset": [[0.0, 1.0, -0.5]],
        },
        [[1.0, 2.0, 4.0]],
        group_size=1,
    ),
    forward("one_of_everything", "odd_size", UNIT, [[3.0]], lora_scaling=1.0),
    forward("scale_below_the_floor", "scale_floor saturation", FLOOR, [[1.0, 2.0]]),
    forward(
        "numbers_that_bf16_does_not_hold",
        "one_precision",
        BEYOND_BF16,
        BEYOND_BF16_X,
        lora_scaling=1.0,
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
        "infinity_in_scale",
        "non_finite",
        {**HAND, "scale": [[0.5, math.inf], [0.25, 2.0]]},
        HAND_X,
        group_size=2,
        error="scale",
    ),
    forward("x_of_another_width", "shape", HAND, [[1.0, 2.0]], group_size=2, error="x has"),
    forward(
        "lora_a_of_another_width",
        "shape",
        {**HAND, "lora_a": [[1.0, 2.0]]},
        HAND_X,
        group_size=2,
        error="lora_a",
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
    backward(
        "numbers_of_18_bits",
        "one_precision all_tokens",
        LONG,
        X8,
        long([5, 3], seed=56),
        bits=8,
        group_size=4,
    ),
    *[
        backward(
            f"the_last_code_in_groups_of_{size}",
            "true_division closed_mask",
            quotients(size, [(7.0, 1)]),
            POWERS,
            POWERS,
            group_size=size,
            remark="everything is inside; over the scale it is 7, times the reciprocal more",
        )
        for size in (2, 4)
    ],
    backward(
        "by_hand",
        "unmasked offset_in_d_x offset_gradient rounding_residual grad_scale_default",
        HAND,
        HAND_X,
        HAND_D_Y,
        group_size=2,
        remark="clipped: the 9 in the first row, -2.5 and 4 in the second",
    ),
    backward(
        "mask_at_the_ends",
        "closed_mask",
        {
            "weight": [[7.0, -8.0, 7.25, -8.5]],
            "lora_a": [[0.0, 0.0, 0.0, 0.0]],
            "lora_b": [[1.0]],
            "scale": [[1.0]],
            "offset": [[0.0]],
        },
        [[1.0, 2.0, 4.0, 8.0]],
        [[1.0]],
        remark="inside: 7 and -8; outside although they round to an end: 7.25 and -8.5",
    ),
    *[
        backward(
            f"mask_{mask}",
            "mask_rule",
            {
                "weight": [[7.0, -8.0, 7.25, -8.5, 7.5]],
                "lora_a": [[0.5, -1.0, 2.0, 0.25, 1.0]],
                "lora_b": [[0.0]],
                "scale": [[1.0]],
                "offset": [[0.0]],
            },
            [[1.0, 2.0, 4.0, 8.0, 16.0]],
            [[1.0]],
            mask=mask,
        )
        for mask in ("pre_round", "rounded", "open")
    ],
    backward(
        "scaling_of_a_half", "scaling", HAND, HAND_X, HAND_D_Y, group_size=2, lora_scaling=0.5
    ),
    backward("lora_b_is_zero", "zero_adapter", START, HAND_X, HAND_D_Y, group_size=2),
    backward(
        "three_groups_in_five_rows",
        "offset_gradient offset_in_d_x all_tokens unmasked quantized_d_x one_precision",
        GROUPED,
        X9,
        spread([4, 5], seed=35),
        group_size=3,
    ),
    *[
        backward(
            f"grad_scale_{name}",
            "grad_scale",
            GROUPED,
            X9,
            spread([4, 5], seed=35),
            group_size=3,
            grad_scale=name,
        )
        for name in ("none", "lsq", "lit_gpt", "peft")
    ],
    *[
        backward(
            f"grad_scale_{name}_of_rows",
            "grad_scale",
            ODD,
            X7,
            spread([5, 3], seed=25),
            lora_scaling=0.5,
            grad_scale=name,
            remark="7 weights in a group, one group in a row",
        )
        for name in ("lsq", "lit_gpt", "peft")
    ],
    backward(
        "one_group_per_row",
        "one_group_per_row odd_size all_tokens",
        ODD,
        X7,
        spread([5, 3], seed=25),
        lora_scaling=0.5,
    ),
    backward("one_of_everything", "odd_size", UNIT, [[3.0]], [[2.0]], lora_scaling=1.0),
    backward(
        "two_bits",
        "unmasked closed_mask rounding_residual",
        HAND,
        HAND_X,
        HAND_D_Y,
        group_size=2,
        bits=2,
    ),
    backward("scale_below_the_floor", "scale_floor", FLOOR, [[1.0, 2.0]], [[1.0, 4.0]]),
    backward(
        "nan_in_d_y",
        "non_finite",
        HAND,
        HAND_X,
        [[1.0, math.nan], [0.5, 4.0]],
        group_size=2,
        error="d_y",
    ),
    backward(
        "infinity_in_offset",
        "non_finite",
        {**HAND, "offset": [[0.0, 0.5], [math.inf, -1.0]]},
        HAND_X,
        HAND_D_Y,
        group_size=2,
        error="offset",
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
    merge("numbers_of_18_bits", "one_precision same_codes", LONG, bits=8, group_size=4),
    merge("by_hand", "scaling same_codes combined_tie offset_kept", HAND, group_size=2),
    merge("scaling_of_a_half", "scaling same_codes", HAND, group_size=2, lora_scaling=0.5),
    merge("lora_b_is_zero", "same_codes", START, group_size=2),
    merge("three_groups_in_five_rows", "group_index offset_kept scaling", GROUPED, group_size=3),
    merge("one_group_per_row", "one_group_per_row odd_size", ODD, lora_scaling=0.5),
    merge("one_of_everything", "odd_size", UNIT, lora_scaling=1.0),
    merge(
        "scale_below_the_floor", "scale_floor", FLOOR, remark="the first scale comes back as 1e-8"
    ),
    merge("two_bits", "same_codes", HAND, group_size=2, bits=2),
    merge("numbers_that_bf16_does_not_hold", "one_precision", BEYOND_BF16, lora_scaling=1.0),
    merge(
        "nan_in_weight",
        "non_finite",
        {**UNIT, "weight": [[math.nan]]},
        error="weight",
    ),
    merge("lora_b_of_another_rank", "shape", {**UNIT, "lora_b": [[0.5, 1.0]]}, error="lora_b"),
    merge("scale_for_two_groups", "shape", {**UNIT, "scale": [[0.25, 0.25]]}, error="scale"),
    merge("group_size_does_not_divide", "group_divides", HAND, group_size=3, error="group_size"),
]

FILES = [
    GoldenFile("l4q/l4q.forward.toml", "l4q.forward", FORWARD_NOTES, FORWARD),
    GoldenFile("l4q/l4q.backward.toml", "l4q.backward", BACKWARD_NOTES, BACKWARD),
    GoldenFile("l4q/l4q.merge.toml", "l4q.merge", MERGE_NOTES, MERGE),
]
