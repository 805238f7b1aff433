"""A merged model in llama.cpp: dequantized tensors, tokens of texts, perplexity over the same tokens,
greedy continuations.

Tensors are dequantized by the gguf package and must be the trained ones in every bit. The model is then
run twice. As exported, llama.cpp rounds activations to 8 bits before it multiplies, so perplexity and
continuations come near: the mean loss is to be within NEAR nats, and a continuation may part from ours
only at a tie of TIE logits. As a copy that llama.cpp itself makes of the file with its weights in f32,
it computes in f32 as we do: the loss is to be within SAME nats and every continuation equal.
"""

import ctypes
import json
import math
import pathlib
import sys

import gguf
import llama_cpp
import numpy
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from exported import export, folder, options, plumbline, same_bits

# What rounding activations to 8 bits may do to the mean loss of a window, in nats.
NEAR = 0.02
# And to a logit: continuations may part where two tokens are nearer than this in llama.cpp.
TIE = 0.25
# Two orders of f32 sums in the mean loss.
SAME = 1e-5

# What tokenizers are apart in: runs of blanks, digits, other scripts, bytes that are no text of their own.
TEXTS = [
    "",
    " leading and trailing ",
    "two  blanks,   three,     five; 1234567 and 3.14159",
    "tabs\tand\n\nlines\r\nand \n blanks",
    "na\u00efve \u03a9 \u4f60\u597d \U0001f600 \u200b \ufb01",
    "don't we'LL I'm",
    "x = {'a': [1, 2], \"b\": 0x41}  # <0x41>",
]

NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hugging_face(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
    return f"{NAMES[parts[0]]}.weight"


def rows_of_halves(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows from the order of turned pairs to that of transformers."""
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def tensors(file: pathlib.Path, plain: dict[str, numpy.ndarray], config: dict) -> list[str]:
    """Names of the tensors that are not ours."""
    wrong, seen = [], set()
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        name = hugging_face(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        values = values.reshape([int(side) for side in reversed(tensor.shape)])
        if ".attn_q." in tensor.name:
            values = rows_of_halves(values, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            values = rows_of_halves(values, config["num_key_value_heads"])
        seen.add(name)
        if not same_bits(plain[name], values):
            wrong.append(name)
    return wrong + sorted(set(plain) - seen)


def as_f32(file: pathlib.Path) -> pathlib.Path:
    """llama.cpp's own copy of a file with every tensor in f32."""
    copy = file.with_suffix(".f32.gguf")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    parameters.allow_requantize = True
    failed = llama_cpp.llama_model_quantize(
        str(file).encode(), str(copy).encode(), ctypes.byref(parameters)
    )
    if failed:
        sys.exit(f"llama.cpp does not copy {file}")
    return copy


def load(file: pathlib.Path, context: int) -> llama_cpp.Llama:
    """Keys and values in f32. Weights stay as the file has them: what llama.cpp repacks them to depends
    on the processor, and its tiles for AMX crash on virtual machines that name AMX and do not have it."""
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def without_extra_buffers():
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_cpp.llama_model_default_params = without_extra_buffers
    model = llama_cpp.Llama(
        str(file), n_ctx=context, n_batch=context, logits_all=True, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )
    llama_cpp.llama_cpp.llama_model_default_params = defaults
    return model


def other_tokens(model: llama_cpp.Llama, tokenizer: Tokenizer, text: str) -> list[str]:
    """The texts that llama.cpp makes other tokens of."""
    texts = TEXTS + text.splitlines()[:2000] + [text[:20000]]
    ours = [tokenizer.encode(text).ids for text in texts]
    theirs = [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
    return [text for text, a, b in zip(texts, ours, theirs) if a != b]


def mean_loss(model: llama_cpp.Llama, ids: list[int], context: int) -> float:
    """Over consecutive windows, each token but the first of a window predicted."""
    losses = []
    for start in range(0, len(ids) - context + 1, context):
        window = ids[start : start + context]
        model.reset()
        model.eval(window)
        logits = numpy.array(model.scores[: context - 1], dtype=numpy.float64)
        largest = logits.max(1)
        totals = largest + numpy.log(numpy.exp(logits - largest[:, None]).sum(1))
        losses.extend(totals - logits[range(context - 1), window[1:]])
    return float(numpy.mean(losses))


def parting(model: llama_cpp.Llama, prompt: list[int], ours: list[int]) -> tuple[int, float]:
    """How many of our tokens are also llama.cpp's most likely ones, and how far behind its own the
    first other one is, in logits."""
    model.reset()
    model.eval(prompt)
    for place, token in enumerate(ours):
        logits = model.scores[model.n_tokens - 1]
        if int(numpy.argmax(logits)) != token:
            return place, float(logits.max() - logits[token])
        model.eval([token])
    return len(ours), 0.0


def is_near(
    model: llama_cpp.Llama, ids: list[int], context: int, our_loss: float,
    continuations: list[tuple[list[int], list[int]]], near: float, tie: float,
) -> bool:
    """Prints a file's perplexity and continuations of prompts beside ours."""
    their_loss = mean_loss(model, ids, context)
    print(
        f"perplexity of {len(ids)} tokens: {math.exp(our_loss):.4f} here, "
        f"{math.exp(their_loss):.4f} in llama.cpp, {their_loss - our_loss:+.2e} nats"
    )
    passes = abs(their_loss - our_loss) <= near
    equal = 0
    for place, (prompt, continuation) in enumerate(continuations):
        alike, behind = parting(model, prompt, continuation)
        equal += alike == len(continuation)
        passes &= alike == len(continuation) or behind <= tie
        if alike < len(continuation):
            print(
                f"continuation {place}: {alike} of {len(continuation)} tokens alike, "
                f"then ours is {behind:.4f} behind"
            )
    print(f"{equal} of {len(continuations)} greedy continuations are equal")
    return passes


def main() -> int:
    chosen = options(
        __doc__,
        ("--format", {"default": "gguf-q4_0"}),
        ("--text", {"type": pathlib.Path, "required": True}),
        ("--context", {"type": int, "default": 256}),
        ("--windows", {"type": int, "default": 8}),
        ("--prompts", {"type": int, "default": 8}),
    )
    with folder() as root:
        root = pathlib.Path(root)
        file = export(chosen, chosen.format, root / "model.gguf")
        plain = export(chosen, "hugging-face", root / "plain")
        config = json.loads((plain / "config.json").read_text())
        wrong = tensors(file, load_file(plain / "model.safetensors"), config)
        for name in wrong:
            print(f"{name}: not the trained values")
        print("every tensor has the trained bits" if not wrong else f"{len(wrong)} tensors differ")
        model = load(file, chosen.context)
        text = chosen.text.read_text()
        other = other_tokens(model, Tokenizer.from_file(str(plain / "tokenizer.json")), text)
        for line in other[:10]:
            print(f"other tokens: {line!r}")
        print(f"{len(other)} texts are other tokens")
        tokens = model.tokenize(text.encode(), add_bos=False, special=False)
        ids = tokens[: chosen.context * chosen.windows]
        (root / "ids.json").write_text(json.dumps(ids))
        ours = plumbline(
            chosen.plumbline, "eval", "perplexity", "--model", chosen.merged,
            "--token-ids", root / "ids.json", "--context", chosen.context,
        )
        our_loss, continuations = math.log(ours["perplexity"]), []
        for place in range(chosen.prompts):
            prompt = tokens[place * chosen.context :][:16]
            told = plumbline(
                chosen.plumbline, "generate", "--model", chosen.merged, "--tokens", 32,
                "--temperature", 0, "--prompt-ids", ",".join(map(str, prompt)),
            )
            continuations.append((prompt, told["new_ids"]))
        judged = ids, chosen.context, our_loss, continuations
        print("as exported:")
        passes = is_near(model, *judged, NEAR, TIE)
        model.close()
        print("weights in f32:")
        passes &= is_near(load(as_f32(file), chosen.context), *judged, SAME, 0.0)
    return 0 if passes and not wrong and not other else 1


if __name__ == "__main__":
    sys.exit(main())
