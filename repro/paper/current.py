"""Whether a reproduction is current: a small file beside the results has digests of all that went into them and came out."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from repro.images.packed import SPLITS, Packed, PackedError, data_folder
from repro.paper.profiles import PROFILES
from repro.paths import PUBLISHED, ROOT, replacing
from repro.run import identity, kept

NAME = "reproduced.json"
CODE = "repro/**/*.py", "repro/paper/report.css", "repro/paper/report.html.j2", "data_prep/*.py", "notebooks/*.ipynb"
RUNS = "runs/*/*.json", "runs/*/*.jsonl", "runs/*/correct/*", *(f"runs/*-{name}" for name in kept.FILES)
MADE = "tables/*", "figures/*", "report/*"  # but for figures/bench-*
MEASURED = "bench/probe.json", "bench/scaling.json", "figures/bench-apparent_size.svg"  # what it reads of the benchmarks


def difference(profile: str, results: Path) -> str:
    """What has changed since the last complete reproduction in `results`, in words; "" if nothing has."""
    try:
        last = json.loads((results / NAME).read_text())
    except (OSError, ValueError):
        return "no reproduction was completed here yet"
    now = _state(profile, results)
    changed = [name for name in now if not isinstance(last, dict) or now[name] != last.get(name)]
    return f"changed since the last time: {', '.join(changed)}" if changed else ""


def note(profile: str, results: Path) -> None:
    """Records that a reproduction is complete."""
    with replacing(results / NAME) as temporary:
        temporary.write_text(json.dumps(_state(profile, results), indent=1))


def _state(profile: str, results: Path) -> dict[str, str]:
    return {
        "profile": profile,
        "code": _digest(ROOT, CODE),
        "packages": " ".join(f"{name} {version}" for name, version in identity.package_versions().items()),
        "published numbers": _digest(PUBLISHED, ["*"]),
        "data": _data(PROFILES[profile].data),
        "runs": _digest(results, RUNS),
        "results": _digest(results, MADE, but="bench-"),
        "measurements": _digest(results, MEASURED),
        # Only their names: they hold times, and `make table-NAME` executes one again.
        "notebooks": " ".join(sorted(str(path.relative_to(results)) for path in results.glob("notebooks/**/*.ipynb"))),
    }


def _digest(folder: Path, patterns: Iterable[str], but: str = "/") -> str:
    """SHA-256 over names and contents of files, but for those whose name begins with `but`."""
    total = hashlib.sha256()
    files = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    for path in sorted(path for path in files if not path.name.startswith(but)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder)} {content}\n".encode())
    return total.hexdigest()


def _data(name: str) -> str:
    """The digest of each split; "none" where there is none, as a data set may have no validation split."""
    digests = []
    for split in SPLITS:
        try:
            digests.append(Packed(data_folder(name) / f"{split}.lmdb", name, split).manifest["sha256"])
        except PackedError:
            digests.append("none")
    return " ".join(digests)
