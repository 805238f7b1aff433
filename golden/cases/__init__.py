"""The inputs of the golden cases, by family. Expected outputs are never written here."""

from . import attention, init_scale, l4q, lora, lr_qat, quantize, storage, straight_through
from . import training, transformer

FILES = [
    *quantize.FILES,
    *straight_through.FILES,
    *init_scale.FILES,
    *storage.FILES,
    *lora.FILES,
    *l4q.FILES,
    *lr_qat.FILES,
    *transformer.FILES,
    *attention.FILES,
    *training.FILES,
]
