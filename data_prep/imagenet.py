"""Packs ImageNet-1K (ILSVRC2012) from its original archives, an extracted tree, or Kaggle's layout; nothing is extracted.

    python data_prep/imagenet.py --source FOLDER [--out data/imagenet]

FOLDER holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or train/SYNSET/*.JPEG and val/*.JPEG (or
val/SYNSET/*.JPEG), or ILSVRC/Data/CLS-LOC/ with the same two folders. Classes are numbered in the order of their sorted
synsets. The validation images' labels come from the development kit (ILSVRC2012_devkit_t12, archive or folder), from
Kaggle's LOC_val_solution.csv, from the folders val/SYNSET, or from --validation-labels. If there are several sources,
they must agree.
"""

import argparse
import io
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scipy.io import loadmat
from tqdm import tqdm

from repro import ReproError
from repro.images.packed import compare_labels
from repro.paths import DATA, given

import archives
import packing
from archives import Member
from packing import Source, some_of

CLASSES, TRAIN, VALIDATION = 1000, 1_281_167, 50_000
TRAIN_PLACES = ("ILSVRC2012_img_train.tar", "train", "ILSVRC/Data/CLS-LOC/train")
VALIDATION_PLACES = ("ILSVRC2012_img_val.tar", "val", "ILSVRC/Data/CLS-LOC/val")
NUMBER = r"[0-9]{1,9}"
SYNSET, IMAGE = r"n\d{8}", r"ILSVRC2012_val_\d{8}\.JPEG"
KIT = "ILSVRC2012_devkit_t12"
META, TRUTH = f"{KIT}/data/meta.mat", f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt"


def prepare(source: Path, out: Path | None, validation_labels: Path | None, subset: bool, **options) -> None:
    out = out or DATA / ("imagenet-subset" if subset else "imagenet")
    packing.check_name(out, "imagenet", part=subset)
    kit = read_kit(source)
    train = training_images(archives.find(source, *TRAIN_PLACES))
    check_classes(train, kit, source / "LOC_synset_mapping.txt", subset)
    validation, folders = validation_images(archives.find(source, *VALIDATION_PLACES))
    classes = sorted(train)
    labels = validation_synsets(source, sorted(validation), folders, kit, validation_labels, classes, subset)
    check_counts({synset: len(members) for synset, members in train.items()}, Counter(labels.values()), subset)
    number = {synset: label for label, synset in enumerate(classes)}
    packing.pack(
        out,
        classes,
        {
            "train": [
                Source(f"{synset}/{_base(member)}", number[synset], member)
                for synset, members in train.items()
                for member in members
            ],
            # With --subset, validation images of the kit's other classes are left out.
            "test": [
                Source(name, number[labels[name]], member) for name, member in validation.items() if labels[name] in number
            ],
        },
        **options,
    )


def training_images(path: Path) -> dict[str, list[Member]]:
    """Members by synset, from the archive of archives or a folder of folders."""
    places: list[Path] | list[Member]
    members: Callable[..., list[Member]]
    if path.is_dir():
        places, suffix, members = archives.folders(path, SYNSET), "", archives.files
    else:
        places, suffix, members = archives.index(Member.of(path), rf"{SYNSET}\.tar"), ".tar", archives.index
    with tqdm(places, desc=path.name, unit="class", leave=False, disable=None) as bar:
        return {(synset := place.name.removesuffix(suffix)): members(place, rf"{synset}_\d+\.JPEG") for place in bar}


def validation_images(path: Path) -> tuple[dict[str, Member], dict[str, str] | None]:
    """Members by name, and the synsets of their folders, if they are in folders."""
    if not path.is_dir():
        return {_base(member): member for member in archives.index(Member.of(path), IMAGE)}, None
    if not any(entry.is_dir() and entry.name[0] != "." for entry in path.iterdir()):
        return {member.name: member for member in archives.files(path, IMAGE)}, None
    images, synsets = {}, {}
    for folder in archives.folders(path, SYNSET):
        for member in archives.files(folder, IMAGE):
            if member.name in images:
                raise ReproError(f"{member.name} exists twice: {images[member.name].place} and {member.place}")
            images[member.name], synsets[member.name] = member, folder.name
    return images, synsets


def _base(member: Member) -> str:
    return member.name.rpartition("/")[2]


# --- The development kit ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kit:
    """The contents of the development kit. Its numbers (ILSVRC2012_ID, from 1) do not follow any order of the synsets."""

    synsets: dict[int, str]  # of the classes; meta.mat also has the nodes above them
    images: dict[str, int]  # training images of each class
    truth: list[str]  # the lines of the file with the validation images' class numbers


def read_kit(source: Path) -> Kit | None:
    """The development kit, or None if neither its archive nor its folder exists."""
    if (source / f"{KIT}.tar.gz").exists():
        place = source / f"{KIT}.tar.gz"
        contents = archives.unpacked(place, f"{re.escape(META)}|{re.escape(TRUTH)}")
    elif (source / KIT).exists():
        place = source / KIT
        contents = {name: Member.of(source / name).read() for name in (META, TRUTH)}
    else:
        return None
    for name in (META, TRUTH):
        if name not in contents:
            raise ReproError(f"{place} has no member {name}: {archives.AGAIN}")
    try:
        rows = loadmat(io.BytesIO(contents[META]), variable_names=["synsets"])["synsets"].ravel()
        classes = [
            (int(row["ILSVRC2012_ID"].item()), str(row["WNID"].item()), int(row["num_train_images"].item()))
            for row in rows
            if not row["num_children"].item()
        ]
    except Exception as error:  # loadmat raises all kinds of errors for damaged bytes
        raise ReproError(f"{place}: {META} cannot be read ({error}): {archives.AGAIN}") from error
    return Kit(
        {number: synset for number, synset, _ in classes},
        {synset: images for _, synset, images in classes},
        contents[TRUTH].decode(errors="replace").split(),
    )


# --- Labels of the validation images ---------------------------------------------------------------------------------


def validation_synsets(
    source: Path,
    names: list[str],
    folders: dict[str, str] | None,
    kit: Kit | None,
    file: Path | None,
    classes: list[str],
    subset: bool,
) -> dict[str, str]:
    """The synset of each image, from all available sources of labels, which must agree."""
    labels = {"the folders": folders} if folders else {}
    if kit:
        labels["the development kit"] = _by_kit(kit, kit.truth, names, "the development kit's ground truth", subset)
    for path in filter(None, (file, source / "LOC_val_solution.csv")):
        if path == file or path.exists():
            labels[str(path)] = read_labels(path, names, kit, classes)
    if not labels:
        raise ReproError(
            f"there are no labels for the validation images: put {KIT}.tar.gz or LOC_val_solution.csv into "
            f"{source}, or use --validation-labels"
        )
    first, *rest = labels
    for other in rest:
        if difference := compare(labels[first], labels[other], classes):
            raise ReproError(f"the labels of {other} are not those of {first}: {difference}. Remove the wrong one")
    others = kit.images if kit and subset else {}
    for name, synset in labels[first].items():
        if synset not in classes and synset not in others:
            raise ReproError(f"{name} is of class {synset} according to {first}, but no training image is")
    return labels[first]


def compare(expected: dict[str, str], found: dict[str, str], classes: list[str]) -> str:
    """How the labels of the same images differ; "" if they do not."""
    differing = [name for name in expected if found[name] != expected[name]]
    if not differing:
        return ""
    name = differing[0]
    summary = f"{len(differing):,} of {len(expected):,} differ, the first is {name} ({found[name]} instead of {expected[name]})"
    pairs = sorted({(expected[name], found[name]) for name in expected})
    if len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}):
        return f"{summary}; {compare_labels([one for one, _ in pairs], [other for _, other in pairs])}"
    return summary


def read_labels(path: Path, names: list[str], kit: Kit | None, classes: list[str]) -> dict[str, str]:
    """Synsets from a list: file and synset, file and number, one synset per line in the order of files, or Kaggle's table."""
    lines = [line.replace(",", " ").split() for line in Member.of(path).read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    if lines and lines[0][0] == "ImageId":  # Kaggle's: file, then synset and four corners for each object
        lines = [line[:2] for line in lines[1:]]
    width = len(lines[0]) if lines else 0
    wrong = next((line for line in lines if len(line) != width or width > 2), [])
    if wrong or not lines:
        raise ReproError(
            f"{path} has the line {' '.join(wrong)[:80]!r}: the list must have lines of "
            f"file and synset, of file and number, or of one synset, or be Kaggle's LOC_val_solution.csv"
        )
    values = [line[-1] for line in lines]
    if width == 1:
        if not re.fullmatch(NUMBER, values[0]):
            return _paired(names, values, str(path))
        if kit is None:
            raise ReproError(
                f"{path} has only numbers, as in the development kit. Those follow the kit's own order of "
                f"classes, not that of the sorted synsets: put {KIT}.tar.gz beside the images, which maps one "
                f"to the other"
            )
        return _by_kit(kit, values, names, str(path))
    files = [f"{Path(line[0]).name.removesuffix('.JPEG')}.JPEG" for line in lines]
    for kind, wrong in (
        ("twice", [file for file, count in Counter(files).items() if count > 1]),
        ("that is not among the validation images", sorted(set(files) - set(names))),
    ):
        if wrong:
            raise ReproError(f"{path} names a file {kind}: {some_of(wrong)}: give the list of these images")
    if missing := sorted(set(names) - set(files)):
        raise ReproError(
            f"{path} lacks {len(missing):,} of {len(names):,} validation images, the first is "
            f"{missing[0]}: give the list of these images"
        )
    if all(re.fullmatch(NUMBER, value) for value in values):
        values = _by_place(values, classes, path)
    return dict(zip(files, values))


def _paired(names: list[str], values: list[str], place: str, subset: bool = False) -> dict[str, str]:
    """The n-th value belongs to the image whose name has the number n; with `subset`, images may be missing."""
    if subset:
        lines = {f"ILSVRC2012_val_{number:08d}.JPEG": value for number, value in enumerate(values, 1)}
        if unknown := next((name for name in names if name not in lines), None):
            raise ReproError(f"{place} has {len(values):,} lines, and none for {unknown}: they must be of the same set")
        return {name: lines[name] for name in names}
    for number, name in enumerate(names, 1):
        if name != f"ILSVRC2012_val_{number:08d}.JPEG":
            raise ReproError(
                f"validation image number {number} is missing, {name} comes next: {place} relies on the "
                f"images' numbers, so complete the images"
            )
    if len(values) != len(names):
        raise ReproError(
            f"{place} has {len(values):,} lines, but there are {len(names):,} validation images: they "
            f"must be of the same set, and complete"
        )
    return dict(zip(names, values))


def _by_kit(kit: Kit, numbers: list[str], names: list[str], place: str, subset: bool = False) -> dict[str, str]:
    """The synset of each image, from the kit's class numbers."""
    synsets = {str(number): synset for number, synset in kit.synsets.items()}
    if wrong := next((number for number in numbers if number not in synsets), None):
        raise ReproError(
            f"{place} has the class {wrong[:20]!r}, which the development kit's meta.mat does not have: "
            f"its numbers are 1 to {len(synsets)}"
        )
    return _paired(names, [synsets[number] for number in numbers], place, subset)


def _by_place(values: list[str], classes: list[str], path: Path) -> list[str]:
    """The synset of each image, from numbers that count the sorted synsets from 0, as in Caffe's val.txt."""
    numbers = [int(value) for value in values]
    if max(numbers) < len(classes):
        return [classes[number] for number in numbers]
    why = (
        "its classes count from 1, but the sorted synsets count from 0, so it is off by one: subtract one"
        if max(numbers) == len(classes) and min(numbers) == 1
        else "number 0 is a background class: leave it out and subtract one"
        if max(numbers) == len(classes)
        else "it lists other classes"
    )
    raise ReproError(
        f"{path} has numbers from {min(numbers)} to {max(numbers)}, but there are {len(classes):,} "
        f"classes, 0 to {len(classes) - 1}. It seems that {why}"
    )


# --- Counts ----------------------------------------------------------------------------------------------------------


def check_counts(train: dict[str, int], validation: Counter, subset: bool) -> None:
    """Raises ReproError if this is not all of ImageNet-1K, unless `subset` is true."""
    differing = [
        f"{found:,} {what} instead of {expected:,}"
        for what, found, expected in (
            ("classes", len(train), CLASSES),
            ("training images", sum(train.values()), TRAIN),
            ("validation images", validation.total(), VALIDATION),
        )
        if found != expected
    ]
    if not differing:
        differing = [
            f"{count} validation images of {synset} instead of {VALIDATION // CLASSES}"
            for synset, count in sorted(validation.items())
            if count != VALIDATION // CLASSES
        ][:3]
    if differing and not subset:
        raise ReproError(
            f"this is not all of ImageNet-1K: {', '.join(differing)}. Complete it, or pack a part "
            f"under another name with --subset"
        )


def check_classes(train: dict[str, list[Member]], kit: Kit | None, mapping: Path, subset: bool) -> None:
    """Raises ReproError if the classes are not those of Kaggle's list or of the kit, with the same numbers of images.

    With `subset`, classes and images may be missing.
    """
    if mapping.exists():
        lines = Member.of(mapping).read().decode(errors="replace").splitlines()
        listed = {line.split()[0] for line in lines if line.strip()}
        _same_classes(set(train), set(train) & listed if subset else listed, str(mapping))
    if kit is None:
        return
    _same_classes(set(train), set(train) & set(kit.images) if subset else set(kit.images), "the development kit")
    differing = [
        f"{synset} has {len(members):,} training images instead of {kit.images[synset]:,}"
        for synset, members in sorted(train.items())
        if len(members) > kit.images[synset] or (len(members) < kit.images[synset] and not subset)
    ]
    if differing:
        raise ReproError(f"according to the development kit {some_of(differing, 3)}: complete them")


def _same_classes(found: set[str], expected: set[str], place: str) -> None:
    if extra := sorted(found - expected):
        raise ReproError(f"{place} does not list class {some_of(extra)}: move them elsewhere")
    if missing := sorted(expected - found):
        raise ReproError(f"there are no training images of class {some_of(missing)} of {place}: complete them")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=given, required=True, help="folder of the archives, or of the extracted tree")
    parser.add_argument("--out", type=given, help="folder (default: data/imagenet; with --subset data/imagenet-subset)")
    parser.add_argument("--validation-labels", type=given, metavar="FILE", help="list of the validation images' classes")
    parser.add_argument("--subset", action="store_true", help="accept a part of ImageNet, or the stand-in")
    packing.options(parser)
    return packing.run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
