"""Released models: what is exported counts as the run recorded, and what is wrong is refused before it is used."""

import json
import pickle
import re
import shutil
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from digits import PREPROCESSING
from PIL import Image
from safetensors.torch import load_file, save_file

import repro
from repro import ReproError
from repro.export import Exported, classify, evaluate, export
from repro.export import _pixels as pixels_of
from repro.export import _stem as stem
from repro.images import packed
from repro.images.data import Images
from repro.images.packed import compare_labels
from repro.resnet import build
from repro.run import checkpoint, records

from conftest import ROOT, mpiexec

PAGE = ROOT / "docs" / "exported.md"


@pytest.fixture(scope="module")
def exported(whole, digits, tmp_path_factory):
    """Both stages of the smoke run, as released files."""
    return export(whole, ["main", "collapse"], tmp_path_factory.mktemp("models"), data=digits)


@pytest.fixture
def model(exported, tmp_path) -> Path:
    """A copy of the collapse's file, its card beside it, to be spoiled."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(exported[1].with_suffix(suffix), tmp_path / f"model{suffix}")
    return tmp_path / "model.safetensors"


def card(file):
    return json.loads(file.with_suffix(".json").read_text())


def recard(file, **changes):
    """Changes the card, and makes it fit the file as it now is."""
    content = file.read_bytes()
    sealed = card(file) | {"bytes": len(content), "sha256": sha256(content).hexdigest()} | changes
    file.with_suffix(".json").write_text(json.dumps(sealed))


def obvious(scores, labels):
    """Images whose label is first, and among the first five, an image at a time."""
    places = [sorted(range(10), key=lambda c: (-row[c], c)).index(label) for row, label in zip(scores.tolist(), labels)]
    return {"top1": sum(place < 1 for place in places), "top5": sum(place < 5 for place in places)}


def only_counts(row):
    return {key: row[key] for key in ("top1", "top5")}


# --- Export -----------------------------------------------------------------------------------------------------------


def test_the_files_hold_the_snapshots_weights_and_statistics_in_float32(exported, whole):
    for file, stage in zip(exported, ("main", "collapse")):
        found, (snapshot, _) = load_file(file), checkpoint.load(whole / "snapshots" / stage)
        dropped = {name for name in snapshot if name.endswith("num_batches_tracked")}
        assert found.keys() == snapshot.keys() - dropped and dropped
        assert all(value.dtype == torch.float32 and torch.equal(value, snapshot[name]) for name, value in found.items())
        build("resnet11", 10, 1).load_state_dict(found, strict=True)  # as plain PyTorch takes it


def test_the_card_says_what_the_model_is_and_where_it_comes_from(exported, whole, digits):
    run, images = records.read(whole), Images(digits, "test")
    for file, stage in zip(exported, ("main", "collapse")):
        assert file.name == f"{whole.name}-{stage}.safetensors"
        found = card(file)
        end = run["ends"][stage]
        assert found["accuracy"] == {"split": "test", "images": end["images"], **only_counts(end)}
        assert (found["run"], found["stage"], found["model"], found["channels"]) == (whole.name, stage, "resnet11", 1)
        assert found["classes"] == images.classes and found["stride"] == run["recipe"]["stride"]
        for key in ("recipe", "settings", "data", "version", "code", "packages", "model_source"):
            assert found[key] == run[key]
        kind = images.preprocessing
        assert found["preprocessing"]["view"] == {
            "size": kind.size,
            "short_side": kind.short_side,
            "bgr": kind.bgr,
            "mean": list(kind.mean),
            "scale": list(kind.scale),
        }
        assert found["sha256"] == sha256(file.read_bytes()).hexdigest() and found["bytes"] == file.stat().st_size


def test_members_are_exported_into_the_runs_folder_by_default_and_again_to_the_same_bytes(whole, digits, tmp_path):
    run = shutil.copytree(whole, tmp_path / whole.name)
    first = [file.read_bytes() for file in export(run, data=digits)]
    files = export(run, data=digits)
    assert files == [run / "models" / f"{run.name}-collapse.safetensors"]
    assert sorted(path.name for path in (run / "models").iterdir()) == [f"{run.name}-collapse.json", files[0].name]
    assert [file.read_bytes() for file in files] == first


def test_an_export_of_what_is_not_there_is_refused(whole, digits, tmp_path):
    run = shutil.copytree(whole, tmp_path / whole.name)
    with pytest.raises(ReproError, match="not the folder of a complete run"):
        export(tmp_path, data=digits)
    with pytest.raises(ReproError, match="Did you mean collapse?"):
        export(run, ["colapse"], data=digits)
    other = other_digits(tmp_path, [str(n) for n in range(10)])
    with pytest.raises(ReproError, match="is not the test set of"):
        export(run, data=other)
    (run / "snapshots" / "main.safetensors").write_bytes(b"")
    with pytest.raises(ReproError, match="snapshot .*main is damaged"):
        export(run, ["main"], data=digits)
    assert not list((run / "models").glob("*main*"))
    (run / "run.json").write_text(json.dumps(records.read(run) | {"status": "running"}))
    with pytest.raises(ReproError, match="not the folder of a complete run"):
        export(run, data=digits)


# --- Loading ----------------------------------------------------------------------------------------------------------


def rgb(images, index):
    """A stored image as others give it: (H, W) grey or (H, W, 3) RGB, uint8."""
    pixels = images.load(index)[1]
    return pixels if images.channels == 1 else np.asarray(pixels[..., ::-1])


def test_a_loaded_model_sees_and_says_what_the_evaluation_does(exported, digits):
    images = Images(digits, "test")
    for file in (exported[0], str(exported[0].with_suffix(".json"))):
        network = repro.load(file)
        assert not any(module.training for module in network.modules()) and network.card == card(exported[0])
        seen = torch.cat([network.preprocess(rgb(images, index)) for index in range(300)])
        expected, labels = images.test_batch(0, 300)
        assert torch.equal(seen, expected)
        with torch.no_grad():
            logits = network(seen)
        found, _ = scores(exported[0], "resnet11", images)
        assert torch.allclose(logits.double().softmax(1), found[:300], atol=1e-5)


@pytest.mark.parametrize("normalization", ["release", "torchvision"])
def test_a_photograph_is_given_in_rgb_whatever_order_the_model_sees(exported, digits, tmp_path, normalization):
    generator = np.random.default_rng(0)
    coded = [cv2.imencode(".png", generator.integers(0, 256, (40, 50, 3), np.uint8))[1].tobytes() for _ in range(3)]
    items = [packed.Item(number, image) for number, image in enumerate(coded)]
    packed.write(tmp_path / "photos" / "test.lmdb", "photos", "test", ["a", "b", "c"], lambda start: items[start:])
    images = Images(str(tmp_path / "photos"), "test", normalization=normalization, size=24)
    view = {key: getattr(images.preprocessing, key) for key in ("size", "short_side", "bgr", "mean", "scale")}
    network = Exported(torch.nn.Flatten(), {"channels": 3, "preprocessing": {"view": view}})
    assert torch.equal(torch.cat([network.preprocess(rgb(images, index)) for index in range(3)]), images.test_batch(0, 3)[0])
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(ReproError, match="needs uint8, .height, width, 3. in the order RGB"):
            network.preprocess(wrong)
    with pytest.raises(ReproError, match="needs uint8, .height, width., grey"):
        repro.load(exported[0]).preprocess(np.zeros((8, 8, 3), np.uint8))


def test_a_model_of_a_run_in_bf16_computes_in_bf16(model):
    images = torch.randn(4, 1, 16, 16)
    before = repro.load(model)(images)
    recard(model, settings=card(model)["settings"] | {"precision": "bf16"})
    after = repro.load(model)(images)
    assert (before.dtype, after.dtype) == (torch.float32, torch.bfloat16)


def test_a_damaged_file_is_not_loaded(model):
    model.write_bytes(flip(model.read_bytes()))
    with pytest.raises(ReproError, match="is damaged, or another file"):
        repro.load(model)
    with pytest.raises(ReproError, match="no model card"):
        repro.load(model.with_name("other.safetensors"))


def test_the_card_names_the_stem(exported, tmp_path):
    assert card(exported[0])["stem"] == {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False, "pooling": None}
    pooling = {"kernel_size": 3, "stride": 2, "padding": 0, "ceil_mode": True}
    assert stem(build("resnet18", 10)) == {"kernel_size": 7, "stride": 2, "padding": 3, "bias": True, "pooling": pooling}
    assert stem(torch.nn.Flatten()) is None


def block(word) -> str:
    """The Python block of docs/exported.md that has this word."""
    (found,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if word in text]
    return found


@pytest.mark.parametrize("stride, channels", [("v1.5", 3), ("v1", 3), ("v1.5", 1)])
def test_torchvision_takes_the_file_as_the_page_says(exported, tmp_path, stride, channels):
    """The page's own lines, on a ResNet-50 that nobody trained; its statistics are random, too, so that all count."""
    torch.manual_seed(0)
    network, file = build("resnet50", 10, channels, stride, zero_gamma="none"), tmp_path / "MODEL.safetensors"
    state = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    for name, value in state.items():
        if name.endswith(("running_mean", "conv1.bias")):
            value.normal_()
    save_file(state, file)
    shutil.copy(exported[0].with_suffix(".json"), file.with_suffix(".json"))
    view = {"size": 64, "short_side": 73, "mean": [104, 117, 123][:channels], "scale": [1 / 128] * channels, "bgr": True}
    preprocessing = {"normalization": "release", "size": 64, "view": view}
    recard(file, model="resnet50", channels=channels, stride=stride, preprocessing=preprocessing)
    names: dict = {}
    exec(block("torchvision").replace("data/models/MODEL.safetensors", str(file)), names)
    theirs, ours = names["theirs"], names["ours"]
    images = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        expected = ours(images)
        assert torch.allclose(theirs(images), expected, rtol=1e-3, atol=1e-4)
        theirs.maxpool = torch.nn.MaxPool2d(3, stride=2, padding=1)
        assert not torch.allclose(theirs(images), expected, rtol=0.1, atol=0.1), "the page says that this is another network"


def test_the_pages_lines_name_the_class_of_a_photograph(exported, tmp_path, capsys):
    photo = str(tmp_path / "photo.jpg")
    cv2.imwrite(photo, np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    lines = block("photo.jpg").replace("data/models/MODEL.safetensors", str(exported[1])).replace('"RGB"', '"L"')
    exec(lines.replace("photo.jpg", photo), {})
    assert capsys.readouterr().out.strip() in card(exported[1])["classes"]


# --- Evaluation -------------------------------------------------------------------------------------------------------


def test_a_released_model_counts_as_its_run_recorded(exported, whole, digits):
    ends = records.read(whole)["ends"]
    for file, stage in zip(exported, ("main", "collapse")):
        for path in (file, file.with_suffix(".json")):
            found = evaluate([str(path)], digits)
            assert (found["files"], found["images"]) == ([file.name], ends[stage]["images"])
            assert found["members"] == [{key: ends[stage][key] for key in ("top1", "top5", "loss")}]
            assert only_counts(found["ensemble"]) == only_counts(ends[stage])


def test_the_command_line_prints_a_table_or_all_counts(cli, exported, digits):
    words = "evaluate", str(exported[0]), "--data", digits, "--device", "cpu"
    (status, shown, said), (_, printed, _) = cli(*words), cli(*words, "--json")
    assert status == 0, said
    found = evaluate([str(exported[0])], digits)
    assert json.loads(printed) == found
    (top1,) = (member["top1"] / found["images"] for member in found["members"])
    assert shown.splitlines()[1].split()[:2] == [exported[0].stem, f"{top1:.2%}"]


# --- Single images ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(digits, tmp_path_factory) -> Path:
    """The first 40 test images as files."""
    folder, images = tmp_path_factory.mktemp("pictures"), packed.Packed(Path(digits) / "test.lmdb", "digits", "test")
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(images[number][1])
    return folder


def test_files_get_the_classes_and_probabilities_that_the_test_counts(exported, digits, pictures):
    """As the counts' own view of the packed images gives them, by plain PyTorch."""
    likely, labels = scores(exported[1], "resnet11", Images(digits, "test"), 40)
    rows = classify(exported[1], [pictures], top=2)
    assert [row["image"] for row in rows] == [str(pictures / f"{number:02}.png") for number in range(40) for _ in range(2)]
    assert [row["class"] for row in rows[::2]] == [str(row.argmax().item()) for row in likely]
    found = torch.tensor([row["probability"] for row in rows]).view(40, 2)
    assert torch.allclose(found, likely.sort(dim=1, descending=True).values[:, :2].float(), atol=1e-6)
    all_ten = classify(exported[1], [pictures / "00.png"], top=99)
    assert len(all_ten) == 10 and sum(row["probability"] for row in all_ten) == pytest.approx(1)


@pytest.mark.parametrize(
    "name, mode", [("a.jpg", "RGB"), ("b.gif", "P"), ("c.webp", "RGBA"), ("d.tiff", "CMYK"), ("e.bmp", "L")]
)
def test_an_image_of_any_size_and_format_is_read(exported, tmp_path, name, mode):
    random = np.random.default_rng(0).integers(0, 256, (90, 301), np.uint8)
    large = Image.fromarray(random.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(random).convert(mode)
    large.save(tmp_path / name)
    (row,) = classify(exported[1], [tmp_path / name])
    assert row["class"] in card(exported[1])["classes"] and 0.1 <= row["probability"] <= 1


def test_a_photograph_is_turned_upright_and_colours_keep_their_order(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[..., 0] = 200  # red
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    found = pixels_of(tmp_path / "photo.png", 3)
    assert found.shape == (6, 4, 3) and found[0, 0].tolist() == [200, 0, 0]
    assert pixels_of(tmp_path / "photo.png", 1).shape == (6, 4)


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("missing.png", None, "there is no image .*missing.png: name files of images, or folders"),
        ("text.png", b"not an image", ".*text.png cannot be read: it is not an image"),
        ("short.png", "half", ".*short.png cannot be read: it is damaged or cut short"),
        ("empty", "folder", "there is no image in the folder .*empty"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(cli, exported, pictures, tmp_path, name, content, told):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content:
        whole = (pictures / "00.png").read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    status, printed, said = cli("classify", str(exported[1]), str(pictures / "00.png"), str(path))
    assert (status, printed) == (2, "") and re.search(f"^error: {told}", said, re.M), said
    assert len(said.splitlines()) == 2, "loading torch, and the error"


def test_the_command_line_prints_class_and_probability(cli, exported, pictures):
    words = "classify", str(exported[1]), str(pictures / "00.png"), "--top", "2"
    (status, shown, _), (_, printed, _) = cli(*words), cli(*words, "--json")
    rows = json.loads(printed)
    assert status == 0 and rows == classify(exported[1], [pictures / "00.png"], top=2)
    header, *lines = (line.split() for line in shown.splitlines())
    assert header == ["image", "class", "probability"]
    assert lines == [[row["image"], row["class"], f"{row['probability']:.2%}"] for row in rows]
    assert "top is 0: it must be" in cli(*words[:-1], "0")[2]
    assert "which `python -m repro export RUN` writes" in cli("classify", str(pictures / "00.png"), str(exported[1]))[2]


ON_RANKS = """
import json, sys
from repro import ReproError, export
from repro.ranks import comm
data, *files = sys.argv[1:]
found = export.evaluate(files, data)
try:
    export.evaluate(files if comm.world().rank == 0 else ["missing"], data)
except ReproError as error:
    said = comm.world().gather(str(error))
if comm.world().rank == 1:
    print(json.dumps([found, said]))
"""


@pytest.mark.slow
def test_two_ranks_count_the_same_and_fail_together(exported, digits):
    process = mpiexec(2, "-c", ON_RANKS, digits, *exported)
    assert process.returncode == 0, process.stderr
    found, said = json.loads(process.stdout)
    assert found == evaluate(list(map(str, exported)), digits)
    assert said[0].startswith("rank 1 failed: ExportError: no model card missing.json")
    assert said[1].startswith("no model card missing.json")


def scores(file, name, images, number=None):
    """Softmax of a released model's logits for the first images, by plain PyTorch on a hundred at a time, and the labels."""
    network = build(name, 10, 1).eval()
    network.load_state_dict(load_file(file))
    number = number or len(images)
    batches = [images.test_batch(start, min(start + 100, number)) for start in range(0, number, 100)]
    with torch.no_grad():
        rows = torch.cat([network(batch).double() for batch, _ in batches])
    return rows.exp() / rows.exp().sum(1, keepdim=True), [int(label) for _, labels in batches for label in labels]


def resnet18(folder, like) -> Path:
    """A small-image ResNet-18 that nobody trained, released like `like`."""
    torch.manual_seed(0)
    network, file = build("resnet18", 10, 1, zero_gamma="none"), folder / "resnet18.safetensors"
    save_file({name: value for name, value in network.state_dict().items() if value.is_floating_point()}, file)
    shutil.copy(like.with_suffix(".json"), file.with_suffix(".json"))
    recard(file, model="resnet18")
    return file


@pytest.mark.parametrize("second", ["resnet11", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_an_ensemble_averages_what_its_members_predict_also_of_two_architectures(exported, digits, tmp_path, second):
    images = Images(digits, "test")
    files = exported if second == "resnet11" else [exported[0], resnet18(tmp_path, exported[0])]
    (one, labels), (other, _) = (scores(file, name, images) for file, name in zip(files, ("resnet11", second)))
    for average, votes in (("softmax", (one + other) / 2), ("logit", (one * other).sqrt())):
        found = evaluate(list(map(str, files)), digits, average)
        assert (found["average"], found["images"]) == (average, len(images))
        assert [only_counts(row) for row in found["members"]] == [obvious(one, labels), obvious(other, labels)]
        assert only_counts(found["ensemble"]) == obvious(votes, labels)
        votes /= votes.sum(1, keepdim=True)
        loss = -sum(float(row[label].log()) for row, label in zip(votes, labels)) / len(labels)
        assert found["ensemble"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_what_cannot_be_evaluated_is_refused(exported, digits):
    with pytest.raises(ReproError, match="Did you mean logit?"):
        evaluate([str(exported[0])], digits, average="logits")
    with pytest.raises(ReproError, match="no file was named"):
        evaluate([], digits)


def test_a_model_is_evaluated_at_the_size_and_by_the_normalization_of_its_run(whole, digits, tmp_path):
    run = shutil.copytree(whole, tmp_path / whole.name)
    record = records.read(run)
    (run / "run.json").write_text(json.dumps(record | {"settings": record["settings"] | {"size": 12}}))
    (file,) = export(run, data=digits)
    expected = obvious(*scores(file, "resnet11", Images(digits, "test", size=12)))
    assert only_counts(evaluate([str(file)], digits)["ensemble"]) == expected != only_counts(record["ends"]["collapse"])

    generator = np.random.default_rng(0)
    coded = [cv2.imencode(".png", generator.integers(0, 256, (40, 50, 3), np.uint8))[1].tobytes() for _ in range(30)]
    items = [packed.Item(number % 10, image) for number, image in enumerate(coded)]
    packed.write(tmp_path / "photos" / "test.lmdb", "photos", "test", card(file)["classes"], lambda start: items[start:])
    photos = str(tmp_path / "photos")
    images = Images(photos, "test", normalization="torchvision", size=24)
    torch.manual_seed(0)
    network = build("resnet11", 10, 3, zero_gamma="none").eval()
    save_file({name: value for name, value in network.state_dict().items() if value.is_floating_point()}, file)
    mean, scale = map(list, (images.preprocessing.mean, images.preprocessing.scale))
    view = {"size": 24, "short_side": 27, "mean": mean, "scale": scale, "bgr": False}
    recard(file, channels=3, preprocessing={"normalization": "torchvision", "size": 24, "view": view})
    losses = []
    for each in (images, Images(photos, "test", size=24)):
        batch, labels = each.test_batch(0, 30)
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(network(batch), labels)))
    found = evaluate([str(file)], photos)["ensemble"]["loss"]
    assert found == pytest.approx(losses[0], rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4), "this test cannot tell the normalizations apart"


# --- Refusals ---------------------------------------------------------------------------------------------------------


def flip(content):
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.counts_for("malformed-checkpoint")
@pytest.mark.parametrize(
    "spoil, message",
    [
        (flip, "is damaged, or another file"),
        (lambda content: content[:-1], "cut short"),
        (lambda content: b"", "cut short"),
        (lambda content: content + b"0", "cut short"),
    ],
)
def test_a_damaged_file_is_refused(model, digits, spoil, message):
    model.write_bytes(spoil(model.read_bytes()))
    with pytest.raises(ReproError, match=f"model.safetensors .*{message}"):
        evaluate([str(model)], digits)


def test_a_file_without_its_card_and_a_card_without_its_file_are_refused(model, digits):
    described = model.with_suffix(".json").rename(model.with_name("kept"))
    with pytest.raises(ReproError, match="no model card .*model.json"):
        evaluate([str(model)], digits)
    described.rename(model.with_suffix(".json"))
    model.unlink()
    with pytest.raises(ReproError, match="model.safetensors cannot be read: .*No such file"):
        evaluate([str(model)], digits)


@pytest.mark.counts_for("malformed-checkpoint")
def test_a_newer_format_is_refused(model, digits):
    recard(model, format="scaleout-repro exported model, version 3")
    with pytest.raises(ReproError, match="version 3.*this code reads .*version 2"):
        evaluate([str(model)], digits)


@pytest.mark.counts_for("malformed-checkpoint")
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[" * 100_000, "\0"])
def test_a_card_that_is_none_is_refused(model, digits, content):
    model.with_suffix(".json").write_text(content)
    with pytest.raises(ReproError, match="model.json is not a whole model card"):
        evaluate([str(model)], digits)


def changed_view(**change):
    view = {"size": 16, "short_side": 18, "mean": [112], "scale": [1 / 52], "bgr": True}
    return {"normalization": "release", "size": 0, "view": view | change}


@pytest.mark.counts_for("malformed-checkpoint")
@pytest.mark.parametrize(
    "key, value",
    [
        ("classes", "0123456789"),
        ("classes", [0, 1]),
        ("bytes", "7"),
        ("sha256", None),
        ("settings", {}),
        ("settings", {"precision": "evil", "threads": 1}),
        ("settings", {"precision": "auto", "threads": 1}),
        *(("settings", {"precision": "fp32", "threads": threads}) for threads in (0, -5, True, 10**6, "1")),
        ("channels", -1),
        ("channels", 10**30),
        ("stride", "v2"),
        ("preprocessing", {"normalization": "release"}),
        *(("preprocessing", changed_view(**change)) for change in ({"bgr": 1}, {"size": 0}, {"mean": []}, {"mean": ["x"]})),
        ("preprocessing", changed_view(short_side=15)),
    ],
)
def test_a_card_with_a_part_missing_or_of_another_kind_is_refused(model, digits, key, value):
    recard(model, **{key: value})
    with pytest.raises(ReproError, match="model.json is not a whole model card"):
        evaluate([str(model)], digits)


@pytest.mark.counts_for("malformed-checkpoint")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_not_counted(cli, model, digits, value):
    state = load_file(model)
    state["layer2.0.bn1.running_var"][3] = value
    save_file(state, model)
    recard(model)
    status, stdout, stderr = cli("evaluate", str(model), "--data", digits, "--device", "cpu")
    assert (status, stdout) == (2, "")
    assert f"\nerror: {model} " in stderr and "layer2.0.bn1.running_var contains NaN or infinite values" in stderr


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.counts_for("malformed-checkpoint")
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("write", [lambda value, file: file.write_bytes(pickle.dumps(value)), torch.save])
def test_a_hostile_pickle_is_refused_and_never_run(model, digits, tmp_path, write, sealed):
    canary = tmp_path / "canary"
    write(Hostile(canary), model)
    if sealed:  # its card gives it out for a model
        recard(model)
    with pytest.raises(ReproError, match="cannot be read" if sealed else "bytes, its card says"):
        evaluate([str(model)], digits)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Hostile(canary)))
    assert canary.exists(), "this pickle does no harm: the test shows nothing"


@pytest.mark.counts_for("malformed-checkpoint")
def test_tensors_of_another_model_are_refused(model, digits):
    recard(model, model="resnet18")
    message = "does not hold a resnet18 of 10 classes: bn1.bias is .8., the model's is .64."
    with pytest.raises(ReproError, match=message):
        evaluate([str(model)], digits)
    recard(model, model="resnet12")
    with pytest.raises(ReproError, match="Did you mean resnet1"):
        evaluate([str(model)], digits)
    recard(model, model="resnet11")
    tensors = load_file(model)
    without = {name: value for name, value in tensors.items() if name != "fc.bias"}
    for changed, message in (
        (without, "fc.bias is missing"),
        (tensors | {"extra": torch.zeros(1)}, "extra is .1., the model's is not there"),
        (tensors | {"fc.bias": torch.zeros(9)}, "fc.bias is .9., the model's is .10."),
        (tensors | {"fc.bias": torch.zeros(10).half()}, "fc.bias is torch.float16"),
    ):
        save_file(changed, model)
        recard(model)
        with pytest.raises(ReproError, match=message):
            evaluate([str(model)], digits)


def test_other_preprocessing_than_the_cards_is_refused(model, exported, digits):
    preprocessing = card(model)["preprocessing"]
    recard(model, preprocessing=preprocessing | {"view": preprocessing["view"] | {"mean": [85]}})
    with pytest.raises(ReproError, match="needs preprocessing that is not that of"):
        evaluate([str(model)], digits)
    with pytest.raises(ReproError, match="cannot be evaluated together: their preprocessing differs"):
        evaluate([str(exported[0]), str(model)], digits)
    recard(model, preprocessing=preprocessing, settings=card(model)["settings"] | {"precision": "bf16"})
    with pytest.raises(ReproError, match="their precision differs .bf16 and fp32."):
        evaluate([str(exported[0]), str(model)], digits)


def other_digits(folder, classes) -> str:
    """A data set of three images that gives itself out for the digits, with another label map."""
    images = [packed.Item(label, b"") for label in range(3)]
    for split in ("train", "test"):
        packed.write(
            folder / "digits" / f"{split}.lmdb",
            "digits",
            split,
            classes,
            lambda start: images[start:],
            preprocessing=PREPROCESSING,
        )
    return str(folder / "digits")


ONE_OTHER = [*map(str, range(9)), "x"]


@pytest.mark.counts_for("packed")
@pytest.mark.parametrize(
    "classes, message",
    [
        (["background", *map(str, range(10))], "11 classes instead of 10 .*index 0 is background: a background class?"),
        (["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"], "shifted by one: class 0 is 1 instead of 0"),
        (["0", "1", "2", "5", "4", "3", "6", "7", "8", "9"], "permuted.: e.g. class 3 is 5 instead of 3"),
        (ONE_OTHER, "1 of the 10 classes differ: e.g. class 9 is x instead of 9"),
    ],
)
def test_another_label_map_is_refused_in_plain_words(model, digits, tmp_path, classes, message):
    with pytest.raises(ReproError, match=f"model was not trained with the label map of .*in the data, .*{message}"):
        evaluate([str(model)], other_digits(tmp_path, classes))


# --- Label maps -------------------------------------------------------------------------------------------------------

SYNSETS = [f"n{number:04}" for number in range(1000)]


def test_equal_label_maps_have_no_difference():
    assert compare_labels(SYNSETS, list(SYNSETS)) == compare_labels([], []) == ""


BACKGROUND = "index 0 is zero: a background class? The others are the same, shifted by one"


@pytest.mark.counts_for("packed")
@pytest.mark.parametrize(
    "expected, found, message",
    [
        (SYNSETS, ["zero", *SYNSETS], f"1001 classes instead of 1000 (of the 1001, {BACKGROUND})"),
        (["zero", *SYNSETS], SYNSETS, f"1000 classes instead of 1001 (of the 1001, {BACKGROUND})"),
        (SYNSETS, [*SYNSETS, "z"], "1001 classes instead of 1000 (of the 1001, the last is z; the others are the same)"),
        (
            SYNSETS,
            [str(n) for n in range(1001)],
            "1001 classes instead of 1000 (do the 1001 have a background class at index 0?)",
        ),
        (SYNSETS, SYNSETS[:365], "365 classes instead of 1000"),
        (SYNSETS, [*SYNSETS[1:], SYNSETS[0]], "the classes are shifted by one: class 0 is n0001 instead of n0000"),
        (SYNSETS, [SYNSETS[-1], *SYNSETS[:-1]], "the classes are shifted by one: class 0 is n0999 instead of n0000"),
        (SYNSETS, ["zero", *SYNSETS[:-1]], "the classes are shifted by one: class 0 is zero instead of n0000"),
        (
            SYNSETS,
            [*SYNSETS[:3], *reversed(SYNSETS[3:])],
            "the same classes are in another order (permuted): e.g. class 3 is n0999 instead of n0003",
        ),
        (SYNSETS, [*SYNSETS[:5], "x", "y", *SYNSETS[7:]], "2 of the 1000 classes differ: e.g. class 5 is x instead of n0005"),
        (["a", "b", "c"], ["a", "b", "b"], "1 of the 3 classes differ: e.g. class 2 is b instead of c"),
        (["a"], ["b"], "1 of the 1 classes differ: e.g. class 0 is b instead of a"),
    ],
)
def test_label_maps_that_differ_say_how(expected, found, message):
    assert compare_labels(expected, found) == message
