"""The inputs of the golden cases, by family. Expected outputs are never written here."""

from . import (
    affine,
    attention,
    init_scale,
    l4q,
    lora,
    peqa,
    qa_lora,
    quantize,
    rtn,
    straight_through,
    training,
    transformer,
)

FILES = [
    *quantize.FILES,
    *straight_through.FILES,
    *affine.FILES,
    *init_scale.FILES,
    *lora.FILES,
    *l4q.FILES,
    *qa_lora.FILES,
    *peqa.FILES,
    *rtn.FILES,
    *transformer.FILES,
    *attention.FILES,
    *training.FILES,
]
