"""Atomic, digest-checked snapshots: tensors as safetensors, their digest and progress as JSON. No pickle."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialize

from repro import ReproError
from repro.paths import NUMBER, check_shape, named, replacing
from repro.run.records import generations

KEPT = 3  # checkpoints
FORMAT = "scaleout-repro snapshot, version 1"
PROGRESS = {
    "run": str,
    "step": int,
    "seconds": NUMBER,
    "evaluating": NUMBER,
    "losses": [NUMBER],
    "corrects": [NUMBER],
}  # of a checkpoint


class CheckpointError(ReproError):
    """A snapshot is missing or damaged."""


def save(path: Path, tensors: dict[str, torch.Tensor], progress: dict) -> None:
    """Writes `path`.safetensors and then `path`.json, which makes it valid: without that there is no snapshot."""
    with named(path):
        path.parent.mkdir(exist_ok=True)  # but not the run's own folder, in case that was deleted
    content = serialize({name: tensor.contiguous() for name, tensor in tensors.items()})
    with replacing(f"{path}.safetensors") as temporary:
        temporary.write_bytes(content)
        # The old seal would not fit the new tensors: between the two renames there is no snapshot of this name.
        Path(f"{path}.json").unlink(missing_ok=True)
    with replacing(f"{path}.json") as temporary:
        sealed = {"format": FORMAT, "progress": progress, "sha256": _seal(content, progress)}
        temporary.write_text(json.dumps(sealed, indent=1))


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Returns tensors and progress of a stage's end, RUN/snapshots/STAGE; raises CheckpointError as `_opened` does."""
    try:
        return _opened(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: delete {path.parent.parent} to train again") from error


def _opened(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Returns tensors and progress of a snapshot; raises CheckpointError if it is missing, truncated or modified."""
    try:
        sealed = json.loads(Path(f"{path}.json").read_text())
        if sealed["format"] != FORMAT:
            raise CheckpointError(f"snapshot {path} is in the format {sealed['format']!r}, which this version cannot read")
        content = Path(f"{path}.safetensors").read_bytes()
        if _seal(content, sealed["progress"]) != sealed["sha256"]:
            raise CheckpointError(f"snapshot {path} is damaged: its digest is not the one in {path.name}.json")
        return parse(content), sealed["progress"]
    except FileNotFoundError as error:
        raise CheckpointError(f"no snapshot {path}: {error.filename} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"snapshot {path} cannot be read: {error}") from error


def _seal(content: bytes, progress: dict) -> str:
    return hashlib.sha256(content + json.dumps(progress, sort_keys=True).encode()).hexdigest()


def newest(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Returns the newest checkpoint that can be used; raises CheckpointError, which names all, if none can."""
    damage = []
    for path in generations(folder):
        try:
            tensors, progress = _opened(path)
            check_shape(progress, PROGRESS, "progress")
            return tensors, progress
        except CheckpointError as error:
            damage.append(str(error))
        except ValueError as error:
            damage.append(f"{path}.json does not say how far a run is: {error}")
    raise CheckpointError("no checkpoint can be used: " + "; ".join(damage) + f". Delete {folder.parent} to start again.")


def prune(folder: Path) -> None:
    """Deletes all but the `KEPT` newest checkpoints."""
    for path in generations(folder)[KEPT:]:
        with named(path):
            Path(f"{path}.json").unlink()
            Path(f"{path}.safetensors").unlink(missing_ok=True)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and bytes, ordered by name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name} {tuple(tensors[name].shape)}".encode())
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()
