"""Training of a whole LLaMA: each step differentiates the model and moves what the method trains."""

import torch

from . import methods, transformer

# Method -> its layer, and the tensors of a layer that it trains.
METHODS = {
    "lora": (methods.lora, ("lora_a", "lora_b")),
    "l4q": (methods.l4q, ("lora_a", "lora_b", "scale", "offset")),
    "lr_qat": (methods.lr_qat, ("lora_a", "lora_b", "scale")),
    "qa_lora": (methods.qa_lora, ("lora_a", "lora_b")),
    "qat": (methods.qat, ("weight", "scale", "offset")),
    "qat_lora": (methods.qat_lora, ("lora_a", "lora_b", "scale", "offset")),
    "peqa": (methods.peqa, ("scale",)),
}
MOMENTS = ("first_moment.", "second_moment.")
WITHOUT_DECAY = (".scale", ".offset")


def layer_of(decisions, method, tensors, settings):
    """linear(x, layer), where every layer is the method's with the tensors under its name."""
    definition, _ = METHODS[method]

    def linear(x, layer):
        own = {
            name.removeprefix(f"{layer}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{layer}.")
        }
        y = definition(decisions, x=x.flatten(0, -2), **own, **settings)["y"]
        return y.unflatten(0, x.shape[:-1])

    return linear


def trained_names(method, tensors):
    _, trained = METHODS[method]
    return sorted(name for name in tensors if name.endswith(tuple(f"_proj.{t}" for t in trained)))


def llama_train(
    decisions,
    *,
    tokens,
    config,
    method,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    first_step=1,
    **rest,
):
    given = {name: value for name, value in rest.items() if isinstance(value, torch.Tensor)}
    settings = {name: value for name, value in rest.items() if name not in given}
    tensors = {name: value for name, value in given.items() if not name.startswith(MOMENTS)}
    names = trained_names(method, tensors)
    moments = {
        moment + name: given.get(moment + name, torch.zeros_like(tensors[name]))
        for name in names
        for moment in MOMENTS
    }
    losses, gradients = [], {name: [] for name in names}
    for number, batch in enumerate(tokens, start=first_step):
        for name in names:
            tensors[name] = tensors[name].detach().requires_grad_()
        linear = layer_of(decisions, method, tensors, settings)
        logits = transformer.llama_logits(config, tensors, batch, linear)
        loss = transformer.next_token_loss(logits, batch)
        found = torch.autograd.grad(loss, [tensors[name] for name in names])
        losses.append(loss.detach())
        for name, gradient in zip(names, found, strict=True):
            gradients[name].append(gradient)
            first, second = (moment + name for moment in MOMENTS)
            state = transformer.adamw_step(
                decisions,
                parameter=tensors[name].detach(),
                gradient=gradient,
                first_moment=moments[first],
                second_moment=moments[second],
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                weight_decay=0.0 if name.endswith(WITHOUT_DECAY) else weight_decay,
                step=number,
            )
            tensors[name] = state["parameter"]
            moments[first], moments[second] = state["first_moment"], state["second_moment"]
    linear = layer_of(decisions, method, tensors, settings)
    logits = transformer.llama_logits(config, tensors, tokens[-1], linear)
    return {
        "loss": torch.stack(losses),
        "logits": logits.detach(),
        **{f"d_{name}": torch.stack(of_steps) for name, of_steps in gradients.items()},
        **{name: tensors[name] for name in names},
        **moments,
    }
