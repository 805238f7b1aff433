"""Judges subject.py as it is, which must pass, and with each planted mistake, which must not.

    python3 check_bugs.py --conform PATH [--seed N] [--count N]

A mistake must fail for its own reason: in the tensors that it touches, all of them and no others.
Exit status 0 where everything is as expected, 1 where not.
"""

import argparse
import collections
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile

import public_mistakes
import subject

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parents[2] / "golden"
NO_ANSWER = "(no answer to compare)"

FAILS = {
    "unmasked_weight_gradient": {
        "fake_quantize.backward": "d_weight",
        "l4q.backward": "d_lora_a d_lora_b",
    },
    "offset_missing_in_d_x": {"l4q.backward": "d_x"},
    "offset_gradient_transposed": {
        "fake_quantize.backward": "d_offset",
        "l4q.backward": "d_offset",
    },
    "first_sample_only": {"l4q.backward": "d_lora_a d_lora_b d_scale d_offset"},
    "frozen_scale": {"l4q.backward": "d_scale d_offset"},
    "other_initialisation": {"init_scale": "scale"},
    "other_gradient_scale": {
        "fake_quantize.backward": "d_scale d_offset",
        "l4q.backward": "d_scale d_offset",
    },
    # l4q.merge is right: its codes are others than those that were trained.
    "merge_in_other_precision": {
        "l4q.forward": "y codes fake_quantized",
        "l4q.backward": "d_x d_scale",
    },
}

# Where the rounded argument lies on the other side of an end, the mask is another: one case in
# fifty, so that a run may have none.
MAY_FAIL = {"merge_in_other_precision": {"l4q.backward": "d_lora_a d_lora_b d_offset"}}


def pairs(tensors_of):
    return {(op, tensor) for op, names in tensors_of.items() for tensor in names.split()}


def check(conform, folders, precision, options=()):
    """The counts of a run, and in how many cases each tensor failed."""
    command = shlex.join([sys.executable, str(HERE / "subject.py"), *options])
    arguments = ["check", *map(str, folders), "--precision", precision, "--json"]
    run = subprocess.run(
        [conform, *arguments, "--subject", f"exec:{command}"], stdout=subprocess.PIPE
    )
    if run.returncode not in (0, 1):
        sys.exit(f"conform ended with status {run.returncode}")
    report = json.loads(run.stdout)
    failed = collections.Counter()
    for case in report["cases"]:
        if case["status"] == "fail":
            names = [t["tensor"] for t in case["tensors"] if t["status"] == "fail"]
            failed.update((case["op"], name) for name in names or [NO_ANSWER])
    return report["counts"], failed


def report(name, failed, expected, allowed=frozenset()):
    """Prints one block of the table; whether it is as expected."""
    for op, tensor in sorted(expected | failed.keys()):
        count = failed[op, tensor]
        wrong = count == 0 or (op, tensor) not in expected | allowed
        print(f"{name:<28}{op + '.' + tensor:<34}{count:>5}{'   UNEXPECTED' if wrong else ''}")
    return expected <= failed.keys() <= expected | allowed


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--conform", required=True, help="path of the program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60, help="cases of each operation")
    options = parser.parse_args()
    right = FAILS.keys() == public_mistakes.MISTAKES.keys()
    with tempfile.TemporaryDirectory() as cases:
        generate = ["generate", "--out", cases, "--count", options.count, "--seed", options.seed]
        generate += [word for op in subject.OPERATIONS for word in ("--op", op)]
        subprocess.run([options.conform, *map(str, generate)], check=True, stdout=sys.stderr)
        for precision in ("f32", "f64"):
            counts, failed = check(options.conform, [GOLDEN, cases], precision)
            right &= report(f"(none) in {precision}", failed, frozenset()) and counts["pass"] > 0
            said = ", ".join(f"{counts[word]} {word}" for word in ("pass", "fail", "skip"))
            print(f"no mistake, {precision}: {said}")
        print(f"\n{'mistake':<28}{'operation.tensor':<34}cases that fail, f32")
        for mistake in public_mistakes.MISTAKES:
            _, failed = check(options.conform, [cases], "f32", ["--bug", mistake])
            expected, allowed = pairs(FAILS[mistake]), pairs(MAY_FAIL.get(mistake, {}))
            right &= report(mistake, failed, expected, allowed)
    print("\nas expected" if right else "\nNOT as expected")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
