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
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(path: pathlib.Path):
    """Tokenizer and model of a folder or a GGUF file, float32."""
    where = {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    return tokenizer, AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()


def choices(item: dict) -> tuple[str, list[str]]:
    """What is read, and the ways to go on."""
    labels = item["instruction"].rsplit("Answer format:", 1)[1].strip().split("/")
    return item["instruction"] + "\n", [f" the correct answer is {label}" for label in labels]


@torch.no_grad()
def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Of the tokens that the continuation adds."""
    whole = tokenizer(context + continuation)["input_ids"]
    start = len(tokenizer(context.rstrip())["input_ids"])
    logits = model(torch.tensor([whole[:-1]])).logits[0, start - 1 :].double()
    targets = torch.tensor(whole[start:])
    return torch.log_softmax(logits, -1).gather(1, targets[:, None]).sum().item()


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
    largest, other, close = 0.0, [], 0
    for sample in ours:
        context, texts = choices(items[sample["item"]])
        theirs = [log_likelihood(model, tokenizer, context, text) for text in texts]
        error = max(abs(a - b) for a, b in zip(theirs, sample["log_likelihoods"], strict=True))
        largest = max(largest, error)
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
        f"{largest:.2e}; answered differently: {len(other)}, and {close} within that difference"
    )
    if other:
        print("questions:", *other)
    return 1 if other or largest > 1e-2 else 0


if __name__ == "__main__":
    sys.exit(main())
