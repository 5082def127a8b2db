"""Which code trained the runs in a folder: noted beside them, so that a later version can say what has changed since."""

import json
from collections.abc import Iterable
from pathlib import Path

from repro.paths import read_json, replacing
from repro.run.identity import code_definitions, code_digest, code_version

NAME = "code.json"
SHOWN = 12  # definitions that are named at most


def note(out: Path) -> None:
    """Notes that this code has trained the runs in the folder `out`."""
    noted = {"code": code_digest(), "version": code_version(), "definitions": code_definitions()}
    with replacing(out / NAME) as temporary:
        temporary.write_text(json.dumps(noted, indent=1) + "\n")


def by(out: Path, runs: Iterable[tuple[str, str]]) -> str:
    """Whether this code has trained the runs in `out`, given each one's code and version; if not, what has changed."""
    runs = list(runs)
    others = {(code, version) for code, version in runs if code != code_digest()}
    if not others:
        return "trained by this code"
    number = sum(run in others for run in runs)
    versions = ", ".join(sorted({version for _, version in others}))
    text = f"{'' if number == len(runs) else f'{number} of them '}trained by other code ({versions})"
    shape = {"code": str, "version": str, "definitions": {str: str}}
    noted = read_json(out / NAME, shape, "delete it; what has changed is then no longer known")
    if noted is None or {code for code, _ in others} != {noted["code"]}:
        return text
    changes = differences(noted["definitions"])
    named = ", ".join(changes[:SHOWN]) + (f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")
    return f"{text}: {len(changes) or 'no'} definitions differ" + (f": {named}" if changes else "")


def differences(earlier: dict[str, str]) -> list[str]:
    """Which definitions of this code are not those of earlier code (`identity.code_definitions`)."""
    now = code_definitions()
    found = [(name, "changed") for name in sorted(now.keys() & earlier.keys()) if now[name] != earlier[name]]
    found += [(name, "gone") for name in sorted(earlier.keys() - now.keys())]
    found += [(name, "new") for name in sorted(now.keys() - earlier.keys())]
    return [f"{name} ({how})" for name, how in found]
