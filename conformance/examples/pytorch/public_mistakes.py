"""Eight mistakes of public L4Q code, each planted into layers.py by one function.

They were read in uni1285/LLM-Quantization at commit 55e2e04; docs/methods/l4q.md lists them. Here
each is what the mistake amounts to in a layer that is otherwise right, so that it shows in those
tensors alone that it touches. Values stay exact: `t - t.detach()` is zero and has a gradient.
"""

import torch
from torch.nn.functional import linear

import layers


def unmasked_weight_gradient():
    """Weights that are clipped get a gradient: the mask is computed, then overwritten.

    lit_gpt/quant.py, query, key and value.
    """
    clean = layers.FakeQuantize.forward

    def forward(self, weight):
        codes, output = clean(self, weight.detach())
        return codes, output + (weight - weight.detach())

    layers.FakeQuantize.forward = forward


def offset_missing_in_d_x():
    """d_x from codes * scale: right until the offset moves. lit_gpt/quant.py."""

    def forward(self, x):
        codes, fake_quantized = self.quantized()
        scale, _ = self.quantizer.grid()
        seen_by_x = linear(x, (codes * scale).detach())
        return linear(x.detach(), fake_quantized) + (seen_by_x - seen_by_x.detach())

    layers.L4q.forward = forward


def offset_gradient_transposed():
    """The offset's gradient is transposed before it is grouped: sums of other weights.

    peft/quant/l4q_quantizer.py.
    """
    clean = layers.FakeQuantize.grid

    class Expand(torch.autograd.Function):
        @staticmethod
        def forward(ctx, offset, group_size):
            ctx.shape, ctx.group_size = offset.shape, group_size
            return layers.expand(offset, group_size)

        @staticmethod
        def backward(ctx, d_expanded):
            return d_expanded.T.reshape(-1, ctx.group_size).sum(-1).reshape(ctx.shape), None

    def grid(self):
        scale, _ = clean(self)
        offset = layers.scale_gradient(self.offset, self.factor)
        return scale, Expand.apply(offset, self.group_size)

    layers.FakeQuantize.grid = grid


def first_sample_only():
    """Only the first sample of a micro-batch enters the gradient of the weight.

    lit_gpt/quant.py and peft/quant/l4q_quantizer.py.
    """

    def forward(self, x):
        _, fake_quantized = self.quantized()
        return torch.cat([linear(x[:1], fake_quantized), linear(x[1:], fake_quantized.detach())])

    layers.L4q.forward = forward


def frozen_scale():
    """Scale and offset are created frozen, and the optimizer does not know them.

    lit_gpt/lora.py with finetune/lora.py, query, key and value.
    """
    clean = layers.L4q.__init__

    def init(self, weight, update, quantizer):
        clean(self, weight, update, quantizer.requires_grad_(False))

    layers.L4q.__init__ = init


def other_initialisation():
    """Three sigma of LSQ+ in place of the paper's rule. peft/quant/l4q_layer.py."""
    clean = layers.init_scale

    def init_scale(weight, bits, group_size, rule):
        if rule != "l4q":
            return clean(weight, bits, group_size, rule)
        groups = weight.reshape(weight.shape[0], -1, group_size)
        mean, reach = groups.mean(-1), 3 * groups.std(-1, correction=min(1, group_size - 1))
        scale = torch.maximum((mean - reach).abs(), (mean + reach).abs()) / 2 ** (bits - 1)
        return torch.where(scale > 0, scale, 1.0)

    layers.init_scale = init_scale


def other_gradient_scale():
    """1 / (sqrt(group_size) * qmax), whatever was asked for. peft/quant/l4q_layer.py."""
    clean = layers.gradient_factor

    def gradient_factor(rule, bits, group_size, groups):
        return clean("peft", bits, group_size, groups)

    layers.gradient_factor = gradient_factor


def merge_in_other_precision():
    """Trains with the quantizer's argument in bf16 and merges in the full type: other codes.

    evaluate/lora.py.
    """

    clean = layers.L4q.quantized

    def quantized(self):
        quantizer = self.quantizer
        exact = quantizer.argument
        quantizer.argument = lambda *of: exact(*of).bfloat16().to(of[0].dtype)
        try:
            return clean(self)
        finally:
            del quantizer.argument

    layers.L4q.quantized = quantized  # what `forward` uses and `merge` does not


MISTAKES = {
    mistake.__name__: mistake
    for mistake in (
        unmasked_weight_gradient,
        offset_missing_in_d_x,
        offset_gradient_transposed,
        first_sample_only,
        frozen_scale,
        other_initialisation,
        other_gradient_scale,
        merge_in_other_precision,
    )
}
