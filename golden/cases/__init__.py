"""The inputs of the golden cases, by family. Expected outputs are never written here."""

from . import attention, init_scale, l4q, lora, lr_qat, lr_qat_downcast, quantize, storage
from . import straight_through, training, transformer
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
from . import attention, dynamic_quantize, init_scale, l4q, lora, lwc, qat, quantize
from . import straight_through, training, transformer
from . import attention, awq, init_scale, l4q, lora, low_rank_init, quantize, straight_through
from . import training, transformer

FILES = [
    *quantize.FILES,
    *straight_through.FILES,
    *affine.FILES,
    *init_scale.FILES,
    *storage.FILES,
    *awq.FILES,
    *low_rank_init.FILES,
    *lora.FILES,
    *l4q.FILES,
    *lr_qat_downcast.FILES,
    *lr_qat.FILES,
    *qa_lora.FILES,
    *peqa.FILES,
    *rtn.FILES,
    *dynamic_quantize.FILES,
    *lwc.FILES,
    *lora.FILES,
    *l4q.FILES,
    *qat.FILES,
    *transformer.FILES,
    *attention.FILES,
    *training.FILES,
]
