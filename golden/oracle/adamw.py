"""One step of AdamW: bias-corrected moments, weight decay outside the gradient."""

from decimal import Decimal

from .precise import sqrt


def one(parameter, gradient, first_moment, second_moment, p):
    """The same three numbers after the step; `p` holds the params as Decimals, `step` an int."""
    m = p["beta1"] * first_moment + (1 - p["beta1"]) * gradient
    v = p["beta2"] * second_moment + (1 - p["beta2"]) * gradient * gradient
    m_unbiased = m / (1 - p["beta1"] ** p["step"])
    v_unbiased = v / (1 - p["beta2"] ** p["step"])
    decay = p["lr"] * p["weight_decay"] * parameter
    return parameter - decay - p["lr"] * m_unbiased / (sqrt(v_unbiased) + p["eps"]), m, v


def elementwise(tensors, p):
    """Walks the four tensors together; gives three of the same shape."""
    if not isinstance(tensors[0], list):
        return one(*tensors, p)
    results = [elementwise(parts, p) for parts in zip(*tensors, strict=True)]
    return tuple(list(part) for part in zip(*results, strict=True))


def step(params, inputs):
    p = {name: Decimal(number) for name, number in params.items()} | {"step": params["step"]}
    names = ("parameter", "gradient", "first_moment", "second_moment")
    parameter, first, second = elementwise(tuple(inputs[name] for name in names), p)
    return {"parameter": parameter, "first_moment": first, "second_moment": second}
