"""Causal grouped-query attention."""

from decimal import Decimal

from . import derivative as d


def one_output(query, keys, values):
    """sum_s softmax_s(query . key_s / sqrt(head_dim)) value_s over the keys that may be seen.

    Without subtracting a maximum: a Decimal does not overflow.
    """
    root = d.sqrt(Decimal(len(query)))
    weights = [d.exp(dot(query, key) / root) for key in keys]
    total = weights[0]
    for weight in weights[1:]:
        total = total + weight
    probabilities = [weight / total for weight in weights]
    return [dot(probabilities, [value[e] for value in values]) for e in range(len(values[0]))]


def dot(a, b):
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total = total + x * y
    return total


def forward(params, inputs):
    """Query head h reads key and value head h // (heads / kv_heads); token t sees 0..t."""
    sharing = params["heads"] // params["kv_heads"]
    output = []
    for q, k, v in zip(inputs["q"], inputs["k"], inputs["v"], strict=True):
        sequence = []
        for t, heads in enumerate(q):
            seen = range(t + 1)
            sequence.append(
                [
                    one_output(
                        query,
                        [k[s][h // sharing] for s in seen],
                        [v[s][h // sharing] for s in seen],
                    )
                    for h, query in enumerate(heads)
                ]
            )
        output.append(sequence)
    return {"output": output}


def backward(params, inputs):
    q, k, v = (d.variables(inputs[name]) for name in "qkv")
    output = forward(params, {"q": q, "k": k, "v": v})["output"]
    d_q, d_k, d_v = d.gradients(d.weighted_sum(inputs["d_output"], output), q, k, v)
    return {"d_q": d_q, "d_k": d_k, "d_v": d_v}
