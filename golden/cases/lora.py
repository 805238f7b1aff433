"""Cases of the linear layer with a low-rank adapter."""

import math

from case_text import GoldenFile, case

from .spread import spread

SHAPE = "a broadcast, transposed or truncated tensor instead of a refusal"
FORWARD_NOTES = {
    "scaling": "lora_scaling forgotten, applied twice, or divided by the rank again",
    "rank_one": "an outer product with its factors exchanged",
    "factor_order": "lora_a @ lora_b in place of lora_b @ lora_a",
    "transposed_weight": "x @ weight in place of x @ weight^T: visible where out = in",
    "zero_adapter": "an adapter that changes the layer although lora_b is zero",
    "odd_size": "a kernel that handles only whole tiles",
    "cancellation": "a base product and an adapter product that are rounded before they are added",
    "full_precision": "products of numbers that were cut to 8 or 11 bits",
    "shape": SHAPE,
    "non_finite": "a NaN that is multiplied away by a zero",
}
BACKWARD_NOTES = {
    "scaling": "lora_scaling forgotten in one of the two adapter gradients",
    "factor_order": "d_lora_a and d_lora_b computed from each other's factors",
    "all_tokens": "only the first token, or the last, in the weight gradient",
    "adapter_in_d_x": "d_x without the adapter's part",
    "zero_adapter": "a d_lora_b that is zero at the usual start, lora_b = 0",
    "odd_size": "a kernel that handles only whole tiles",
    "shape": SHAPE,
    "non_finite": "a NaN that is multiplied away by a zero",
}

SMALL = {
    "x": [[1.0, 2.0, -1.0]],
    "weight": [[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]],
    "lora_a": [[1.0, 2.0, 4.0]],
    "lora_b": [[1.0], [-2.0]],
}
SQUARE = {
    "x": [[1.0, 10.0]],
    "weight": [[1.0, 2.0], [3.0, 4.0]],
    "lora_a": [[1.0, 2.0], [3.0, 5.0]],
    "lora_b": [[1.0, -1.0], [2.0, 0.5]],
}
ODD = {
    "x": spread([5, 7], seed=11),
    "weight": spread([3, 7], seed=12),
    "lora_a": spread([3, 7], seed=13),
    "lora_b": spread([3, 3], seed=14),
}
# Every number has 13 bits or more.
LONG = {
    "x": [[1.0 + 2.0**-12, 3.0 - 2.0**-13, 2.0**-15 - 0.5]],
    "weight": [
        [1.0 - 2.0**-13, 2.0 + 2.0**-12, 5.0 + 2.0**-11],
        [-3.0 - 2.0**-12, 1.5 + 2.0**-14, 0.25],
    ],
    "lora_a": [[0.75 + 2.0**-14, 2.0**-13 - 1.0, 3.0 + 2.0**-12]],
    "lora_b": [[1.0 + 2.0**-13], [0.5 - 2.0**-15]],
}
START = {**SQUARE, "lora_b": [[0.0, 0.0], [0.0, 0.0]]}
TOKENS = {**SMALL, "x": [[1.0, 2.0, -1.0], [0.5, 0.0, 4.0], [-2.0, 1.0, 8.0]]}

FORWARD = [
    case("scaling_one", "rank_one", {"lora_scaling": 1.0}, **SMALL),
    case("scaling_two", "scaling rank_one", {"lora_scaling": 2.0}, **SMALL),
    case("scaling_a_quarter_at_rank_two", "scaling", {"lora_scaling": 0.25}, **SQUARE),
    case(
        "square_layer_and_square_factors",
        "factor_order transposed_weight",
        {"lora_scaling": 1.0},
        **SQUARE,
    ),
    case("lora_b_is_zero", "zero_adapter", {"lora_scaling": 2.0}, **START),
    case("several_tokens", "scaling", {"lora_scaling": 0.5}, **TOKENS),
    case("rank_three_and_odd_sizes", "odd_size scaling", {"lora_scaling": 0.5}, **ODD),
    case(
        "one_of_everything",
        "odd_size",
        {"lora_scaling": 0.5},
        x=[[3.0]],
        weight=[[2.0]],
        lora_a=[[4.0]],
        lora_b=[[-0.5]],
    ),
    case(
        "adapter_cancels_the_weight",
        "cancellation",
        {"lora_scaling": 2.0},
        remark="weight + 2 * lora_b @ lora_a = [0, 0.25]",
        x=[[1.0, 1.0]],
        weight=[[4.0, -3.75]],
        lora_a=[[-2.0, 2.0]],
        lora_b=[[1.0]],
    ),
    case("numbers_of_more_than_11_bits", "full_precision", {"lora_scaling": 0.5}, **LONG),
    case(
        "lora_a_of_another_width",
        "shape",
        {"lora_scaling": 1.0},
        **{**SMALL, "lora_a": [[1.0, 2.0]]},
        error="lora_a",
    ),
    case(
        "lora_b_of_another_rank",
        "shape",
        {"lora_scaling": 1.0},
        **{**SMALL, "lora_b": [[1.0, 1.0], [2.0, 2.0]]},
        error="lora_b",
    ),
    case(
        "x_of_another_width",
        "shape",
        {"lora_scaling": 1.0},
        **{**SMALL, "x": [[1.0]]},
        error="x has",
    ),
    case(
        "nan_in_lora_a_under_a_zero_lora_b",
        "non_finite",
        {"lora_scaling": 1.0},
        **{**START, "lora_a": [[1.0, math.nan], [3.0, 5.0]]},
        error="lora_a",
    ),
    case(
        "infinity_in_x",
        "non_finite",
        {"lora_scaling": 1.0},
        **{**SMALL, "x": [[math.inf, 0.0, 0.0]]},
        error="x[",
    ),
]


def backward(id, flags, lora_scaling, inputs, d_y, **keywords):
    return case(id, flags, {"lora_scaling": lora_scaling}, **inputs, d_y=d_y, **keywords)


BACKWARD = [
    backward("scaling_two", "scaling", 2.0, SMALL, [[1.0, 4.0]]),
    backward("square_factors", "factor_order adapter_in_d_x", 1.0, SQUARE, [[1.0, 8.0]]),
    backward("scaling_a_quarter", "scaling adapter_in_d_x", 0.25, SQUARE, [[-1.0, 2.0]]),
    backward("lora_b_is_zero", "zero_adapter", 2.0, START, [[1.0, 8.0]], remark="d_lora_a is 0"),
    backward("three_tokens", "all_tokens", 0.5, TOKENS, [[1.0, -1.0], [10.0, 0.5], [100.0, 2.0]]),
    backward("rank_three_and_odd_sizes", "odd_size all_tokens", 0.5, ODD, spread([5, 3], seed=15)),
    backward(
        "one_of_everything",
        "odd_size",
        0.5,
        {"x": [[3.0]], "weight": [[2.0]], "lora_a": [[4.0]], "lora_b": [[-0.5]]},
        [[2.0]],
    ),
    backward("d_y_of_another_width", "shape", 1.0, SMALL, [[1.0]], error="d_y"),
    backward("d_y_of_another_length", "shape", 1.0, SMALL, [[1.0, 1.0], [1.0, 1.0]], error="d_y"),
    backward("nan_in_d_y", "non_finite", 1.0, SMALL, [[1.0, math.nan]], error="d_y"),
    backward(
        "nan_in_weight",
        "non_finite",
        1.0,
        {**SMALL, "weight": [[1.0, 0.0, math.nan], [0.5, -1.0, 0.0]]},
        [[1.0, 0.0]],
        error="weight",
    ),
]

FILES = [
    GoldenFile("lora/lora.forward.toml", "lora.forward", FORWARD_NOTES, FORWARD),
    GoldenFile("lora/lora.backward.toml", "lora.backward", BACKWARD_NOTES, BACKWARD),
]
