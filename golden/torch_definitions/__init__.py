"""The operations as PyTorch definitions: formulas in float64, for autograd to differentiate.

No gradient is written by hand. A definition takes the tensors of a case and its params by name, so
one that it does not know is refused, and returns its outputs by name. `evaluate` runs the operation
of a case on them.
"""

import dataclasses
from collections.abc import Callable

import torch

from . import grids, methods, training, transformer
from .grids import Decisions

EVERY_WEIGHT = ("every float tensor",)  # whose gradients come beside the outputs
EVERY_RESULT = ("every result",)  # of a definition that differentiates by itself


@dataclasses.dataclass(frozen=True)
class Operation:
    """A forward answers `outputs`; a backward differentiates `outputs` with respect to `inputs`."""

    definition: Callable
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    @property
    def cotangent(self) -> str:
        return f"d_{self.outputs[0]}"


def pair(name, definition, outputs, inputs):
    """NAME.forward and NAME.backward; the first output is the one whose gradient is given."""
    outputs, inputs = tuple(outputs.split()), tuple(inputs.split())
    return {
        f"{name}.forward": Operation(definition, outputs),
        f"{name}.backward": Operation(definition, outputs[:1], inputs),
    }


OPERATIONS = {
    **pair("fake_quantize", methods.fake_quantize, "output codes", "weight scale offset"),
    **pair("round_scale", methods.round_scale, "rounded_scale", "scale"),
    **pair("l4q", methods.l4q, "y codes fake_quantized", "x lora_a lora_b scale offset"),
    "l4q.merge": Operation(methods.l4q_merge, ("codes", "scale", "offset")),
    **pair("lr_qat", methods.lr_qat, "y codes fake_quantized", "x lora_a lora_b scale"),
    "lr_qat.merge": Operation(methods.lr_qat_merge, ("codes", "scale")),
    **pair("qa_lora", methods.qa_lora, "y", "x lora_a lora_b"),
    "qa_lora.merge": Operation(methods.qa_lora_merge, ("zero_point",)),
    **pair("qat", methods.qat, "y", "x weight scale offset"),
    **pair("qat_lora", methods.qat_lora, "y", "x lora_a lora_b scale offset"),
    **pair("lora", methods.lora, "y", "x lora_a lora_b"),
    **pair("peqa", methods.peqa, "y", "x scale"),
    **pair("dynamic_quantize", methods.dynamic_quantize, "output codes scale zero_point", "x"),
    **pair("lwc", methods.lwc, "output codes scale zero_point", "weight upper lower"),
    **pair("rms_norm", transformer.rms_norm_op, "output", "x weight"),
    **pair("rope", transformer.rope_op, "output", "x"),
    **pair("attention", transformer.attention_op, "output", "q k v"),
    **pair("swiglu", transformer.swiglu_op, "output", "gate up"),
    **pair("cross_entropy", transformer.cross_entropy_op, "loss", "logits"),
    "llama.loss_and_gradients": Operation(transformer.llama, ("loss", "logits"), EVERY_WEIGHT),
    "llama.train": Operation(training.llama_train, EVERY_RESULT),
    "adamw.step": Operation(transformer.adamw_step, ("parameter", "first_moment", "second_moment")),
}


def evaluate(op: str, params: dict, inputs: dict, decisions: Decisions | None = None) -> dict:
    """The outputs of a case, in float64; gradients are named d_<input>."""
    operation = OPERATIONS[op]
    decisions = Decisions() if decisions is None else decisions
    tensors = {
        name: tensor.detach().double() if tensor.is_floating_point() else tensor.long()
        for name, tensor in inputs.items()
    }
    if op == "rope.backward":
        tensors["x"] = torch.zeros_like(tensors["d_output"])  # linear: any x has this gradient
    whole_model = operation.inputs == EVERY_WEIGHT
    if whole_model:
        variables = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    else:
        variables = [name for name in operation.inputs if name in tensors]
    given = tensors.pop(operation.cotangent, torch.ones((), dtype=torch.float64))
    for name in variables:
        tensors[name].requires_grad_()
    results = operation.definition(decisions, **tensors, **params)
    if operation.outputs == EVERY_RESULT:
        return results
    outputs = {}
    if variables:
        main = results[operation.outputs[0]]
        gradients = torch.autograd.grad(main, [tensors[name] for name in variables], given)
        outputs = {f"d_{name}": d for name, d in zip(variables, gradients, strict=True)}
    if not variables or whole_model:
        outputs |= {name: results[name].detach() for name in operation.outputs if name in results}
    return outputs


__all__ = [
    "OPERATIONS",
    "Decisions",
    "Operation",
    "evaluate",
    "grids",
    "methods",
    "training",
    "transformer",
]
