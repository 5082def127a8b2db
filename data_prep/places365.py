"""Packs Places365-Standard, small (256 x 256) or large, from its archives or extracted folders; nothing is extracted.

    python data_prep/places365.py --source FOLDER [--out data/places365]

FOLDER holds the training images (train_256_places365standard.tar or train_large_places365standard.tar, or the folder
data_256, data_256_standard, data_large or data_large_standard), the validation images (val_256.tar or val_large.tar, or
the folder of that name) and the lists of the development kit (filelist_places365-standard.tar, or its text files).
Classes are numbered in the order of their sorted names.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from repro import ReproError
from repro.paths import DATA, given

import archives
import packing
from archives import Member
from packing import Source, some_of

CLASSES = 365
KIT = "filelist_places365-standard.tar"
LISTS = CATEGORIES, VALIDATION, TRAIN = "categories_places365.txt", "places365_val.txt", "places365_train_standard.txt"
CATEGORY = r"[a-z]/[a-z0-9_\-]+(?:/[a-z0-9_\-]+)?"  # a/airfield, a/apartment_building/outdoor
IMAGE = r"Places365_val_\d{8}\.jpg"


def prepare(source: Path, out: Path, subset: bool, **options) -> None:
    packing.check_name(out, "places365", part=subset)
    lists = read_lists(source)
    names = read_categories(lists[CATEGORIES])
    train = training_images(
        archives.find(
            source,
            "train_256_places365standard.tar",
            "data_256_standard",
            "data_256",
            "train_large_places365standard.tar",
            "data_large_standard",
            "data_large",
        )
    )
    validation = validation_images(archives.find(source, "val_256.tar", "val_256", "val_large.tar", "val_large"))
    classes = sorted(train)
    labels = validation_categories(lists[VALIDATION], names, set(validation))
    check_classes(classes, sorted(names.values()), subset)
    if TRAIN in lists and not subset:
        check_counts(train, lists[TRAIN])
    number = {category: label for label, category in enumerate(classes)}
    packing.pack(
        out,
        classes,
        {
            "train": [
                Source(f"{category[1:]}/{_base(member)}", number[category], member)
                for category, members in train.items()
                for member in members
            ],
            # With --subset, validation images of other classes are left out.
            "test": [
                Source(name, number[labels[name]], member) for name, member in validation.items() if labels[name] in number
            ],
        },
        **options,
    )


def _base(member: Member) -> str:
    return member.name.rpartition("/")[2]


def training_images(path: Path) -> dict[str, list[Member]]:
    """Members by category ("/a/airfield"), from the archive or a tree of folders."""
    images = {}
    if not path.is_dir():
        for member in archives.index(Member.of(path), rf"(?:data_(?:256|large)(?:_standard)?/)?{CATEGORY}/\d+\.jpg"):
            folders = member.name.split("/")[:-1]
            start = next(place for place, folder in enumerate(folders) if len(folder) == 1)
            images.setdefault("/" + "/".join(folders[start:]), []).append(member)
        return images
    for folder in (folder for letter in archives.folders(path, "[a-z]") for folder in archives.folders(letter)):
        # A category has images, or folders for its kinds, such as /a/apartment_building/outdoor.
        has_images = any(entry.is_file() and entry.name[0] != "." for entry in folder.iterdir())
        for kind in [folder] if has_images else archives.folders(folder):
            images["/" + kind.relative_to(path).as_posix()] = archives.files(kind, r"\d+\.jpg")
    return images


def validation_images(path: Path) -> dict[str, Member]:
    if path.is_dir():
        return {member.name: member for member in archives.files(path, IMAGE)}
    return {_base(member): member for member in archives.index(Member.of(path), rf"(?:val_(?:256|large)/)?{IMAGE}")}


# --- The development kit's lists -------------------------------------------------------------------------------------


def read_lists(source: Path) -> dict[str, list[list[str]]]:
    """The lines of each list that exists, split into words."""
    if (source / KIT).exists():
        members = {_base(member): member for member in archives.index(Member.of(source / KIT), ".*")}
    else:
        members = {name: Member.of(source / name) for name in LISTS if (source / name).exists()}
    for name in (CATEGORIES, VALIDATION):
        if name not in members:
            raise ReproError(f"{source} has neither {KIT} nor {name}, which label the images: put one of them there")
    lists = {}
    for name in set(LISTS) & set(members):
        lines = members[name].read().decode(errors="replace").splitlines()
        lists[name] = [line.split() for line in lines if line.strip()]
        for words in lists[name]:
            if len(words) != 2 or not words[1].isdigit():
                raise ReproError(
                    f"{members[name].place} has the line {' '.join(words)[:80]!r}, where a name and a "
                    f"number are expected: {archives.AGAIN}"
                )
    return lists


def read_categories(lines: list[list[str]]) -> dict[str, str]:
    """The category of each number."""
    names = {number: category for category, number in lines}
    if len(names) != len(lines) or len(set(names.values())) != len(lines):
        raise ReproError(f"{CATEGORIES} has a category or a number twice: {archives.AGAIN}")
    return names


def validation_categories(lines: list[list[str]], names: dict[str, str], images: set[str]) -> dict[str, str]:
    """The category of each validation image."""
    listed = dict(lines)
    if missing := sorted(images - set(listed)):
        raise ReproError(
            f"{VALIDATION} lacks {len(missing):,} of {len(images):,} validation images, the first is "
            f"{missing[0]}: they must be of the same version"
        )
    if unknown := sorted(set(listed) - images):
        raise ReproError(
            f"{len(unknown):,} of the validation images that {VALIDATION} lists are missing, the first is "
            f"{unknown[0]}: complete them"
        )
    if wrong := next((name for name in listed if listed[name] not in names), None):
        raise ReproError(
            f"{VALIDATION} has the category number {listed[wrong]} for {wrong}, which {CATEGORIES} does "
            f"not have: they must be of the same version"
        )
    return {name: names[number] for name, number in listed.items()}


def check_classes(found: list[str], expected: list[str], subset: bool) -> None:
    if extra := sorted(set(found) - set(expected)):
        raise ReproError(f"{CATEGORIES} does not list category {some_of(extra)}: move them elsewhere")
    if subset:
        return
    if missing := sorted(set(expected) - set(found)):
        raise ReproError(
            f"there are no training images of category {some_of(missing)} of {CATEGORIES}: "
            f"complete them, or pack a part under another name with --subset"
        )
    if len(found) != CLASSES:
        raise ReproError(
            f"this is not Places365: {len(found)} categories instead of {CLASSES}. Complete it, or pack "
            f"a part under another name with --subset"
        )


def check_counts(train: dict[str, list[Member]], lines: list[list[str]]) -> None:
    """Raises ReproError unless each category has as many training images as the list says."""
    listed = Counter(file.rpartition("/")[0] for file, _ in lines)
    differing = [
        f"{category} has {len(train.get(category, [])):,} training images instead of {count:,}"
        for category, count in sorted(listed.items())
        if len(train.get(category, [])) != count
    ]
    if differing:
        raise ReproError(
            f"according to {TRAIN} {some_of(differing, 3)}: complete them, or pack a part under another name with --subset"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=given, required=True, help="folder of the archives or extracted folders")
    parser.add_argument("--out", type=given, default=DATA / "places365", help="folder (default: data/places365)")
    parser.add_argument("--subset", action="store_true", help="accept a part of Places365")
    packing.options(parser)
    return packing.run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
