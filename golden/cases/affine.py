"""Cases of unsigned grids. At 4 bits the codes run from 0 to 15."""

import math

from case_text import GoldenFile, case

from .quantize import ABOVE_FLOOR, BELOW_FLOOR, REFUSED
from .spread import spread

QUANTIZE_NOTES = {
    "tie": "round half away from zero, or floor(x + 0.5)",
    "zero_point_after_rounding": "round(weight / scale + zero_point): an odd one turns every tie",
    "range_end": "a clamp that is off by one, or clamps the quotient at the ends of the codes",
    "saturation": "an integer conversion that wraps because it comes before the clamp",
    "one_ulp": "a rounding or clamp with a tolerance in it",
    "true_division": "multiplying by the reciprocal of the scale",
    "zero": "a weight of zero whose code is not the zero point",
    "group_index": "scale or zero point of another group: transposed, stale, or indexed by input",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "scale_floor": "a division by zero or by a negative scale, or a scale that was not raised",
    "grid_width": "a range hard-coded for one width, or codes of 128 and more in a signed byte",
    "odd_size": "a kernel that handles only whole vectors or even rows",
    "zero_point_range": "a zero point outside the codes or between them, clamped or rounded",
    **REFUSED,
}
DEQUANTIZE_NOTES = {
    "group_index": "scale or zero point of another group: transposed, stale, or indexed by input",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "real_zero_point": "a zero point rounded to an integer or clamped to the codes",
    "grid_width": "codes of 128 and more read as negative, or a fixed width",
    "zero": "a code at the zero point that is not exactly zero",
    "scale_floor": "a scale of zero or below that is not raised",
    "odd_size": "a kernel that handles only whole vectors or even rows",
    "code_range": "a code that the grid does not have, masked to its low bits or taken as it is",
    **{name: REFUSED[name] for name in ("non_finite", "shape", "group_divides")},
}

TIES = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
# The spacing of f32 just below 8.
ULP_7 = 2.0**-21


def quantized(id, flags, weight, zero_point, *, scale=1.0, bits=4, **keywords):
    """One row that is one group."""
    grid = {"scale": [[scale]], "zero_point": [[float(zero_point)]]}
    return case(id, flags, {"bits": bits}, weight=[weight], **grid, **keywords)


QUANTIZE = [
    quantized(
        "ties_at_an_even_zero_point",
        "tie",
        TIES,
        8,
        remark="codes 8, 10, 10, 8, 6, 6",
    ),
    quantized(
        "ties_at_an_odd_zero_point",
        "tie zero_point_after_rounding",
        TIES,
        7,
        remark="codes 7, 9, 9, 7, 5, 5: odd, because the quotients go to even integers",
    ),
    quantized("ties_of_a_scaled_weight", "tie", [1.25, -1.25, 0.75, 3.25], 3, scale=0.5),
    quantized(
        "ends_of_the_range_and_beyond",
        "range_end tie saturation",
        [-7.0, -7.5, -6.5, -8.0, 8.0, 8.5, 7.5, 9.0],
        7,
        remark="codes 0 and 15 at quotients -7 and 8; no code lies beyond the ties outside",
    ),
    quantized(
        "zero_point_at_the_lower_end",
        "range_end zero",
        [0.0, -0.5, -1.0, 0.5, 15.0, 15.5, 14.5, 16.0],
        0,
    ),
    quantized(
        "zero_point_at_the_upper_end",
        "range_end zero tie",
        [0.0, 0.5, 1.0, -0.5, -15.0, -15.5, -14.5, -16.0],
        15,
    ),
    quantized(
        "one_ulp_around_ties_and_ends",
        "one_ulp",
        [6.5 - ULP_7, 6.5 + ULP_7, -6.5 + ULP_7, -6.5 - ULP_7, 7.5 - ULP_7, 7.5 + ULP_7],
        7,
    ),
    quantized(
        "far_outside_saturates",
        "saturation",
        [256.0, -256.0, 32768.0, 2.0**100, -(2.0**100), 240.0],
        9,
        remark="256 has the low byte 0; 2^100 is beyond every integer type",
    ),
    case(
        "division_is_not_by_reciprocal",
        "true_division tie",
        {"bits": 4, "group_size": 2},
        remark="over scale: exactly 2.5; 1/117 and 1/105 round up, so a product would pass the tie",
        weight=[[292.5, -292.5], [-682.5, 682.5]],
        scale=[[117.0], [105.0]],
        zero_point=[[8.0], [7.0]],
    ),
    case(
        "every_group_has_its_own_grid",
        "group_index",
        {"bits": 4, "group_size": 2},
        remark="three rows, two groups: a transposed index is a different number everywhere",
        weight=[[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]],
        scale=[[0.25, 0.5], [1.0, 2.0], [4.0, 8.0]],
        zero_point=[[0.0, 1.0], [2.0, 3.0], [5.0, 7.0]],
    ),
    case(
        "one_group_per_row",
        "one_group_per_row odd_size",
        {"bits": 4},
        weight=[[0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5], [-0.5, 1.0, -1.5, 2.0, -2.5, 3.0, -3.5]],
        scale=[[0.5], [0.25]],
        zero_point=[[2.0], [9.0]],
    ),
    case(
        "five_rows_of_nine",
        "odd_size group_index",
        {"bits": 3, "group_size": 3},
        weight=spread([5, 9], seed=21),
        scale=[[0.25, 0.5, 0.125]] * 5,
        zero_point=[[0.0, 1.0, 7.0], [2.0, 3.0, 4.0], [5.0, 6.0, 0.0], [7.0, 1.0, 2.0], [3.0] * 3],
    ),
    quantized(
        "scale_below_the_floor",
        "scale_floor",
        [2.0**-10, -(2.0**-10), 0.0, BELOW_FLOOR],
        8,
        scale=BELOW_FLOOR,
        remark="1e-8 divides; the last quotient is 0.09",
    ),
    quantized("scale_zero", "scale_floor zero", [1.0, 0.0, -1.0], 5, scale=0.0),
    quantized("negative_scale", "scale_floor", [1.0, 0.0, -1.0], 5, scale=-0.5),
    quantized(
        "scale_above_the_floor",
        "scale_floor",
        [ABOVE_FLOOR, -2 * ABOVE_FLOOR],
        4,
        scale=ABOVE_FLOOR,
    ),
    quantized(
        "two_bits", "grid_width range_end tie", [-2.0, -1.5, -0.5, 0.5, 1.5, 2.0, 2.5], 1, bits=2
    ),
    quantized(
        "eight_bits",
        "grid_width range_end tie",
        [-129.0, -128.5, -127.5, 0.0, 126.5, 127.0, 127.5, 128.0],
        128,
        bits=8,
        remark="codes 0 to 255",
    ),
    quantized("zero_point_between_codes", "zero_point_range", [1.0], 7.5, error="zero_point"),
    quantized("negative_zero_point", "zero_point_range", [1.0], -1, error="zero_point"),
    quantized("zero_point_above_the_codes", "zero_point_range", [1.0], 16, error="zero_point"),
    quantized("nan_in_weight", "non_finite", [1.0, math.nan], 8, error="weight"),
    quantized("infinity_in_scale", "non_finite", [1.0], 8, scale=math.inf, error="scale"),
    quantized("nan_in_zero_point", "non_finite", [1.0], math.nan, error="zero_point"),
    case(
        "group_size_does_not_divide",
        "group_divides",
        {"bits": 4, "group_size": 3},
        weight=[[1.0, 2.0, 3.0, 4.0]],
        scale=[[0.5]],
        zero_point=[[8.0]],
        error="group_size",
    ),
    case(
        "scale_is_transposed",
        "shape",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, 2.0, 3.0, 4.0]],
        scale=[[0.5], [0.5]],
        zero_point=[[8.0, 8.0]],
        error="scale",
    ),
    case(
        "zero_point_for_one_group_of_two",
        "shape",
        {"bits": 4, "group_size": 2},
        weight=[[1.0, 2.0, 3.0, 4.0]],
        scale=[[0.5, 0.5]],
        zero_point=[[8.0]],
        error="zero_point",
    ),
    quantized("one_bit", "bits_range", [1.0], 0, bits=1, error="bits"),
    quantized("nine_bits", "bits_range", [1.0], 0, bits=9, error="bits"),
]


def dequantized(id, flags, codes, zero_point, *, scale=1.0, bits=4, **keywords):
    """One row that is one group."""
    grid = {"scale": [[scale]], "zero_point": [[float(zero_point)]]}
    return case(id, flags, {"bits": bits}, codes=[codes], **grid, **keywords)


DEQUANTIZE = [
    dequantized("both_ends_and_the_zero_point", "zero", [0, 7, 15], 7, scale=0.5),
    dequantized("a_zero_point_between_codes", "real_zero_point", [0, 7, 15], 6.75, scale=0.5),
    dequantized("a_negative_zero_point", "real_zero_point", [0, 15], -3.25, scale=2.0),
    dequantized("a_zero_point_above_the_codes", "real_zero_point", [0, 15], 40.5, scale=0.25),
    dequantized(
        "a_tiny_real_zero_point",
        "real_zero_point",
        [0, 1, 15],
        2.0**-24,
        scale=0.5,
        remark="15 - 2^-24 has no f32: the difference is rounded",
    ),
    dequantized("eight_bits", "grid_width", [0, 127, 128, 255], 128, bits=8),
    dequantized("two_bits", "grid_width zero", [0, 1, 2, 3], 2, bits=2),
    dequantized("a_scale_that_is_not_dyadic", "real_zero_point", [3, 12], 7.5, scale=0.75),
    case(
        "every_group_has_its_own_grid",
        "group_index",
        {"bits": 4, "group_size": 2},
        codes=[[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]],
        scale=[[0.25, 0.5], [1.0, 2.0], [4.0, 8.0]],
        zero_point=[[0.0, 1.5], [2.0, 3.25], [5.0, 7.0]],
    ),
    case(
        "one_group_per_row",
        "one_group_per_row odd_size",
        {"bits": 4},
        codes=[[0, 1, 2, 3, 4, 5, 6], [15, 14, 13, 12, 11, 10, 9]],
        scale=[[0.5], [0.25]],
        zero_point=[[2.0], [9.5]],
    ),
    dequantized("scale_zero", "scale_floor", [0, 5, 15], 5, scale=0.0),
    dequantized("negative_scale", "scale_floor", [0, 5, 15], 5, scale=-1.0),
    dequantized("code_sixteen_at_four_bits", "code_range", [0, 16], 5, error="codes"),
    dequantized("code_four_at_two_bits", "code_range", [4, 0], 1, bits=2, error="codes"),
    dequantized("nan_in_zero_point", "non_finite", [1], math.nan, error="zero_point"),
    dequantized("infinity_in_scale", "non_finite", [1], 1, scale=-math.inf, error="scale"),
    case(
        "zero_point_is_transposed",
        "shape",
        {"bits": 4, "group_size": 2},
        codes=[[1, 2, 3, 4]],
        scale=[[0.5, 0.5]],
        zero_point=[[8.0], [8.0]],
        error="zero_point",
    ),
    case(
        "group_size_does_not_divide",
        "group_divides",
        {"bits": 4, "group_size": 3},
        codes=[[1, 2, 3, 4]],
        scale=[[0.5]],
        zero_point=[[8.0]],
        error="group_size",
    ),
]

FILES = [
    GoldenFile("affine/affine.quantize.toml", "affine.quantize", QUANTIZE_NOTES, QUANTIZE),
    GoldenFile("affine/affine.dequantize.toml", "affine.dequantize", DEQUANTIZE_NOTES, DEQUANTIZE),
]
