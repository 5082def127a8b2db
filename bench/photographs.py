"""The images that the benchmarks load: JPEGs of a photograph's usual size, as files and packed."""

import contextlib
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

import archives
import packing

IMAGES = 512


def write(folder: Path) -> Path:
    """Writes the JPEGs into class folders: crops of scikit-learn's two photographs, almost unscaled. Returns `folder`."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    originals = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(IMAGES):
        left, top = (int(generator.integers(high)) for high in (80, 40))
        part = originals[number % 2].crop((left, top, left + 560, top + 387)).resize((500, 346), Image.Resampling.LANCZOS)
        path = folder / f"class{number % 8}" / f"{number:04}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        (part if number % 4 else part.transpose(Image.Transpose.ROTATE_90)).save(path, quality=94)
    return folder


def pack(source: Path, out: Path, short_side: int, threads: int) -> float:
    """Packs the folders of `source`; returns the seconds that it took."""
    classes = [folder.name for folder in archives.folders(source)]
    images = [
        packing.Source(member.name, label, member)
        for label, name in enumerate(classes)
        for member in archives.files(source / name)
    ]
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        packing.pack(out, classes, {"train": images}, short_side=short_side, threads=threads, overwrite=True)
    return time.perf_counter() - start
