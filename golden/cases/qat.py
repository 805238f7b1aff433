"""Cases of full-model QAT and of QAT-LoRA. At 4 bits the codes run from -8 to 7."""

import math

from case_text import GoldenFile, case

from .spread import spread

REFUSED = {
    "non_finite": "a NaN or infinity that clamps to an end of the range or is masked away",
    "shape": "a broadcast, transposed or truncated tensor instead of a refusal",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
}
SHARED_FORWARD = {
    "tie": "round half away from zero, or floor(x + 0.5)",
    "offset_outside": "an offset that is forgotten on one side, or rounded to whole codes",
    "saturation": "a clamp that is off by one or comes after the integer conversion",
    "group_index": "scale or offset of another group",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "scale_floor": "a scale that was not raised to the floor",
    "grid_width": "a range hard-coded for one width",
    "odd_size": "a kernel that handles only whole tiles",
    **REFUSED,
}
SHARED_BACKWARD = {
    "closed_mask": "a mask that is open at an end, or taken on the rounded code",
    "mask_rule": "one mask for every rule",
    "offset_in_d_x": "d_x from codes * scale without the offset",
    "quantized_d_x": "d_x from the weight before quantization",
    "offset_gradient": "d_offset from weights inside the range, or transposed before grouping",
    "rounding_residual": "d_scale without the - v, or without the clipped weights",
    "all_tokens": "only one token, or one sequence of a batch, in the weight gradient",
    "grad_scale": "a gradient scale with another count, or on another tensor too",
    "scale_floor": "a gradient for a scale that was raised to the floor",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "odd_size": "a kernel that handles only whole tiles",
    **REFUSED,
}
QAT_FORWARD_NOTES = {
    **SHARED_FORWARD,
    "no_offset": "an offset that is expected, or made up, under lsq",
    "quantizer_name": "an unknown quantizer replaced by a default in silence",
    "unexpected_offset": "an offset under lsq that is used, or dropped in silence",
}
QAT_BACKWARD_NOTES = {
    **SHARED_BACKWARD,
    "unmasked": "the unmasked gradient handed on to clipped weights",
    "no_offset": "an offset that is expected, or made up, under lsq",
    "mask_name": "an unknown mask replaced by a default in silence",
}
LORA_FORWARD_NOTES = {
    **SHARED_FORWARD,
    "adapter_beside": "the adapter inside the quantizer (L4Q) in place of beside it",
    "scaling": "lora_scaling forgotten, applied twice, or divided by the rank again",
    "zero_adapter": "an adapter that changes the layer although lora_b is zero",
}
LORA_BACKWARD_NOTES = {
    **SHARED_BACKWARD,
    "unmasked": "a masked gradient for the adapter, which is not quantized here",
    "adapter_in_d_x": "d_x without the adapter's part",
    "scaling": "lora_scaling forgotten in one of the adapter gradients, or applied to d_scale",
    "zero_adapter": "a d_lora_b that is zero at the usual start, lora_b = 0",
}

# Two rows, two groups. Arguments: [2, -2.5, 3, 8.5], [-8, 8, 0.5, 5]
HAND = {
    "weight": [[1.0, -1.25, 3.5, 9.0], [-1.875, 2.125, 0.0, 9.0]],
    "scale": [[0.5, 1.0], [0.25, 2.0]],
    "offset": [[0.0, 0.5], [0.125, -1.0]],
}
HAND_X = [[1.0, 2.0, -1.0, 4.0], [0.5, -8.0, 1.0, 0.25]]
HAND_D_Y = [[1.0, -2.0], [0.5, 4.0]]
ODD = {
    "weight": spread([3, 7], seed=51, step=0.25, reach=12),
    "scale": [[0.25], [0.5], [0.375]],
    "offset": [[0.125], [-0.25], [0.0625]],
}
GROUPED = {
    "weight": spread([5, 9], seed=52, step=0.25, reach=14),
    "scale": [[0.25 + 0.0625 * (3 * o + g) for g in range(3)] for o in range(5)],
    "offset": [[0.125 * (3 * o - 2 * g) for g in range(3)] for o in range(5)],
}
# Both ends, beyond them by a quarter and by a half of a step.
ENDS = {
    "weight": [[7.0, -8.0, 7.25, -8.25, 7.5, -8.5, 3.25]],
    "scale": [[1.0]],
    "offset": [[0.0]],
}
ENDS_X = [[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]]
FLOOR = {
    "weight": [[1.0, 0.0], [2.0, 0.5]],
    "scale": [[2.0**-30], [0.5]],
    "offset": [[0.0], [0.0]],
}
UNIT = {"weight": [[0.5]], "scale": [[0.25]], "offset": [[0.125]]}
X7, D_Y7 = spread([5, 7], seed=53), spread([5, 3], seed=54)
X9, D_Y9 = spread([4, 9], seed=55), spread([4, 5], seed=56)


def without_offset(inputs):
    return {name: tensor for name, tensor in inputs.items() if name != "offset"}


def adapter(inputs, rank, seed):
    weight = inputs["weight"]
    return {
        **inputs,
        "lora_a": spread([rank, len(weight[0])], seed=seed, step=0.25, reach=4),
        "lora_b": spread([len(weight), rank], seed=seed + 1, step=0.5, reach=2),
    }


HAND_ADAPTER = {**HAND, "lora_a": [[0.125, -0.125, 0.0, 2.0]], "lora_b": [[1.0], [-2.0]]}


def forward(id, flags, inputs, x, *, error=None, remark=None, **params):
    return case(id, flags, {"bits": 4, **params}, x=x, **inputs, error=error, remark=remark)


def backward(id, flags, inputs, x, d_y, *, error=None, remark=None, **params):
    params = {"bits": 4, **params}
    return case(id, flags, params, x=x, **inputs, d_y=d_y, error=error, remark=remark)


def both_forward(with_adapter, extra):
    """Cases that both layers share; `with_adapter` completes the inputs, `extra` the params."""

    def one(id, flags, inputs, x, **keywords):
        return forward(id, flags, with_adapter(inputs), x, **extra, **keywords)

    return [
        one(
            "by_hand",
            "tie saturation offset_outside",
            HAND,
            HAND_X,
            group_size=2,
            remark="arguments [2, -2.5, 3, 8.5], [-8, 8, 0.5, 5]",
        ),
        one("two_bits_saturate", "saturation grid_width", HAND, HAND_X, group_size=2, bits=2),
        one("eight_bits", "grid_width", HAND, HAND_X, group_size=2, bits=8),
        one("three_groups_in_five_rows", "group_index offset_outside", GROUPED, X9, group_size=3),
        one("one_group_per_row", "one_group_per_row odd_size", ODD, X7),
        one("one_of_everything", "odd_size", UNIT, [[3.0]]),
        one("scale_below_the_floor", "scale_floor saturation", FLOOR, [[1.0, 2.0]]),
        one(
            "nan_in_scale",
            "non_finite",
            {**HAND, "scale": [[0.5, math.nan], [0.25, 2.0]]},
            HAND_X,
            group_size=2,
            error="scale",
        ),
        one("x_of_another_width", "shape", HAND, [[1.0, 2.0]], group_size=2, error="x has"),
        one(
            "group_size_does_not_divide",
            "group_divides",
            HAND,
            HAND_X,
            group_size=3,
            error="group_size",
        ),
    ]


def both_backward(with_adapter, extra):
    def one(id, flags, inputs, x, d_y, **keywords):
        return backward(id, flags, with_adapter(inputs), x, d_y, **extra, **keywords)

    return [
        one(
            "by_hand",
            "unmasked offset_in_d_x quantized_d_x offset_gradient rounding_residual",
            HAND,
            HAND_X,
            HAND_D_Y,
            group_size=2,
            remark="clipped: 8.5 in the first row, 8 in the second; -8 is on the end",
        ),
        one("mask_at_the_ends", "closed_mask", ENDS, ENDS_X, [[1.0]], remark="inside: 7, -8, 3.25"),
        one("mask_pre_round", "mask_rule", ENDS, ENDS_X, [[1.0]], mask="pre_round"),
        one(
            "mask_rounded",
            "mask_rule",
            ENDS,
            ENDS_X,
            [[1.0]],
            mask="rounded",
            remark="outside: 7.5 alone; -8.5 rounds to -8",
        ),
        one("mask_open", "mask_rule", ENDS, ENDS_X, [[1.0]], mask="open", remark="inside: 3.25"),
        one(
            "three_groups_in_five_rows",
            "offset_gradient offset_in_d_x all_tokens unmasked",
            GROUPED,
            X9,
            D_Y9,
            group_size=3,
        ),
        *[
            one(
                f"grad_scale_{name}", "grad_scale", GROUPED, X9, D_Y9, group_size=3, grad_scale=name
            )
            for name in ("lsq", "lit_gpt", "peft")
        ],
        *[
            one(f"grad_scale_{name}_of_rows", "grad_scale", ODD, X7, D_Y7, grad_scale=name)
            for name in ("lsq", "lit_gpt", "peft")
        ],
        one("one_group_per_row", "one_group_per_row odd_size all_tokens", ODD, X7, D_Y7),
        one("one_of_everything", "odd_size", UNIT, [[3.0]], [[2.0]]),
        one("scale_below_the_floor", "scale_floor", FLOOR, [[1.0, 2.0]], [[1.0, 4.0]]),
        one(
            "nan_in_d_y",
            "non_finite",
            HAND,
            HAND_X,
            [[1.0, math.nan], [0.5, 4.0]],
            group_size=2,
            error="d_y",
        ),
        one(
            "d_y_for_one_token_of_two",
            "shape",
            HAND,
            HAND_X,
            [[1.0, 1.0]],
            group_size=2,
            error="d_y",
        ),
        one(
            "group_size_does_not_divide",
            "group_divides",
            HAND,
            HAND_X,
            HAND_D_Y,
            group_size=3,
            error="group_size",
        ),
    ]


LSQ = {"quantizer": "lsq", "group_size": 2}
QAT_FORWARD = [
    *both_forward(lambda inputs: inputs, {}),
    forward("lsq_plus_by_name", "offset_outside", HAND, HAND_X, group_size=2, quantizer="lsq_plus"),
    forward("lsq", "no_offset tie", without_offset(HAND), HAND_X, **LSQ),
    forward("lsq_with_an_offset", "unexpected_offset", HAND, HAND_X, **LSQ, error="offset"),
    forward(
        "lsq_plus_without_an_offset",
        "shape",
        without_offset(HAND),
        HAND_X,
        group_size=2,
        error="offset",
    ),
    forward(
        "quantizer_of_another_name",
        "quantizer_name",
        HAND,
        HAND_X,
        group_size=2,
        quantizer="pact",
        error="quantizer",
    ),
]
QAT_BACKWARD = [
    *both_backward(lambda inputs: inputs, {}),
    backward("lsq", "no_offset rounding_residual", without_offset(HAND), HAND_X, HAND_D_Y, **LSQ),
    backward(
        "lsq_with_its_factor",
        "no_offset grad_scale",
        without_offset(HAND),
        HAND_X,
        HAND_D_Y,
        **LSQ,
        grad_scale="lsq",
        mask="open",
    ),
    backward(
        "mask_of_another_name",
        "mask_name",
        HAND,
        HAND_X,
        HAND_D_Y,
        group_size=2,
        mask="closed",
        error="mask",
    ),
]


def by_size(inputs):
    return HAND_ADAPTER if inputs is HAND else adapter(inputs, 2, seed=57)


SCALING = {"lora_scaling": 2.0}
LORA_FORWARD = [
    *both_forward(by_size, SCALING),
    forward(
        "the_adapter_would_move_codes",
        "adapter_beside",
        {**UNIT, "lora_a": [[2.0]], "lora_b": [[0.5625]]},
        [[3.0]],
        lora_scaling=1.0,
        remark="0.625 + 1.125; inside the quantizer 0.5 + 1.125 would be code 6, which is 1.625",
    ),
    forward("scaling_of_a_half", "scaling", HAND_ADAPTER, HAND_X, group_size=2, lora_scaling=0.5),
    forward(
        "lora_b_is_zero",
        "zero_adapter",
        {**HAND_ADAPTER, "lora_b": [[0.0], [0.0]]},
        HAND_X,
        group_size=2,
        **SCALING,
    ),
    forward(
        "lora_a_of_another_width",
        "shape",
        {**HAND_ADAPTER, "lora_a": [[1.0, 2.0]]},
        HAND_X,
        group_size=2,
        **SCALING,
        error="lora_a",
    ),
]
LORA_BACKWARD = [
    *both_backward(by_size, SCALING),
    backward(
        "scaling_of_a_half",
        "scaling adapter_in_d_x",
        HAND_ADAPTER,
        HAND_X,
        HAND_D_Y,
        group_size=2,
        lora_scaling=0.5,
    ),
    backward(
        "lora_b_is_zero",
        "zero_adapter",
        {**HAND_ADAPTER, "lora_b": [[0.0], [0.0]]},
        HAND_X,
        HAND_D_Y,
        group_size=2,
        **SCALING,
    ),
]

FILES = [
    GoldenFile("qat/qat.forward.toml", "qat.forward", QAT_FORWARD_NOTES, QAT_FORWARD),
    GoldenFile("qat/qat.backward.toml", "qat.backward", QAT_BACKWARD_NOTES, QAT_BACKWARD),
    GoldenFile("qat/qat_lora.forward.toml", "qat_lora.forward", LORA_FORWARD_NOTES, LORA_FORWARD),
    GoldenFile(
        "qat/qat_lora.backward.toml", "qat_lora.backward", LORA_BACKWARD_NOTES, LORA_BACKWARD
    ),
]
