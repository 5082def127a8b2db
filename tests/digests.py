"""Trains four small recipes and prints the SHA-256 of their weights: what no change of layout may move.

    PYTHONPATH=.:data_prep python tests/digests.py FOLDER > tests/digests.json

where a change of bits is intended (say which and why in CHANGELOG.md). Each library is asked for its plainest kernels, so that
different processors compute the same bits. `kernels` is a digest of what torch computes without any code of this
project: where it differs from the recorded one, so do the machine's bits, and the weights cannot be compared.
"""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
os.environ.update(PLAIN)  # read when torch is loaded

import digits as digits_set  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from repro.images import packed  # noqa: E402
from repro.schedule import NEW_WEIGHTS, Recipe, Stage  # noqa: E402
from repro.train import train  # noqa: E402

import drawing  # noqa: E402

COUNTS = {"train": 300, "test": 40}
EVERY_SWITCH = Recipe(
    name="every_switch",
    stages=(
        Stage(
            "main", 9, 0.3, warmup_iterations=4, warmup_start_rate=0.1, horizon=12, designed_horizon=10, power=2, member=True
        ),
        Stage("fall", 4, 0.2, drops=(2, 3), augmentation="scale", weight_decay=1e-3),
        Stage("wave", 5, 0.2, decay="cosine", augmentation="none", starts_from="main", member=True),
        Stage("other", 4, 0.2, warmup_iterations=2, starts_from=NEW_WEIGHTS, member=True),
    ),
    workers=5,
    images_per_worker=8,
    workers_per_pass=2,
    epoch_images=300,
    model="resnet11",
    stride="v1",
    momentum=0.8,
    lr_formula="as_designed",
    momentum_correction="warmup",
    decay_bn=False,
    zero_gamma="all_blocks",
    bn_momentum=0.1,
)
RUNS = {
    "resnet50_448nodes": dict(shrink="smoke"),
    "collapsed_ensemble": dict(shrink="smoke"),
    "three_models": dict(shrink="smoke"),
    "every_switch": dict(recipe=EVERY_SWITCH, reduction="fast", size=14),
}


def pack(folder: Path) -> str:
    for split, count in COUNTS.items():
        ink, labels = digits_set.originals()[split]
        pixels = drawing.draw(ink[:count], f"digits {split}", 0, digits_set.NOISE)
        items = [packed.Item(int(label), drawing.png(image)) for label, image in zip(labels, pixels)]
        packed.write(
            folder / "few" / f"{split}.lmdb",
            "few",
            split,
            digits_set.CLASSES,
            lambda start, items=items: items[start:],
            preprocessing=replace(digits_set.PREPROCESSING, mirror=True),
        )
    return str(folder / "few")


def kernels() -> str:
    """SHA-256 of a small network's gradients, by torch alone."""
    generator = torch.Generator().manual_seed(1)
    x, w, v, b = (torch.randn(shape, generator=generator) for shape in ((8, 1, 16, 16), (8, 1, 3, 3), (16, 8, 1, 1), (10, 16)))
    leaves = [leaf.requires_grad_() for leaf in (w, v, b)]
    y = F.batch_norm(F.conv2d(x, w, stride=2, padding=1), None, None, training=True).relu()
    y = F.linear(F.conv2d(y.contiguous(memory_format=torch.channels_last), v).mean((2, 3)), b)
    F.cross_entropy(y, torch.arange(8)).backward()
    return hashlib.sha256(b"".join(leaf.grad.numpy().tobytes() for leaf in leaves)).hexdigest()


def main(folder: Path) -> dict:
    data, found = pack(folder), {}
    for name, options in RUNS.items():
        task = {"recipe": name, "data": data, "out": str(folder / "runs"), "seed": 3, "device": "cpu", **options}
        found[name] = json.loads(Path(train(**task), "run.json").read_text())["weights_sha256"]
    return {"torch": torch.__version__.partition("+")[0], "kernels": kernels(), "weights": found}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1])), indent=1))
