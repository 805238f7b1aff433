#!/usr/bin/env bash
# Makes the model inside the program again, from the package that its training text comes from, and
# compares. Needs Python 3.11 with pip, and Rust; takes about half an hour on 2 cores.
#
# The bits of matrix products follow the processor's vector width, so another kind of processor ends
# at slightly different weights: then compare the perplexities in runs/tiny/metrics.jsonl with
# docs/results/pretraining.md.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python3 optimized/assets/prepare_texts.py
cargo run --release -p plumbline -- pretrain optimized/assets/tiny/pretrain.toml
for file in config.json tokenizer.json model.safetensors; do
    cmp "runs/tiny/model/$file" "optimized/assets/tiny/model/$file" && echo "$file: the same bytes"
done
