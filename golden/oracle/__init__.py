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
    attention,
    cross_entropy,
    gptq,
    init_scale,
    l4q,
    lora,
    nf4,
    quantize,
    rms_norm,
    rope,
    swiglu,
)

RATIONAL = "exact-rational 1"
DECIMAL = "decimal-60 1"

OPERATIONS = {
    "fake_quantize.forward": (RATIONAL, quantize.forward),
    "fake_quantize.backward": (RATIONAL, quantize.backward),
    "init_scale": (RATIONAL, init_scale.init_scale),
    "lora.forward": (RATIONAL, lora.forward),
    "lora.backward": (RATIONAL, lora.backward),
    "l4q.forward": (RATIONAL, l4q.forward),
    "l4q.backward": (RATIONAL, l4q.backward),
    "l4q.merge": (RATIONAL, l4q.merge),
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
}
