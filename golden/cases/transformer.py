"""Cases of the operations around the linear layers."""

import math

from case_text import GoldenFile, case

from .spread import long, spread

SHAPE = "a broadcast, transposed or truncated tensor instead of a refusal"
NON_FINITE = "a NaN or infinity that spreads through the result instead of being refused"
ODD_SIZE = "a kernel that handles only whole vectors"

# --- rms_norm -------------------------------------------------------------------------------------
RMS_FORWARD_NOTES = {
    "eps_inside": "eps added to the root in place of under it",
    "mean_not_sum": "the sum of squares in place of their mean",
    "not_centred": "a mean subtracted as in layer normalisation",
    "weight": "1 + weight, or the weight forgotten",
    "zero_row": "0 / 0 for a row of zeros",
    "rows_apart": "a statistic shared between rows",
    "full_precision": "squares that are added in f16, which does not hold them",
    "one_precision": "a sum of squares of fewer bits than f32 has",
    "odd_size": ODD_SIZE,
    "shape": SHAPE,
    "non_finite": NON_FINITE,
}
RMS_BACKWARD_NOTES = {
    "through_the_root": "the root treated as a constant",
    "weight_inside": "the weight left out of the part that goes through the root",
    "d_weight_sum": "d_weight of one row only, or without the normalisation",
    "eps_inside": "a derivative that forgets eps",
    "mean_not_sum": "the part through the root not divided by the length of the row",
    "zero_row": "0 / 0 for a row of zeros",
    "one_precision": "sums over a row or over tokens of fewer bits than f32 has",
    "odd_size": ODD_SIZE,
    "shape": SHAPE,
    "non_finite": NON_FINITE,
}
RMS = [
    ("rows_of_16", "one_precision", long([3, 16], 44), long([16], 45), 2.0**-10, None),
    ("rows_of_7", "one_precision odd_size", long([5, 7], 46), long([7], 47), 2.0**-10, None),
    ("root_of_four", "eps_inside", [[1.0, -1.0]], [1.0, 1.0], 3.0, "1 / sqrt(1 + 3)"),
    ("mean_square_25", "mean_not_sum", [[1.0, 7.0]], [1.0, 1.0], 2.0**-30, "sqrt((1 + 49) / 2)"),
    (
        "row_of_zeros",
        "zero_row",
        [[0.0, 0.0, 0.0]],
        [2.0, 1.0, 0.5],
        2.0**-10,
        "1 / sqrt(eps) is 32",
    ),
    ("one_element", "odd_size", [[-3.0]], [0.5], 7.0, "1 / sqrt(9 + 7)"),
    ("three_rows_of_five", "odd_size", spread([3, 5], 41), spread([5], 42, 0.25), 1e-6, None),
]
RMS_FORWARD = [
    case(id, flag, {"eps": eps}, x=x, weight=weight, remark=remark)
    for id, flag, x, weight, eps, remark in RMS
] + [
    case("constant_row", "not_centred", {"eps": 1e-5}, x=[[2.0, 2.0, 2.0]], weight=[1.0, 1.0, 1.0]),
    case(
        "weights_differ",
        "weight",
        {"eps": 3.0},
        x=[[1.0, -1.0]],
        weight=[3.0, -0.5],
        remark="1.5, 0.25",
    ),
    case(
        "rows_of_different_size",
        "rows_apart full_precision",
        {"eps": 1e-5},
        x=[[1.0, 2.0], [1024.0, -2048.0], [2.0**-10, 2.0**-9]],
        weight=[1.0, 2.0],
    ),
    case("weight_too_short", "shape", {"eps": 1e-5}, x=[[1.0, 2.0]], weight=[1.0], error="shape"),
    case(
        "nan_in_x", "non_finite", {"eps": 1e-5}, x=[[1.0, math.nan]], weight=[1.0, 1.0], error="x["
    ),
    case(
        "infinity_in_weight",
        "non_finite",
        {"eps": 1e-5},
        x=[[1.0, 2.0]],
        weight=[1.0, math.inf],
        error="weight",
    ),
]
RMS_BACKWARD = [
    case(
        id,
        flag,
        {"eps": eps},
        x=x,
        weight=weight,
        d_output=spread([len(x), len(weight)], 43),
        remark=remark,
    )
    for id, flag, x, weight, eps, remark in RMS
] + [
    case(
        "gradient_along_x",
        "through_the_root mean_not_sum",
        {"eps": 3.0},
        remark="the root takes back a quarter: 1/2 - 1/8",
        x=[[1.0, -1.0]],
        weight=[1.0, 1.0],
        d_output=[[1.0, -1.0]],
    ),
    case(
        "weights_differ",
        "weight_inside",
        {"eps": 3.0},
        x=[[1.0, -1.0]],
        weight=[3.0, -0.5],
        d_output=[[1.0, 2.0]],
    ),
    case(
        "rows_add_up_in_d_weight",
        "d_weight_sum",
        {"eps": 1e-5},
        x=[[1.0, 2.0], [-4.0, 0.5], [8.0, 1.0]],
        weight=[1.0, 2.0],
        d_output=[[1.0, 10.0], [2.0, -1.0], [0.25, 4.0]],
    ),
    case(
        "d_output_too_short",
        "shape",
        {"eps": 1e-5},
        x=[[1.0, 2.0]],
        weight=[1.0, 1.0],
        d_output=[[1.0]],
        error="d_output",
    ),
    case(
        "nan_in_d_output",
        "non_finite",
        {"eps": 1e-5},
        x=[[1.0, 2.0]],
        weight=[1.0, 1.0],
        d_output=[[1.0, math.nan]],
        error="d_output",
    ),
]

# --- rope -----------------------------------------------------------------------------------------
ROPE_NOTES = {
    "pairing": "neighbours paired (j, j + 1) in place of halves (j, j + head_dim/2)",
    "direction": "a rotation the other way; backward that rotates like forward",
    "frequency": "an exponent of j / head_dim, or frequencies in the reverse order",
    "first_position": "positions that start at 0 although a cache holds earlier tokens",
    "position_zero": "positions that start at 1",
    "heads_alike": "an angle that grows with the head",
    "theta": "a base of 10000 hard-coded",
    "frequency_scaling": "rope_scaling ignored, or a frequency multiplied by the factor",
    "mixed_pairs": "a step between slow and fast pairs, or their parts exchanged",
    "original_context": "the lengthened context in place of the one before",
    "scaling_type": "a scaling that is not implemented and is ignored instead of refused",
    "shape": "an odd head_dim with one element left over",
    "non_finite": NON_FINITE,
}
UNIT_PAIR = [[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]
ROPE = [
    ("position_zero_is_the_identity", "position_zero", 10000.0, 0, [[[1.0, 2.0, 3.0, 4.0]]]),
    ("one_pair", "direction position_zero", 10000.0, 0, UNIT_PAIR),
    (
        "halves_are_paired",
        "pairing frequency",
        10000.0,
        1,
        [[[1.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, 0.0]]],
    ),
    ("three_frequencies", "frequency pairing", 10000.0, 0, spread([3, 1, 6], 51)),
    ("two_heads_turn_alike", "heads_alike", 10000.0, 1, [[[1.0, 2.0, 3.0, 4.0]] * 2] * 2),
    ("first_position_5", "first_position", 10000.0, 5, spread([2, 2, 4], 52)),
    ("first_position_37", "first_position frequency", 10000.0, 37, spread([2, 1, 8], 53)),
    ("theta_500000", "theta", 500000.0, 3, spread([2, 1, 4], 54)),
    ("theta_4", "theta frequency", 4.0, 1, [[[1.0, 1.0, 1.0, 1.0]], [[1.0, -1.0, 2.0, 0.5]]]),
]


# Of eight elements with theta 500, the pairs turn 10.2, 2.15, 0.455 and 0.096 times in 64 positions:
# one stays, one is mixed, two are slow.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
SCALED = [
    (
        "llama3_keeps_mixes_and_slows_down",
        "frequency_scaling mixed_pairs original_context",
        (500.0, 9, LLAMA3),
        spread([2, 1, 8], 55),
    ),
    (
        # LLaMA 3.1's numbers: of sixteen pairs, eight stay, one is mixed and seven are slow.
        "llama_3_1_at_position_9000",
        "frequency_scaling mixed_pairs original_context first_position",
        (500000.0, 9000, {**LLAMA3, "original_max_position_embeddings": 8192}),
        spread([1, 1, 32], 56),
    ),
    (
        "llama3_from_low_to_high_is_any_range",
        "frequency_scaling mixed_pairs",
        (500.0, 40, {**LLAMA3, "low_freq_factor": 0.0625, "high_freq_factor": 16.0, "factor": 3.0}),
        spread([1, 2, 8], 57),
    ),
    ("linear_slows_all_down", "frequency_scaling", (10000.0, 6, LINEAR), spread([2, 1, 4], 58)),
    ("linear_is_a_part_of_a_step", "frequency_scaling", (10000.0, 1, LINEAR), [[[1.0, 0.0]]]),
]


def rope_params(theta, first_position, scaling=None):
    params = {"theta": theta, "first_position": first_position}
    return params if scaling is None else {**params, "rope_scaling": scaling}


REFUSED_SCALING = [
    ("yarn_is_refused", "scaling_type", {"rope_type": "yarn", "factor": 4.0}, "rope_type"),
    ("a_factor_below_one", "scaling_type", {**LLAMA3, "factor": 0.125}, "factor"),
    (
        "an_empty_range",
        "scaling_type",
        {**LLAMA3, "high_freq_factor": 1.0},
        "high_freq_factor",
    ),
]
ROPE_FORWARD = [
    case(id, flags, rope_params(theta, first), x=x) for id, flags, theta, first, x in ROPE
] + [
    case(id, flags, rope_params(*params), x=x) for id, flags, params, x in SCALED
] + [
    case(id, flags, rope_params(500.0, 1, scaling), x=[[[1.0, 2.0]]], error=error)
    for id, flags, scaling, error in REFUSED_SCALING
] + [
    case("odd_head_dim", "shape", rope_params(10000.0, 0), x=[[[1.0, 2.0, 3.0]]], error="head_dim"),
    case("nan_in_x", "non_finite", rope_params(10000.0, 0), x=[[[1.0, math.nan]]], error="x["),
]
ROPE_BACKWARD = [
    case(id, flags, rope_params(theta, first), d_output=x) for id, flags, theta, first, x in ROPE
] + [
    case(id, flags, rope_params(*params), d_output=x) for id, flags, params, x in SCALED
] + [
    case(id, flags, rope_params(500.0, 1, scaling), d_output=[[[1.0, 2.0]]], error=error)
    for id, flags, scaling, error in REFUSED_SCALING
] + [
    case(
        "odd_head_dim",
        "shape",
        rope_params(10000.0, 0),
        d_output=[[[1.0, 2.0, 3.0]]],
        error="head_dim",
    ),
    case(
        "infinity_in_d_output",
        "non_finite",
        rope_params(10000.0, 0),
        d_output=[[[1.0, math.inf]]],
        error="d_output",
    ),
]

# --- swiglu ---------------------------------------------------------------------------------------
SWIGLU_FORWARD_NOTES = {
    "gate_not_up": "silu applied to up in place of gate",
    "exact_sigmoid": "an approximate sigmoid, or gelu",
    "large_gate": "an overflow of exp in a gate far from zero",
    "zero": "a gate of zero that lets something through",
    "any_rank": "a shape that is not [tokens, features] refused or flattened wrongly",
    "shape": SHAPE,
    "non_finite": NON_FINITE,
}
SWIGLU_BACKWARD_NOTES = {
    "gate_not_up": "the two gradients exchanged",
    "product_rule": "d silu without the term gate * sigmoid * (1 - sigmoid)",
    "large_gate": "inf - inf or inf / inf in a gate far from zero",
    "zero": "the derivative 1/2 of silu at zero",
    "any_rank": "a shape that is not [tokens, features] refused or flattened wrongly",
    "shape": SHAPE,
    "non_finite": NON_FINITE,
}
SWIGLU = [
    ("gate_of_zero", "zero", [[0.0, 0.0]], [[5.0, -3.0]]),
    ("gate_and_up_differ", "gate_not_up", [[1.0, -2.0]], [[-2.0, 1.0]]),
    ("large_gates", "large_gate", [[30.0, -30.0, 60.0, -60.0]], [[1.0, 1.0, -2.0, 4.0]]),
    ("gates_of_a_hundred", "large_gate", [[100.0, -100.0, 104.0, 90.0]], [[1.0, 1.0, -2.0, 0.5]]),
    ("one_axis", "any_rank", [0.5, -0.25, 3.0], [1.0, 2.0, -1.0]),
    ("three_axes", "any_rank", spread([2, 1, 3], 61, 0.5), spread([2, 1, 3], 62)),
]
SWIGLU_FORWARD = [case(id, flags, gate=gate, up=up) for id, flags, gate, up in SWIGLU] + [
    case("around_one", "exact_sigmoid", gate=[[1.0, -1.0, 0.5, -0.5, 2.0]], up=[[1.0] * 5]),
    case(
        "gates_of_more_than_11_bits",
        "exact_sigmoid",
        gate=[[3.0 + 2.0**-10, -3.0 - 2.0**-10, 6.0 + 2.0**-9, -1.0 - 2.0**-12]],
        up=[[1.0, -2.0, 0.5, 4.0]],
    ),
    case("up_too_short", "shape", gate=[[1.0, 2.0]], up=[[1.0]], error="up has"),
    case("nan_in_gate", "non_finite", gate=[[1.0, math.nan]], up=[[1.0, 0.0]], error="gate"),
    case("infinity_in_up", "non_finite", gate=[[0.0]], up=[[math.inf]], error="up["),
]
SWIGLU_BACKWARD = [
    case("gate_of_zero", "zero", gate=[[0.0, 0.0]], up=[[5.0, -3.0]], d_output=[[1.0, 2.0]]),
    case(
        "gate_and_up_differ",
        "gate_not_up",
        gate=[[1.0, -2.0]],
        up=[[-2.0, 1.0]],
        d_output=[[1.0, 4.0]],
    ),
    case(
        "slope_below_zero",
        "product_rule",
        gate=[[-1.25, -1.5, 2.5, 1.0]],
        up=[[1.0, 1.0, 1.0, 1.0]],
        d_output=[[1.0, 1.0, 1.0, 1.0]],
        remark="silu has its minimum near -1.278 and is steeper than 1 above 2.4",
    ),
    case(
        "large_gates",
        "large_gate",
        gate=[[30.0, -30.0, 60.0, -60.0]],
        up=[[1.0, 1.0, -2.0, 4.0]],
        d_output=[[1.0, 2.0, 0.5, 1.0]],
    ),
    case(
        "gates_of_a_hundred",
        "large_gate",
        gate=[[100.0, -100.0, 104.0, 90.0]],
        up=[[1.0, 1.0, -2.0, 0.5]],
        d_output=[[1.0, 2.0, 0.5, 1.0]],
    ),
    case(
        "one_axis",
        "any_rank",
        gate=[0.5, -0.25, 3.0],
        up=[1.0, 2.0, -1.0],
        d_output=[1.0, 1.0, -2.0],
    ),
    case(
        "three_axes",
        "any_rank product_rule",
        gate=spread([2, 1, 3], 61, 0.5),
        up=spread([2, 1, 3], 62),
        d_output=spread([2, 1, 3], 63),
    ),
    case(
        "d_output_too_short",
        "shape",
        gate=[[1.0, 2.0]],
        up=[[1.0, 1.0]],
        d_output=[[1.0]],
        error="d_output",
    ),
    case(
        "nan_in_d_output",
        "non_finite",
        gate=[[1.0]],
        up=[[0.0]],
        d_output=[[math.nan]],
        error="d_output",
    ),
]

FILES = [
    GoldenFile(
        "transformer/rms_norm.forward.toml", "rms_norm.forward", RMS_FORWARD_NOTES, RMS_FORWARD
    ),
    GoldenFile(
        "transformer/rms_norm.backward.toml", "rms_norm.backward", RMS_BACKWARD_NOTES, RMS_BACKWARD
    ),
    GoldenFile("transformer/rope.forward.toml", "rope.forward", ROPE_NOTES, ROPE_FORWARD),
    GoldenFile("transformer/rope.backward.toml", "rope.backward", ROPE_NOTES, ROPE_BACKWARD),
    GoldenFile(
        "transformer/swiglu.forward.toml", "swiglu.forward", SWIGLU_FORWARD_NOTES, SWIGLU_FORWARD
    ),
    GoldenFile(
        "transformer/swiglu.backward.toml",
        "swiglu.backward",
        SWIGLU_BACKWARD_NOTES,
        SWIGLU_BACKWARD,
    ),
]
