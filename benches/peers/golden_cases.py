"""The peers against golden cases: what is timed is first shown to compute the same thing."""

import json
import struct
import tomllib

import torch

import llama
import methods

# Method -> its golden cases, and how many of them at least must apply to the peer.
BACKWARD_CASES = {
    "lora": ("lora/lora.backward.toml", 6),
    "l4q": ("l4q/l4q.backward.toml", 8),
    "lr_qat": ("lr_qat/lr_qat.backward.toml", 10),
    "qa_lora": ("qa_lora/qa_lora.backward.toml", 8),
}
# A PyTorch user's layer is the paper's, and has neither floor nor refusal.
LEFT_OUT = {
    "l4q": {"grad_scale": ("lsq", "lit_gpt", "peft"), "mask": ("rounded", "open")},
    "lr_qat": {"mask": ("pre_round",), "inner_scale": ("live",), "dialect": ("lr_qat_code",)},
    "qa_lora": {"dialect": ("hf_peft_qalora",)},
    "lora": {},
}
BELOW_FLOOR = ("scale_below_the_floor", "scales_at_and_below_zero")


def check_linear(method, golden):
    """Every case that applies: the gradients of x and of every trained tensor. Returns how many."""
    name, least = BACKWARD_CASES[method]
    checked = 0
    for case in tomllib.loads((golden / name).read_text())["case"]:
        if applies(method, case):
            check_case(method, case)
            checked += 1
    if checked < least:
        raise ValueError(f"{golden / name}: {checked} cases apply to {method}, expected {least}")
    return checked


def applies(method, case):
    if "out" not in case or (method == "lr_qat" and "zero_point" in case["in"]):
        return False
    params = case["params"]
    unlike = LEFT_OUT[method].items()
    return case["id"] not in BELOW_FLOOR and not any(params.get(k) in v for k, v in unlike)


def check_case(method, case):
    given = {name: torch.tensor(values) for name, values in case["in"].items()}
    x, d_y = given.pop("x").requires_grad_(), given.pop("d_y")
    layer = layer_of(method, given, case["params"])
    trained = {"x": x} | layer.trained
    for tensor in layer.trained.values():
        tensor.requires_grad_()
    gradients = torch.autograd.grad(layer(x), trained.values(), d_y)
    for name, gradient in zip(trained, gradients, strict=True):
        expected = torch.tensor(case["out"][f"d_{name}"])
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5, msg=case["id"])


def layer_of(method, given, params):
    """A layer with the tensors of a case."""
    names = {
        "lora": ("lora_a", "lora_b"),
        "l4q": ("lora_a", "lora_b", "scale", "offset"),
        "lr_qat": ("lora_a", "lora_b", "scale"),
        "qa_lora": ("lora_a", "lora_b"),
    }[method]
    trained = {name: given[name] for name in names}
    frozen = {name: tensor for name, tensor in given.items() if name not in names}
    settings = {"lora_scaling": params["lora_scaling"]}
    if method in ("l4q", "lr_qat"):
        settings["bits"] = params["bits"]
    if method == "lr_qat":
        weight, initial_scale = frozen.pop("weight"), frozen.pop("initial_scale")
        stored = (weight, initial_scale, params["bits"], params["downcast"])
        frozen["stored"], settings["fraction"] = methods.lr_qat_stored(*stored)
    if method == "qa_lora":
        settings["pool"] = params.get("pool", "sum")
        frozen["codes"] = frozen["codes"].to(torch.uint8)
    return methods.Layer(getattr(methods, f"{method}_linear"), frozen, trained, settings)


# --- Ten steps of a whole model -------------------------------------------------------------------


def check_training(method, golden):
    """llama.train: ten steps of the peer's model, in f32 beside float64. Returns the worst error.

    No rounding of these trajectories hangs on the last bits (golden/README.md), so that f32 takes
    the same codes all the way.
    """
    params, inputs, outputs = read_case(golden / f"llama/llama.train.{method}.safetensors")
    config = params["config"]
    batches = inputs.pop("tokens").long()
    layers = {
        name.removesuffix(".lora_a"): None for name in inputs if name.endswith("_proj.lora_a")
    }
    for name in layers:
        own = {key.removeprefix(f"{name}."): inputs[key] for key in inputs if key.startswith(name)}
        layers[name] = layer_of(method, own, params)
    base = {name: tensor for name, tensor in inputs.items() if "_proj." not in name}
    model = llama.Llama(config, base, layers)
    names = ("lr", "eps", "weight_decay")
    optimizer = llama.adamw(
        model, betas=(params["beta1"], params["beta2"]), **{name: params[name] for name in names}
    )
    worst = 0.0
    for batch, expected in zip(batches, outputs["loss"], strict=True):
        loss = model.loss(batch)
        loss.backward()
        scale_gradients(model, params)
        optimizer.step()
        optimizer.zero_grad()
        worst = max(worst, error(loss, expected, "loss"))
    for name, tensor in model.trained():
        worst = max(worst, error(tensor, outputs[name], name))
    return worst


def scale_gradients(model, params):
    """The factor of Eq. (Q7) under the rule lsq; it multiplies the finished gradient."""
    rule = params.get("grad_scale", "none")
    assert rule in ("none", "lsq"), rule
    if rule == "lsq":
        factor = (params["group_size"] * methods.grid_ends(params["bits"])[1]) ** -0.5
        for name, tensor in model.trained():
            if name.endswith((".scale", ".offset")):
                tensor.grad *= factor


def error(actual, expected, name, limit=1e-4):
    """Of the worst element, relative to the largest expected one where that is above 1."""
    expected = expected.to(torch.float64)
    difference = (actual.detach().double() - expected).abs().max().item()
    relative = difference / max(1.0, expected.abs().max().item())
    if not relative <= limit:
        raise ValueError(f"{name} is {relative:.1e} from the golden case, expected {limit:.0e}")
    return relative


def read_case(path):
    """params, inputs and outputs of a case in safetensors."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    params = json.loads(header.pop("__metadata__")["params"])
    kinds = {"F32": torch.float32, "F64": torch.float64, "I32": torch.int32, "U8": torch.uint8}
    sides = {"in": {}, "out": {}}
    for name, entry in header.items():
        start, end = (8 + length + at for at in entry["data_offsets"])
        if start == end or entry["dtype"] not in kinds:
            continue
        kind = kinds[entry["dtype"]]
        tensor = torch.frombuffer(bytearray(data[start:end]), dtype=kind).view(entry["shape"])
        side, _, own_name = name.partition(".")
        sides[side][own_name] = tensor
    return params, sides["in"], sides["out"]
