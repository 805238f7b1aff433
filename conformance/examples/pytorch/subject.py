"""A PyTorch implementation as conform asks it: the layers of layers.py behind the case protocol.

    conform check CASES --subject "exec:python3 subject.py"

Replace layers.py by your own and keep what fits of the functions below; an operation that is not in
OPERATIONS is skipped. `--bug NAME` plants one mistake of public code: public_mistakes.py.
"""

import argparse

import torch

import layers
import public_mistakes
from conform_protocol import Refusal, Skip, require_finite, require_shape, serve

GROUPS = {"scale": "out groups", "offset": "out groups"}
FACTORS = {"lora_a": "rank in", "lora_b": "out rank"}
X, D_Y = {"x": "tokens in"}, {"d_y": "tokens out"}
WEIGHT = {"weight": "out in"}


def one_of(params, name, known, default=None):
    """A parameter that is one of a few words."""
    value = params.get(name, default)
    if value not in known:
        raise Refusal(f"{name} is {value}, expected one of {', '.join(known)}")
    return value


def read_grid(params, inputs, shapes):
    """Bits and group size, after the shapes of the inputs are compared with what they must be.

    The first tensor is [out, in] and says both; another size is what the first tensor that has it
    says. A size that belongs to the given tensors alone, such as tokens, comes from there too.
    """
    bits = params.get("bits")
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise Refusal(f"bits is {bits}, expected 2 to 8")
    rows, columns = inputs[next(iter(shapes))].shape
    group_size = columns if params.get("group_size") is None else params["group_size"]
    if group_size < 1 or columns % group_size:
        raise Refusal(f"group_size {group_size} does not divide {columns} inputs")
    sizes = {"out": rows, "in": columns, "groups": columns // group_size}
    for name, words in shapes.items():
        if name in inputs:
            words = words.split()
            for word, size in zip(words, inputs[name].shape):
                sizes.setdefault(word, size)
            require_shape(name, inputs[name], [sizes[word] for word in words])
    return bits, group_size


def gradients(y, d_y, **tensors):
    """Backward from y; what was not reached, or needs no gradient, has none: zero."""
    y.backward(d_y)
    zero = torch.zeros_like
    return {f"d_{name}": zero(t) if t.grad is None else t.grad for name, t in tensors.items()}


def low_rank(params, inputs):
    return layers.LowRank(inputs["lora_a"], inputs["lora_b"], params["lora_scaling"])


def quantizer(params, inputs, bits, group_size):
    grad_scale = one_of(params, "grad_scale", ("none", "lsq", "lit_gpt", "peft"), "none")
    mask = one_of(params, "mask", ("pre_round", "rounded", "open"), "pre_round")
    scale, offset = inputs["scale"], inputs["offset"]
    return layers.FakeQuantize(scale, offset, bits, group_size, grad_scale, mask)


def as_codes(codes):
    return codes.to(torch.int8)


# --- The quantizer --------------------------------------------------------------------------------


def fake_quantize(params, inputs):
    shapes = WEIGHT | GROUPS | {"d_output": "out in"}
    return quantizer(params, inputs, *read_grid(params, inputs, shapes))


def fake_quantize_forward(params, inputs):
    codes, output = fake_quantize(params, inputs)(inputs["weight"])
    return {"codes": as_codes(codes), "output": output}


def fake_quantize_backward(params, inputs):
    module, weight = fake_quantize(params, inputs), inputs["weight"].requires_grad_()
    _, output = module(weight)
    return gradients(
        output, inputs["d_output"], weight=weight, scale=module.scale, offset=module.offset
    )


def init_scale(params, inputs):
    bits, group_size = read_grid(params, inputs, WEIGHT)
    others = ("lsq_plus", "symmetric", "asymmetric", "min_max", "lit_gpt", "lp")
    rule = one_of(params, "rule", ("l4q", "lsq", *others))
    if rule in others:
        raise Skip(f"the rule {rule} is not implemented")
    for name in ("p", "steps"):
        if params.get(name) is not None:
            raise Refusal(f"{name} is {params[name]}, expected none with the rule {rule}")
    scale = layers.init_scale(inputs["weight"], bits, group_size, rule)
    return {"scale": scale, "offset": torch.zeros_like(scale)}


# --- L4Q ------------------------------------------------------------------------------------------


def l4q(params, inputs):
    bits, group_size = read_grid(params, inputs, WEIGHT | GROUPS | FACTORS | X | D_Y)
    module = quantizer(params, inputs, bits, group_size)
    layer = layers.L4q(inputs["weight"], low_rank(params, inputs), module)
    require_finite("effective_weight", layer.weight + layer.update())
    return layer


def l4q_forward(params, inputs):
    layer = l4q(params, inputs)
    codes, fake_quantized = layer.quantized()
    return {"y": layer(inputs["x"]), "codes": as_codes(codes), "fake_quantized": fake_quantized}


def l4q_backward(params, inputs):
    layer, x = l4q(params, inputs), inputs["x"].requires_grad_()
    return gradients(
        layer(x),
        inputs["d_y"],
        x=x,
        lora_a=layer.update.lora_a,
        lora_b=layer.update.lora_b,
        scale=layer.quantizer.scale,
        offset=layer.quantizer.offset,
    )


def l4q_merge(params, inputs):
    codes, scale, offset = l4q(params, inputs).merge()
    return {"codes": as_codes(codes), "scale": scale, "offset": offset}


# --- LR-QAT ---------------------------------------------------------------------------------------


def lr_qat_phi(params, inputs, shapes):
    """`bits, group_size, (phi, stored)` after validation; the pair is of None if phi is live."""
    bits, group_size = read_grid(params, inputs, shapes)
    kind = one_of(params, "downcast", ("f32", "bf16", "f16", "fixed8", "int"))
    zero_point = inputs.get("zero_point")
    widest = {"fixed8": 7, "int": 4}.get(kind, 8 if zero_point is None else 7)
    if bits > widest:
        raise Refusal(f"bits is {bits}, expected 2 to {widest}")
    if zero_point is not None:
        is_code = (zero_point == zero_point.round()) & (0 <= zero_point) & (zero_point < 2**bits)
        if not is_code.all():
            raise Refusal(f"zero_point is not an integer from 0 to {2**bits - 1} everywhere")
    inner_scale = one_of(params, "inner_scale", ("frozen", "live"), "frozen")
    initial_scale = inputs.get("initial_scale")
    if inner_scale == "live":
        if kind != "f32":
            raise Refusal(f"inner_scale is live, expected frozen with the downcast {kind}")
        if initial_scale is not None:
            raise Refusal("initial_scale is given, expected none with a live inner scale")
        return bits, group_size, (None, None)
    if initial_scale is None:
        raise Refusal("initial_scale is absent, expected one with a frozen inner scale")
    phi = layers.downcast(inputs["weight"], initial_scale, zero_point, bits, group_size, kind)
    return bits, group_size, phi


def lr_qat_downcast(params, inputs):
    shapes = WEIGHT | {"initial_scale": "out groups", "zero_point": "out groups"}
    _, _, (phi, stored) = lr_qat_phi(params, inputs, shapes)
    return {"phi": phi} if stored is None else {"phi": phi, "stored": stored}


def lr_qat(params, inputs):
    per_group = dict.fromkeys(("initial_scale", "zero_point", "scale"), "out groups")
    shapes = WEIGHT | per_group | FACTORS | X | D_Y
    bits, group_size, (phi, _) = lr_qat_phi(params, inputs, shapes)
    mask = one_of(params, "mask", ("rounded", "pre_round"), "rounded")
    dialect = one_of(params, "dialect", ("paper", "lr_qat_code"), "paper")
    if dialect == "lr_qat_code" and (params["downcast"], mask) != ("int", "rounded"):
        raise Refusal("dialect is lr_qat_code, expected paper but with downcast int, mask rounded")
    return layers.LrQat(
        inputs["weight"],
        phi,
        low_rank(params, inputs),
        inputs["scale"],
        inputs.get("zero_point"),
        bits=bits,
        group_size=group_size,
        mask=mask,
        dialect=dialect,
    )


def lr_qat_forward(params, inputs):
    layer = lr_qat(params, inputs)
    codes, fake_quantized = layer.quantized()
    return {"y": layer(inputs["x"]), "codes": as_codes(codes), "fake_quantized": fake_quantized}


def lr_qat_backward(params, inputs):
    layer, x = lr_qat(params, inputs), inputs["x"].requires_grad_()
    lora_a, lora_b = layer.update.lora_a, layer.update.lora_b
    return gradients(layer(x), inputs["d_y"], x=x, lora_a=lora_a, lora_b=lora_b, scale=layer.scale)


def lr_qat_merge(params, inputs):
    codes, scale = lr_qat(params, inputs).merge()
    return {"codes": as_codes(codes), "scale": scale}


# --- QA-LoRA --------------------------------------------------------------------------------------


def qa_lora(params, inputs):
    shapes = {"codes": "out in", "scale": "out groups", "zero_point": "out groups"}
    shapes |= {"lora_a": "rank groups", "lora_b": "out rank"} | X | D_Y
    bits, group_size = read_grid(params, inputs, shapes)
    if inputs["codes"].max() > 2**bits - 1:  # 2**bits itself is no uint8
        raise Refusal(f"codes exceed {2**bits - 1}")
    dialect = one_of(params, "dialect", ("paper", "qa_lora_code", "hf_peft_qalora"), "paper")
    pool = one_of(params, "pool", ("sum", "mean") if dialect == "paper" else ("mean",))
    grid = (inputs["codes"], inputs["scale"], inputs["zero_point"])
    return layers.QaLora(*grid, low_rank(params, inputs), group_size, pool, dialect)


def qa_lora_forward(params, inputs):
    return {"y": qa_lora(params, inputs)(inputs["x"])}


def qa_lora_backward(params, inputs):
    layer, x = qa_lora(params, inputs), inputs["x"].requires_grad_()
    lora_a, lora_b = layer.update.lora_a, layer.update.lora_b
    return gradients(layer(x), inputs["d_y"], x=x, lora_a=lora_a, lora_b=lora_b)


def qa_lora_merge(params, inputs):
    layer = qa_lora(params, inputs)
    if layer.dialect == "hf_peft_qalora":
        raise Refusal("dialect is hf_peft_qalora, whose code does not merge")
    return {"zero_point": layer.merge()}


OPERATIONS = {
    "fake_quantize.forward": fake_quantize_forward,
    "fake_quantize.backward": fake_quantize_backward,
    "init_scale": init_scale,
    "l4q.forward": l4q_forward,
    "l4q.backward": l4q_backward,
    "l4q.merge": l4q_merge,
    "lr_qat.downcast": lr_qat_downcast,
    "lr_qat.forward": lr_qat_forward,
    "lr_qat.backward": lr_qat_backward,
    "lr_qat.merge": lr_qat_merge,
    "qa_lora.forward": qa_lora_forward,
    "qa_lora.backward": qa_lora_backward,
    "qa_lora.merge": qa_lora_merge,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answers the cases of conform.")
    parser.add_argument("--bug", choices=public_mistakes.MISTAKES, help="a mistake to plant")
    bug = parser.parse_args().bug
    if bug:
        public_mistakes.MISTAKES[bug]()
    torch.set_num_threads(1)  # the cases are small
    serve(OPERATIONS)
