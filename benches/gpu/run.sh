#!/usr/bin/env bash
# Judges and times the CUDA backend: on a machine with an NVIDIA driver, without Rust and without a
# CUDA toolkit. `make gpu-bundle` packs this script with the programs and the golden vectors.
#
#     [ROUNDS=3] ./run.sh [results folder]
#
# Every step writes its own file there; summary.md names the steps with their exit codes, and has the
# tables of PyTorch beside this. The script's exit code is 1 when a step failed. A step whose program
# the machine lacks is ignored, and the summary says so.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/results}
mkdir -p "$out"
rounds=${ROUNDS:-3} # turns of PyTorch and this, each in a process of its own
export REQUIRE_CUDA=1
# cuBLAS may come from a toolkit, or with PyTorch.
torch_libraries=$(python3 - 2>/dev/null <<'PYTHON'
import importlib.util, pathlib
spec = importlib.util.find_spec("nvidia")
folders = [pathlib.Path(place) for place in (spec.submodule_search_locations if spec else [])]
print(":".join(str(lib) for folder in folders for lib in folder.glob("*/lib")))
PYTHON
)
export LD_LIBRARY_PATH="$here/lib:$torch_libraries:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}"
summary=$out/summary.md
failed=0
tables=()
{
  echo "# A run on a GPU"
  echo
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  echo
  echo "| step | exit code | seconds | last line |"
  echo "|---|---|---|---|"
} > "$summary"

# step NAME COMMAND...
step() {
  local name=$1 start=$SECONDS
  shift
  "$@" > "$out/$name.txt" 2>&1
  local code=$?
  [ $code -eq 0 ] || failed=1
  echo "| $name | $code | $((SECONDS - start)) | $(tail -n 1 "$out/$name.txt" | tr '|' ' ') |" >> "$summary"
}

ignored() {
  echo "| $1 | ignored | 0 | $2 |" >> "$summary"
}

step conformance_golden "$here/conform" check "$here/golden" --subject cuda --report "$out/report"
step fresh_cases "$here/conform" generate --out "$out/cases" --count 100 --seed 31
step conformance_fresh "$here/conform" check "$out/cases" --subject cuda
step conformance_golden_bf16 "$here/conform" check "$here/golden" --subject cuda-bf16
step conformance_fresh_bf16 "$here/conform" check "$out/cases" --subject cuda-bf16
rm -rf "$out/cases"
step properties "$here/conform" properties --subject cuda --count 40
if command -v compute-sanitizer > /dev/null; then
  step sanitizer compute-sanitizer --error-exitcode 1 \
    "$here/conform" check "$here/golden/l4q" "$here/golden/transformer" --subject cuda
else
  ignored sanitizer "compute-sanitizer is not installed"
fi
step criterion "$here/l4q_linear_bench" --bench l4q_linear/cuda
# The plan of a 7B model says up to 17.5 GiB; what the driver and cuBLAS keep comes on top.
memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
for method in l4q lora lr_qat qa_lora; do
  if [ "${memory:-0}" -ge 22000 ]; then
    step "train_7b_$method" "$here/plumbline" bench step --config llama-2-7b --method "$method" \
      --tokens 2048 --recompute blocks --device cuda --compute bf16
  else
    ignored "train_7b_$method" "less than 22 GB of memory"
  fi
done
if python3 -c 'import torch' 2> /dev/null; then
  for compute in bf16 f32; do
    tables+=("linears_$compute")
    step "linears_$compute" python3 "$here/peers/linears.py" --device cuda --compute $compute \
      --compiled --rounds "$rounds" --binary "$here/linear" --golden "$here/golden" \
      --json "$out/linears_$compute.json"
  done
  for method in l4q lora; do
    tables+=("llama_2_7b_$method")
    step "llama_2_7b_$method" python3 "$here/peers/llama_step.py" --device cuda --compute bf16 \
      --compiled --recompute --config llama-2-7b --method $method --tokens 2048 --group 128 \
      --rounds "$rounds" --repeats 5 --binary "$here/plumbline" --golden "$here/golden" \
      --json "$out/llama_2_7b_$method.json"
  done
else
  ignored peers "PyTorch is not installed"
fi
# Step time, floor and PyTorch, one table after the other.
for name in "${tables[@]}"; do
  { echo; echo "## $name"; echo; cat "$out/$name.txt"; } >> "$summary"
done
cat "$summary"
exit $failed
