"""Independent oracles for the golden vectors: exact rationals and 60-digit decimals.

Nothing here is written the way an array library or the crates of this project write it. A forward
function is its formula, over scalars, one index at a time. A code is found by trying every code of
the grid. A gradient is not a second formula: it is the derivative of the forward formula, taken on
the recorded computation (`derivative.py`). So a slip in a hand-derived backward cannot be repeated
here.

Each entry of OPERATIONS takes `(params, inputs)` and returns the output tensors. Tensors are nested
lists; the numbers are Fraction, or Decimal where `ORIGINS` says so.
"""

from . import (
    adamw,
    affine,
    attention,
    awq,
    cross_entropy,
    dynamic_quantize,
    gptq,
    init_scale,
    l4q,
    llama,
    lora,
    low_rank_init,
    lr_qat,
    lwc,
    nf4,
    peqa,
    qa_lora,
    qat,
    qat_lora,
    quantize,
    rms_norm,
    rope,
    rtn,
    storage,
    swiglu,
)

RATIONAL = "exact-rational 1"
DECIMAL = "decimal-60 1"

OPERATIONS = {
    "fake_quantize.forward": (RATIONAL, quantize.forward),
    "fake_quantize.backward": (RATIONAL, quantize.backward),
    "affine.quantize": (RATIONAL, affine.quantize),
    "affine.dequantize": (RATIONAL, affine.dequantize),
    "init_scale": (RATIONAL, init_scale.init_scale),
    "cast": (RATIONAL, storage.cast),
    "round_scale.forward": (RATIONAL, storage.round_scale_forward),
    "round_scale.backward": (RATIONAL, storage.round_scale_backward),
    "pack": (RATIONAL, storage.pack),
    "unpack": (RATIONAL, storage.unpack),
    "dynamic_quantize.forward": (RATIONAL, dynamic_quantize.forward),
    "dynamic_quantize.backward": (RATIONAL, dynamic_quantize.backward),
    "lwc.forward": (DECIMAL, lwc.forward),
    "lwc.backward": (DECIMAL, lwc.backward),
    "awq.scale": (DECIMAL, awq.scale),
    "awq.clip": (RATIONAL, awq.clip),
    "svd_init": (DECIMAL, low_rank_init.svd_init),
    "loftq_init": (DECIMAL, low_rank_init.loftq_init),
    "lora.forward": (RATIONAL, lora.forward),
    "lora.backward": (RATIONAL, lora.backward),
    "l4q.forward": (RATIONAL, l4q.forward),
    "l4q.backward": (RATIONAL, l4q.backward),
    "l4q.merge": (RATIONAL, l4q.merge),
    "lr_qat.downcast": (RATIONAL, lr_qat.downcast),
    "lr_qat.forward": (RATIONAL, lr_qat.forward),
    "lr_qat.backward": (RATIONAL, lr_qat.backward),
    "lr_qat.merge": (RATIONAL, lr_qat.merge),
    "qa_lora.forward": (RATIONAL, qa_lora.forward),
    "qa_lora.backward": (RATIONAL, qa_lora.backward),
    "qa_lora.merge": (RATIONAL, qa_lora.merge),
    "peqa.forward": (RATIONAL, peqa.forward),
    "peqa.backward": (RATIONAL, peqa.backward),
    "rtn.quantize": (RATIONAL, rtn.quantize),
    "qat.forward": (RATIONAL, qat.forward),
    "qat.backward": (RATIONAL, qat.backward),
    "qat_lora.forward": (RATIONAL, qat_lora.forward),
    "qat_lora.backward": (RATIONAL, qat_lora.backward),
    "nf4.quantize": (RATIONAL, nf4.quantize),
    "gptq.quantize": (RATIONAL, gptq.quantize),
    "rms_norm.forward": (DECIMAL, rms_norm.forward),
    "rms_norm.backward": (DECIMAL, rms_norm.backward),
    "rope.forward": (DECIMAL, rope.forward),
    "rope.backward": (DECIMAL, rope.backward),
    "attention.forward": (DECIMAL, attention.forward),
    "attention.backward": (DECIMAL, attention.backward),
    "swiglu.forward": (DECIMAL, swiglu.forward),
    "swiglu.backward": (DECIMAL, swiglu.backward),
    "cross_entropy.forward": (DECIMAL, cross_entropy.forward),
    "cross_entropy.backward": (DECIMAL, cross_entropy.backward),
    "adamw.step": (DECIMAL, adamw.step),
    "llama.loss_and_gradients": (DECIMAL, llama.loss_and_gradients),
}
