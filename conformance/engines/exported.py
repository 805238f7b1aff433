"""What the three scripts share: having plumbline export, and the dequantized model beside it."""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile


def options(description: str, *more: tuple[str, dict]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plumbline", type=pathlib.Path, required=True, help="the program")
    parser.add_argument("--merged", type=pathlib.Path, required=True, help="a merged model")
    for name, settings in more:
        parser.add_argument(name, **settings)
    return parser.parse_args()


def plumbline(program: pathlib.Path, *arguments: object) -> dict:
    """One JSON object from the program."""
    command = [str(program.resolve()), *map(str, arguments), "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {run.returncode}")
    return json.loads(run.stdout)


def export(options: argparse.Namespace, format: str, out: pathlib.Path) -> pathlib.Path:
    plumbline(options.plumbline, "export", options.merged, "--format", format, "--out", out)
    return out


def folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="engine-")


def same_bits(ours, theirs) -> bool:
    """Two arrays of float32."""
    import numpy

    ours, theirs = numpy.ascontiguousarray(ours), numpy.ascontiguousarray(theirs)
    assert ours.dtype == theirs.dtype == numpy.float32, (ours.dtype, theirs.dtype)
    return ours.shape == theirs.shape and bool((ours.view("u4") == theirs.view("u4")).all())
