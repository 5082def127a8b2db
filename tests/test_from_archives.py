"""The ImageNet path from end to end on the stand-in: archives, packing, training, release, exact counts."""

import json
import re

import nbformat
import pytest

from repro.jupyter import notebooks
from repro.run import records

import stand_in
from conftest import ROOT, mpiexec, python

SUBSET = "imagenet-subset"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The folder of a packed stand-in, made by the commands that the README gives."""
    folder = tmp_path_factory.mktemp("archives")
    for command in (
        [
            ROOT / "data_prep" / "stand_in.py",
            "--classes",
            "3",
            "--images",
            "120",
            "--validation",
            "9",
            "--out",
            folder / "source",
        ],
        [ROOT / "data_prep" / "imagenet.py", "--source", folder / "source", "--subset", "--out", folder / SUBSET],
    ):
        done = python(*command)
        assert done.returncode == 0, done.stderr
    return folder / SUBSET


@pytest.mark.parametrize(
    "recipe, workers, images, iterations", [("resnet50_custom_lr", 128, 4096, 22610), ("resnet50_448nodes", 896, 14336, 8040)]
)
@pytest.mark.slow
def test_the_released_recipes_start_with_all_their_workers_and_say_how_long_the_rest_takes(
    packed, tmp_path, recipe, workers, images, iterations
):
    """Unshrunk in workers, batch and rates; a small model and few pixels, so that it takes seconds."""
    done = mpiexec(
        2,
        "-m",
        "repro",
        "train",
        recipe,
        "--shrink",
        "none",
        "--data",
        packed,
        "--out",
        tmp_path,
        "--steps",
        "1",
        "--model",
        "resnet11",
        "--size",
        "16",
        "--device",
        "cpu",
        timeout=180,
    )
    assert done.returncode == 75, done.stderr
    assert re.search(
        rf"after step 1 of {iterations}\. At this call's .* images/s on 2 ranks .* the other {iterations - 1} steps "
        rf"of {images} images take .* days",
        done.stdout,
    ), done.stdout
    record = records.read(next(tmp_path.iterdir()))
    assert (record["status"], record["workers"], record["ranks"]) == ("stopped", workers, 2)
    assert record["recipe"]["workers"] * record["recipe"]["images_per_worker"] == images


@pytest.mark.slow
def test_the_notebook_goes_from_archives_to_an_ensemble(packed, tmp_path):
    """At 64 pixels, to be quick; the source is the archives, and what is packed already is left alone."""
    output = notebooks.execute(
        "02-from-archives",
        {
            "source": str(packed.parent / "source"),
            "packed": str(packed),
            "size": 64,
            "model": "resnet11",
            "out": str(tmp_path / "runs"),
            "live": False,
        },
        tmp_path / "02.ipynb",
    )
    book = nbformat.read(output, as_version=4)
    text = "".join(output.get("text", "") for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)
    pictures = [
        output
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert "already packed" in text and len(pictures) == 1
    assert re.search(r"collapsed_ensemble: \d \d \d of 9, as recorded\nresnet50_448nodes: \d of 9, as recorded", text)

    # The same files by the command line, on one rank and on two.
    files = sorted((tmp_path / "runs").glob("collapsed_ensemble*/models/*.safetensors"))
    assert len(files) == 3
    commands = (
        python("-m", "repro", "evaluate", *files, "--data", packed, "--device", "cpu", "--json"),
        mpiexec(2, "-m", "repro", "evaluate", *files, "--data", packed, "--device", "cpu", "--json"),
    )
    assert [done.returncode for done in commands] == [0, 0], commands
    one, two = (json.loads(done.stdout.splitlines()[-1]) for done in commands)
    assert one == two and one["images"] == 9
    recorded = re.search(r"collapsed_ensemble: (\d) (\d) (\d) of", text).groups()
    assert [str(member["top1"]) for member in one["members"]] == list(recorded)


def test_staging_copies_once_a_node_and_finds_damage(packed, tmp_path):
    done = mpiexec(2, "-m", "repro", "copy-data", packed, "--to", tmp_path / "disk")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "disk" / SUBSET
    assert done.stdout.split() == [str(folder)]
    before = {}
    for split in ("train", "test"):
        assert (folder / f"{split}.lmdb").read_bytes() == (packed / f"{split}.lmdb").read_bytes()
        before[split] = (folder / f"{split}.lmdb").stat().st_ino
    again = python("-m", "repro", "copy-data", packed, "--to", tmp_path / "disk")
    assert again.returncode == 0 and {split: (folder / f"{split}.lmdb").stat().st_ino for split in before} == before

    content = bytearray((packed / "train.lmdb").read_bytes())
    image = stand_in_image(packed)
    content[content.find(image) + len(image) // 2] ^= 1
    damaged = tmp_path / SUBSET
    damaged.mkdir()
    (damaged / "train.lmdb").write_bytes(content)
    refused = mpiexec(2, "-m", "repro", "copy-data", damaged, "--to", tmp_path / "other")
    assert refused.returncode == 2 and "is damaged" in refused.stderr, refused.stderr
    assert not list((tmp_path / "other").rglob("*.lmdb")), "a damaged copy stands under its name"


def stand_in_image(folder) -> bytes:
    """A stored image that lies in one piece in the file: LMDB keeps large records so."""
    from repro.images.packed import Packed

    return Packed(folder / "train.lmdb", SUBSET, "train")[7][1]


def test_ranks_answer_a_roll_call():
    done = mpiexec(2, "-m", "repro", "ranks")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 3, done.stderr
    assert lines[0].startswith("rank 0 of 2 on ") and lines[1].startswith("rank 1 of 2 on ")
    assert lines[2].startswith("all 2 ranks see each other")


@pytest.mark.slow
def test_train_and_test_of_different_label_maps_are_refused(packed, tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        stand_in.write(tmp_path / split, classes=3 + seed, images=12, validation=6)
        done = python(
            ROOT / "data_prep" / "imagenet.py",
            "--source",
            tmp_path / split,
            "--subset",
            "--out",
            tmp_path / f"{split}s" / "mixed",
        )
        assert done.returncode == 0, done.stderr
    (tmp_path / "tests" / "mixed" / "test.lmdb").replace(tmp_path / "trains" / "mixed" / "test.lmdb")
    done = python(
        "-m",
        "repro",
        "train",
        "resnet50_448nodes",
        "--shrink",
        "none",
        "--data",
        tmp_path / "trains" / "mixed",
        "--out",
        tmp_path,
    )
    assert done.returncode == 2 and "label map" in done.stderr and "4 classes instead of 3" in done.stderr
