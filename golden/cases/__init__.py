"""The inputs of the golden cases, by family. Expected outputs are never written here."""

from . import (
    attention,
    gptq,
    init_scale,
    l4q,
    lora,
    nf4,
    quantize,
    straight_through,
    training,
    transformer,
)

FILES = [
    *quantize.FILES,
    *straight_through.FILES,
    *init_scale.FILES,
    *lora.FILES,
    *l4q.FILES,
    *nf4.FILES,
    *gptq.FILES,
    *transformer.FILES,
    *attention.FILES,
    *training.FILES,
]
