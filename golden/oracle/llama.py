"""The whole model: embedding, blocks, projection to the vocabulary, loss.

Its parts are the forward functions of the other oracles; the gradients are the derivative of the
whole, so that nothing of a backward pass is written here.
"""

from decimal import Decimal

from . import attention, cross_entropy, rms_norm, rope, swiglu
from . import derivative as d
from .attention import dot

IGNORED = -100


def linear(rows, matrix):
    """rows @ matrix^T"""
    return [[dot(row, weights) for weights in matrix] for row in rows]


def heads_of(rows, count):
    """Each row cut into so many heads."""
    width = len(rows[0]) // count
    return [[row[h * width : (h + 1) * width] for h in range(count)] for row in rows]


def added(rows, others):
    pairs = zip(rows, others, strict=True)
    return [[a + b for a, b in zip(row, other, strict=True)] for row, other in pairs]


class Model:
    def __init__(self, config, weights):
        self.config = config
        self.weights = weights

    def norm(self, rows, name):
        eps = Decimal(self.config["rms_norm_eps"])
        return [rms_norm.normalised_row(row, self.weights[f"{name}.weight"], eps) for row in rows]

    def project(self, rows, name):
        return linear(rows, self.weights[f"{name}.weight"])

    def attended(self, rows, block):
        """Attention over one sequence, its positions counted from 0."""
        counts = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        theta, scaling = Decimal(self.config["rope_theta"]), self.config.get("rope_scaling")

        def turned(name, count):
            heads = heads_of(self.project(rows, f"{block}.self_attn.{name}_proj"), count)
            return [
                [rope.rotated_head(head, t, theta, scaling) for head in at]
                for t, at in enumerate(heads)
            ]

        q, k = turned("q", counts[0]), turned("k", counts[1])
        v = heads_of(self.project(rows, f"{block}.self_attn.v_proj"), counts[1])
        params = {"heads": counts[0], "kv_heads": counts[1]}
        (output,) = attention.forward(params, {"q": [q], "k": [k], "v": [v]})["output"]
        joined = [[element for head in heads for element in head] for heads in output]
        return self.project(joined, f"{block}.self_attn.o_proj")

    def fed_forward(self, rows, block):
        gate = self.project(rows, f"{block}.mlp.gate_proj")
        up = self.project(rows, f"{block}.mlp.up_proj")
        return self.project(swiglu.elementwise(gate, up), f"{block}.mlp.down_proj")

    def logits(self, tokens):
        """Of one sequence."""
        embedding = self.weights["model.embed_tokens.weight"]
        rows = [embedding[token] for token in tokens]
        for layer in range(self.config["num_hidden_layers"]):
            block = f"model.layers.{layer}"
            normal = self.norm(rows, f"{block}.input_layernorm")
            rows = added(rows, self.attended(normal, block))
            normal = self.norm(rows, f"{block}.post_attention_layernorm")
            rows = added(rows, self.fed_forward(normal, block))
        head = embedding
        if not self.config["tie_word_embeddings"]:
            head = self.weights["lm_head.weight"]
        return linear(self.norm(rows, "model.norm"), head)


def loss_and_gradients(params, inputs):
    """The mean surprise of every token but the first of its sequence, after those before it."""
    tokens = inputs["tokens"]
    names = [name for name in inputs if name != "tokens"]
    weights = {name: d.variables(inputs[name]) for name in names}
    model = Model(params["config"], weights)
    logits = [model.logits(sequence) for sequence in tokens]
    rows = [row for sequence in logits for row in sequence]
    targets = [target for sequence in tokens for target in [*sequence[1:], IGNORED]]
    loss = cross_entropy.forward(
        {"ignore_index": IGNORED}, {"logits": rows, "targets": targets}
    )["loss"]
    gradients = d.gradients(loss, *weights.values())
    outputs = {"loss": loss.value, "logits": d.over(d.value, logits)}
    return outputs | {f"d_{name}": d for name, d in zip(names, gradients, strict=True)}
