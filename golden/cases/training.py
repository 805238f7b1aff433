"""Cases of the loss and of the optimizer."""

import math

from case_text import GoldenFile, case

from .spread import spread

REFUSED = {
    "token_range": "a target outside the vocabulary that is read as another row's logit",
    "shape": "a broadcast, transposed or truncated tensor instead of a refusal",
    "non_finite": "a NaN or infinity that makes the loss useless in silence",
}
LOSS_NOTES = {
    "uniform": "a loss other than ln(vocab) for logits that are all equal",
    "overflow": "exp without subtracting the largest logit",
    "ignored": "ignored targets in the sum",
    "counted_mean": "the sum divided by all tokens in place of the counted ones",
    "ignore_index": "-100 hard-coded as the ignored target",
    "shift": "a loss that changes when a constant is added to all logits",
    "odd_size": "a kernel that handles only whole vectors or rows",
    "none_counted": "0 / 0, or a loss of 0, where no target counts",
    **REFUSED,
}
GRADIENT_NOTES = {**LOSS_NOTES, "uniform": "softmax without subtracting 1 at the target"}
GRADIENT_NOTES["shift"] = "rows of the gradient that do not add up to zero"
GRADIENT_NOTES["ignored"] = "a gradient in the row of an ignored target"


def loss_cases():
    """Forward and backward take the same inputs."""
    kept = {"ignore_index": -100}
    logits = spread([4, 5], 101, 0.25)
    return [
        case("equal_logits", "uniform", kept, logits=[[0.0, 0.0, 0.0, 0.0]], targets=[2]),
        case("two_classes", "uniform", kept, logits=[[1.0, -1.0]], targets=[1]),
        case("large_logits", "overflow", kept, logits=[[1000.0, 999.0, -1000.0]], targets=[1]),
        case(
            "logits_shifted_by_64",
            "shift",
            kept,
            logits=[[0.5, 1.0, -2.0], [64.5, 65.0, 62.0]],
            targets=[0, 0],
        ),
        case("four_tokens", "counted_mean odd_size", kept, logits=logits, targets=[0, 4, 2, 2]),
        case(
            "two_of_four_ignored",
            "ignored counted_mean",
            kept,
            logits=logits,
            targets=[-100, 4, -100, 1],
        ),
        case(
            "ignored_is_a_token",
            "ignore_index ignored",
            {"ignore_index": 2},
            logits=logits,
            targets=[0, 2, 1, 2],
        ),
        case(
            "ignored_is_minus_one",
            "ignore_index",
            {"ignore_index": -1},
            logits=logits,
            targets=[-1, 3, -1, -1],
        ),
        case(
            "vocabulary_of_one",
            "odd_size",
            kept,
            logits=[[3.0]],
            targets=[0],
            remark="the loss is 0",
        ),
        case(
            "none_counted",
            "none_counted",
            kept,
            logits=[[1.0, 2.0]],
            targets=[-100],
            error="target",
        ),
        case(
            "token_at_vocab_size",
            "token_range",
            kept,
            logits=[[1.0, 2.0]],
            targets=[2],
            error="token 2",
        ),
        case(
            "negative_token_that_is_not_ignored",
            "token_range ignore_index",
            {"ignore_index": -1},
            logits=[[1.0, 2.0], [1.0, 2.0]],
            targets=[-100, 0],
            error="token -100",
        ),
        case(
            "targets_too_short",
            "shape",
            kept,
            logits=[[1.0, 2.0], [3.0, 4.0]],
            targets=[0],
            error="targets",
        ),
        case(
            "nan_in_an_ignored_row",
            "non_finite",
            kept,
            logits=[[1.0, math.nan], [1.0, 2.0]],
            targets=[-100, 0],
            error="logits",
        ),
        case(
            "infinity_in_logits",
            "non_finite",
            kept,
            logits=[[1.0, math.inf]],
            targets=[0],
            error="logits",
        ),
    ]


ADAMW_NOTES = {
    "bias_correction": "moments that are not divided by 1 - beta^step, or a first step numbered 0",
    "first_step": "a first update that is not lr * sign(gradient) up to eps",
    "decoupled_decay": "weight decay added to the gradient (Adam with L2)",
    "decay_by_lr": "weight decay that is not multiplied by lr",
    "eps_outside": "eps under the root, or added before the bias correction",
    "second_moment": "beta1 and beta2 exchanged, or the gradient not squared",
    "zero_gradient": "0 / 0 for a parameter without gradient, or one that skips its decay",
    "late_step": "a bias correction that is skipped or overflows at a large step",
    "any_rank": "a tensor that is not a matrix refused or flattened wrongly",
    "step_range": "step 0, which divides by zero",
    "hyperparameter_range": "a beta of 1, a negative eps or lr, accepted",
    "shape": REFUSED["shape"],
    "non_finite": "a gradient that overflowed, written into the weights",
}
DEFAULTS = {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "step": 1}
FRESH = {
    "parameter": [[1.0, -2.0, 0.5]],
    "gradient": [[0.25, -4.0, 0.0078125]],
    "first_moment": [[0.0, 0.0, 0.0]],
    "second_moment": [[0.0, 0.0, 0.0]],
}
WARM = {
    "parameter": [[1.0, -2.0, 0.5], [0.0, 8.0, -0.125]],
    "gradient": [[0.25, -4.0, 0.5], [1.0, 0.0, -0.0625]],
    "first_moment": [[0.125, 0.5, -0.25], [-1.0, 0.75, 0.0]],
    "second_moment": [[0.0625, 2.0, 0.25], [1.0, 0.5, 0.00390625]],
}


def step(id, flags, inputs, *, error=None, remark=None, **params):
    return case(id, flags, {**DEFAULTS, **params}, **inputs, error=error, remark=remark)


ADAMW = [
    step("first_step", "first_step bias_correction", FRESH, remark="moves by lr against the sign"),
    step("third_step", "bias_correction second_moment", WARM, step=3),
    step(
        "third_step_with_decay",
        "decoupled_decay decay_by_lr",
        WARM,
        step=3,
        weight_decay=0.5,
        lr=0.125,
    ),
    step("first_step_with_decay", "decoupled_decay first_step", FRESH, weight_decay=0.01),
    step(
        "dyadic_betas",
        "second_moment bias_correction",
        {"parameter": [1.0], "gradient": [2.0], "first_moment": [1.0], "second_moment": [8.0]},
        remark="m = 1.5, v = 7, m / (3/4) = 2, v / (7/16) = 16: 1 - 0.5 * 2 / (4 + 1) = 0.8",
        beta1=0.5,
        beta2=0.75,
        eps=1.0,
        lr=0.5,
        step=2,
    ),
    step("large_eps", "eps_outside", WARM, eps=0.5, step=2),
    step(
        "no_gradient",
        "zero_gradient decoupled_decay",
        {"parameter": [4.0], "gradient": [0.0], "first_moment": [0.0], "second_moment": [0.0]},
        weight_decay=0.5,
        lr=0.25,
        remark="4 * (1 - 0.25 * 0.5)",
    ),
    step(
        "gradient_far_below_eps",
        "eps_outside",
        {**FRESH, "gradient": [[2.0**-40, -(2.0**-40), 0.0]]},
    ),
    step("step_1000", "late_step", WARM, step=1000),
    step("step_two_million", "late_step", WARM, step=2_000_000, weight_decay=0.1),
    step("beta1_of_zero", "second_moment", WARM, beta1=0.0, step=2),
    step(
        "three_axes",
        "any_rank",
        {
            "parameter": spread([2, 1, 2], 111),
            "gradient": spread([2, 1, 2], 112),
            "first_moment": spread([2, 1, 2], 113),
            "second_moment": [[[0.5, 0.25]], [[1.0, 4.0]]],
        },
        step=7,
    ),
    step("step_zero", "step_range", FRESH, step=0, error="step"),
    step("beta1_of_one", "hyperparameter_range", FRESH, beta1=1.0, error="beta1"),
    step("negative_beta2", "hyperparameter_range", FRESH, beta2=-0.5, error="beta2"),
    step("eps_of_zero", "hyperparameter_range", FRESH, eps=0.0, error="eps"),
    step(
        "nan_in_gradient",
        "non_finite",
        {**FRESH, "gradient": [[0.0, math.nan, 0.0]]},
        error="gradient",
    ),
    step(
        "infinity_in_second_moment",
        "non_finite",
        {**FRESH, "second_moment": [[0.0, 0.0, math.inf]]},
        error="second_moment",
    ),
    step(
        "gradient_of_another_shape",
        "shape",
        {**FRESH, "gradient": [[1.0], [2.0], [3.0]]},
        error="gradient",
    ),
]

FILES = [
    GoldenFile(
        "training/cross_entropy.forward.toml", "cross_entropy.forward", LOSS_NOTES, loss_cases()
    ),
    GoldenFile(
        "training/cross_entropy.backward.toml",
        "cross_entropy.backward",
        GRADIENT_NOTES,
        loss_cases(),
    ),
    GoldenFile("training/adamw.step.toml", "adamw.step", ADAMW_NOTES, ADAMW),
]
