"""Cases of fake_quantize. At 4 bits the codes run from -8 to 7."""

import math

from case_text import GoldenFile, case

from .spread import TIED, beside_reciprocals, long

# The spacing of f32 just below 8, and just above it.
ULP_7, ULP_8 = 2.0**-21, 2.0**-20
# At a scale of 1, v is the weight: the ends, and the ties beside them.
ENDS = [-8.0, 7.0, -8.5, 7.5, -7.5, 6.5, -9.0, 8.0]
AROUND_ENDS = [7 - ULP_7, 7 + ULP_7, -8 + ULP_7, -8 - ULP_8]
AROUND_TIES = [7.5 - ULP_7, 7.5 + ULP_7, 6.5 - ULP_7, 6.5 + ULP_7, -8.5 - ULP_8, -8.5 + ULP_8]
# f32 numbers below the floor of 1e-8, and one above it.
BELOW_FLOOR, ABOVE_FLOOR = 2.0**-30, 2.0**-26

REFUSED = {
    "non_finite": "a NaN that clamps to an end of the range or becomes code 0 in silence",
    "shape": "a broadcast, transposed or truncated parameter instead of a refusal",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
    "bits_range": "a grid of a width that the code type cannot hold",
}

FORWARD_NOTES = {
    "tie": "round half away from zero, or floor(x + 0.5)",
    "range_end": "a clamp that is off by one at an end of the range",
    "saturation": "an integer conversion that wraps because it comes before the clamp",
    "one_ulp": "a rounding or clamp with a tolerance in it",
    "true_division": "multiplying by the reciprocal of the scale",
    "one_division": "weight / scale - offset / scale in place of (weight - offset) / scale",
    "group_index": "scale or offset of another group: transposed, stale, or indexed by input",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "real_offset": "an offset rounded to a whole number of codes, or forgotten on one side",
    "scale_floor": "a division by zero or by a negative scale, or a scale that was not raised",
    "one_precision": "a result of fewer bits than f32 has",
    "zero": "a zero that picks up a code, or the offset forgotten where the weight is zero",
    "odd_size": "a kernel that handles only whole vectors or even rows",
    "grid_width": "a range hard-coded for one width, or codes that do not fit a signed byte",
    **REFUSED,
}

QUOTIENTS = {size: beside_reciprocals(8, 8 // size, size, TIED) for size in (2, 4)}
# Groups of 8 weights of 18 bits, at 8 bits.
LONG = {
    "weight": long([3, 16], seed=81, size=8.0),
    "scale": [[0.0625 + 2.0**-10 * (2 * o + g) for g in range(2)] for o in range(3)],
    "offset": long([3, 2], seed=82),
}

FORWARD = [
    case("numbers_of_18_bits", "one_precision", {"bits": 8, "group_size": 8}, **LONG),
    case(
        "tie_at_2_5_goes_to_2",
        "tie",
        {"bits": 4, "group_size": 2},
        remark="over scale: 2.5, -2.5",
        weight=[[1.25, -1.25]],
        scale=[[0.5]],
        offset=[[0.0]],
    ),
    case(
        "ties_of_both_parities_and_signs",
        "tie",
        {"bits": 4, "group_size": 8},
        remark="over scale: 0.5, 1.5, 2.5, 3.5 and their negatives",
        weight=[[0.25, 0.75, 1.25, 1.75, -0.25, -0.75, -1.25, -1.75]],
        scale=[[0.5]],
        offset=[[0.0]],
    ),
    case(
        "ties_after_the_offset",
        "tie real_offset",
        {"bits": 4, "group_size": 4},
        remark="(weight - offset) / scale: 0.5, -0.5, 4.5, -5.5",
        weight=[[0.5, 0.0, 2.5, -2.5]],
        scale=[[0.5]],
        offset=[[0.25]],
    ),
    case(
        "ends_of_the_range_and_beyond",
        "range_end tie saturation",
        {"bits": 4, "group_size": 8},
        remark="over scale: the weights themselves; -8.5 and 7.5 are ties that no code may take",
        weight=[ENDS],
        scale=[[1.0]],
        offset=[[0.0]],
    ),
    case(
        "one_ulp_around_the_ends",
        "one_ulp range_end",
        {"bits": 4, "group_size": 4},
        weight=[AROUND_ENDS],
        scale=[[1.0]],
        offset=[[0.0]],
    ),
    case(
        "one_ulp_around_ties",
        "one_ulp",
        {"bits": 4, "group_size": 5},
        remark="2.5 and 0.5 missed by one ulp, then the ties beside the ends",
        weight=[
            [2.5 - 2.0**-22, 2.5 + 2.0**-22, 0.5 - 2.0**-25, 0.5 + 2.0**-24, -0.5 - 2.0**-24],
            [*AROUND_TIES[:5]],
        ],
        scale=[[1.0], [1.0]],
        offset=[[0.0], [0.0]],
    ),
    case(
        "far_outside_saturates",
        "saturation",
        {"bits": 4, "group_size": 6},
        remark="32768 and 256 have low bytes 0; 2^100 is beyond every integer type",
        weight=[[256.0, -256.0, 32768.0, 128.0, 2.0**100, -(2.0**100)]],
        scale=[[1.0]],
        offset=[[0.0]],
    ),
    case(
        "division_is_not_by_reciprocal",
        "true_division tie",
        {"bits": 4, "group_size": 2},
        remark="over scale: exactly 2.5; 1/117 and 1/105 round up, so a product would pass the tie",
        weight=[[292.5, -292.5], [-682.5, 682.5]],
        scale=[[117.0], [105.0]],
        offset=[[0.0], [0.0]],
    ),
    *[
        case(
            f"division_is_not_by_reciprocal_in_groups_of_{group_size}",
            "true_division tie",
            {"bits": 4, "group_size": group_size},
            remark="ties everywhere: 2.5 and 4.5 go down, 1.5 and 5.5 up; a product misses them",
            weight=QUOTIENTS[group_size][0],
            scale=QUOTIENTS[group_size][1],
            offset=[[0.0] * (8 // group_size)] * 8,
        )
        for group_size in (2, 4)
    ],
    case(
        "offset_is_subtracted_before_dividing",
        "one_division tie",
        {"bits": 4, "group_size": 2},
        remark="(weight - 2) / 3: exactly 3.5 and 0.5; the thirds of 12.5 and 2 do not cancel",
        weight=[[12.5, 3.5]],
        scale=[[3.0]],
        offset=[[2.0]],
    ),
    case(
        "quotients_that_are_not_dyadic",
        "true_division",
        {"bits": 4, "group_size": 4},
        remark="over scale: thirds",
        weight=[[1.0, 2.0, -4.0, 5.0], [1.0, 2.0, -4.0, 5.0]],
        scale=[[3.0], [0.75]],
        offset=[[0.0], [0.125]],
    ),
    case(
        "every_group_has_its_own_scale",
        "group_index",
        {"bits": 4, "group_size": 2},
        remark="three rows, two groups: a transposed index is a different number everywhere",
        weight=[[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]],
        scale=[[0.25, 0.5], [1.0, 2.0], [4.0, 8.0]],
        offset=[[0.0, 1.0], [0.5, -1.0], [0.25, -0.5]],
    ),
    case(
        "one_group_per_row",
        "one_group_per_row odd_size",
        {"bits": 4},
        weight=[[0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5], [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]],
        scale=[[0.5], [0.25]],
        offset=[[0.0], [1.75]],
    ),
    case(
        "group_size_one",
        "group_index odd_size",
        {"bits": 3, "group_size": 1},
        weight=[[1.0, -1.0, 2.0]],
        scale=[[0.5, 0.25, 4.0]],
        offset=[[0.0, 0.0, 1.0]],
    ),
    case(
        "one_weight",
        "odd_size",
        {"bits": 4},
        weight=[[0.75]],
        scale=[[0.25]],
        offset=[[0.0]],
    ),
    case(
        "offset_between_two_codes",
        "real_offset",
        {"bits": 4, "group_size": 5},
        remark="offset / scale = 0.25; no output is a multiple of scale",
        weight=[[0.0, 0.25, 0.625, -1.0, 9.0]],
        scale=[[0.5]],
        offset=[[0.125]],
    ),
    case(
        "zero_rows",
        "zero real_offset",
        {"bits": 4, "group_size": 3},
        remark="with an offset of 0.375 zero is code -1 and comes back as -0.125",
        weight=[[0.0, -0.0, 0.0], [0.0, -0.0, 0.0]],
        scale=[[0.5], [0.5]],
        offset=[[0.0], [0.375]],
    ),
    case(
        "scale_below_the_floor",
        "scale_floor",
        {"bits": 4, "group_size": 3},
        remark="2^-30, 0 and -1 are raised to 1e-8; 2^-26 is above the floor",
        weight=[[1.0, -1.0, 0.0]] * 3 + [[2.0**-25, -1.0, 0.0]],
        scale=[[BELOW_FLOOR], [0.0], [-1.0], [ABOVE_FLOOR]],
        offset=[[0.0], [0.0], [0.0], [0.0]],
    ),
    case(
        "two_bits",
        "grid_width range_end tie",
        {"bits": 2, "group_size": 8},
        remark="codes -2 to 1",
        weight=[[-3.0, -2.0, -1.5, -0.5, 0.5, 1.0, 1.5, 2.0]],
        scale=[[1.0]],
        offset=[[0.0]],
    ),
    case(
        "three_bits",
        "grid_width range_end tie",
        {"bits": 3, "group_size": 8},
        remark="codes -4 to 3",
        weight=[[-5.0, -4.5, -4.0, -2.5, 2.5, 3.0, 3.5, 4.0]],
        scale=[[1.0]],
        offset=[[0.0]],
    ),
    case(
        "eight_bits",
        "grid_width range_end tie saturation",
        {"bits": 8, "group_size": 8},
        remark="codes -128 to 127",
        weight=[[-129.0, -128.5, -128.0, -126.5, 126.5, 127.0, 127.5, 128.0]],
        scale=[[1.0]],
        offset=[[0.0]],
    ),
    case(
        "nan_in_weight",
        "non_finite",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, math.nan]],
        scale=[[0.5]],
        offset=[[0.0]],
        error="weight",
    ),
    case(
        "infinity_in_scale",
        "non_finite",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, 2.0]],
        scale=[[math.inf]],
        offset=[[0.0]],
        error="scale",
    ),
    case(
        "negative_infinity_in_offset",
        "non_finite",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, 2.0]],
        scale=[[0.5]],
        offset=[[-math.inf]],
        error="offset",
    ),
    case(
        "group_size_does_not_divide",
        "group_divides",
        {"bits": 4, "group_size": 3},
        weight=[[1.0, 2.0, 3.0, 4.0]],
        scale=[[0.5]],
        offset=[[0.0]],
        error="group_size",
    ),
    case(
        "group_size_zero",
        "group_divides",
        {"bits": 4, "group_size": 0},
        weight=[[1.0, 2.0]],
        scale=[[0.5]],
        offset=[[0.0]],
        error="group_size",
    ),
    case(
        "scale_is_transposed",
        "shape",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, 2.0, 3.0, 4.0]],
        scale=[[0.5], [0.5]],
        offset=[[0.0, 0.0]],
        error="scale",
    ),
    case(
        "offset_for_one_group_of_two",
        "shape",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, 2.0, 3.0, 4.0]],
        scale=[[0.5, 0.5]],
        offset=[[0.0]],
        error="offset",
    ),
    case(
        "one_bit",
        "bits_range",
        {"bits": 1, "group_size": 2},
        weight=[[1.0, 2.0]],
        scale=[[0.5]],
        offset=[[0.0]],
        error="bits",
    ),
    case(
        "nine_bits",
        "bits_range",
        {"bits": 9, "group_size": 2},
        weight=[[1.0, 2.0]],
        scale=[[0.5]],
        offset=[[0.0]],
        error="bits",
    ),
]

FILES = [
    GoldenFile(
        "quantize/fake_quantize.forward.toml", "fake_quantize.forward", FORWARD_NOTES, FORWARD
    ),
]
