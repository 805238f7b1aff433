"""Cases of numbers stored in narrow float types, and of codes packed into bytes."""

import math

from case_text import GoldenFile, case

from .spread import spread

CAST_NOTES = {
    "tie": "half away from zero, or always up, between two numbers of the type",
    "truncation": "low bits cut off instead of rounded",
    "one_ulp": "a tolerance about a tie",
    "subnormal": "subnormal numbers flushed to zero, or rounded with the digits of normal ones",
    "next_binade": "a carry into the exponent that is lost",
    "exact": "a number of the type that does not come back",
    "any_rank": "a kernel that takes matrices only",
    "overflow": "an infinity or the largest number in place of a refusal",
    "dtype": "a silent fallback for a type that is not known",
    "non_finite": "a NaN or infinity that passes",
}
ROUND_SCALE_NOTES = {
    "tie": "half away from zero, or always up, between two usable scales",
    "truncation": "low bits cut off instead of rounded",
    "one_ulp": "a tolerance about a tie",
    "subnormal": "subnormal scales flushed to zero, or rounded with the digits of normal ones",
    "next_binade": "a carry into the exponent that is lost",
    "exact": "a usable scale that moves",
    "scale_floor": "a scale at or below the floor that stays there, or becomes zero",
    "smallest_scale": "a scale that the type of the file does not reach with all its digits",
    "largest_scale": "an infinity, or a scale of one format beyond the largest of the other",
    "scale_rule": "the numbers of the other rule",
    "odd_size": "whole vectors only",
    "rule_name": "a silent fallback for a rule that is not known",
    "non_finite": "a NaN or infinity that becomes a usable scale",
}
ROUND_SCALE_BACKWARD_NOTES = {
    "straight_through": "the derivative of the steps, which is zero, or the ratio of the scales",
    "closed_mask": "a scale at an end that no longer moves",
    "unmasked": "a gradient for a scale that its rounded one does not follow",
    "scale_floor": "a gradient below the floor",
    "scale_rule": "the ends of the other rule",
    "odd_size": "whole vectors only",
    "shape": "a gradient of another shape",
    "non_finite": "a NaN or infinity that passes",
}
PACK_NOTES = {
    "bit_order": "the first code in the high bits",
    "interleaved": "eight codes of a word in the order 0 2 4 6 1 3 5 7",
    "across_bytes": "a code of three bits that is cut at the end of a byte",
    "row_padding": "rows that run into each other",
    "width": "a width hard-coded",
    "code_range": "a code that spills into its neighbour",
    "bits_range": "a width that is silently packed in another",
}
UNPACK_NOTES = {
    "bit_order": "the first code from the high bits",
    "across_bytes": "a code of three bits that is cut at the end of a byte",
    "row_padding": "codes made of padding, or rows that run into each other",
    "width": "a width hard-coded",
    "signed": "codes of the upper half read as negative",
    "padding": "bits behind the last code that are ignored",
    "shape": "a row that is too short or too long",
    "bits_range": "a width that is silently read as another",
}


def of(number, exponent):
    return number * 2.0**exponent


# Of 8 significant bits; f32 has 24.
BF16_TIES = [1 + of(k, -8) for k in (1, 3, 5, 255)]
F16_TIES = [2049.0, 2051.0, 2053.0, 4095.0]

CAST = [
    case(
        "bf16_ties_go_to_even",
        "tie next_binade",
        {"dtype": "bf16"},
        input=[BF16_TIES, [-number for number in BF16_TIES]],
        remark="1 + 1/256, 1 + 3/256, 1 + 5/256, 2 - 1/256",
    ),
    case(
        "bf16_beside_ties",
        "one_ulp truncation",
        {"dtype": "bf16"},
        input=[1 + of(1, -8) + of(1, -23), 1 + of(3, -8) - of(1, -23), -(1 + of(255, -8))],
    ),
    case(
        "bf16_subnormal_numbers",
        "subnormal tie",
        {"dtype": "bf16"},
        input=[of(1, -133), of(1, -134), of(3, -134), of(5, -134), of(-127, -133), of(255, -134)],
    ),
    case(
        "bf16_largest",
        "exact truncation",
        {"dtype": "bf16"},
        input=[of(255, 120), of(255, 120) + of(1, 119) - of(1, 104), 0.0],
    ),
    case(
        "bf16_too_large", "overflow", {"dtype": "bf16"}, input=[1.0, of(511, 119)], error="output["
    ),
    case(
        "f16_ties_go_to_even",
        "tie next_binade",
        {"dtype": "f16"},
        input=[F16_TIES, [-number for number in F16_TIES]],
    ),
    case(
        "f16_beside_ties",
        "one_ulp truncation",
        {"dtype": "f16"},
        input=[2049 + of(1, -12), 2051 - of(1, -12), -1 - of(2047, -22)],
    ),
    case(
        "f16_subnormal_numbers",
        "subnormal tie",
        {"dtype": "f16"},
        input=[of(1, -24), of(1, -25), of(3, -25), of(5, -25), of(-1023, -24), of(2047, -25)],
    ),
    case("f16_largest", "exact truncation", {"dtype": "f16"}, input=[65504.0, 65519.0, -65519.0]),
    case("f16_too_large", "overflow", {"dtype": "f16"}, input=[[1.0, -65520.0]], error="output["),
    case(
        "three_axes", "any_rank exact", {"dtype": "f16"}, input=spread([2, 3, 2], seed=3, step=0.25)
    ),
    case("a_scalar", "any_rank truncation", {"dtype": "bf16"}, input=1.0 + of(7, -10)),
    case("another_type", "dtype", {"dtype": "f8"}, input=[1.0], error="dtype"),
    case("nan", "non_finite", {"dtype": "bf16"}, input=[math.nan], error="input["),
]


FLOOR = 9.99999993922529e-09  # 1e-8 in f32
ROUND_SCALE = [
    case(
        "f16_ties_go_to_even",
        "tie next_binade scale_rule",
        {"scale_rule": "f16"},
        scale=[F16_TIES, [number / 2**20 for number in F16_TIES]],
    ),
    case(
        "f16_beside_ties",
        "one_ulp truncation",
        {"scale_rule": "f16"},
        scale=[[2049 + of(1, -12), 2051 - of(1, -12), 1 + of(2047, -22)]],
    ),
    case(
        "f16_subnormal_scales",
        "subnormal tie",
        {"scale_rule": "f16"},
        scale=[[of(3, -25), of(5, -25), of(1023, -24)], [of(2047, -25), of(2045, -25), of(3, -24)]],
    ),
    case(
        "f16_ends",
        "smallest_scale largest_scale scale_floor exact",
        {"scale_rule": "f16"},
        scale=[[0.0, FLOOR, FLOOR / 2, -0.25], [of(1, -25), of(1, -24), 65504.0, 65519.0]],
    ),
    case(
        "f16_beyond_its_numbers",
        "largest_scale smallest_scale",
        {"scale_rule": "f16"},
        scale=[[65520.0, of(1, 17)], [of(255, 120), of(3, -26)]],
    ),
    case(
        "bf16_ties_go_to_even",
        "tie next_binade scale_rule",
        {"scale_rule": "bf16_in_f16"},
        scale=[BF16_TIES, [number / 2**17 for number in BF16_TIES]],
    ),
    case(
        "bf16_beside_ties",
        "one_ulp truncation",
        {"scale_rule": "bf16_in_f16"},
        scale=[[1 + of(1, -8) + of(1, -23), 1 + of(3, -8) - of(1, -23), 1 + of(255, -8)]],
    ),
    case(
        "bf16_ends",
        "smallest_scale largest_scale scale_floor exact scale_rule",
        {"scale_rule": "bf16_in_f16"},
        scale=[[0.0, FLOOR, -1.0, of(1, -18)], [of(255, -25), of(1, -17), 65280.0, 65408.0]],
        remark="255 2^-25 is a bf16 of which f16 keeps no last bit; 65408 lies beyond 65280",
    ),
    case(
        "bf16_beyond_f16",
        "largest_scale",
        {"scale_rule": "bf16_in_f16"},
        scale=[[65504.0, 65536.0, of(1, 100)]],
    ),
    *[
        case(
            f"many_scales_of_{rule}",
            "odd_size truncation",
            {"scale_rule": rule},
            scale=[[of(2 * i + 3, i % 40 - 30) for i in range(j, j + 103)] for j in (0, 103, 206)],
        )
        for rule in ("f16", "bf16_in_f16")
    ],
    case("another_rule", "rule_name", {"scale_rule": "f8"}, scale=[[1.0]], error="scale_rule"),
    case("nan", "non_finite", {"scale_rule": "f16"}, scale=[[1.0, math.nan]], error="scale["),
    case(
        "infinity", "non_finite", {"scale_rule": "bf16_in_f16"}, scale=[[math.inf]], error="scale["
    ),
]
ROUND_SCALE_BACKWARD = [
    case(
        "between_two_scales",
        "straight_through",
        {"scale_rule": "bf16_in_f16"},
        scale=[[1 + of(1, -8), 1 + of(1, -9)], [1.0, of(255, -20)]],
        d_rounded_scale=[[1.0, -2.0], [0.5, 3.0]],
    ),
    case(
        "f16_ends",
        "closed_mask unmasked scale_floor scale_rule",
        {"scale_rule": "f16"},
        scale=[
            [of(1, -24), of(1, -24) - of(1, -48), FLOOR, -1.0],
            [65504.0, 65504.0 + of(1, -8), of(1, -17) - of(1, -41), 65281.0],
        ],
        d_rounded_scale=[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]],
        remark="the last two lie between the ends of the one rule and those of the other",
    ),
    case(
        "bf16_ends",
        "closed_mask unmasked scale_floor scale_rule",
        {"scale_rule": "bf16_in_f16"},
        scale=[
            [of(1, -17), of(1, -17) - of(1, -41), FLOOR, 0.0],
            [65280.0, 65280.0 + of(1, -8), of(1, -24), 65504.0],
        ],
        d_rounded_scale=[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]],
    ),
    case(
        "many_scales",
        "odd_size unmasked straight_through",
        {"scale_rule": "f16"},
        scale=[[of(2 * i + 3, i % 40 - 30) for i in range(j, j + 103)] for j in (0, 103, 206)],
        d_rounded_scale=[[float(i % 7 - 3) for i in range(j, j + 103)] for j in (0, 103, 206)],
    ),
    case(
        "another_shape",
        "shape",
        {"scale_rule": "f16"},
        scale=[[1.0, 2.0]],
        d_rounded_scale=[[1.0]],
        error="d_rounded_scale has",
    ),
    case(
        "nan",
        "non_finite",
        {"scale_rule": "f16"},
        scale=[[1.0]],
        d_rounded_scale=[[math.nan]],
        error="d_rounded_scale[",
    ),
]


def counted(rows, columns, bits):
    """Codes that run through the whole range, another start in every row."""
    return [[(5 * o + i) % 2**bits for i in range(columns)] for o in range(rows)]


ALSO = {3: "across_bytes", 4: "interleaved"}
PACK = [
    case("low_nibble_first", "bit_order", {"bits": 4}, codes=[[1, 8, 7]], remark="0x81, 0x07"),
    case("two_bits", "bit_order width", {"bits": 2}, codes=[[1, 2, 3, 0], [3, 0, 0, 1]]),
    case("three_bits", "across_bytes width", {"bits": 3}, codes=[[1, 2, 7], [0, 0, 5]]),
    case("eight_bits", "width", {"bits": 8}, codes=[[0, 255, 128, 1]]),
    *[
        case(
            f"odd_rows_of_{bits}_bits",
            f"row_padding width {ALSO.get(bits, '')}",
            {"bits": bits},
            codes=counted(3, 11, bits),
        )
        for bits in (2, 3, 4, 8)
    ],
    case("code_above_the_width", "code_range", {"bits": 4}, codes=[[0, 16]], error="codes["),
    case("five_bits", "bits_range", {"bits": 5}, codes=[[0, 1]], error="bits"),
]
UNPACK = [
    case(
        "low_nibble_first", "bit_order signed", {"bits": 4, "in_features": 3}, packed=[[0x81, 0x07]]
    ),
    case("two_bits", "bit_order width", {"bits": 2, "in_features": 4}, packed=[[0x39], [0x43]]),
    case(
        "three_bits",
        "across_bytes row_padding width",
        {"bits": 3, "in_features": 3},
        packed=[[0xD1, 0x01], [0x40, 0x01]],
    ),
    case("eight_bits", "width", {"bits": 8, "in_features": 3}, packed=[[0, 255, 128]]),
    case(
        "padding_that_is_not_zero",
        "padding",
        {"bits": 4, "in_features": 3},
        packed=[[0x81, 0x17]],
        error="packed",
    ),
    case(
        "a_byte_too_many",
        "shape",
        {"bits": 4, "in_features": 2},
        packed=[[0x81, 0x00]],
        error="packed has",
    ),
    case(
        "a_byte_too_few",
        "shape",
        {"bits": 3, "in_features": 3},
        packed=[[0x81]],
        error="packed has",
    ),
    case("six_bits", "bits_range", {"bits": 6, "in_features": 1}, packed=[[1]], error="bits"),
]

FILES = [
    GoldenFile("storage/cast.toml", "cast", CAST_NOTES, CAST),
    GoldenFile(
        "storage/round_scale.forward.toml", "round_scale.forward", ROUND_SCALE_NOTES, ROUND_SCALE
    ),
    GoldenFile(
        "storage/round_scale.backward.toml",
        "round_scale.backward",
        ROUND_SCALE_BACKWARD_NOTES,
        ROUND_SCALE_BACKWARD,
    ),
    GoldenFile("storage/pack.toml", "pack", PACK_NOTES, PACK),
    GoldenFile("storage/unpack.toml", "unpack", UNPACK_NOTES, UNPACK),
]
