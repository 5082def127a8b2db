"""From source images to packed splits: each image is checked and converted to its stored form, then packed.

    convert   one image
    pack      all splits of a data set: estimate first, then threads, a progress bar, and one file per split
    options   the command-line options that the scripts under data_prep/ share

The stored form of an image depends only on its content, never on its file's name or location, so archives, extracted
trees and copies of them give the same bytes.
"""

import argparse
import hashlib
import io
import os
import re
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, features
from tqdm import tqdm

from repro import ReproError, cores, print_any_text
from repro.images import packed
from repro.images.ahead import ordered
from repro.paths import ROOT, check_checkout, given, writable_folder

from archives import Member

SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".ppm": "PPM",
}
FORMATS = tuple(set(SUFFIXES.values()))  # not all of Pillow's: some start other programs
METADATA = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP")  # chunks of a PNG
MOST_PIXELS = 89_000_000  # just below the size that Pillow warns about
SAMPLE = 32  # images of a split that the estimates are made from
SHOWN = 30  # images that were converted or left out and are printed; the manifest lists all
RANGES = (("short_side", 0, 65500), ("quality", 1, 100), ("threads", 1, 1024), ("max_skipped", 0, 10**9))
COMPARED = "compared: names, sizes and times of change"  # of images with those of an earlier packing
PAGE = 4096  # LMDB stores large records in whole pages, and as many small ones per page as fit


class ImageError(ReproError):
    """An image file is damaged or is not an image."""


@dataclass(frozen=True, slots=True)
class Source:
    """One image to be packed. `name` is the same in every layout of its data set."""

    name: str
    label: int
    member: Member


@dataclass(frozen=True)
class Rule:
    """How images are stored."""

    short_side: int = 256  # larger ones are scaled down to it; 0: no scaling
    quality: int = 90  # of the JPEGs that are made

    def __str__(self) -> str:
        scaled = f"short side at most {self.short_side} (bicubic), " if self.short_side else "not scaled, "
        return f"{scaled}JPEG of quality {self.quality} where it is not the original's bytes"


# --- One image -------------------------------------------------------------------------------------------------------


def convert(content: bytes, name: str, rule: Rule) -> tuple[bytes, str]:
    """The stored form of one image file, and a note if the file is odd ("" otherwise); raises ImageError.

    An ordinary JPEG (RGB or grey, 8 bits) that need not be scaled keeps its bytes. Everything else becomes a baseline JPEG
    in RGB, unless it is a grey JPEG. EXIF is ignored: its orientation, as in torchvision's loaders, and any damage in it.
    """
    image, content, size, note = _decoded(content, rule.short_side)
    ordinary = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")  # an MPO's first image is such a JPEG
    small = not rule.short_side or min(size) <= rule.short_side
    note = note or _oddity(image, name)
    if ordinary and small:
        return content, note
    note = f"{note}, converted" if note and not ordinary else note
    try:
        image = image if ordinary else _rgb(image)
        if not small:
            scale = rule.short_side / min(size)
            image = image.resize([round(side * scale) for side in size], Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rule.quality, comment=b"")  # else the original's comment is copied
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be made a JPEG in RGB ({error})") from error
    return file.getvalue(), note


def _decoded(content: bytes, short_side: int) -> tuple[Image.Image, bytes, tuple[int, int], str]:
    """The decoded image, its file's bytes, its full size, and a note if the bytes were repaired."""
    try:
        image, size = _opened(content, short_side)
        return image, content, size, ""
    except ImageError:
        # Pillow reads the resolution from EXIF, and fails on some damage there, and on large texts and colour profiles.
        bare, what = _without_metadata(content)
        if bare == content:
            raise
        image, size = _opened(bare, short_side)
    return image, bare, size, f"{what}, removed"


def _opened(content: bytes, short_side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The decoded image, and its full size."""
    if not content:
        raise ImageError("is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        size = image.size
        if size[0] * size[1] > MOST_PIXELS:
            raise Image.DecompressionBombError
        if short_side:
            # JPEG's own scaled decoding, which is cheap, to at least twice the stored size.
            image.draft(None, (2 * short_side, 2 * short_side))
        image.load()
    except Image.DecompressionBombError as error:
        raise ImageError(f"says that it has more than {MOST_PIXELS // 10**6} million pixels") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"is {_kind(content)}") from error
    except Exception as error:  # decoders raise all kinds of errors for damaged bytes
        raise ImageError(f"is damaged or cut short ({error})") from error
    return image, size


def _without_metadata(content: bytes) -> tuple[bytes, str]:
    """A JPEG without EXIF, or a PNG without texts, EXIF and colour profile, and what it was; anything else is unchanged."""
    if content[:2] == b"\xff\xd8":
        return _without_exif(content), "damaged EXIF"
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content, ""
    kept, place = [content[:8]], 8
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")  # length, kind, content, checksum
        if content[place + 4 : place + 8] not in METADATA:
            kept.append(content[place:end])
        place = end
    return b"".join(kept), "large or damaged text or colour profile"


def _without_exif(jpeg: bytes) -> bytes:
    """The JPEG without its EXIF segments (APP1)."""
    kept, place = [jpeg[:2]], 2
    while jpeg[place : place + 1] == b"\xff" and jpeg[place : place + 2] != b"\xff\xda":
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if jpeg[place : place + 2] != b"\xff\xe1":
            kept.append(jpeg[place:end])
        place = end
    return b"".join(kept) + jpeg[place:]


def _kind(content: bytes) -> str:
    if content.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page, not an image"
    if content[:2] == b"\xff\xd8" or content[:8] == b"\x89PNG\r\n\x1a\n":
        return f"only the start of an image ({len(content):,} bytes), or its header is damaged"
    return f"no image of a known format ({len(content):,} bytes, which begin with {content[:8]!r})"


def _oddity(image: Image.Image, name: str) -> str:
    """Why an image is not what its name says, or not 8 bits of grey or RGB."""
    format = "JPEG" if image.format == "MPO" else image.format
    suffix = os.path.splitext(name)[1]
    if SUFFIXES.get(suffix.lower(), format) != format:
        return f"{format} named {suffix}"
    return "" if image.mode in ("L", "RGB") else f"{format} of mode {image.mode}"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion would clip
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("more than 16 bits a sample")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("samples in floating point, whose range is not known")
    return image.convert("RGB")


# --- All images ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """One split that is still to be packed."""

    path: Path
    sources: list[Source]
    fingerprint: str
    inputs: int  # images already packed by an interrupted call
    left_out: int  # of those

    @property
    def remaining(self) -> int:
        return len(self.sources) - self.inputs


def pack(
    out: Path,
    classes: list[str],
    splits: dict[str, list[Source]],
    short_side: int = 256,
    quality: int = 90,
    threads: int = 1,
    on_error: str = "error",
    max_skipped: int = 20,
    overwrite: bool = False,
    preprocessing: packed.Preprocessing = packed.PHOTOGRAPHS,
) -> None:
    """Packs each split's images into `out`/SPLIT.lmdb; the data set has the folder's name.

    Images are sorted by (label, name). An existing file made from the same images by the same rule is kept; any other is
    replaced only with `overwrite`. An interrupted packing is continued. A damaged image stops the packing (`on_error`
    "error") or is left out ("skip"), at most `max_skipped` per split.
    Raises ReproError, if possible before anything is written: if the disk is too small, or other data exist already.
    """
    dataset = given(out).name
    rule = Rule(short_side, quality)
    lacking = {split: set(range(len(classes))) - {source.label for source in splits[split]} for split in splits}
    if lacking["train"]:
        missing = some_of([classes[label] for label in sorted(lacking["train"])])
        if set.intersection(*lacking.values()):
            raise ReproError(f"there are no training images of class {missing}: complete or remove them")
        raise ReproError(
            f"all images of class {missing} are set apart, and none is left to train on: add some, or set fewer apart"
        )
    for split, empty in lacking.items():
        if empty:
            missing = some_of([classes[label] for label in sorted(empty)])
            print(f"warning: {split} has no images of class {shown(missing)}: its results say nothing of them", file=sys.stderr)
    if "val" not in splits and (out / "val.lmdb").exists():
        raise ReproError(f"{out / 'val.lmdb'} is of an earlier packing, and its images may now be trained on: delete it")
    jobs = [
        job
        for split, sources in splits.items()
        if (job := _job(out / f"{split}.lmdb", dataset, classes, sources, rule, overwrite, preprocessing))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF and transparency, which do not matter here
        _estimate(out, classes, jobs, rule, threads)
        if jobs:
            writable_folder(out)
        for number, job in enumerate(jobs, 1):
            items = _items(job, rule, threads, on_error, max_skipped)
            manifest = packed.write(job.path, dataset, job.path.stem, classes, items, str(rule), job.fingerprint, preprocessing)
            for other in jobs[number:]:
                other.path.unlink(missing_ok=True)  # of an earlier packing, which is no longer that of all splits
            _report(job.path, manifest)
    digests = {split: packed.Packed(out / f"{split}.lmdb", dataset, split).manifest["sha256"] for split in splits}
    for split in splits:
        if split != "train" and digests[split] == digests["train"]:
            print(f"warning: {split} has the same images as train, so a network will show what it remembers", file=sys.stderr)


def _job(
    path: Path,
    dataset: str,
    classes: list[str],
    sources: list[Source],
    rule: Rule,
    overwrite: bool,
    preprocessing: packed.Preprocessing,
) -> _Job | None:
    """The work left for this split; None if there is none."""
    if not sources:
        raise ReproError(f"there are no images for {path}")
    sources = sorted(sources, key=lambda source: (source.label, source.name))
    for one, other in zip(sources, sources[1:]):
        if (one.label, one.name) == (other.label, other.name):
            raise ReproError(f"{one.name} exists twice: {one.member.place} and {other.member.place}")
    fingerprint = _fingerprint(dataset, path.stem, classes, sources, rule, preprocessing)
    if path.exists() and not overwrite:
        try:
            same = packed.Packed(path, dataset, path.stem).manifest["fingerprint"] == fingerprint
        except packed.PackedError:
            same = False
        if not same:
            raise ReproError(
                f"{path} exists already, but not from the same images with the same options ({COMPARED}): replace it "
                f"with --overwrite, or choose another folder with --out"
            )
        print(f"{path}: already packed from the same images with the same options ({COMPARED}; --overwrite packs it again)")
        return None
    partial = packed.partial_path(path, fingerprint)
    for begun in set(path.parent.glob(f".{path.name}.*.partial")) - {partial}:
        print(
            f"{begun}: started from other images or with other options ({COMPARED}; {_bytes(begun.stat().st_size)}); delete "
            f"it unless you want to continue it"
        )
    inputs, left_out = packed.begun(partial)
    return _Job(path, sources, fingerprint, inputs, left_out)


def _fingerprint(
    dataset: str, split: str, classes: list[str], sources: list[Source], rule: Rule, preprocessing: packed.Preprocessing
) -> str:
    """A digest of everything that determines the packed records. Of images it is what `COMPARED` says, and their labels.

    To read them would take as long as packing. The time of change of an image in an archive is the archive's.
    """
    versions = Image.__version__, features.version("jpg"), features.version("libjpeg_turbo")
    digest = hashlib.sha256(repr((dataset, split, classes, str(rule), preprocessing, versions)).encode())
    for source in sources:
        member = source.member
        digest.update(f"{source.name}\0{source.label}\0{member.size}\0{member.changed}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _estimate(out: Path, classes: list[str], jobs: list[_Job], rule: Rule, threads: int) -> None:
    """Prints number, size and time of each split, estimated from a sample; raises ReproError if the disk is too small."""
    needed = 0
    for job in jobs:
        count = min(SAMPLE, job.remaining)
        sample = [job.sources[job.inputs + number * job.remaining // count] for number in range(count)]
        start = time.monotonic()
        items = list(ordered(_item, ((source, rule) for source in sample), threads, len(sample)))
        seconds = (time.monotonic() - start) * job.remaining / max(count, 1)
        sizes = [_on_disk(len(item.image)) for item in items if item.image]
        size = round(1.05 * sum(sizes) / max(len(sizes), 1) * job.remaining) + 8 * PAGE
        needed += size
        if 0 <= resource.getrlimit(resource.RLIMIT_AS)[0] < size:
            raise ReproError(f"{job.path} takes about {_bytes(size)}: {packed.too_large()}")
        continued = f", {job.inputs:,} of them already done" if job.inputs else ""
        print(
            f"{job.path}: {len(job.sources):,} images of {len(classes):,} classes{continued}; about "
            f"{_bytes(size)} and {_time(seconds)} with {threads} threads",
            flush=True,
        )
    if jobs:
        print(f"stored images: {rule}", flush=True)
    existing = out.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ReproError(
            f"{out} needs about {_bytes(needed)}, but its file system has {_bytes(free)} free: free some "
            f"space, choose another folder with --out, or store smaller images (--short-side, --quality)"
        )


def some_of(names: list[str], most: int = 1) -> str:
    """The first of these names, and how many others there are: "elk and 2 others"."""
    others = len(names) - most
    return ", ".join(names[:most]) + (f" and {others:,} other{'s' * (others > 1)}" if others > 0 else "")


def shown(text: str) -> str:
    """The text on one line: names of files may have line breaks and other control characters, which are printed as escapes."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], text)


def _on_disk(image: int) -> int:
    record = image + 24  # key and headers
    return PAGE // (PAGE // record) if record <= PAGE // 2 else -(-record // PAGE) * PAGE


def _item(source: Source, rule: Rule) -> packed.Item:
    # A file that cannot be read raises ReproError, which passes: no image may be left out because of a faulty disk.
    content = source.member.read()
    try:
        image, note = convert(content, source.name, rule)
    except ImageError as error:
        return packed.Item(source.label, None, source.name, str(error))
    return packed.Item(source.label, image, source.name, note)


def _items(job: _Job, rule: Rule, threads: int, on_error: str, max_skipped: int) -> Callable[[int], Iterator[packed.Item]]:
    def items(start: int) -> Iterator[packed.Item]:
        left_out = job.left_out
        results = ordered(_item, ((source, rule) for source in job.sources[start:]), threads, ahead=4 * threads)
        with tqdm(
            total=len(job.sources),
            initial=start,
            unit="image",
            desc=job.path.stem,
            smoothing=0.05,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as bar:
            for number, item in enumerate(results, start):
                if item.image is None:
                    place = job.sources[number].member.place
                    if on_error == "error":
                        raise ImageError(f"{place} {item.note}: fetch it again, or leave such images out with --on-error skip")
                    left_out += 1
                    if left_out > max_skipped:
                        raise ImageError(
                            f"{place} {item.note}: with this image, {left_out} are left out, but "
                            f"--max-skipped allows {max_skipped}"
                        )
                yield item
                bar.update()

    return items


def _report(path: Path, manifest: dict) -> None:
    print(
        f"{path}: {manifest['count']:,} images of {len(manifest['classes']):,} classes, "
        f"{_bytes(path.stat().st_size)}, sha256 {manifest['sha256']}"
    )
    for what, key in (("odd", "converted"), ("left out", "left_out")):
        listed = manifest[key]
        for name, note in listed[:SHOWN]:
            print(f"  {what}: {shown(name)}: {note}")
        if len(listed) > SHOWN:
            print(f"  {what}: and {len(listed) - SHOWN:,} more, which the file's manifest lists")


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


# --- What the scripts share ------------------------------------------------------------------------------------------


def options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `pack` accepts under the same names."""
    parser.add_argument(
        "--short-side",
        type=int,
        default=256,
        help="in pixels; larger images are scaled down to it; 0: no scaling (default: %(default)s)",
    )
    parser.add_argument("--quality", type=int, default=90, help="quality of the JPEGs that are made (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=cores(), help="number of threads (default: one per usable core, %(default)s)"
    )
    parser.add_argument(
        "--on-error",
        choices=("error", "skip"),
        default="error",
        help="stop at a damaged image, or leave it out (default: %(default)s)",
    )
    parser.add_argument("--max-skipped", type=int, default=20, help="most images per split to leave out (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing packed files")


def run(prepare: Callable[..., None], parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    """Calls `prepare` with the command line's options; returns the exit status, and prints errors as one line."""
    print_any_text()
    chosen = vars(parser.parse_args(arguments))
    try:
        check_checkout(Path(__file__).parent)
        for name, least, most in RANGES:
            if not least <= chosen[name] <= most:
                raise ReproError(f"--{name.replace('_', '-')} is {chosen[name]}: it must be between {least} and {most}")
        prepare(**chosen)
    except ReproError as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command continues where this one stopped", file=sys.stderr)
        return 130
    return 0


def check_name(out: Path, script: str, part: bool = False) -> None:
    """Raises ReproError if the folder's name belongs to another script's data set, or to all of it and this is a part."""
    name = given(out).name
    own = name == script
    if (ROOT / "data_prep" / f"{name}.py").exists() and (part or not own):
        what = f"a part of {script}" if own else f"this, which is not {name},"
        raise ReproError(f"{what} must not be packed under the name {name}: choose another folder with --out")
