"""The inputs of the golden cases, by family. Expected outputs are never written here."""

from . import attention, awq, init_scale, l4q, lora, low_rank_init, quantize, straight_through
from . import training, transformer

FILES = [
    *quantize.FILES,
    *straight_through.FILES,
    *init_scale.FILES,
    *awq.FILES,
    *low_rank_init.FILES,
    *lora.FILES,
    *l4q.FILES,
    *transformer.FILES,
    *attention.FILES,
    *training.FILES,
]
