"""Cases of causal grouped-query attention."""

import math

from case_text import GoldenFile, case

from .spread import spread

REFUSED = {
    "kv_heads_divide": "kv_heads that do not divide heads, rounded in silence",
    "shape": "a broadcast, transposed or truncated tensor instead of a refusal",
    "non_finite": "a NaN or infinity that the causal mask hides",
}
FORWARD_NOTES = {
    "causal": "a mask that is absent, off by one, or looks backwards",
    "root_of_head_dim": "scores divided by head_dim, by the hidden size, or not at all",
    "head_sharing": "query head h paired with h % kv_heads in place of h // sharing",
    "sequences_apart": "tokens of one sequence that see another sequence of the batch",
    "one_token": "a softmax over one score that is not 1",
    "overflow": "exp without subtracting the largest score",
    "axes": "heads and tokens exchanged",
    **REFUSED,
}
BACKWARD_NOTES = {
    "softmax_derivative": "the softmax treated as elementwise: its row sum forgotten",
    "root_of_head_dim": "the score factor forgotten in d_q or d_k",
    "head_sharing": "d_k and d_v of one query head only, or of the wrong ones",
    "causal": "gradient that reaches tokens that were not seen",
    "one_token": "d_q and d_k are 0 where there is nothing to choose",
    "overflow": "inf / inf where the largest score was not subtracted",
    "sequences_apart": "gradient that crosses sequences of the batch",
    **REFUSED,
}

# Two tokens, one head of width 4: the second token weighs its two values by the logistic function.
PAIR = {
    "q": [[[[1.0, 0.0, 0.0, 0.0]], [[2.0, 0.0, 0.0, 0.0]]]],
    "k": [[[[0.0, 1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]]],
    "v": [[[[1.0, 2.0, 3.0, 4.0]], [[-1.0, 0.0, 1.0, 8.0]]]],
}

EQUAL = {
    "q": [[[[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 2.0, 0.0]]]],
    "k": PAIR["k"],
    "v": [[[[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 3.0, 4.0]]]],
}


def qkv(batch, tokens, heads, kv_heads, head_dim, seed, step=0.125):
    return {
        "q": spread([batch, tokens, heads, head_dim], seed, step),
        "k": spread([batch, tokens, kv_heads, head_dim], seed + 1, step),
        "v": spread([batch, tokens, kv_heads, head_dim], seed + 2, step),
    }


# Scores of 64 * 32 / 2 and a little: exp overflows even a double, their differences are ordinary.
LARGE = qkv(1, 3, 1, 1, 4, 89, 0.25)
for name, first in (("q", 64.0), ("k", 32.0)):
    for (head,) in LARGE[name][0]:
        head[0] = first

# id, flags, (batch, tokens, heads, kv_heads, head_dim), inputs
CASES = [
    ("two_tokens", "causal root_of_head_dim", (1, 2, 1, 1, 4), PAIR),
    ("one_token", "one_token", (1, 1, 2, 1, 2), qkv(1, 1, 2, 1, 2, 71)),
    ("five_tokens", "causal", (1, 5, 1, 1, 2), qkv(1, 5, 1, 1, 2, 74, 0.25)),
    ("four_heads_share_two", "head_sharing", (1, 3, 4, 2, 2), qkv(1, 3, 4, 2, 2, 77, 0.25)),
    ("three_heads_share_one", "head_sharing", (1, 2, 3, 1, 4), qkv(1, 2, 3, 1, 4, 80, 0.25)),
    ("batch_of_two", "sequences_apart", (2, 3, 2, 1, 2), qkv(2, 3, 2, 1, 2, 83, 0.25)),
    ("head_dim_three", "root_of_head_dim", (1, 3, 2, 2, 3), qkv(1, 3, 2, 2, 3, 86, 0.25)),
    ("scores_above_a_thousand", "overflow", (1, 3, 1, 1, 4), LARGE),
]


def params(heads, kv_heads):
    return {"heads": heads, "kv_heads": kv_heads}


FORWARD = [
    case(id, flags, params(heads, kv_heads), **inputs)
    for id, flags, (_, _, heads, kv_heads, _), inputs in CASES
] + [
    case("heads_as_many_as_tokens", "axes", params(2, 2), **qkv(1, 2, 2, 2, 2, 92, 0.5)),
    case(
        "k_of_another_length",
        "shape",
        params(1, 1),
        **{**PAIR, "k": [[[[0.0, 1.0, 0.0, 0.0]]]]},
        error="k has",
    ),
    case(
        "kv_heads_do_not_divide",
        "kv_heads_divide",
        params(3, 2),
        **qkv(1, 1, 3, 2, 2, 95),
        error="kv_heads",
    ),
    case(
        "nan_in_a_value_nobody_but_the_last_token_sees",
        "non_finite",
        params(1, 1),
        **{**PAIR, "v": [[[[1.0, 2.0, 3.0, 4.0]], [[-1.0, 0.0, math.nan, 8.0]]]]},
        error="v[",
    ),
]
BACKWARD = [
    case(id, flags, params(shape[2], shape[3]), **inputs, d_output=spread(list(DIMS), 98, 0.25))
    for id, flags, shape, inputs in CASES
    for DIMS in [(shape[0], shape[1], shape[2], shape[4])]
] + [
    case(
        "gradient_of_the_first_token_only",
        "causal softmax_derivative",
        params(1, 1),
        **PAIR,
        d_output=[[[[1.0, -1.0, 2.0, 0.5]], [[0.0, 0.0, 0.0, 0.0]]]],
        remark="only d_v of the first token is not 0",
    ),
    case(
        "equal_values",
        "softmax_derivative",
        params(1, 1),
        **EQUAL,
        d_output=[[[[1.0, 1.0, 1.0, 1.0]], [[1.0, 2.0, 4.0, 8.0]]]],
        remark="equal scores and equal values: d_q and d_k are 0",
    ),
    case(
        "d_output_of_another_length",
        "shape",
        params(1, 1),
        **PAIR,
        d_output=[[[[1.0, 1.0, 1.0, 1.0]]]],
        error="d_output",
    ),
    case(
        "kv_heads_do_not_divide",
        "kv_heads_divide",
        params(3, 2),
        **qkv(1, 1, 3, 2, 2, 95),
        d_output=spread([1, 1, 3, 2], 99),
        error="kv_heads",
    ),
    case(
        "infinity_in_q",
        "non_finite",
        params(1, 1),
        **{**PAIR, "q": [[[[1.0, 0.0, 0.0, 0.0]], [[math.inf, 0.0, 0.0, 0.0]]]]},
        d_output=[[[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]],
        error="q[",
    ),
]

FILES = [
    GoldenFile("transformer/attention.forward.toml", "attention.forward", FORWARD_NOTES, FORWARD),
    GoldenFile(
        "transformer/attention.backward.toml", "attention.backward", BACKWARD_NOTES, BACKWARD
    ),
]
