"""Packed data: the same digest for the same records, every record back, and every damage named."""

import errno
import filecmp
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest

from repro.images import packed
from repro.images.copies import copy_to_nodes
from repro.images.packed import CHUNK, FORMAT, Item, Packed, PackedError, write

from conftest import python

CLASSES = ["zero", "one", "two"]
RECORDS = [(i % 3, random.Random(i).randbytes(200 + i)) for i in range(300)]


def pack(path, records=RECORDS, split="train"):
    return write(path, "digits", split, CLASSES, lambda start: [Item(*record) for record in records[start:]])


@pytest.fixture
def file(tmp_path):
    pack(tmp_path / "train.lmdb")
    return tmp_path / "train.lmdb"


def read_all(path):
    reader = Packed(path, "digits", "train")
    return [reader[index] for index in range(len(reader))]


def damaged(file, name, change):
    """A copy of the file whose bytes were changed; each has a name of its own, as LMDB keeps files mapped."""
    content = bytearray(file.read_bytes())
    change(content)
    copy = file.with_name(f"{name}.lmdb")
    copy.write_bytes(content)
    return copy


def test_every_record_comes_back(file):
    assert read_all(file) == RECORDS
    manifest = Packed(file, "digits", "train").manifest
    assert (manifest["count"], manifest["classes"], manifest["count_per_class"]) == (300, CLASSES, [100] * 3)


def test_each_image_is_its_own_original_unless_it_is_said(tmp_path, file):
    assert Packed(file, "digits", "train").originals == 300
    items = [Item(*record) for record in RECORDS]
    manifest = write(tmp_path / "drawn" / "train.lmdb", "digits", "train", CLASSES, lambda start: items, originals=30)
    assert manifest["originals"] == Packed(tmp_path / "drawn" / "train.lmdb", "digits", "train").originals == 30


def test_the_digest_depends_on_the_records_and_their_order_alone(tmp_path):
    first = pack(tmp_path / "a" / "train.lmdb")["sha256"]
    assert pack(tmp_path / "b.lmdb", split="test")["sha256"] == first
    changes = [RECORDS[::-1], RECORDS[:-1], [(1, RECORDS[0][1]), *RECORDS[1:]], [(0, b"x" + RECORDS[0][1][1:]), *RECORDS[1:]]]
    digests = [pack(tmp_path / f"c{n}.lmdb", records)["sha256"] for n, records in enumerate(changes)]
    assert len({first, *digests}) == 5


@pytest.mark.counts_for("damage", cases=64)
def test_flipped_bits_in_images_labels_and_checksums_are_found(file):
    generator = random.Random(0)
    for number in range(64):
        index, bit = generator.randrange(len(RECORDS)), generator.randrange(8)
        place = generator.randrange(-8, len(RECORDS[index][1]))  # eight bytes of label and checksum stand before

        def flip(content, index=index, place=place, bit=bit):
            start = content.find(RECORDS[index][1])
            while start >= 0:  # LMDB may have left an older copy of a page behind
                content[start + place] ^= 1 << bit
                start = content.find(RECORDS[index][1][:50] if place >= 50 else RECORDS[index][1][-50:], start + 600)
            return content

        reader = Packed(damaged(file, number, flip), "digits", "train")
        with pytest.raises(PackedError, match=f"{number}.lmdb: record {index} is damaged"):
            reader[index]


@pytest.mark.counts_for("damage", cases=64)
def test_flipped_bits_in_the_manifest_are_found(file):
    start = file.read_bytes().rfind(b'{"format"')
    length = file.read_bytes()[start:].find(b"}") + 1
    generator, missed = random.Random(1), []
    for number in range(64):
        place, bit = start + generator.randrange(length), generator.randrange(8)

        def flip(content, place=place, bit=bit):
            content[place] ^= 1 << bit

        try:
            Packed(damaged(file, number, flip), "digits", "train")
            missed.append(place - start)
        except PackedError as error:
            assert f"{number}.lmdb" in str(error)
    assert missed == []


@pytest.mark.counts_for("damage")
@pytest.mark.parametrize("part", [0, 1, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9])
def test_a_truncated_file_is_named_instead_of_ending_the_process(file, part):
    """LMDB maps the file: reading beyond its end is a signal, so this runs in a process of its own."""
    cut = shutil.copy(file, file.with_name("cut.lmdb"))
    os.truncate(cut, part if isinstance(part, int) else int(part * file.stat().st_size))
    said = python(
        "-c",
        "import sys; from repro.images.packed import Packed; p = Packed(sys.argv[1], 'digits', 'train'); "
        "[p[i] for i in range(len(p))]",
        cut,
    )
    assert "PackedError" in said.stderr and "cut.lmdb" in said.stderr, f"ended with {said.returncode}: {said.stderr}"


@pytest.mark.counts_for("packed")
@pytest.mark.parametrize("content", [b"", b"x", b"<html>" * 5000, bytes(100_000)], ids=["empty", "1 byte", "html", "zeros"])
def test_what_is_not_packed_data_is_named(tmp_path, content):
    (tmp_path / "train.lmdb").write_bytes(content)
    with pytest.raises(PackedError, match="train.lmdb"):
        Packed(tmp_path / "train.lmdb", "digits", "train")


@pytest.mark.counts_for("packed")
def test_missing_data_says_which_command_makes_it(tmp_path):
    for path in (tmp_path / "train.lmdb", tmp_path):  # a folder in place of the file
        with pytest.raises(PackedError, match="make it with `.venv/bin/python data_prep/digits.py"):
            Packed(path, "digits", "train")


@pytest.mark.counts_for("packed")
@pytest.mark.parametrize("dataset, split", [("cifar10", "train"), ("digits", "test")])
def test_data_packed_for_something_else_is_refused(file, dataset, split):
    with pytest.raises(PackedError, match=f"packed as digits, train split, not as {dataset}, {split} split"):
        Packed(file, dataset, split)


@pytest.mark.counts_for("packed")
def test_other_formats_and_counts_are_refused(file):
    def version(content):
        content[:] = content.replace(FORMAT.encode(), FORMAT.encode().replace(b"version 3", b"version 4"))

    with pytest.raises(PackedError, match="version.lmdb"):
        Packed(damaged(file, "version", version), "digits", "train")


def test_two_readers_of_one_file_share_it(file):
    one, two = Packed(file, "digits", "train"), Packed(file, "digits", "train")
    assert one[5] == two[5] == RECORDS[5]


def test_a_file_packed_anew_is_read_anew(file):
    assert read_all(file) == RECORDS
    pack(file, RECORDS[:10])
    assert read_all(file) == RECORDS[:10]


@pytest.mark.counts_for("packed")
def test_interrupted_packing_leaves_no_file_and_keeps_the_old_one(tmp_path, file):
    def items(start):
        yield from (Item(*record) for record in RECORDS)
        raise KeyboardInterrupt

    before = file.read_bytes()
    for path in (file, tmp_path / "new.lmdb"):
        with pytest.raises(KeyboardInterrupt):
            write(path, "digits", "train", CLASSES, items)
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before


# --- Packing that is continued -----------------------------------------------------------------------------------------

MANY = [
    Item(i % 3, None if i % 97 == 5 else random.Random(i).randbytes(300), f"image {i}", "odd" if i % 97 in (5, 6) else "")
    for i in range(3 * CHUNK + 123)
]
PACKING = """
import os, random, signal, sys
from repro.images.packed import CHUNK, FORMAT, Item, write
sys.path.insert(0, "tests")
from test_packed import CLASSES, MANY
def items(start):
    for number, item in enumerate(MANY[start:], start):
        if number == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield item
write(sys.argv[1], "digits", "train", CLASSES, items, fingerprint="the same fingerprint of all inputs")
"""


@pytest.mark.counts_for("packed")
def test_killed_packing_continues_to_the_same_bytes(tmp_path):
    python("-c", PACKING, tmp_path / "whole.lmdb", -1)
    starts = []
    for kill in (0, CHUNK + 7, 2 * CHUNK, 3 * CHUNK + 122):
        assert python("-c", PACKING, tmp_path / "train.lmdb", kill).returncode == -signal.SIGKILL
        assert not (tmp_path / "train.lmdb").exists()

        def items(start):
            starts.append(start)
            return MANY[start:]

        manifest = write(
            tmp_path / "train.lmdb", "digits", "train", CLASSES, items, fingerprint="the same fingerprint of all inputs"
        )
        assert (tmp_path / "train.lmdb").read_bytes() == (tmp_path / "whole.lmdb").read_bytes()
        assert manifest["count"] == sum(item.image is not None for item in MANY)
        assert manifest["left_out"] == [[item.name, "odd"] for item in MANY if item.image is None]
        assert manifest["converted"] == [[item.name, "odd"] for item in MANY if item.note and item.image]
        (tmp_path / "train.lmdb").unlink()
    assert starts == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]


def test_another_fingerprint_starts_again(tmp_path):
    python("-c", PACKING, tmp_path / "train.lmdb", CHUNK + 1)
    asked = []
    write(tmp_path / "train.lmdb", "digits", "train", CLASSES, lambda start: asked.append(start) or MANY, fingerprint="another")
    assert asked == [0]


@pytest.mark.counts_for("packed")
def test_a_partial_conversion_under_the_final_name_is_refused(tmp_path):
    python("-c", PACKING, tmp_path / "train.lmdb", CHUNK + 1)
    next(tmp_path.glob(".train.lmdb.*.partial")).rename(tmp_path / "train.lmdb")
    with pytest.raises(PackedError, match="train.lmdb was not packed to its end"):
        Packed(tmp_path / "train.lmdb", "digits", "train")


@pytest.mark.counts_for("packed")
def test_two_processes_do_not_pack_one_file(tmp_path):
    def items(start):
        with pytest.raises(PackedError, match="another process is packing"):
            write(tmp_path / "train.lmdb", "digits", "train", CLASSES, lambda start: MANY, fingerprint="p")
        return MANY

    write(tmp_path / "train.lmdb", "digits", "train", CLASSES, items, fingerprint="p")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_packed_on_with_a_warning(tmp_path, monkeypatch, caplog, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(packed.fcntl, "flock", flock)
    manifest = write(tmp_path / "train.lmdb", "digits", "train", CLASSES, lambda start: MANY[start:], fingerprint="p")
    assert manifest["inputs"] == len(MANY) and [path.name for path in tmp_path.iterdir()] == ["train.lmdb"]
    assert f"train.lmdb cannot be locked ({os.strerror(number)}): do not pack it twice at the same time" in caplog.text


# --- Limits on address space, which batch systems set -------------------------------------------------------------------

MUCH = """
import resource, sys, psutil
sys.path.insert(0, "tests")
from test_packed import CLASSES
from repro.images.packed import Item, Packed, write
def limit(more):
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more,) * 2)
image = bytes(20_000)
path, more = sys.argv[1], int(sys.argv[2])
limit(more)
write(path, "digits", "train", CLASSES, lambda start: (Item(0, image) for _ in range(10_000)), fingerprint="f")
reader = Packed(path, "digits", "train")
print(reader[9_999] == (0, image))
"""


def test_packing_takes_little_more_address_space_than_its_file(tmp_path):
    """And the file, of 250 MB here, is the same bytes whatever the limit."""
    for name, more in (("much", 1 << 50), ("little", 600_000_000)):
        done = python("-c", MUCH, tmp_path / name / "train.lmdb", more)
        assert done.stdout == "True\n", done.stderr
    assert filecmp.cmp(tmp_path / "much" / "train.lmdb", tmp_path / "little" / "train.lmdb", shallow=False)


def test_a_limit_on_address_space_is_named(tmp_path):
    packing = python("-c", MUCH, tmp_path / "train.lmdb", 150_000_000)
    told = r"all of it must fit into the address space of this process, .* here to [0-9.]+ GB: raise `ulimit -v`, .* h_vmem"
    assert re.search(rf"PackedError: .*train.lmdb could not be written: {told}", packing.stderr), packing.stderr
    assert python("-c", MUCH, tmp_path / "train.lmdb", 600_000_000).stdout == "True\n", "it was not continued"
    reading = MUCH.replace("limit(more)\n", "").replace("write(path", "limit(more)\n0 and write(path")
    done = python("-c", reading, tmp_path / "train.lmdb", 150_000_000)
    assert re.search(rf"PackedError: .*train.lmdb \(0\.\d GB\) cannot be opened: {told}", done.stderr), done.stderr


# --- Copies -------------------------------------------------------------------------------------------------------------


def test_a_copy_has_every_split_of_the_original_and_no_other(tmp_path):
    source = tmp_path / "digits"
    splits = {"train": RECORDS, "val": RECORDS[:100], "test": RECORDS[100:200]}
    for split, records in splits.items():
        pack(source / f"{split}.lmdb", records, split)
    copy = Path(copy_to_nodes(str(source), str(tmp_path / "disk")))
    assert len(list(copy.iterdir())) == 3
    assert all((copy / f"{split}.lmdb").read_bytes() == (source / f"{split}.lmdb").read_bytes() for split in splits)
    (source / "val.lmdb").unlink()  # packed again without one: its images may be trained on now
    pack(source / "train.lmdb", RECORDS[::-1])
    assert copy_to_nodes(str(source), str(tmp_path / "disk")) == str(copy)
    assert {path.name for path in copy.iterdir()} == {"train.lmdb", "test.lmdb"}
    assert (copy / "train.lmdb").read_bytes() == (source / "train.lmdb").read_bytes()
