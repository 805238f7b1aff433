"""Cases of PEQA."""

import math

from case_text import GoldenFile, case

from .qa_lora import ODD, ODD_D_Y, ODD_X, SHAPE, WIDE, WIDE_X

BOTH = {
    "zero_point": "a zero point forgotten, or added",
    "group_index": "scale or zero point of another group: transposed, stale, or indexed by input",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "scale_floor": "a scale of zero or below that is not raised, or that gets a gradient",
    "odd_size": "a kernel that handles only whole tiles",
    "code_range": "a code that the grid does not have, masked to its low bits or taken as it is",
    "shape": SHAPE,
    "non_finite": "a NaN that is multiplied away by a zero",
}
FORWARD_NOTES = {**BOTH, "grid_width": "codes of 128 and more read as negative"}
BACKWARD_NOTES = {
    **BOTH,
    "group_sum": "a sum over the row, over the tensor, or of one element",
    "all_tokens": "only the first token, or the last, in the gradient of the scale",
    "no_residual": "the gradient of a quantizer, with the rounding error in it: codes are frozen",
}


def layer(inputs):
    return {name: inputs[name] for name in ("codes", "scale", "zero_point")}


SMALL = {"codes": [[9, 0]], "scale": [[0.5]], "zero_point": [[7.0]]}
ROWS = {"codes": [[3, 0, 2], [1, 2, 3]], "scale": [[0.5], [2.0]], "zero_point": [[1.0], [0.0]]}
FLOOR = {**layer(WIDE), "scale": [[0.0, 0.5, 1.0], [2.0, -0.125, 2.0**-26]]}
FOUR, THREE = {"bits": 4, "group_size": 2}, {"bits": 3, "group_size": 3}

FORWARD = [
    case("the_example", "zero_point", {"bits": 4}, **SMALL, x=[[2.0, 1.0]]),
    case("three_groups", "group_index zero_point", FOUR, **layer(WIDE), x=WIDE_X),
    case("one_group_per_row", "one_group_per_row", {"bits": 2}, **ROWS, x=[[1.0, 2.0, 4.0]]),
    case("scales_at_and_below_zero", "scale_floor", FOUR, **FLOOR, x=WIDE_X),
    case("five_groups_of_three", "odd_size group_index", THREE, **layer(ODD), x=ODD_X),
    case(
        "eight_bits",
        "grid_width zero_point",
        {"bits": 8},
        codes=[[255, 128, 127, 0]],
        scale=[[0.5]],
        zero_point=[[128.0]],
        x=[[1.0, 10.0, 100.0, 1000.0]],
    ),
    case(
        "code_sixteen",
        "code_range",
        {"bits": 4},
        **{**SMALL, "codes": [[16, 0]]},
        x=[[2.0, 1.0]],
        error="codes",
    ),
    case("x_of_another_width", "shape", {"bits": 4}, **SMALL, x=[[1.0]], error="x has"),
    case(
        "nan_in_zero_point",
        "non_finite",
        {"bits": 4},
        **{**SMALL, "zero_point": [[math.nan]]},
        x=[[0.0, 0.0]],
        error="zero_point",
    ),
]

D_Y = [[1.0, 8.0], [-2.0, 0.5]]
BACKWARD = [
    case(
        "the_example",
        "zero_point no_residual",
        {"bits": 4},
        **SMALL,
        x=[[2.0, 1.0]],
        d_y=[[3.0]],
        remark="6 * 2 - 3 * 7",
    ),
    case("three_groups", "group_index group_sum", FOUR, **layer(WIDE), x=WIDE_X, d_y=D_Y),
    case(
        "one_group_per_row",
        "one_group_per_row group_sum",
        {"bits": 2},
        **ROWS,
        x=[[1.0, 2.0, 4.0]],
        d_y=[[1.0, -4.0]],
    ),
    case(
        "scales_at_and_below_zero",
        "scale_floor",
        FOUR,
        **FLOOR,
        x=WIDE_X,
        d_y=D_Y,
        remark="no gradient below the floor; the last scale is above it",
    ),
    case(
        "five_groups_of_three",
        "odd_size group_index group_sum all_tokens",
        THREE,
        **layer(ODD),
        x=ODD_X,
        d_y=ODD_D_Y,
    ),
    case(
        "three_tokens",
        "all_tokens",
        {"bits": 4},
        **SMALL,
        x=[[2.0, 1.0], [0.5, -1.0], [4.0, 8.0]],
        d_y=[[1.0], [10.0], [100.0]],
    ),
    case(
        "code_sixteen",
        "code_range",
        {"bits": 4},
        **{**SMALL, "codes": [[0, 16]]},
        x=[[2.0, 1.0]],
        d_y=[[3.0]],
        error="codes",
    ),
    case(
        "d_y_of_another_length",
        "shape",
        {"bits": 4},
        **SMALL,
        x=[[2.0, 1.0]],
        d_y=[[3.0], [1.0]],
        error="d_y",
    ),
    case(
        "nan_in_d_y",
        "non_finite",
        {"bits": 4},
        **SMALL,
        x=[[0.0, 0.0]],
        d_y=[[math.nan]],
        error="d_y",
    ),
]

FILES = [
    GoldenFile("peqa/peqa.forward.toml", "peqa.forward", FORWARD_NOTES, FORWARD),
    GoldenFile("peqa/peqa.backward.toml", "peqa.backward", BACKWARD_NOTES, BACKWARD),
]
