"""Members are read in place, byte for byte; every malformed archive is named, and nothing is ever written."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from repro import ReproError

import archives
from archives import Member

CONTENTS = {f"n{number}.bin": bytes([number]) * (300 * number) for number in range(5)}


def tar(contents=CONTENTS, format=tarfile.USTAR_FORMAT, entries=()) -> bytes:
    """A tar of the contents, and then of entries (name, attributes of its header)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, attributes in entries:
            entry = tarfile.TarInfo(name)
            for key, value in attributes.items():
                setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    return file.getvalue()


def changed(content: bytes, place: int, value: bytes) -> bytes:
    """The tar with other bytes in its first header, whose checksum is made right again."""
    content = bytearray(content)
    content[place : place + len(value)] = value
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    return bytes(content)


@pytest.fixture
def packed(tmp_path):
    folder = tmp_path / "two" / "deep"  # so that what leads upwards would still be seen
    folder.mkdir(parents=True)

    def write(content: bytes, name="a.tar") -> Member:
        (folder / name).write_bytes(content)
        return Member.of(folder / name)

    return write


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_byte_for_byte(packed, format):
    contents = CONTENTS | {"folder/" + 60 * "x" + "/" + 90 * "y": b"a long name"}
    members = archives.index(packed(tar(contents, format)), r"n\d\.bin|folder/.*")
    assert {member.name: member.read() for member in members} == contents


def test_an_archive_in_an_archive_is_read_through_the_outer_file(packed, tmp_path):
    inner = {"a.tar": tar({"a1": b"one", "a2": b"two" * 999}), "b.tar": tar({"b1": bytes(5000)})}
    outer = packed(tar(inner))
    found = {
        member.name: member.read() for each in archives.index(outer, r"[ab]\.tar") for member in archives.index(each, ".*")
    }
    assert found == {"a.tar/a1": b"one", "a.tar/a2": b"two" * 999, "b.tar/b1": bytes(5000)}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.tar"]


def test_folders_and_a_leading_dot_are_passed_over(packed):
    entries = [("./sub", {"type": tarfile.DIRTYPE}), ("./sub/x", {"size": 3})]
    assert [member.name for member in archives.index(packed(tar({}, entries=entries)), "sub/x")] == ["sub/x"]


def test_a_folders_files_are_the_same_kind_of_member(tmp_path):
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden").write_bytes(b"")
    assert {member.name: member.read() for member in archives.files(tmp_path, r"n\d\.bin")} == CONTENTS


WHOLE = tar()
OVERSIZED = 10 * 1024 * 1024
HOSTILE = {
    "a name that leads upwards": (tar({"a/../../x": b"x"}), "'a/../../x' points out of the archive"),
    "an absolute name": (tar({"/etc/x": b"x"}), "'/etc/x' points out of the archive"),
    "a folder that leads upwards": (tar(entries=[("../d", {"type": tarfile.DIRTYPE})]), "'../d' points out"),
    "a symbolic link": (
        tar(entries=[("n9.bin", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})]),
        "n9.bin is a symbolic link",
    ),
    "a hard link": (tar(entries=[("n9.bin", {"type": tarfile.LNKTYPE, "linkname": "n1.bin"})]), "n9.bin is a hard link"),
    "a device": (tar(entries=[("n9.bin", {"type": tarfile.CHRTYPE, "devmajor": 1})]), "n9.bin is a device"),
    "a pipe": (tar(entries=[("n9.bin", {"type": tarfile.FIFOTYPE})]), "n9.bin is a device or pipe"),
    "an unknown type": (changed(WHOLE, 156, b"S"), "n0.bin is of the unexpected type"),
    "a file with holes": (
        tar({}, tarfile.PAX_FORMAT, [("n9.bin", {"pax_headers": {"GNU.sparse.map": "0,0"}})]),
        "n9.bin is of the unexpected type",
    ),
    "a member twice": (tar(entries=[("n1.bin", {})]), "two members n1.bin"),
    "an unexpected name": (tar(entries=[("readme", {})]), "'readme' is not expected there"),
    "cut in a member": (WHOLE[:2500], "is cut short in its member n2.bin"),
    "cut in a header": (WHOLE[: 3072 + 100], "is cut short after 3 members"),
    "cut between members": (WHOLE[:512], "is cut short after 1 members"),
    "a damaged header": (WHOLE[:600] + b"junk" + WHOLE[604:], "is damaged after 1 members"),
    "a size beyond the end": (changed(WHOLE, 124, b"77777777777\0"), "is cut short in its member n0.bin"),
    "a negative size": (changed(WHOLE, 124, b"\xff" * 12), "has the size -1|is not a complete tar"),
    "a long name of 8 GB": (
        changed(changed(WHOLE, 156, b"L"), 124, b"77777777777\0"),
        "is not a complete tar archive .header of 8,589,934,592 bytes",
    ),
    "many headers of headers": (
        tar({}, entries=[("x", {"type": b"x", "size": 0})] * 3000),
        "is not a complete tar|is cut short|is damaged",
    ),
    "a web page": (b"<!DOCTYPE html><html>" + b"x" * 5000, "is not a complete tar archive .it is a web page"),
    "a compressed archive": (gzip.compress(WHOLE), "it is compressed"),
    "random bytes": (bytes(range(256)) * 40, "is not a complete tar archive"),
    "an empty file": (b"", "it is empty"),
    "one byte": (b"x", "is not a complete tar archive"),
    "zeros": (bytes(10240), "has no members"),
}


@pytest.mark.counts_for("archives")
@pytest.mark.parametrize("case", HOSTILE)
def test_malformed_archives_are_named(packed, tmp_path, case):
    content, message = HOSTILE[case]
    member = packed(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ReproError, match=rf"a\.tar.*({message})"):
        archives.index(member, r"n\d\.bin")
    assert sorted(tmp_path.rglob("*")) == before and Path(member.file).read_bytes() == content


@pytest.mark.counts_for("archives")
@pytest.mark.parametrize("case", HOSTILE)
def test_malformed_archives_in_an_archive_are_named_with_their_member(packed, case):
    content, message = HOSTILE[case]
    (inner,) = archives.index(packed(tar({"a.tar": content})), r"a\.tar")
    with pytest.raises(ReproError, match=rf"a\.tar, member a\.tar.*({message})"):
        archives.index(inner, r"n\d\.bin")


def test_a_file_that_shrinks_after_it_was_indexed_is_named(packed):
    members = archives.index(packed(WHOLE), r"n\d\.bin")
    os.truncate(members[0].file, 2500)
    with pytest.raises(ReproError, match=r"a\.tar, member n3\.bin is cut short"):
        members[3].read()


def test_a_member_too_large_for_an_image_is_not_read(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(archives.LARGEST + 1)
    with pytest.raises(ReproError, match="huge.jpg has 268,435,457 bytes"):
        Member.of(tmp_path / "huge.jpg").read()


@pytest.mark.counts_for("archives")
def test_too_many_members_are_refused(packed, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 4)
    with pytest.raises(ReproError, match="a.tar has more than 4 members"):
        archives.index(packed(WHOLE), ".*")


# --- Compressed archives ---------------------------------------------------------------------------------------------


def test_a_compressed_archive_gives_the_members_asked_for(packed):
    member = packed(gzip.compress(WHOLE), "a.tar.gz")
    assert archives.unpacked(member.file, r"n[13]\.bin") == {name: CONTENTS[name] for name in ("n1.bin", "n3.bin")}


@pytest.mark.counts_for("archives")
@pytest.mark.parametrize(
    "content, message",
    [
        (gzip.compress(bytes(archives.LARGEST_UNPACKED + 1), 1), "unpacks to more than 67,108,864 bytes"),
        (gzip.compress(WHOLE)[:-20], "cannot be unpacked"),
        (gzip.compress(WHOLE[:2500]), "cut short|not a complete tar"),
        (WHOLE, "cannot be unpacked"),
        (b"<html>", "it is a web page"),
        (b"", "not a complete tar archive .it is empty"),
        (gzip.compress(HOSTILE["a symbolic link"][0]), "n9.bin is a symbolic link"),
        (gzip.compress(HOSTILE["a name that leads upwards"][0]), "points out of the archive"),
    ],
    ids=["bomb", "cut", "cut inside", "not compressed", "web page", "empty", "link", "traversal"],
)
def test_malformed_compressed_archives_are_named(packed, content, message):
    with pytest.raises(ReproError, match=f"a.tar.gz.*({message})"):
        archives.unpacked(packed(content, "a.tar.gz").file, ".*")


# --- Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.counts_for("archives")
def test_what_is_not_expected_in_a_folder_is_named(tmp_path):
    (tmp_path / "n1.bin").mkdir()
    with pytest.raises(ReproError, match="n1.bin is a folder, where an image file is expected"):
        archives.files(tmp_path, r"n\d\.bin")
    with pytest.raises(ReproError, match="n1.bin is not expected there"):
        archives.folders(tmp_path, "x")
    with pytest.raises(ReproError, match="n1.bin is a folder, where a plain file is expected"):
        Member.of(tmp_path / "n1.bin")
    (tmp_path / "n1.bin").rmdir()
    os.mkfifo(tmp_path / "n1.bin")
    with pytest.raises(ReproError, match="n1.bin is not a plain file"):
        archives.files(tmp_path)
    (tmp_path / "n1.bin").unlink()
    (tmp_path / "n1.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ReproError, match="n1.bin cannot be read"):
        archives.files(tmp_path)


@pytest.mark.parametrize("look", [Member.of, archives.files, archives.folders, lambda path: archives.unpacked(path, ".*")])
def test_what_is_not_there_is_named(tmp_path, look):
    with pytest.raises(ReproError, match="absent cannot be read"):
        look(tmp_path / "absent")


def test_the_first_place_that_is_there_is_found(tmp_path):
    (tmp_path / "b").mkdir()
    assert archives.find(tmp_path, "a", "b") == tmp_path / "b"
    with pytest.raises(ReproError, match="holds none of a, c: name the folder that does with --source"):
        archives.find(tmp_path, "a", "c")
