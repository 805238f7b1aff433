"""The gate of the feed-forward layer."""

from . import derivative as d


def silu(gate):
    """gate / (1 + exp(-gate))"""
    return gate / (d.exp(-gate) + 1)


def elementwise(gate, up):
    """silu(gate) * up, in any shape"""
    if isinstance(gate, list):
        return [elementwise(a, b) for a, b in zip(gate, up, strict=True)]
    return silu(gate) * up


def forward(_params, inputs):
    return {"output": elementwise(inputs["gate"], inputs["up"])}


def backward(_params, inputs):
    gate, up = d.variables(inputs["gate"]), d.variables(inputs["up"])
    loss = d.weighted_sum(inputs["d_output"], elementwise(gate, up))
    d_gate, d_up = d.gradients(loss, gate, up)
    return {"d_gate": d_gate, "d_up": d_up}
