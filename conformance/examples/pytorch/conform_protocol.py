"""The case protocol for PyTorch: reads questions from standard input, answers on standard output.

Nothing here knows an operation. `serve` takes a dictionary from the name of an operation to a
function of `(params, inputs)`, a dict and a dict of tensors, that returns a dict of tensors.
Whatever is not in the dictionary is skipped. The protocol: docs/case_protocol.md.
"""

import json
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file


class Refusal(Exception):
    """The question is not a valid one; the message names what is wrong with it."""


class Skip(Exception):
    """The question is valid and not answered here."""


def serve(operations):
    """Answers until the input ends.

    An exception that is neither a refusal nor a skip is a bug, and ends the process: that case
    fails with the end of the traceback, and the next one gets a new process.
    """
    answers = sys.stdout
    sys.stdout = sys.stderr  # a stray print must not be taken for an answer
    for line in sys.stdin:
        command, _, paths = line.rstrip("\r\n").partition(" ")
        if command != "eval":
            raise ValueError(f"asked {line!r}, expected eval")
        request, answer = paths.split("\t")
        try:
            evaluate(operations, request, answer)
            reply = "ok"
        except Skip as skip:
            reply = f"skip {skip}"
        except Refusal as refusal:
            reply = f"error {refusal}"
        print(reply, file=answers, flush=True)


def evaluate(operations, request, answer):
    """One case, from file to file."""
    op, params, inputs = read_request(request)
    if op not in operations:
        raise Skip(f"{op} is not implemented")
    for name, tensor in inputs.items():
        require_finite(name, tensor)
    outputs = operations[op](params, inputs)
    for name, tensor in outputs.items():
        require_finite(name, tensor)
    save_file({f"out.{name}": t.detach().contiguous() for name, t in outputs.items()}, answer)


def read_request(path):
    """`(op, params, inputs)`; the float inputs are all float32 or all float64."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        inputs = {name[3:]: file.get_tensor(name) for name in file.keys() if name[:3] == "in."}
    return metadata["op"], json.loads(metadata["params"]), inputs


def require_finite(name, tensor):
    """Every operation refuses an infinity or a NaN by the name of its tensor, and so here."""
    wrong = (~torch.isfinite(tensor)).nonzero()
    if len(wrong):
        index = wrong[0].tolist()
        raise Refusal(f"{name}{index} is {tensor[tuple(index)].item()}")


def require_shape(name, tensor, expected):
    if list(tensor.shape) != list(expected):
        raise Refusal(f"{name} has shape {list(tensor.shape)}, expected {list(expected)}")
