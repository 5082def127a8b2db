"""`make lab`: the user's copies of the notebooks, in mine/, which git ignores. The originals stay as they are.

A copy notes which original it was made from. When an update changes the original, a copy whose cells are untouched is made
again, and any other stays.
"""

import hashlib
import json
from pathlib import Path

from repro.jupyter.notebooks import FOLDER
from repro.paths import ROOT, replacing, writable_folder

MINE = ROOT / "mine"


def copy_all(originals: Path = FOLDER, copies: Path = MINE) -> list[str]:
    """Copies the notebooks that are missing or out of date; returns what the user should know, a line each."""
    writable_folder(copies)
    told = []
    for original in sorted(originals.glob("*.ipynb")):
        copy, book = copies / original.name, json.loads(original.read_text())
        digest = _digest(book)
        made_from, now = _of_copy(copy)
        if copy.exists() and made_from == digest:
            continue
        if copy.exists() and now != made_from:
            told.append(
                f"{copy.name} has a new version, but you have changed your copy, which stays: rename it to get the new one"
            )
            continue
        if copy.exists():
            told.append(f"{copy.name} was updated")
        book["metadata"]["repro"] = {"made_from": digest}
        with replacing(copy) as temporary:
            temporary.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    return told


def _of_copy(copy: Path) -> tuple[str, str]:
    """The digest of what a copy was made from and of what it is now; an unreadable file is the user's own, like any other."""
    try:
        book = json.loads(copy.read_text())
        return book["metadata"]["repro"]["made_from"], _digest(book)
    except (OSError, ValueError, KeyError, TypeError):
        return "", "unknown"


def _digest(book: dict) -> str:
    """SHA-256 over the cells without their outputs."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


if __name__ == "__main__":
    for line in copy_all():
        print(f"lab: {line}")
