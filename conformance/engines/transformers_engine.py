"""A merged model as compressed-tensors in transformers: every decompressed weight, and the logits.

The folder is loaded by transformers with the compressed-tensors package, the dequantized one by
transformers alone. Their weights must be the same bits, and with them the logits; the logits are also
compared with plumbline's own, within BOUND of the largest.
"""

import json
import pathlib
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from exported import export, folder, options, plumbline

# Sums of another order in float32, relative to the largest logit.
BOUND = 1e-4


def load(path: pathlib.Path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def weights(packed: pathlib.Path, plain: dict[str, torch.Tensor]) -> tuple[int, list[str]]:
    """Layers, and names of those that are not ours after the package's own decompression."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    config = json.loads((packed / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    args = QuantizationArgs(**{k: v for k, v in group["weights"].items() if v is not None})
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    stored = load_file(packed / "model.safetensors")
    layers = sorted(n.removesuffix(".weight_packed") for n in stored if n.endswith(".weight_packed"))
    wrong = []
    for layer in layers:
        prefix = layer + "."
        state = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
        weight = compressor.decompress(state, scheme)["weight"]
        if not torch.equal(weight.float().view(torch.int32), plain[prefix + "weight"].view(torch.int32)):
            wrong.append(layer)
    return len(layers), wrong


@torch.no_grad()
def main() -> int:
    chosen = options(__doc__)
    with folder() as root:
        root = pathlib.Path(root)
        packed = export(chosen, "compressed-tensors", root / "packed")
        plain = export(chosen, "hugging-face", root / "plain")
        layers, wrong = weights(packed, load_file(plain / "model.safetensors"))
        for name in wrong:
            print(f"{name}: not the trained weights")
        print(f"{layers - len(wrong)} of {layers} layers decompress to the trained bits")
        reference = load(plain)
        vocabulary = reference.config.vocab_size
        ids = [(p * p * 31 + 7 * p) % vocabulary for p in range(64)]
        (root / "ids.json").write_text(json.dumps(ids))
        plumbline(
            chosen.plumbline, "eval", "logits", "--model", chosen.merged,
            "--token-ids", root / "ids.json", "--out", root / "logits.safetensors",
        )
        ours = load_file(root / "logits.safetensors")["logits"]
        dequantized = reference(torch.tensor([ids])).logits[0]
        theirs = load(packed)(torch.tensor([ids])).logits[0]
        equal = torch.equal(dequantized, theirs)
        print(f"logits of the packed and the dequantized model: {'equal' if equal else 'not equal'}")
        apart = (ours - theirs).abs().max() / ours.abs().max()
        print(f"logits here and in transformers: {apart:.2e} of the largest apart")
    return 0 if not wrong and layers and equal and apart <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
