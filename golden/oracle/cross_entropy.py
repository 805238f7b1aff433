"""Mean negative log likelihood of the targets that count."""

from . import derivative as d


def surprise(row, target):
    """ln(sum exp(logit)) - logit[target]"""
    total = d.exp(row[0])
    for logit in row[1:]:
        total = total + d.exp(logit)
    return d.ln(total) - row[target]


def forward(params, inputs):
    """The mean of the surprise over the rows whose target is not ignore_index."""
    rows = zip(inputs["logits"], inputs["targets"], strict=True)
    counted = [surprise(row, target) for row, target in rows if target != params["ignore_index"]]
    total = counted[0]
    for term in counted[1:]:
        total = total + term
    return {"loss": total / len(counted)}


def backward(params, inputs):
    logits = d.variables(inputs["logits"])
    loss = forward(params, {"logits": logits, "targets": inputs["targets"]})["loss"]
    (d_logits,) = d.gradients(loss, logits)
    return {"d_logits": d_logits}
