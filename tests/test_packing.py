"""Images keep their bytes or come near a plain conversion; damaged ones are named; packing is planned and continued."""

import io
import json
import os
import random
import signal
import struct
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from repro import ReproError
from repro.images import packed
from repro.images.packed import CHUNK, Packed

import packing
from archives import Member
from conftest import ROOT, launch, python
from packing import ImageError, Rule, Source, convert

PHOTOGRAPH = Image.fromarray(load_sample_image("china.jpg"))  # 640 x 427
SMALL = PHOTOGRAPH.crop((100, 100, 300, 250))  # 200 x 150
RULE = Rule()


def encoded(image, format="JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(content) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def difference(content, image) -> float:
    """Mean absolute difference of RGB values, 0 to 255."""
    return np.abs(decoded(content) - np.asarray(image.convert("RGB")).astype(int)).mean()


# --- One image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, options, rule",
    [
        (SMALL, {}, RULE),
        (SMALL, {"progressive": True}, RULE),
        (SMALL.convert("L"), {}, RULE),
        (SMALL, {"quality": 100}, RULE),
        (PHOTOGRAPH.resize((900, 256)), {}, RULE),
        (PHOTOGRAPH, {}, Rule(0)),
        (PHOTOGRAPH.convert("L"), {}, Rule(0)),
        (SMALL.resize((1, 1)), {}, RULE),
        (SMALL.resize((1, 5000)), {}, RULE),
        (SMALL.resize((5000, 1)), {}, RULE),
    ],
    ids=["RGB", "progressive", "grey", "high quality", "256 high", "any size", "any grey", "1 x 1", "1 x 5000", "5000 x 1"],
)
def test_ordinary_jpegs_that_need_not_be_scaled_keep_their_bytes(image, options, rule):
    content = encoded(image, **options)
    assert convert(content, "a.JPEG", rule) == (content, "")


@pytest.mark.parametrize(
    "image, size",
    [
        (PHOTOGRAPH, (384, 256)),
        (PHOTOGRAPH.transpose(Image.Transpose.ROTATE_90), (256, 384)),
        (PHOTOGRAPH.resize((2560, 1708), Image.Resampling.BICUBIC), (384, 256)),
        (PHOTOGRAPH.convert("L"), (384, 256)),
        (PHOTOGRAPH.resize((2000, 257)), (1992, 256)),
        (PHOTOGRAPH.resize((300, 300)), (256, 256)),
    ],
    ids=["landscape", "portrait", "scaled while it is decoded", "grey", "long", "square"],
)
def test_larger_images_come_near_a_plain_resize(image, size):
    content = encoded(image, quality=95, comment=b"left out")
    stored, note = convert(content, "a.jpg", RULE)
    result = Image.open(io.BytesIO(stored))
    assert (result.format, result.size, result.mode, note) == ("JPEG", size, image.mode, "")
    assert not result.info.get("progressive") and "comment" not in result.info
    # The reference is OpenCV's average over areas: another program, another filter, and no JPEG after it.
    reference = cv2.resize(
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], size, interpolation=cv2.INTER_AREA
    )
    assert difference(stored, Image.fromarray(reference)) < 4
    shifted = np.roll(reference, 2, axis=(0, 1))
    assert difference(stored, Image.fromarray(shifted)) > 6, "the measure would not show an image two pixels off"


def test_the_short_side_and_the_quality_are_those_asked_for():
    content = encoded(PHOTOGRAPH, quality=95)
    small, large = (convert(content, "a.jpg", Rule(128, quality))[0] for quality in (50, 95))
    assert Image.open(io.BytesIO(small)).size == (192, 128) and len(small) < len(large) / 2


def adobe_cmyk() -> bytes:
    return encoded(SMALL.convert("CMYK"), quality=95)


def grey16(scale=257) -> bytes:
    return encoded(Image.fromarray(np.asarray(SMALL.convert("L")).astype(np.uint16) * scale), "PNG")


def colour16() -> bytes:
    return cv2.imencode(".png", np.asarray(SMALL)[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


ODD = {  # encoded image, what it shows, the note
    "PNG": (encoded(SMALL, "PNG"), SMALL, "PNG named .JPEG, converted"),
    "GIF": (encoded(SMALL.convert("L"), "GIF"), SMALL.convert("L"), "GIF named .JPEG, converted"),
    "BMP": (encoded(SMALL, "BMP"), SMALL, "BMP named .JPEG, converted"),
    "WebP": (encoded(SMALL, "WEBP", lossless=True), SMALL, "WEBP named .JPEG, converted"),
    "TIFF": (encoded(SMALL, "TIFF"), SMALL, "TIFF named .JPEG, converted"),
    "CMYK": (adobe_cmyk(), SMALL, "JPEG of mode CMYK, converted"),
    "palette": (encoded(SMALL.quantize(256), "PNG"), SMALL.quantize(256), "PNG named .JPEG, converted"),
    "one bit": (encoded(SMALL.convert("1"), "PNG"), SMALL.convert("1"), "PNG named .JPEG, converted"),
    "alpha": (encoded(SMALL.convert("RGBA"), "PNG"), SMALL, "PNG named .JPEG, converted"),
    "grey with alpha": (encoded(SMALL.convert("LA"), "PNG"), SMALL.convert("L"), "PNG named .JPEG, converted"),
    "16 bits grey": (grey16(), SMALL.convert("L"), "PNG named .JPEG, converted"),
    "16 bits colour": (colour16(), SMALL, "PNG named .JPEG, converted"),
}


@pytest.mark.counts_for("images")
@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("rule", [RULE, Rule(0)], ids=["short side 256", "any size"])
def test_odd_images_become_jpegs_in_rgb_and_are_noted(case, rule):
    content, shown, note = ODD[case]
    stored, said = convert(content, "a.JPEG", rule)
    result = Image.open(io.BytesIO(stored))
    assert (result.format, result.mode, result.size, said) == ("JPEG", "RGB", SMALL.size, note)
    assert difference(stored, shown) < (12 if case == "one bit" else 6)


def test_transparent_pixels_keep_their_colour():
    """Alpha is dropped, not blended."""
    image = SMALL.convert("RGBA")
    image.putalpha(0)
    assert difference(convert(encoded(image, "PNG"), "a.png", RULE)[0], SMALL) < 6


def test_16_bits_are_scaled_and_not_clipped():
    dark = decoded(convert(grey16(scale=100), "a.png", RULE)[0]).mean()
    assert dark == pytest.approx(np.asarray(SMALL.convert("L")).mean() * 100 / 257, abs=2)


def test_large_odd_images_are_scaled_too():
    stored, note = convert(encoded(PHOTOGRAPH.convert("CMYK")), "a.JPEG", RULE)
    assert Image.open(io.BytesIO(stored)).size == (384, 256) and note == "JPEG of mode CMYK, converted"
    assert difference(stored, PHOTOGRAPH.resize((384, 256), Image.Resampling.BICUBIC)) < 5


def test_images_whose_name_is_right_are_not_listed():
    assert convert(encoded(SMALL, "PNG"), "a.png", RULE)[1] == ""
    assert convert(encoded(SMALL, "PNG"), "without a suffix", RULE)[1] == ""
    content = encoded(SMALL)
    assert convert(content, "a.png", RULE) == (content, "JPEG named .png")


def exif(orientation=6) -> bytes:
    entries = Image.Exif()
    entries[274], entries[282], entries[296] = orientation, 72.0, 2
    return entries.tobytes()


def test_the_orientation_in_exif_is_ignored():
    content = encoded(SMALL, exif=exif())
    assert convert(content, "a.jpg", RULE) == (content, "")
    large, _ = convert(encoded(PHOTOGRAPH, exif=exif()), "a.jpg", RULE)
    assert Image.open(io.BytesIO(large)).size == (384, 256)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_matter():
    image, generator, repaired = SMALL.crop((0, 0, 16, 16)), random.Random(0), 0
    content = encoded(image, exif=exif())
    plain, start = decoded(encoded(image)), content.find(b"Exif\0\0") + 6
    # Found by such random changes: Pillow gives up where the resolution is not a fraction.
    unreadable = bytearray(content.replace(b"\x01\x1a\0\5", b"\x01\x1a\0\1"))
    for changed in [unreadable, *(bytearray(content) for _ in range(300))]:
        if changed is not unreadable:
            for _ in range(4):
                changed[generator.randrange(start, start + len(exif()) - 6)] = generator.randrange(256)
        stored, note = convert(bytes(changed), "a.jpg", RULE)
        assert (stored, note) == (bytes(changed), "") or note == "damaged EXIF, removed"
        assert (decoded(stored) == plain).all()
        repaired += bool(note)
    assert repaired >= 1


def with_chunks(*chunks) -> bytes:
    """The small photograph as a PNG with more chunks (kind, content): before its pixels; those of a kind like zTXt+, after."""
    png, places = encoded(SMALL, "PNG"), {4: 33, 5: -12}
    for kind, content in chunks:
        chunk, place = kind[:4] + content, places[len(kind)]
        chunk = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        png = png[:place] + chunk + png[place:]
    return png


NOISE = random.Random(0).randbytes(2_000_000)
LONG = zlib.compress(b"A" * 3_000_000)
DAMAGED = bytearray(with_chunks((b"tEXt", b"Title\0text")))
DAMAGED[45] ^= 1


@pytest.mark.counts_for("images")
@pytest.mark.parametrize(
    "content",
    [
        with_chunks((b"zTXt", b"Raw profile\0\0" + LONG)),
        with_chunks((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)),
        with_chunks((b"iCCP", b"ICC Profile\0\0" + zlib.compress(NOISE))),
        with_chunks((b"zTXt+", b"comment\0\0" + LONG)),
        with_chunks(*[(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(1_000_000))) for n in range(70)]),
        with_chunks((b"zTXt", b"bomb\0\0" + zlib.compress(bytes(300_000_000), 1))),
        bytes(DAMAGED),
    ],
    ids=["text", "XMP", "colour profile", "text after the pixels", "many texts", "a bomb", "damaged text"],
)
def test_the_metadata_of_a_png_does_not_matter(content):
    """OpenCV reads all of these, and Pillow none."""
    assert (cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] == np.asarray(SMALL)).all()
    plain = convert(encoded(SMALL, "PNG"), "a.png", RULE)[0]
    assert convert(content, "a.png", RULE) == (plain, "large or damaged text or colour profile, removed, converted")


def test_a_png_that_is_damaged_elsewhere_says_so_whatever_its_text():
    content = with_chunks((b"zTXt", b"Raw profile\0\0" + LONG))
    with pytest.raises(ImageError, match="is damaged or cut short .(?!Decompressed)"):
        convert(content[: len(content) // 2], "a.png", RULE)


def bomb(width, height) -> bytes:
    """A PNG whose header gives a size that its pixels do not have."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + encoded(SMALL, "PNG")[33:]


JPEG = encoded(PHOTOGRAPH)
PNG = encoded(PHOTOGRAPH, "PNG")
BAD = {
    "empty": (b"", "is empty"),
    "one byte": (b"\xff", "is no image of a known format"),
    "text": (b"404 not found", "is no image of a known format .13 bytes"),
    "a web page": (b"\n<!DOCTYPE html><html><body>not found", "is a web page"),
    "zeros": (bytes(5000), "is no image of a known format"),
    "header only": (JPEG[:20], "is only the start of an image|is damaged or cut short"),
    "all headers": (JPEG[: JPEG.find(b"\xff\xda") + 14], "is damaged or cut short"),
    "a quarter": (JPEG[: len(JPEG) // 4], "is damaged or cut short"),
    "half": (JPEG[: len(JPEG) // 2], "is damaged or cut short"),
    "half, zeros after it": (JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2), "is damaged or cut short"),
    "half a progressive one": (encoded(PHOTOGRAPH, progressive=True)[: len(JPEG) // 2], "is damaged or cut short"),
    "no end marker": (JPEG[:-2], "is damaged or cut short"),
    "half an end marker": (JPEG[:-1], "is damaged or cut short"),
    "half a PNG": (PNG[: len(PNG) // 2], "is damaged or cut short"),
    "a PNG header": (PNG[:20], "is only the start of an image|is damaged or cut short"),
    "a bomb": (bomb(9500, 9500), "says that it has more than 89 million pixels"),
    "a bomb that Pillow refuses": (bomb(60000, 60000), "says that it has more than 89 million pixels"),
    "too long for a JPEG": (encoded(Image.new("RGB", (1, 65600)), "PNG"), "cannot be made a JPEG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is no image of a known format"),
}


@pytest.mark.counts_for("images")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD)
def test_damaged_images_say_what_is_wrong(case):
    content, message = BAD[case]
    with pytest.raises(ImageError, match=message):
        convert(content, "a.JPEG", RULE)


@pytest.mark.counts_for("images")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded():
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ImageError):
        convert(BAD["a bomb"][0], "a.png", RULE)
    assert time.process_time() - started < 0.5 and tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


# --- All images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    """images(n, **others): n small images of three classes, in files, and others with the content given."""
    folder = tmp_path / "images"
    folder.mkdir()

    def make(count, **others):
        for number in range(count):
            (folder / f"{number:05d}.jpg").write_bytes(tiny(number))
        for name, content in others.items():
            (folder / f"{name}.jpg").write_bytes(content)
        members = [Member.of(path) for path in sorted(folder.iterdir())]
        return [Source(member.name, number % 3, member) for number, member in enumerate(members)]

    return make


def tiny(number) -> bytes:
    x, y = number % 150, number % 97
    return encoded(SMALL.crop((x, y, x + 24, y + 20)), quality=60 + number % 30)


CLASSES = ["a", "b", "c"]


def pack(out, sources, **options):
    packing.pack(out, CLASSES, {"train": sources}, **({"threads": 2} | options))
    reader = Packed(out / "train.lmdb", out.name, "train")
    return reader.manifest, [reader[index] for index in range(len(reader))]


def test_a_split_is_packed_sorted_by_label_and_name(tmp_path, images, capsys):
    sources = images(50)
    manifest, records = pack(tmp_path / "set", sources[::-1])
    expected = sorted(sources, key=lambda source: (source.label, source.name))
    assert records == [(source.label, source.member.read()) for source in expected]
    assert (manifest["dataset"], manifest["classes"], manifest["count"]) == ("set", CLASSES, 50)
    said = capsys.readouterr()
    assert "50 images of 3 classes; about" in said.out and manifest["sha256"] in said.out and "50/50" in said.err


def test_threads_do_not_change_the_bytes(tmp_path, images):
    sources = images(40)
    for threads in (1, 7):
        pack(tmp_path / str(threads) / "set", sources, threads=threads)
    assert (tmp_path / "1" / "set" / "train.lmdb").read_bytes() == (tmp_path / "7" / "set" / "train.lmdb").read_bytes()


def test_odd_images_are_listed(tmp_path, images, capsys):
    manifest, _ = pack(tmp_path / "set", images(3, png=ODD["PNG"][0], cmyk=ODD["CMYK"][0]))
    assert manifest["converted"] == [["cmyk.jpg", "JPEG of mode CMYK, converted"], ["png.jpg", "PNG named .jpg, converted"]]
    assert "odd: png.jpg: PNG named .jpg, converted" in capsys.readouterr().out


def test_the_first_damaged_image_ends_it_with_its_file_named(tmp_path, images):
    sources = images(30, bad1=b"", bad2=JPEG[:5000])  # bad1, of class 0, comes first
    with pytest.raises(ImageError, match=r"images/bad1\.jpg is empty: .*--on-error skip"):
        pack(tmp_path / "set", sources)
    assert not (tmp_path / "set" / "train.lmdb").exists()


def test_a_damaged_image_in_an_archive_is_named_with_its_member(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(512) + JPEG[:5000])
    sources = [Source("x.jpg", 0, Member("c/x.jpg", str(tmp_path / "a.tar"), 512, 5000))]
    with pytest.raises(ImageError, match=r"a\.tar, member c/x\.jpg is damaged or cut short"):
        packing.pack(tmp_path / "set", ["a"], {"train": sources})


def test_damaged_images_can_be_left_out_up_to_a_limit(tmp_path, images, capsys):
    sources = images(30, bad1=b"", bad2=JPEG[:5000], bad3=b"<html>")
    with pytest.raises(ImageError, match=r"with this image, 3 are left out, but --max-skipped allows 2"):
        pack(tmp_path / "set", sources, on_error="skip", max_skipped=2)
    manifest, records = pack(tmp_path / "set", sources, on_error="skip", max_skipped=3)
    assert len(records) == 30 and [name for name, _ in manifest["left_out"]] == ["bad1.jpg", "bad2.jpg", "bad3.jpg"]
    assert "left out: bad3.jpg: is a web page, not an image" in capsys.readouterr().out
    assert str(tmp_path) not in json.dumps(manifest)


def test_what_was_left_out_before_a_kill_counts(tmp_path, images):
    sources = images(CHUNK + 10, aaa=b"", zzz=b"")  # sorted by label and name: one is early, one is late
    sources = [Source(source.name, 0, source.member) for source in sources]
    early = [Source("00000a.jpg" if source.name == "aaa.jpg" else source.name, 0, source.member) for source in sources]
    for _ in range(2):  # the second call starts behind the first chunk
        with pytest.raises(ImageError, match=r"zzz\.jpg is empty: with this image, 2"):
            packing.pack(tmp_path / "set", ["a"], {"train": early}, on_error="skip", max_skipped=1)


def test_a_file_that_cannot_be_read_is_never_left_out(tmp_path, images):
    sources = images(5)
    Path(sources[3].member.file).unlink()
    with pytest.raises(ReproError, match="00003.jpg cannot be read"):
        pack(tmp_path / "set", sources, on_error="skip")


def test_the_same_image_twice_is_refused(tmp_path, images):
    sources = images(5)
    with pytest.raises(ReproError, match="00000.jpg exists twice"):
        pack(tmp_path / "set", [*sources, sources[0]])


def test_a_class_without_training_images_is_refused(tmp_path, images):
    with pytest.raises(ReproError, match="no training images of class c:"):
        pack(tmp_path / "set", images(2))


# --- Plans -----------------------------------------------------------------------------------------------------------


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, images, monkeypatch):
    sources = images(60)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(ReproError, match=r"set needs about 0\.1 MB, but its file system has 0\.1 MB free"):
        pack(tmp_path / "new" / "set", sources)
    assert not (tmp_path / "new").exists()


def test_the_estimate_of_the_size_is_near_and_not_too_small(tmp_path, images, monkeypatch):
    sources = images(300)
    pack(tmp_path / "set", sources)
    size = (tmp_path / "set" / "train.lmdb").stat().st_size
    needed = {}
    for free in (size, 1.4 * size):
        monkeypatch.setattr(packing.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        try:
            pack(tmp_path / str(free) / "set", sources)
            needed[free] = True
        except ReproError:
            needed[free] = False
    assert needed == {size: False, 1.4 * size: True}


def test_what_is_done_is_left_alone(tmp_path, images, capsys):
    sources = images(20)
    pack(tmp_path / "set", sources)
    before = (tmp_path / "set" / "train.lmdb").stat()
    pack(tmp_path / "set", sources, threads=1, on_error="skip")
    assert (tmp_path / "set" / "train.lmdb").stat() == before and "already packed" in capsys.readouterr().out
    pack(tmp_path / "set", sources, overwrite=True)
    assert (tmp_path / "set" / "train.lmdb").stat().st_ino != before.st_ino


@pytest.mark.parametrize("change", ["quality", "images", "label", "content", "damage"])
def test_another_plan_replaces_only_when_it_is_told_to(tmp_path, images, change):
    sources = [Source(source.name, number * 3 // 20, source.member) for number, source in enumerate(images(20))]
    pack(tmp_path / "set", sources)
    file = tmp_path / "set" / "train.lmdb"
    options = {"quality": 80} if change == "quality" else {}
    if change == "images":
        sources = sources[:-1]
    if change == "label":
        sources[6] = Source(sources[6].name, 1, sources[6].member)  # from 0; the order stays
    if change == "content":
        Path(sources[0].member.file).write_bytes(tiny(77))
        sources[0] = Source(sources[0].name, 0, Member.of(sources[0].member.file))
    if change == "damage":
        os.truncate(file, 5000)
    before = file.read_bytes()
    with pytest.raises(ReproError, match="train.lmdb exists already, .* with --overwrite"):
        pack(tmp_path / "set", sources, **options)
    assert file.read_bytes() == before
    pack(tmp_path / "set", sources, overwrite=True, **options)
    assert file.read_bytes() != before


PACKING = """
import os, signal, sys, threading
from pathlib import Path
sys.path[:0] = ["tests", "data_prep"]
import packing
from archives import Member
from packing import Source
folder, out, kill, wait = sys.argv[1:]
sources = [Source(path.name, 0, Member.of(path)) for path in sorted(Path(folder).iterdir())]
convert, count = packing.convert, 0
def counted(content, name, rule):
    global count
    count += 1
    if count == int(kill):
        print("here", flush=True)
        interrupted.wait(20) if wait else os.kill(os.getpid(), signal.SIGKILL)
    return convert(content, name, rule)
packing.convert = counted
interrupted = threading.Event()
def interrupt(*arguments):
    interrupted.set()
    signal.default_int_handler(*arguments)
signal.signal(signal.SIGINT, interrupt)
packing.pack(Path(out), ["a"], {"train": sources})
"""


def test_killed_packing_continues_to_the_same_bytes(tmp_path, images, capsys):
    sources = [Source(source.name, 0, source.member) for source in images(2 * CHUNK + 50)]
    whole, killed = tmp_path / "whole" / "set", tmp_path / "killed" / "set"
    packing.pack(whole, ["a"], {"train": sources}, threads=3)
    for kill in (packing.SAMPLE + CHUNK + 200, packing.SAMPLE + CHUNK + 20):
        assert python("-c", PACKING, tmp_path / "images", killed, kill, "").returncode == -signal.SIGKILL
        assert not (killed / "train.lmdb").exists()
    packing.pack(killed, ["a"], {"train": sources})
    assert f"{2 * CHUNK:,} of them already done" in capsys.readouterr().out
    assert (killed / "train.lmdb").read_bytes() == (whole / "train.lmdb").read_bytes()
    assert list(killed.iterdir()) == [killed / "train.lmdb"]


def test_what_another_plan_has_begun_is_mentioned(tmp_path, images, capsys):
    sources = images(5)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".train.lmdb.0123456789abcdef.partial").write_bytes(bytes(5000))
    pack(tmp_path / "set", sources)
    assert "0123456789abcdef.partial: started from other images or with other options" in capsys.readouterr().out


def test_an_interrupt_says_that_the_same_command_continues(tmp_path, images, capsys):
    sources = [Source(source.name, 0, source.member) for source in images(CHUNK + 200)]
    code = (
        PACKING.replace("packing.pack(", "work = lambda **options: packing.pack(")
        + """
parser = packing.argparse.ArgumentParser()
packing.options(parser)
sys.exit(packing.run(work, parser, []))
"""
    )
    process = launch(sys.executable, "-c", code, tmp_path / "images", tmp_path / "set", packing.SAMPLE + CHUNK + 100, "wait")
    while process.stdout.readline().strip() != "here":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert "interrupted: the same command continues where this one stopped" in process.communicate(timeout=30)[1]
    assert process.returncode == 130
    packing.pack(tmp_path / "set", ["a"], {"train": sources})
    assert f"{CHUNK:,} of them already done" in capsys.readouterr().out


def test_few_images_are_in_memory_at_a_time(tmp_path, images, monkeypatch):
    """Conversion may run ahead of the writer by a few images a thread, and no more."""
    sources = images(200)
    begun, ahead = 0, []
    convert, lock = packing.convert, threading.Lock()

    def counted(*arguments):
        nonlocal begun
        with lock:
            begun += 1
        return convert(*arguments)

    monkeypatch.setattr(packing, "convert", counted)
    job = packing._job(tmp_path / "train.lmdb", "set", CLASSES, sources, RULE, False, packed.PHOTOGRAPHS)
    for taken, _ in enumerate(packing._items(job, RULE, 2, "error", 0)(0)):
        time.sleep(0.001)
        ahead.append(begun - taken)
    assert begun == 200 and max(ahead) <= 4 * 2 + 2


# --- What the scripts share ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
def test_there_are_as_many_threads_as_cores_that_the_process_is_bound_to():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert "one per usable core, 1)" in " ".join(python(ROOT / "data_prep" / "folder.py", "--help").stdout.split())
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    "option, value",
    [("--short-side", "-1"), ("--quality", "0"), ("--quality", "101"), ("--threads", "0"), ("--max-skipped", "-1")],
)
def test_options_out_of_range_are_refused(capsys, option, value):
    parser = packing.argparse.ArgumentParser()
    packing.options(parser)
    assert packing.run(lambda **options: pytest.fail("was called"), parser, [option, value]) == 2
    assert f"error: {option} is {value}: it must be between" in capsys.readouterr().err


def test_a_data_sets_name_is_kept_for_all_of_it(tmp_path):
    packing.check_name(tmp_path / "imagenet", "imagenet")
    packing.check_name(tmp_path / "imagenet-subset", "imagenet", part=True)
    with pytest.raises(ReproError, match="a part of imagenet must not be packed under the name imagenet"):
        packing.check_name(tmp_path / "imagenet", "imagenet", part=True)
    with pytest.raises(ReproError, match="must not be packed under the name imagenet"):
        packing.check_name(tmp_path / "imagenet", "folder")


def test_of_many_names_some_are_told_and_the_others_counted():
    assert [packing.some_of(list("abcd"[:number])) for number in (1, 2, 3)] == ["a", "a and 1 other", "a and 2 others"]
    assert [packing.some_of(list("abcd"[:number]), 3) for number in (2, 3, 4)] == ["a, b", "a, b, c", "a, b, c and 1 other"]
