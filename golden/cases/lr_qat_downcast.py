"""Cases of the frozen weight of LR-QAT. At 4 bits the codes run from -8 to 7."""

import math

from case_text import GoldenFile, case

from .lr_qat_layers import REFUSED
from .spread import spread

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
    *[
        downcast(
            f"a_long_weight_over_three_in_{kind}",
            "one_rounding",
            {"weight": [weight], "initial_scale": [[3.0]]},
            downcast=kind,
            remark="cast before it is divided, every one gives a neighbour",
        )
        for kind, weight in (
            ("bf16", [1.0185546875, -1.0908203125, 1.14501953125]),
            ("f16", [1.00909423828125, -1.01812744140625, 1.02490234375]),
        )
    ],
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

FILES = [
    GoldenFile("lr_qat/lr_qat.downcast.toml", "lr_qat.downcast", DOWNCAST_NOTES, DOWNCAST),
]
