"""Snapshots come back as they were, and no damage or interruption goes unseen."""

import ast
import random
import re
import resource
import shutil

import pytest
import torch

from repro import ReproError
from repro.run import checkpoint
from repro.run.checkpoint import CheckpointError, generations, load, newest, prune, save

from conftest import ROOT, python

TENSORS = {"weights": torch.arange(40.0).reshape(5, 8), "count": torch.tensor(7), "empty": torch.zeros(0)}


def progress(step) -> dict:
    return {"run": "a-run", "step": step, "seconds": 1.5, "evaluating": 0.5, "losses": [2.5, 2], "corrects": []}


@pytest.fixture
def saved(tmp_path):
    """A folder of three generations, 10, 9 and 2: numbers, which sort otherwise than words."""
    folder = tmp_path / "checkpoints"
    for step in (2, 9, 10):
        save(folder / str(step), {"weights": torch.full((20,), float(step))}, progress(step))
    return folder


def test_a_snapshot_comes_back_with_its_bits_and_its_progress(tmp_path):
    odd = {"transposed": TENSORS["weights"].t(), "nan": torch.tensor([float("nan"), -0.0]), "half": torch.ones(3).bfloat16()}
    save(tmp_path / "new" / "cyc1", TENSORS | odd, {"step": 3, "stage": "cyc1"})
    tensors, progress = load(tmp_path / "new" / "cyc1")
    assert (progress["step"], progress["stage"]) == (3, "cyc1")
    assert tensors.keys() == TENSORS.keys() | odd.keys()
    for name, tensor in (TENSORS | odd).items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape
        assert (
            tensors[name].contiguous().flatten().view(torch.uint8).tolist()
            == tensor.contiguous().flatten().view(torch.uint8).tolist()
        )


def test_the_digest_is_of_names_shapes_and_bits():
    weights = TENSORS["weights"]
    others = [{"weight": weights}, {"weights": weights.t()}, {"weights": weights + 2**-15}, {"weights": weights.flatten()}]
    digests = [checkpoint.digest(tensors) for tensors in [{"weights": weights}, *others]]
    assert len(set(digests)) == 5
    assert checkpoint.digest({"a": weights, "b": weights}) == checkpoint.digest({"b": weights, "a": weights})
    assert checkpoint.digest({"w": weights.t().contiguous().t()}) == checkpoint.digest({"w": weights})


@pytest.mark.counts_for("damage", cases=64)
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_each_flipped_bit_is_found(saved, suffix):
    path, generator, missed = (saved / "10").with_suffix(suffix), random.Random(0), []
    content = path.read_bytes()
    for _ in range(64):
        place, bit = generator.randrange(len(content)), generator.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            load(saved / "10")
            missed.append((place, bit))
        except CheckpointError as error:
            assert "10" in str(error) and newest(saved)[1]["step"] == 9
    assert missed == []


@pytest.mark.counts_for("damage", cases=8)
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_each_truncation_is_found(saved, suffix):
    path = (saved / "10").with_suffix(suffix)
    content = path.read_bytes()
    for part in range(8):
        path.write_bytes(content[: len(content) * part // 8])
        with pytest.raises(CheckpointError, match="10"):
            load(saved / "10")
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load(saved / "10")


def test_the_newest_undamaged_generation_counts(saved):
    assert [path.name for path in generations(saved)] == ["10", "9", "2"]
    assert newest(saved)[1]["step"] == 10
    (saved / "10.safetensors").write_bytes(b"")
    tensors, told = newest(saved)
    assert told["step"] == 9 and tensors["weights"].eq(9).all()


@pytest.mark.counts_for("malformed-checkpoint")
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_one_that_cannot_be_opened_is_named_and_an_older_one_is_used(saved, suffix, monkeypatch):
    """A folder stands for whatever the system refuses to open or read; nobody is refused as root."""
    (saved / "10").with_suffix(suffix).unlink()
    (saved / "10").with_suffix(suffix).mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoints/10 cannot be read: .*Is a directory.*checkpoints/10\."):
        load(saved / "10")
    assert newest(saved)[1]["step"] == 9
    monkeypatch.setattr(checkpoint, "KEPT", 0)
    with pytest.raises(ReproError, match="checkpoints/10 cannot be written"):
        prune(saved)


@pytest.mark.counts_for("malformed-checkpoint")
@pytest.mark.parametrize(
    "change, words",
    [
        ({"step": "x"}, "progress.step is 'x', not a whole number"),
        ({"step": True}, "progress.step is True, not a whole number"),
        ({"losses": "x"}, "progress.losses is 'x', not a list"),
        ({"losses": [None]}, r"progress.losses\[0\] is None, not a whole number or a number"),
        ({"seconds": None}, "progress.seconds is None"),
        ({"run": 3}, "progress.run is 3, not text"),
        (None, "corrects is missing in progress"),
        ([], "progress is a list, not an object"),
    ],
)
def test_a_sealed_one_that_does_not_say_how_far_it_is_is_passed_over_and_named(saved, change, words):
    told = progress(10) | change if isinstance(change, dict) else change
    if change is None:
        told = {key: value for key, value in progress(10).items() if key != "corrects"}
    save(saved / "10", TENSORS, told)
    assert newest(saved)[1]["step"] == 9
    for step in (2, 9):
        (saved / f"{step}.json").unlink()
    with pytest.raises(CheckpointError, match=f"checkpoints/10.json does not say how far a run is: {words}"):
        newest(saved)


@pytest.mark.counts_for("malformed-checkpoint")
def test_a_copy_under_another_name_is_not_looked_at(saved, monkeypatch):
    for name in ("10 (copy).json", "foo.json", ".10.json.tmp", "-1.json", "1e1.json"):
        shutil.copy(saved / "10.json", saved / name)
    assert [path.name for path in generations(saved)] == ["10", "9", "2"] and newest(saved)[1]["step"] == 10
    monkeypatch.setattr(checkpoint, "KEPT", 1)
    prune(saved)
    assert {path.name for path in saved.glob("*.json")} >= {"10.json", "10 (copy).json", "foo.json"}


@pytest.mark.counts_for("damage")
def test_when_all_are_damaged_the_error_names_them_and_what_to_do(saved):
    for step in (2, 9, 10):
        (saved / f"{step}.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)checkpoints/10.*checkpoints/9.*Delete .* to start again"):
        newest(saved)


def test_prune_keeps_the_three_newest(saved):
    save(saved / "11", TENSORS, progress(11))
    prune(saved)
    assert sorted(path.name for path in saved.iterdir()) == [
        f"{step}.{suffix}" for step in (10, 11, 9) for suffix in ("json", "safetensors")
    ]


@pytest.mark.counts_for("killed-in-save", cases=48)
def test_a_save_killed_at_any_point_leaves_a_checkpoint_to_continue_from(tmp_path):
    """SIGKILL at calls spread over a save of a new generation, and of one that is saved a second time."""
    code = """
import os, signal, sys
from pathlib import Path
import torch
from repro import ReproError
from repro.run import checkpoint
out, outcomes = Path(sys.argv[1]), set()

def save(folder, step):
    progress = {"run": "", "step": step, "seconds": 0, "evaluating": 0, "losses": [], "corrects": []}
    checkpoint.save(folder / str(step), {"weights": torch.full((999,), float(step))}, progress)

def killed_at(call, folder):  # a child that SIGKILL ends at the call of a function (Python's or C's) with this number
    calls = 0
    def count(frame, event, function):
        nonlocal calls
        calls += event in ("call", "c_call")
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    save(folder, 20)
    sys.setprofile(None)
    return calls

save(out / "warm", 10)
total = killed_at(0, out / "warm")
for again in (False, True):
    for call in [*range(1, total, total // 24), 10**9]:  # the last one is not killed at all
        folder = out / f"{call}-{again}"
        save(folder, 10)
        if again:
            save(folder, 20)
        child = os.fork()
        if not child:
            killed_at(call, folder)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        tensors, progress = checkpoint.newest(folder)
        assert progress["step"] in (10, 20) and tensors["weights"].eq(progress["step"]).all()
        outcomes.add((os.WIFSIGNALED(status), again, progress["step"]))
print(total, sorted(outcomes))
"""
    said = python("-c", code, tmp_path)
    assert said.returncode == 0, said.stderr
    total, outcomes = said.stdout.split(maxsplit=1)
    assert int(total) > 100
    for outcome in ("(True, False, 10)", "(False, False, 20)", "(True, True, 10)", "(True, True, 20)"):
        assert outcome in outcomes, "the places are not spread over the save"


@pytest.mark.counts_for("security")
def test_nothing_that_is_read_from_a_file_is_run():
    """No pickle, no eval, no unsafe YAML, no unpacking of whole archives, anywhere."""
    banned = re.compile(
        r"(torch|pickle|yaml|marshal|joblib|np|numpy)\.(unsafe_)?loads?|(^|builtins\.)(eval|exec)|.*\.(extractall|read_pickle)"
    )
    found = []
    for path in [*ROOT.glob("repro/**/*.py"), *ROOT.glob("data_prep/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            safe = isinstance(node, ast.Call) and any(ast.unparse(word) == "allow_pickle=False" for word in node.keywords)
            if isinstance(node, ast.Call) and banned.fullmatch(ast.unparse(node.func)) and not safe:
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node.func)}")
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
                found += [
                    f"{path.name}:{node.lineno}: {name}" for name in names if name in ("pickle", "marshal", "shelve", "dill")
                ]
    assert found == []


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(ReproError, match=r"10.safetensors cannot be written .*ulimit -f"):
            save(tmp_path / "10", TENSORS, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
