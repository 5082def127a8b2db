"""Released models: a file of tensors, and beside it a model card that says what it is, how to use it, how good it is.

    <name>.safetensors  parameters and running statistics, float32, under torchvision's names
    <name>.json         the card: everything that `evaluate` needs, and where the model comes from

A card names the SHA-256 of its tensors. Both are data: nothing in either is ever executed.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save_file

from repro import ReproError, checkpoint, choose, comm, records
from repro.data import Images
from repro.evaluate import AVERAGES, counts
from repro.labels import compare_labels
from repro.model import build, find_device
from repro.paths import replacing, writable_folder

FORMAT = "scaleout-repro released model, version 1"
TRAINING_ONLY = ("mirror", "smallest_area")  # of a data set's `Kind`: the test view does without them
# What `evaluate` needs in a card, with what lies in its preprocessing and its parameters.
KEYS = {
    "model": str,
    "stride": str,
    "channels": int,
    "classes": list,
    "preprocessing": dict,
    "parameters": dict,
    "bytes": int,
    "sha256": str,
    "normalization": str,
    "size": int,
    "view": dict,
    "precision": str,
    "threads": int,
}
VIEW = "the short side scaled to short_side (cubic), the centre of size x size cut out, less mean, times scale"


class ReleaseError(ReproError):
    """A released model is missing, damaged, or not made for what is asked of it."""


def export(folder: str | Path, stages: list[str] | None = None, out: str | Path = "", data: str = "") -> list[Path]:
    """Writes the models at the ends of a complete run's stages, each with its card; returns the files of tensors.

    `stages` default to the recipe's members, `out` to the run's folder/models. `data` is the data set's folder, if it
    does not lie where its name says: the label map is read there. Not collective. Raises ReproError if the run is
    incomplete, a stage unknown, a snapshot damaged, or the data another than the run's.
    """
    run, folder = records.read(folder), Path(folder).resolve()
    if run.get("status") != "complete":
        raise ReproError(f"{folder} is not the folder of a complete run: train it first, or continue it")
    recipe, parameters = run["recipe"], run["parameters"]
    stages = list(stages or [stage["name"] for stage in recipe["stages"] if stage["member"]])
    for stage in stages:
        choose(f"stage of {recipe['name']}", stage, [each["name"] for each in recipe["stages"]])
    preprocessing = {key: parameters[key] for key in ("normalization", "size")}
    images = Images(data or run["data"]["name"], "test", **preprocessing)
    if images.digest != run["data"]["test"]:
        raise ReproError(f"{data or images.name} is not the data set of {folder.name}: name that one's folder")
    card = {
        "format": FORMAT,
        "run": folder.name,
        "model": recipe["model"],
        "stride": recipe["stride"],
        "channels": images.channels,
        "classes": images.classes,
        "preprocessing": {**preprocessing, "view": _view(images), "how": VIEW},
        "recipe": recipe,
        "parameters": parameters,
        "data": run["data"],
        "version": run["version"],
        "code": run["code"],
        "packages": run["packages"],
    }
    out = writable_folder(out or folder / "models")
    files = []
    for stage in stages:
        state, _ = checkpoint.load(folder / "snapshots" / stage)
        accuracy = {"split": "test", **{key: run["ends"][stage][key] for key in ("images", "top1", "top5")}}
        files.append(_write(out / f"{folder.name}-{stage}", state, {**card, "stage": stage, "accuracy": accuracy}))
    return files


def _view(images: Images) -> dict:
    """The numbers of the test view, as JSON gives them back."""
    numbers = {key: value for key, value in asdict(images.kind).items() if key not in TRAINING_ONLY}
    return json.loads(json.dumps(numbers))


def _write(path: Path, state: dict[str, torch.Tensor], card: dict) -> Path:
    """Writes `path`.safetensors, then the card that makes it count."""
    tensors, described = Path(f"{path}.safetensors"), Path(f"{path}.json")
    values = {name: state[name].float().contiguous() for name in _shapes(card)}
    with replacing(tensors) as temporary:
        save_file(values, temporary)
        content = temporary.read_bytes()
        described.unlink(missing_ok=True)  # an older card would not fit the new tensors
    with replacing(described) as temporary:
        sealed = {**card, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        temporary.write_text(json.dumps(sealed, indent=1) + "\n")
    return tensors


def _shapes(card: dict) -> dict[str, list[int]]:
    """Names and shapes of the card's model: its parameters and running statistics."""
    with torch.device("meta"):
        state = _model(card).state_dict()
    return {name: list(value.shape) for name, value in state.items() if value.is_floating_point()}


def _model(card: dict) -> torch.nn.Module:
    return build(card["model"], len(card["classes"]), card["channels"], card["stride"])


def evaluate(files: list[str], data: str, average: str = "softmax", split: str = "test", device: str = "auto") -> dict:
    """Evaluates released models, each alone and their ensemble, on all ranks. Collective; the same on every rank.

    `files` are paths of tensors or of their cards; `data` is a data set's name or its folder. Returns {"files": names,
    "average", "images": n, "members": [{"top1", "top5", "loss"}, ...], "ensemble": {...}}, counts as
    `repro.evaluate.counts` takes them. Raises ReproError on every rank if a model is damaged or does not fit the data.
    """
    world = comm.world()
    with world.together():
        choose("average", average, AVERAGES)
        choose("split", split, ("test", "train"))
        if not files:
            raise ReproError("no file was named: give the .safetensors files that were exported")
        paths = [Path(str(file).removesuffix(".json").removesuffix(".safetensors")) for file in files]
        cards = [_card(path) for path in paths]
        seen, precision, threads = _shared(paths, cards)
        images = Images(data, split, normalization=seen["normalization"], size=seen["size"])
        for path, card in zip(paths, cards):
            _check_fits(path, card, images)
        device = find_device(device, world.node_rank)
        members = [(model.to(device), state) for model, state in map(_member, paths, cards)]
    torch.set_num_threads(threads)  # as the run did: the bits depend on it
    counted = counts(world, members, images, average, device, precision)
    return {"files": [f"{path.name}.safetensors" for path in paths], "average": average, **counted}


def _card(path: Path) -> dict:
    """The model card; raises ReleaseError if it is missing, of another format, or not whole."""
    described = Path(f"{path}.json")
    try:
        card = json.loads(described.read_text())
        if card["format"] != FORMAT:
            raise ReleaseError(
                f"{described} is in the format {card['format']!r}, and this code reads {FORMAT!r}: use "
                f"the code that wrote it, or export it again"
            )
        given = {**card["parameters"], **card["preprocessing"], **card}
        wrong = [key for key, kind in KEYS.items() if not isinstance(given[key], kind)]
        if wrong or not all(isinstance(name, str) for name in card["classes"]):
            raise ValueError(f"{', '.join(wrong or ['classes'])} is not what it should be")
        return card
    except FileNotFoundError as error:
        raise ReleaseError(f"no model card {described}: a model is a .safetensors and a .json, get both") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReleaseError(
            f"{described} is not a whole model card ({type(error).__name__}: {error}): get it anew, or export it again"
        ) from error


def _shared(paths: list[Path], cards: list[dict]) -> tuple[dict, str, int]:
    """Preprocessing, precision and threads of all members; raises ReleaseError if the first two are not one."""
    settings = [(card["preprocessing"], card["parameters"]["precision"]) for card in cards]
    for path, setting in zip(paths, settings):
        for name, value, first in zip(("preprocessing", "precision"), setting, settings[0]):
            if value != first:
                raise ReleaseError(
                    f"{path.name} and {paths[0].name} cannot be evaluated together: their {name} "
                    f"differs ({value} and {first}). Evaluate each alone"
                )
    return *settings[0], cards[0]["parameters"]["threads"]


def _check_fits(path: Path, card: dict, images: Images) -> None:
    difference = compare_labels(card["classes"], images.classes)
    if difference:
        raise ReleaseError(
            f"{path.name} was trained with another label map than that of the data set {images.name}: "
            f"in the data, {difference}. Pack the data with the model's label map, which is in its card"
        )
    if card["preprocessing"]["view"] != _view(images):
        raise ReleaseError(
            f"{path.name} needs other preprocessing than the data set {images.name} has here: "
            f"{card['preprocessing']['view']}, not {_view(images)}"
        )


def _member(path: Path, card: dict) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model and its tensors, which are parsed only if size and digest are the card's."""
    file = Path(f"{path}.safetensors")
    try:
        if (size := file.stat().st_size) != card["bytes"]:
            raise ReleaseError(
                f"{file} has {size} bytes, its card says {card['bytes']}: it was cut short, or is another file. Get both anew"
            )
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != card["sha256"]:
            raise ReleaseError(f"{file} is damaged, or another file: its SHA-256 is not its card's. Get both anew")
        state = parse(content)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ReleaseError(f"{file} cannot be read: {error}") from error
    expected = _shapes(card)
    found = {name: list(value.shape) if value.dtype == torch.float32 else value.dtype for name, value in state.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise ReleaseError(
                f"{file} does not hold a {card['model']} of {len(card['classes'])} classes: {name} is "
                f"{found.get(name, 'missing')}, the model's is {expected.get(name, 'not there')}"
            )
    return _model(card), state
