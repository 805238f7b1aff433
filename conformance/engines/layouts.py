"""A merged model as GPTQ (both versions) and AWQ, unpacked by GPTQModel's and AutoAWQ's own code.

Every code less its zero point and every scale must be the merged model's, and every dequantized weight
the trained one's in every bit.

    pip install --no-deps gptqmodel==7.7.0 autoawq==0.2.9      (BUILD_CUDA_EXT=0 without a GPU)
"""

import importlib.util
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file

from exported import export, folder, options


def merged(path: pathlib.Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of each layer, steps from the zero point [out, in] and scales [out, groups]."""
    stored = load_file(path / "model.safetensors")
    layers = {}
    for name in (n.removesuffix(".codes") for n in stored if n.endswith(".codes")):
        steps, scale = stored[f"{name}.codes"].int(), stored[f"{name}.scale"]
        if f"{name}.zero_point" in stored:
            zeros = stored[f"{name}.zero_point"]
            steps = steps - zeros.int().repeat_interleave(steps.shape[1] // zeros.shape[1], 1)
        layers[name] = steps, scale
    return layers


def gptq(state: dict[str, torch.Tensor], config: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps [out, in] and weight [out, in], by GPTQModel."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import FORMAT
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    inputs, outputs = state["g_idx"].shape[0], state["scales"].shape[1]
    layer = TorchLinear(
        bits=config["bits"], group_size=config["group_size"], sym=config["sym"],
        desc_act=config["desc_act"], in_features=inputs, out_features=outputs,
    )
    # Half of what is stored is exact in float32 too, where no product is rounded.
    layer.load_state_dict({**state, "scales": state["scales"].float()}, strict=True, assign=True)
    if config["checkpoint_format"] == "gptq":
        convert_gptq_v1_to_v2_format_module(
            layer, bits=config["bits"], pack_dtype=torch.int32
        )
    layer.post_init()
    weight = layer.dequantize_weight()
    layer.scales = torch.ones_like(layer.scales)
    layer.clear_weight_cache()
    return layer.dequantize_weight().T.int(), weight.T


def packing_utils():
    """AutoAWQ's module for its packing, without the rest of the package."""
    (where,) = importlib.util.find_spec("awq").submodule_search_locations
    path = pathlib.Path(where) / "utils" / "packing_utils.py"
    spec = importlib.util.spec_from_file_location("packing_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def awq(state: dict[str, torch.Tensor], config: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, by AutoAWQ."""
    utils = packing_utils()
    codes, zeros = utils.unpack_awq(state["qweight"], state["qzeros"], config["bits"])
    codes, zeros = utils.reverse_awq_order(codes, zeros, config["bits"])
    codes, zeros = codes.int() & 15, zeros.int() & 15
    size = codes.shape[0] // zeros.shape[0]
    weight = utils.dequantize_gemm(
        state["qweight"], state["qzeros"], state["scales"].float(), config["bits"], size
    )
    return (codes - zeros.repeat_interleave(size, 0)).T, weight.T


def wrong(path: pathlib.Path, layers: dict, plain: dict, read) -> list[str]:
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    stored = load_file(path / "model.safetensors")
    found = []
    for name, (steps, scale) in layers.items():
        prefix = name + "."
        state = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
        their_steps, weight = read(state, config)
        times = state["scales"].shape[0] // scale.shape[1]
        same_scale = torch.equal(state["scales"].T.float(), scale.repeat_interleave(times, 1))
        bits = [values.contiguous().view(torch.int32) for values in (weight, plain[f"{name}.weight"])]
        if not (torch.equal(their_steps, steps) and same_scale and torch.equal(*bits)):
            found.append(name)
    return found


@torch.no_grad()
def main() -> int:
    chosen = options(__doc__, ("--formats", {"default": "gptq,gptq-v2,awq"}))
    failed = 0
    with folder() as root:
        root = pathlib.Path(root)
        plain = load_file(export(chosen, "hugging-face", root / "plain") / "model.safetensors")
        layers = merged(chosen.merged)
        for format in chosen.formats.split(","):
            read = awq if format == "awq" else gptq
            found = wrong(export(chosen, format, root / format), layers, plain, read)
            for name in found:
                print(f"{format}: {name} is not the merged layer")
            print(f"{format}: {len(layers) - len(found)} of {len(layers)} layers equal")
            failed += len(found)
    return 1 if failed or not layers else 0


if __name__ == "__main__":
    sys.exit(main())
