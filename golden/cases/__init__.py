"""The inputs of the golden cases, by family. Expected outputs are never written here."""

from . import attention, dynamic_quantize, init_scale, l4q, lora, lwc, qat, quantize
from . import straight_through, training, transformer

FILES = [
    *quantize.FILES,
    *straight_through.FILES,
    *init_scale.FILES,
    *dynamic_quantize.FILES,
    *lwc.FILES,
    *lora.FILES,
    *l4q.FILES,
    *qat.FILES,
    *transformer.FILES,
    *attention.FILES,
    *training.FILES,
]
