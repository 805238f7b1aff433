"""Multiple choice with transformers, compared question by question with `plumbline eval choice`.

    pip install torch transformers gguf accelerate
    plumbline eval choice --model MODEL --items ARC-Easy.json --task instruction --samples ours.jsonl
    python3 choice.py --model MODEL --items ARC-Easy.json ours.jsonl

MODEL is a Hugging Face folder or a GGUF file. The log-likelihoods are computed here from the questions,
in float32 and by other code than plumbline's; the exit code is 1 when a question is answered
differently although its two best choices are further apart than the two computations.
"""

import argparse
import json
import os
import pathlib
import sys

import gguf
import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


def load(path: pathlib.Path):
    """Tokenizer and model of a folder or a GGUF file, float32."""
    where = {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    if path.is_file():
        split = gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents()
        # transformers makes GPT-2's tokenizer of every such file.
        if split == "smollm":
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
                [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
            )
        elif split != "gpt-2":
            sys.exit(f"{path}: tokenizer.ggml.pre is {split}, this script knows gpt-2 and smollm")
    return tokenizer, AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()


def choices(item: dict) -> tuple[str, list[str]]:
    """What is read, and the ways to go on."""
    labels = item["instruction"].rsplit("Answer format:", 1)[1].strip().split("/")
    return item["instruction"] + "\n", [f" the correct answer is {label}" for label in labels]


@torch.no_grad()
def log_likelihoods(model, tokenizer, context: str, continuations: list[str]) -> list[float]:
    """Of the tokens that each continuation adds; what all of them begin with is run once."""
    start = len(tokenizer(context.rstrip())["input_ids"])
    wholes = [tokenizer(context + continuation)["input_ids"] for continuation in continuations]
    # The token before the first judged one is run with each continuation, for its logits.
    shared = min(len(os.path.commonprefix(wholes)), start - 1)
    cache = DynamicCache(config=model.config)
    if shared:
        model(torch.tensor([wholes[0][:shared]]), past_key_values=cache, logits_to_keep=1)
    sums = []
    for whole in wholes:
        rest = torch.tensor([whole[shared:-1]])
        logits = model(rest, past_key_values=cache).logits[0, start - 1 - shared :].double()
        cache.crop(-rest.shape[1])
        targets = torch.tensor(whole[start:])
        sums.append(torch.log_softmax(logits, -1).gather(1, targets[:, None]).sum().item())
    return sums


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("samples", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--items", type=pathlib.Path, required=True)
    options = parser.parse_args()
    items = json.loads(options.items.read_text())
    ours = [json.loads(line) for line in options.samples.read_text().splitlines()]
    if not ours:
        sys.exit(f"{options.samples}: holds no question")
    tokenizer, model = load(options.model)
    largest, where, other, close = 0.0, None, [], 0
    for sample in ours:
        context, texts = choices(items[sample["item"]])
        theirs = log_likelihoods(model, tokenizer, context, texts)
        error = max(abs(a - b) for a, b in zip(theirs, sample["log_likelihoods"], strict=True))
        if error > largest:
            largest, where = error, sample["item"]
        chosen = theirs.index(max(theirs))
        if chosen != sample["chosen"]:
            best = sorted(theirs)[-2:]
            if best[1] - best[0] <= 2 * error:
                close += 1
            else:
                other.append(sample["item"])
    right = sum(sample["chosen"] == sample["answer"] for sample in ours)
    print(
        f"{len(ours)} questions, {right} answered rightly; log-likelihoods differ by at most "
        f"{largest:.2e} (question {where}); answered differently: {len(other)}, and {close} within "
        "that difference"
    )
    if other:
        print("questions:", *other)
    return 1 if other or largest > 1e-2 else 0


if __name__ == "__main__":
    sys.exit(main())
