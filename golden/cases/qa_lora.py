"""Cases of QA-LoRA."""

import math

from case_text import GoldenFile, case

from .spread import spread

SHAPE = "a broadcast, transposed or truncated tensor instead of a refusal"
POOLING = {
    "pool": "the mean where the sum is asked for, or the sum where the mean is",
    "peft_factor": "group_size in place of the number of groups in the PEFT variant, or neither",
    "group_index": "inputs, scale or zero point of another group: strided instead of consecutive",
    "scaling": "lora_scaling forgotten, applied twice, or divided by the rank again",
    "factor_order": "lora_a and lora_b exchanged",
    "real_zero_point": "a zero point rounded to an integer or clamped to the codes",
    "zero_adapter": "an adapter that changes something although lora_b is zero",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "scale_floor": "a scale of zero or below that is not raised",
    "odd_size": "a kernel that handles only whole tiles",
    "rank_groups": "an adapter for another number of groups: the inputs of a plain LoRA",
    "code_range": "a code that the grid does not have, masked to its low bits or taken as it is",
    "dialect": "a dialect and a pool that do not go together, mended in silence",
    "shape": SHAPE,
    "non_finite": "a NaN that is multiplied away by a zero",
}


def notes(*left_out, **more):
    return {name: text for name, text in POOLING.items() if name not in left_out} | more


SMALL = {
    "codes": [[3, 1, 0, 2]],
    "scale": [[0.5, 1.0]],
    "zero_point": [[1.0, 2.0]],
    "lora_a": [[1.0, -2.0]],
    "lora_b": [[0.5]],
}
SMALL_PARAMS = {"bits": 2, "group_size": 2, "lora_scaling": 2.0, "pool": "sum"}
X = [[1.0, 2.0, 3.0, 4.0]]
# Three groups of two; every scale, zero point and factor is another number.
WIDE = {
    "codes": [[0, 15, 7, 3, 9, 12], [4, 1, 8, 15, 0, 2]],
    "scale": [[0.25, 0.5, 1.0], [2.0, 0.125, 0.75]],
    "zero_point": [[7.0, 6.75, -3.5], [20.25, 0.0, 15.0]],
    "lora_a": [[1.0, 2.0, -4.0], [0.5, -0.25, 8.0]],
    "lora_b": [[1.0, -1.0], [2.0, 0.5]],
}
WIDE_X = [[1.0, 10.0, -2.0, 0.5, 3.0, 0.25], [4.0, -1.0, 0.75, 2.0, -0.5, 8.0]]
ODD = {
    "codes": [[(5 * o + 3 * i) % 8 for i in range(15)] for o in range(3)],
    "scale": [[0.5, 0.25, 1.0, 0.125, 2.0]] * 3,
    "zero_point": spread([3, 5], seed=31, step=0.25, reach=20),
    "lora_a": spread([3, 5], seed=32),
    "lora_b": spread([3, 3], seed=33),
}
ODD_X, ODD_D_Y = spread([5, 15], seed=34), spread([5, 3], seed=35)
ROW = {
    "codes": [[3, 0, 2], [1, 2, 3]],
    "scale": [[0.5], [2.0]],
    "zero_point": [[1.5], [0.0]],
    "lora_a": [[2.0]],
    "lora_b": [[1.0], [-0.5]],
}


def params(pool, dialect=None, *, bits=4, group_size=2, lora_scaling=0.5):
    fixed = {"bits": bits, "lora_scaling": lora_scaling, "pool": pool}
    if group_size:
        fixed["group_size"] = group_size
    return fixed | ({"dialect": dialect} if dialect else {})


def shared(**tensors):
    """Cases that the three operations have in common; `tensors` are what an operation adds."""

    def one(id, flags, params, inputs, more, **keywords):
        own = {name: tensors[name][more] for name in tensors}
        return case(id, flags, params, **inputs, **own, **keywords)

    odd = params("mean", bits=3, group_size=3, lora_scaling=0.25)
    return [
        one("the_example_with_the_sum", "pool scaling", SMALL_PARAMS, SMALL, "small"),
        one(
            "the_example_with_the_mean",
            "pool scaling",
            {**SMALL_PARAMS, "pool": "mean"},
            SMALL,
            "small",
        ),
        one(
            "three_groups",
            "group_index factor_order real_zero_point",
            params("sum"),
            WIDE,
            "wide",
            remark="zero points between the codes and beyond them",
        ),
        one("three_groups_of_the_mean", "group_index pool", params("mean"), WIDE, "wide"),
        one("the_paper_by_name", "pool", params("sum", "paper"), WIDE, "wide"),
        one("the_authors_code", "pool", params("mean", "qa_lora_code"), WIDE, "wide"),
        one(
            "lora_b_is_zero",
            "zero_adapter",
            params("sum"),
            {**WIDE, "lora_b": [[0.0, 0.0], [0.0, 0.0]]},
            "wide",
        ),
        one("one_group_per_row", "one_group_per_row", params("mean", group_size=None), ROW, "row"),
        one(
            "scales_at_and_below_zero",
            "scale_floor",
            params("sum"),
            {**WIDE, "scale": [[0.0, 0.5, 1.0], [2.0, -0.125, 0.75]]},
            "wide",
        ),
        one("five_groups_of_three", "odd_size group_index pool", odd, ODD, "odd"),
        one(
            "an_adapter_for_every_input",
            "rank_groups",
            SMALL_PARAMS,
            {**SMALL, "lora_a": [[1.0, -2.0, 1.0, 1.0]]},
            "small",
            error="lora_a",
        ),
        one(
            "lora_b_of_another_rank",
            "shape",
            SMALL_PARAMS,
            {**SMALL, "lora_b": [[0.5, 1.0]]},
            "small",
            error="lora_b",
        ),
        one(
            "zero_point_for_one_group_of_two",
            "shape",
            SMALL_PARAMS,
            {**SMALL, "zero_point": [[1.0]]},
            "small",
            error="zero_point",
        ),
        one(
            "code_four_at_two_bits",
            "code_range",
            SMALL_PARAMS,
            {**SMALL, "codes": [[3, 1, 0, 4]]},
            "small",
            error="codes",
        ),
        one(
            "nan_in_lora_a_under_a_zero_lora_b",
            "non_finite",
            SMALL_PARAMS,
            {**SMALL, "lora_a": [[1.0, math.nan]], "lora_b": [[0.0]]},
            "small",
            error="lora_a",
        ),
        one(
            "the_authors_code_has_no_sum",
            "dialect",
            params("sum", "qa_lora_code"),
            WIDE,
            "wide",
            error="pool",
        ),
        one("an_unknown_dialect", "dialect", params("sum", "peft"), WIDE, "wide", error="dialect"),
        one("an_unknown_pool", "dialect", params("max"), WIDE, "wide", error="pool"),
    ]


XS = {"small": X, "wide": WIDE_X, "odd": ODD_X, "row": [[1.0, 2.0, 4.0]]}
D_YS = {
    "small": [[1.0]],
    "wide": [[1.0, 8.0], [-2.0, 0.5]],
    "odd": ODD_D_Y,
    "row": [[1.0, -4.0]],
}

FORWARD = [
    *shared(x=XS),
    case(
        "the_peft_variant",
        "peft_factor",
        params("mean", "hf_peft_qalora"),
        **WIDE,
        x=WIDE_X,
        remark="three groups of two: 3/2 of the sum",
    ),
    case(
        "the_peft_variant_has_no_sum",
        "dialect",
        params("sum", "hf_peft_qalora"),
        **WIDE,
        x=WIDE_X,
        error="pool",
    ),
    case("x_of_another_width", "shape", SMALL_PARAMS, **SMALL, x=[[1.0, 2.0]], error="x has"),
    case(
        "infinity_in_x",
        "non_finite",
        SMALL_PARAMS,
        **SMALL,
        x=[[math.inf, 0.0, 0.0, 0.0]],
        error="x[",
    ),
]

BACKWARD = [
    *shared(x=XS, d_y=D_YS),
    case(
        "the_peft_variant",
        "peft_factor",
        params("mean", "hf_peft_qalora"),
        **WIDE,
        x=WIDE_X,
        d_y=D_YS["wide"],
    ),
    case(
        "three_tokens",
        "all_tokens adapter_in_d_x",
        SMALL_PARAMS,
        **SMALL,
        x=[*X, [0.5, 0.0, -1.0, 4.0], [-2.0, 1.0, 8.0, 0.25]],
        d_y=[[1.0], [10.0], [100.0]],
    ),
    case(
        "d_y_of_another_width", "shape", SMALL_PARAMS, **SMALL, x=X, d_y=[[1.0, 1.0]], error="d_y"
    ),
    case("nan_in_d_y", "non_finite", SMALL_PARAMS, **SMALL, x=X, d_y=[[math.nan]], error="d_y"),
]

MERGE = [
    *shared(),
    case(
        "a_merged_zero_point_is_not_clamped",
        "merged_range zero_point_update",
        SMALL_PARAMS,
        **{**SMALL, "lora_b": [[64.0]]},
        remark="delta is 128 and -256: zero points -255 and 258 at two bits",
    ),
    case(
        "the_peft_variant_does_not_merge",
        "dialect",
        params("mean", "hf_peft_qalora"),
        **WIDE,
        error="dialect is hf_peft_qalora",
    ),
]

FILES = [
    GoldenFile("qa_lora/qa_lora.forward.toml", "qa_lora.forward", notes(), FORWARD),
    GoldenFile(
        "qa_lora/qa_lora.backward.toml",
        "qa_lora.backward",
        notes(
            all_tokens="only the first token, or the last, in the gradients of the factors",
            adapter_in_d_x="d_x without the adapter's part",
        ),
        BACKWARD,
    ),
    GoldenFile(
        "qa_lora/qa_lora.merge.toml",
        "qa_lora.merge",
        notes(
            "peft_factor",
            merged_range="a merged zero point rounded to a code or clamped to the codes",
            zero_point_update="an update of the wrong sign, or not divided by the scale",
        ),
        MERGE,
    ),
]
