"""Exported models: a file of tensors and a model card that says what the model is, how to use it, and how good it is.

    <name>.safetensors  parameters and running statistics, float32, under torchvision's names
    <name>.json         the card: everything that `load` and `evaluate` need, and the model's origin

A card contains the SHA-256 of its tensors. Both files are data: nothing in them is ever executed.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save
from torch import nn

from repro import ReproError, choose, whole_number
from repro.evaluate import build_again, counts, open_run
from repro.images.data import Images
from repro.images.packed import Preprocessing, compare_labels
from repro.images.views import test_view
from repro.model import builder, find_device
from repro.paths import NUMBER, check_shape, replacing, writable_folder
from repro.ranks import comm
from repro.resnet import ResNet, build
from repro.run import checkpoint, own
from repro.run.settings import AVERAGES, Settings
from repro.schedule import STRIDES

FORMAT = "scaleout-repro exported model, version 2"
TRAINING_ONLY = ("mirror", "smallest_area")  # fields of a data set's `Preprocessing` that the test view does not use
# What a card must say before the model is built; it says more.
CARD = {
    **dict.fromkeys(("model", "model_source", "stride", "sha256"), str),
    **dict.fromkeys(("channels", "bytes"), int),
    "classes": [str],
    "preprocessing": {
        "normalization": str,
        "size": int,
        "view": {"size": int, "short_side": int, "mean": [NUMBER], "scale": [NUMBER], "bgr": bool},
    },
    "settings": {"precision": str, "threads": int},
}
VIEW = "the short side scaled to short_side (cubic), the centre of size x size cut out, less mean, times scale"


class ExportError(ReproError):
    """An exported model is missing, damaged, or does not fit the request."""


def export(folder: str | Path, stages: list[str] | None = None, out: str | Path = "", data: str = "") -> list[Path]:
    """Writes the models at the ends of a complete run's stages, each with its card; returns the files of tensors.

    `stages` default to `Recipe.result`, `out` to the run's folder/models. `data` is the data set's folder, if it
    is not under data/: the label map is read from it. Not collective. Raises ReproError if the run is incomplete, a
    stage is unknown, a snapshot is damaged, or the data is not the run's.
    """
    run, stages, images = open_run(folder, stages, data)
    folder, recipe, settings = Path(folder).resolve(), run["recipe"], run["settings"]
    card = {
        "format": FORMAT,
        "run": folder.name,
        "model": recipe["model"],
        "model_source": run["model_source"],
        "stride": recipe["stride"],
        "channels": images.channels,
        "classes": images.classes,
        "preprocessing": {**{key: settings[key] for key in ("normalization", "size")}, "view": _view(images), "how": VIEW},
        "recipe": recipe,
        "settings": settings,
        "data": run["data"],
        "version": run["version"],
        "code": run["code"],
        "packages": run["packages"],
    }
    network = build_again(run, images)
    card["stem"] = _stem(network)
    names = {name for name, value in network.state_dict().items() if value.is_floating_point()}
    out = writable_folder(out or folder / "models")
    files = []
    for stage in stages:
        state, _ = checkpoint.load(folder / "snapshots" / stage)
        accuracy = {"split": run["settings"]["split"], **{key: run["ends"][stage][key] for key in ("images", "top1", "top5")}}
        values = {name: state[name].float().contiguous() for name in sorted(names)}
        files.append(_write(out / f"{folder.name}-{stage}", values, {**card, "stage": stage, "accuracy": accuracy}))
    return files


def _view(images: Images) -> dict:
    """The numbers of the test view, as they come back from JSON."""
    numbers = {key: value for key, value in asdict(images.preprocessing).items() if key not in TRAINING_ONLY}
    return json.loads(json.dumps(numbers))


def _stem(network: nn.Module) -> dict | None:
    """The first layers of one of our networks, where it is not torchvision's; None for a user's own model."""
    if not isinstance(network, ResNet):
        return None
    first, pool = network.conv1, network.maxpool
    pooling = {key: getattr(pool, key, None) for key in ("kernel_size", "stride", "padding", "ceil_mode")}
    return {
        **{key: getattr(first, key)[0] for key in ("kernel_size", "stride", "padding")},
        "bias": first.bias is not None,
        "pooling": pooling if isinstance(pool, nn.MaxPool2d) else None,
    }


def _write(path: Path, values: dict[str, torch.Tensor], card: dict) -> Path:
    """Writes `path`.safetensors, then the card that makes it valid."""
    tensors, described = Path(f"{path}.safetensors"), Path(f"{path}.json")
    content = save(values)  # not save_file, whose files nobody else may read
    with replacing(tensors) as temporary:
        temporary.write_bytes(content)
        described.unlink(missing_ok=True)  # an older card would not fit the new tensors
    with replacing(described) as temporary:
        sealed = {**card, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        temporary.write_text(json.dumps(sealed, indent=1) + "\n")
    return tensors


class Exported(nn.Module):
    """An exported model in evaluation mode: images (N, C, size, size), as `preprocess` returns them, to logits (N, classes).

    `network` is the model itself, with torchvision's names, and `card` what is known of it: "classes", "stem",
    "preprocessing", "accuracy" and more. It computes in the precision of its run, which `card["settings"]` names.
    """

    def __init__(self, network: nn.Module, card: dict):
        super().__init__()
        self.network, self.card = network, card
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bf16 = self.card["settings"]["precision"] == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return self.network(images)

    def preprocess(self, image: np.ndarray) -> torch.Tensor:
        """The test view of one image, uint8, (H, W) grey or (H, W, 3) RGB: (1, C, size, size) float32.

        Raises ReproError if its channels are not the model's.
        """
        channels, seen = self.card["channels"], Preprocessing(**self.card["preprocessing"]["view"])
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.shape[2:] != ((3,) if channels == 3 else ()) or image.ndim < 2:
            raise ReproError(
                f"the image is {image.dtype} {image.shape}: this model needs uint8, "
                f"{'(height, width, 3) in the order RGB' if channels == 3 else '(height, width), grey'}"
            )
        image = image[..., ::-1] if channels == 3 and seen.bgr else image
        pixels = test_view(np.ascontiguousarray(image), seen).reshape(1, seen.size, seen.size, channels)
        mean, scale = (np.asarray(numbers, np.float32) for numbers in (seen.mean, seen.scale))
        return torch.from_numpy((pixels.astype(np.float32) - mean) * scale).permute(0, 3, 1, 2)


def load(file: str | Path, model: str = "") -> Exported:
    """The model in a file that `export` wrote, ready for evaluation on the CPU; `file` may also be that of the card.

    `model` (`mine.py:my_net`) is the source of a user's own model. Not collective. Raises ReproError if a file is missing,
    damaged, or not what the card says.
    """
    path = _path(file)
    card = _card(path)
    network, state = _member(path, card, model)
    network.load_state_dict(state)
    return Exported(network, card)


def _path(file: str | Path) -> Path:
    """The path of a model without a suffix, from that of its tensors or of its card."""
    return Path(str(file).removesuffix(".json").removesuffix(".safetensors"))


def _model(path: Path, card: dict, model: str) -> nn.Module:
    """The card's model. A card is data and never says what to run, so the source of a user's own model has to be named."""
    classes, channels, size = len(card["classes"]), card["channels"], card["preprocessing"]["view"]["size"]
    if not own.is_own(card["model"]):
        return build(card["model"], classes, channels, card["stride"])
    if not model:
        raise ExportError(
            f"{path.name} has a user's own model, {card['model']}: name its source with --model mine.py:my_net "
            f'(in Python: model="mine.py:my_net")'
        )
    if own.source_digest(model) != card["model_source"]:
        raise ExportError(f"{model} is not the source that {path.name} was trained from: its digest is not the card's")
    return builder(model, classes, channels, size)()


def evaluate(files: list[str], data: str, average: str = "softmax", device: str = "auto", model: str = "") -> dict:
    """Evaluates exported models, each alone and their ensemble, on test images. Collective; returns the same on every rank.

    `files` are paths of tensors or of their cards; `data` is a data set's name or its folder; `model` (`mine.py:my_net`) is
    the source of a user's own model. Returns {"files": names, "average", "images": n,
    "members": [{"top1", "top5", "loss"}, ...], "ensemble": {...}}, counted as by `repro.evaluate.counts`. Raises ReproError
    on every rank if a model is damaged or does not fit the data.
    """
    world = comm.world()
    with world.together():
        choose("average", average, AVERAGES)
        if not files:
            raise ReproError("no file was named: pass the exported .safetensors files")
        paths = [_path(file) for file in files]
        cards = [_card(path) for path in paths]
        seen, precision, threads = _shared(paths, cards)
        images = Images(data, "test", normalization=seen["normalization"], size=seen["size"])
        for path, card in zip(paths, cards):
            _check_fits(path, card, images)
        device = find_device(device, world.node_rank)
        pairs = [_member(path, card, model) for path, card in zip(paths, cards)]
        members = [(network.to(device), state) for network, state in pairs]
    torch.set_num_threads(threads)  # as in the run: the results depend on it
    counted = counts(world, members, images, average, device, precision)
    for result in (*counted["members"], counted["ensemble"]):
        del result["correct"]
    return {"files": [f"{path.name}.safetensors" for path in paths], "average": average, **counted}


def classify(file: str | Path, images: list[str | Path], top: int = 1, model: str = "") -> list[dict]:
    """The `top` most probable classes of each image, by an exported model: {"image": path, "class": name, "probability"}.

    `file` and `model` are as for `load`. `images` are files in any format that OpenCV reads, of any size, or folders: then all
    images in them. An image is decoded as in training, but turned upright if its EXIF says so. Not collective. Raises
    ReproError if the model or an image is missing or damaged.
    """
    whole_number("top", top, 1)
    exported, rows = load(file, model), []
    for path in [path for given in images for path in _image_files(Path(given))]:
        with torch.inference_mode():
            scores = exported(exported.preprocess(_pixels(path, exported.card["channels"])))[0]
        probabilities = scores.double().softmax(0)
        for number in probabilities.argsort(descending=True, stable=True)[:top].tolist():
            probability = probabilities[number].item()
            rows.append({"image": str(path), "class": exported.card["classes"][number], "probability": probability})
    return rows


def _image_files(path: Path) -> list[Path]:
    """The file itself, or the images in a folder and its folders, by name."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in Image.registered_extensions() and file.is_file())
    if not found:
        raise ReproError(f"there is no image in the folder {path}: name another one, or image files")
    return found


def _pixels(path: Path, channels: int) -> np.ndarray:
    """A decoded image as `Exported.preprocess` takes it, by the decoder that training uses."""
    try:
        with Image.open(path) as image:
            image.load()  # OpenCV would fill up a file that was cut short
        content = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR)
    except FileNotFoundError as error:
        raise ReproError(f"there is no image {path}: name files of images, or folders") from error
    except Exception as error:  # decoders raise all kinds of errors for damaged bytes
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else f"damaged or cut short ({error})"
        raise ReproError(f"{path} cannot be read: it is {reason}") from error
    if pixels is None:
        raise ReproError(f"{path} cannot be read: OpenCV does not know this kind of image; save it as PNG or JPEG")
    return pixels if channels == 1 else pixels[..., ::-1]


def _card(path: Path) -> dict:
    """The model card; raises ExportError if it is missing, in another format, or incomplete."""
    described = Path(f"{path}.json")
    try:
        card = json.loads(described.read_text())
        check_shape(card, {"format": str})
        if card["format"] != FORMAT:
            raise ExportError(
                f"{described} is in the format {card['format']!r}, and this code reads {FORMAT!r}: use "
                f"the code that wrote it, or export the model again"
            )
        check_shape(card, CARD)
        choose("number of channels", card["channels"], (1, 3))
        choose("stride", card["stride"], STRIDES)
        choose("precision", Settings(**card["settings"]).precision, ("fp32", "bf16"))
        view = card["preprocessing"]["view"]
        for name in ("size", "short_side"):
            whole_number(f"{name} of the view", view[name], 1, 1 << 14)
        if not len(view["mean"]) == len(view["scale"]) == card["channels"] or view["short_side"] < view["size"]:
            raise ValueError(f"the view {view} does not fit {card['channels']} channels")
        return card
    except FileNotFoundError as error:
        raise ExportError(
            f"no model card {described}: a model is a .safetensors and a .json file, which `python -m repro export RUN` writes"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ReproError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(
            f"{described} is not a whole model card ({type(error).__name__}: {error}): get it again, or export it again"
        ) from error


def _shared(paths: list[Path], cards: list[dict]) -> tuple[dict, str, int]:
    """Preprocessing, precision and threads of all members; raises ExportError if members differ in the first two."""
    settings = [(card["preprocessing"], card["settings"]["precision"]) for card in cards]
    for path, setting in zip(paths, settings):
        for name, value, first in zip(("preprocessing", "precision"), setting, settings[0]):
            if value != first:
                raise ExportError(
                    f"{path.name} and {paths[0].name} cannot be evaluated together: their {name} "
                    f"differs ({value} and {first}). Evaluate each alone"
                )
    return *settings[0], cards[0]["settings"]["threads"]


def _check_fits(path: Path, card: dict, images: Images) -> None:
    difference = compare_labels(card["classes"], images.classes)
    if difference:
        raise ExportError(
            f"{path.name} was not trained with the label map of the data set {images.name}: "
            f"in the data, {difference}. Pack the data with the model's label map, which is in its card"
        )
    if card["preprocessing"]["view"] != _view(images):
        raise ExportError(
            f"{path.name} needs preprocessing that is not that of the data set {images.name}: "
            f"{card['preprocessing']['view']}, not {_view(images)}"
        )


def _member(path: Path, card: dict, model: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model and its tensors, which are parsed only if their size and digest match the card."""
    file = Path(f"{path}.safetensors")
    try:
        if (size := file.stat().st_size) != card["bytes"]:
            raise ExportError(
                f"{file} has {size} bytes, its card says {card['bytes']}: it was cut short, or is another file. Get both again"
            )
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != card["sha256"]:
            raise ExportError(f"{file} is damaged, or another file: its SHA-256 is not the card's. Get both again")
        state = parse(content)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ExportError(f"{file} cannot be read: {error}") from error
    network = _model(path, card, model)
    expected = {name: list(value.shape) for name, value in network.state_dict().items() if value.is_floating_point()}
    found = {name: list(value.shape) if value.dtype == torch.float32 else value.dtype for name, value in state.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise ExportError(
                f"{file} does not hold a {card['model']} of {len(card['classes'])} classes: {name} is "
                f"{found.get(name, 'missing')}, the model's is {expected.get(name, 'not there')}"
            )
        if not state[name].isfinite().all():
            raise ExportError(f"{file} cannot be used: {name} contains NaN or infinite values")
    return network, state
