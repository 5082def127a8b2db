"""Recipes and models of the user's own: all guarantees hold for them, and what cannot work is said in one line."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import repro
from repro import ReproError, evaluate, export, recipes, train
from repro.images.data import Images, Stream
from repro.resnet import build
from repro.run import checkpoint, own, records
from repro.schedule import Recipe, Stage, at
from repro.task import prepare

from conftest import COUNTS, kill_after_first_checkpoint, mpiexec

MINE = '''
"""A recipe and models as a user writes them."""
import torch
from torch import nn
from repro.optim import SGD
from repro.recipes.controls import collapsed_ensemble
from repro.schedule import Recipe, Stage

my_recipe = Recipe(
    "cosine_cycles",
    stages=(
        Stage("first", 8, base_rate=0.2, decay="cosine", warmup_iterations=2, member=True),
        Stage("second", 8, base_rate=0.1, decay="cosine", member=True),
    ),
    workers=6,
    images_per_worker=8,
    record_every=0.01,
)
impostor = Recipe("one_model", stages=my_recipe.stages, workers=6, images_per_worker=8)


def my_net(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, classes)
    )


def plain_net(classes, channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(256 * channels, 16), nn.Tanh(), nn.Linear(16, classes))


def no_module(classes, channels):
    return [classes, channels]


def too_small(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 8, 17), nn.Flatten(), nn.LazyLinear(classes))


def wrong_shape(classes, channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(256, classes + 1))


def other_arguments(classes):
    return nn.Linear(3, classes)


def random_net(classes, channels):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, classes))


class Averaged(SGD):
    """SGD whose result is a moving average of the weights."""

    remembers = ("momentum", "average")

    def begin(self, stage):
        super().begin(stage)
        if not stage.keep_momentum:
            self.vectors["average"].copy_(self.weights)

    def step(self, gradient, now):
        super().step(gradient, now)
        self.vectors["average"].lerp_(self.weights, 0.1)

    def finished(self):
        return self.vectors["average"]


growing = Recipe(
    "growing",
    stages=(
        Stage("one", 6, base_rate=0.2, workers=2),
        Stage("two", 5, base_rate=0.2, keep_momentum=True, member=True),
        Stage("three", 4, base_rate=0.1, workers=5, starts_from="one", member=True),
    ),
    workers=4,
    images_per_worker=8,
    record_every=0.01,
    evaluate_every=0.1,
    update="mine.py:Averaged",
)
'''


@pytest.fixture
def mine(tmp_path):
    """The path of a file of the user's."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def options(**values):
    return [part for name, value in values.items() for part in (f"--{name}", value)]


# --- Guarantees -------------------------------------------------------------------------------------------------------


def ends(folder):
    return {path.stem: checkpoint.load(path.with_suffix(""))[0] for path in Path(folder).glob("snapshots/*.json")}


def test_a_rule_and_a_growing_batch_have_the_same_bits_on_two_ranks_after_a_kill(mine, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = dict(recipe="mine.py:growing", model="mine.py:my_net", data=digits, split="val")
    alone = ends(train.train(**task, out=str(tmp_path / "alone")))
    killed = kill_after_first_checkpoint(tmp_path / "killed", **task)
    done = mpiexec(2, "-m", "repro", "train", task.pop("recipe"), *options(**task, out=tmp_path / "killed"))
    assert done.returncode == 0 and "continuing after step" in done.stderr, done.stderr
    assert done.stdout.splitlines()[-1] == str(killed)
    for stage, state in ends(killed).items():
        assert all(torch.equal(state[name], alone[stage][name]) for name in state), stage
    assert sorted(alone) == ["one", "three", "two"]


@pytest.fixture
def averaged(mine, digits, tmp_path, monkeypatch):
    """averaged(*stages): the ends of a run by a rule that averages, tested on few images; rule="" is SGD."""
    monkeypatch.setattr(evaluate, "VIEWS", dict.fromkeys(evaluate.VIEWS, 50))

    def trained(*stages, rule=f"{mine}:Averaged"):
        recipe = Recipe("r", stages, workers=3, images_per_worker=4, model="resnet11", epoch_images=300, update=rule)
        return ends(train.train(recipe, data=digits, out=str(tmp_path / "runs"), device="cpu"))

    return trained


def test_the_finished_weights_are_tested_and_kept_with_statistics_of_their_own(averaged, digits, monkeypatch):
    """The moving average against the ends of runs of one, two and three steps."""
    monkeypatch.setattr(evaluate, "STATISTICS_IMAGES", 24)  # two steps
    still, weights = averaged(Stage("s", 1, 0.0), rule="")["s"], []
    for steps in (1, 2, 3):
        weights.append(averaged(Stage("s", steps, 0.3, horizon=9), rule="")["s"])
    found = averaged(Stage("s", 3, 0.3, horizon=9))["s"]
    for name in (name for name, value in found.items() if value.dtype == torch.float32 and "running" not in name):
        average = still[name]
        for state in weights:
            average = 0.9 * average + 0.1 * state[name]
        assert torch.allclose(found[name], average, atol=1e-6), name
    recipe = Recipe("r", (Stage("s", 9, 0.3),), workers=3, images_per_worker=4)
    model, stream = build("resnet11", 10, 1), Stream(Images(digits, "train").first(300), 0, 4)
    model.load_state_dict(found)
    seen = [model.conv1(stream.batch(at(recipe, step), worker)[0]) for step in (3, 4) for worker in range(3)]
    mean = torch.stack([each.mean((0, 2, 3)) for each in seen]).mean(0)
    assert torch.allclose(found["bn1.running_mean"], mean, atol=1e-5)


@pytest.mark.parametrize("keep", [False, True])
def test_the_next_stage_starts_from_the_finished_weights_unless_it_keeps_momentum(averaged, keep):
    found = averaged(Stage("one", 3, 0.3, horizon=9), Stage("two", 1, 0.0, keep_momentum=keep))
    same = [torch.equal(found["one"][name], found["two"][name]) for name in found["one"] if name.endswith("weight")]
    assert all(same) != keep


@pytest.mark.slow  # tests/test_train.py does so with our network
@pytest.mark.parametrize("net", ["my_net", "plain_net"])
def test_any_number_of_ranks_gives_the_same_bits_also_after_a_kill(mine, digits, tmp_path, net):
    """1, 2 and 3 ranks, each from its start, and 2 that continue what 1 had begun when it was killed."""
    task = dict(recipe=f"{mine}:my_recipe", model=f"{mine}:{net}", data=digits)
    alone = train.train(**task, out=str(tmp_path / "alone"))
    expected = records.read(alone)["weights_sha256"]
    recipe = task.pop("recipe")
    for ranks in (2, 3):
        done = mpiexec(ranks, "-m", "repro", "train", recipe, *options(**task, out=tmp_path / str(ranks)))
        assert done.returncode == 0, done.stderr
        assert records.read(done.stdout.splitlines()[-1])["weights_sha256"] == expected
    killed = kill_after_first_checkpoint(tmp_path / "killed", recipe=recipe, **task)
    assert records.read(killed)["status"] == "running"
    done = mpiexec(2, "-m", "repro", "train", recipe, *options(**task, out=tmp_path / "killed"))
    assert "continuing after step" in done.stderr and done.stdout.splitlines()[-1] == str(killed)
    assert records.read(killed)["weights_sha256"] == expected


def test_the_source_of_a_model_is_part_of_a_runs_identity_but_no_comment_and_no_place(mine, digits, tmp_path):
    def name(path):
        return prepare("one_model", digits, model=f"{path}:my_net", out=str(tmp_path / "runs")).run.folder.name

    first = name(mine)
    mine.write_text(f"# A comment.\n{MINE}")
    assert name(mine) == first
    (tmp_path / "elsewhere").mkdir()
    assert name(shutil.copy(mine, tmp_path / "elsewhere" / "mine.py")) == first
    mine.write_text(MINE.replace("nn.ReLU()", "nn.Tanh()"))
    assert name(mine) != first


@pytest.mark.parametrize("start, encoding", [("", "utf-8-sig"), ("# -*- coding: latin-1 -*-\n", "latin-1")])
def test_a_file_of_ones_own_may_be_stored_in_any_way_that_python_reads(mine, digits, tmp_path, start, encoding):
    def name():
        return prepare(f"{mine}:my_recipe", digits, model=f"{mine}:my_net", out=str(tmp_path / "runs")).run.folder.name

    as_utf8 = name()
    mine.write_bytes(f"{start}# caf\xe9\n{MINE}".encode(encoding))
    assert name() == as_utf8


def test_a_recipe_is_an_object_or_its_place_and_gives_the_same_run(mine, digits, tmp_path):
    recipe = own.load(f"{mine}:my_recipe")
    assert isinstance(recipe, Recipe)
    tasks = [prepare(each, digits, model="resnet11", out=str(tmp_path)) for each in (recipe, f"{mine}:my_recipe")]
    assert tasks[0].run.folder == tasks[1].run.folder
    record = tasks[0].run.record
    assert [record[key] for key in ("base", "shrink", "model", "variant")] == ["cosine_cycles", "none", "resnet11", ""]
    assert tasks[0].recipe.epoch_images == COUNTS["train"], "an epoch has no more images than the data set"


def test_a_small_version_of_ones_own_recipe_is_made_as_of_ours(mine, digits, tmp_path):
    task = prepare(f"{mine}:my_recipe", digits, shrink="smoke", out=str(tmp_path))
    assert task.recipe.name == "cosine_cycles-smoke" and task.run.record["base"] == "cosine_cycles"


def test_the_ensemble_of_ones_own_models_is_evaluated_and_exported(mine, digits, tmp_path):
    """The counts are those of the run's own record; a card never says what to run."""
    folder = train.train(f"{mine}:my_recipe", digits, model=f"{mine}:my_net", out=str(tmp_path / "runs"))
    ends = records.read(folder)["ends"]
    assert evaluate.ensemble(folder, data=digits)["members"] == ["first", "second"]
    files = [str(file) for file in export.export(folder, data=digits)]
    with pytest.raises(ReproError, match="name its source with --model mine.py:my_net"):
        export.evaluate(files, digits)
    with pytest.raises(ReproError, match="is not the source that"):
        other = tmp_path / "other.py"
        other.write_text(MINE.replace("nn.ReLU()", "nn.Tanh()"))
        export.evaluate(files, digits, model=f"{other}:my_net")
    found = export.evaluate(files, digits, model=f"{mine}:my_net")
    assert [member["top1"] for member in found["members"]] == [ends[name]["top1"] for name in ("first", "second")]
    loaded = repro.load(files[1], model=f"{mine}:my_net")
    assert loaded(torch.zeros(2, 1, 16, 16)).shape == (2, 10) and loaded.card["stem"] is None
    mine.write_text(MINE.replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(ReproError, match="no longer what it was when the run was trained"):
        evaluate.ensemble(folder, data=digits)


def test_a_model_of_ones_own_starts_from_the_seed(mine, digits, tmp_path):
    """Trying it first draws nothing from the generator that makes its weights."""
    task = prepare("one_model", digits, model=f"{mine}:my_net", out=str(tmp_path), seed=3)
    torch.manual_seed(3)
    expected = own.load(f"{mine}:my_net")(classes=10, channels=1)[0].weight
    torch.manual_seed(3)
    assert torch.equal(task.build()[0].weight, expected)


def test_the_names_of_a_file_are_those_that_it_defines(mine):
    """A slip lists what the file has, and not what it imports; what it imports can be named all the same."""
    with pytest.raises(ReproError, match="Did you mean my_net") as error:
        own.load(f"{mine}:my_nett")
    listed = str(error.value).partition("Choose one of: ")[2]
    assert "my_recipe" in listed and not {"torch", "nn", "SGD", "Stage"} & set(re.split(r"\W+", listed))
    assert own.load(f"{mine}:Stage") is Stage


# --- What cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["{tmp}/none.py:my_recipe"], "there is no file {tmp}/none.py"),
        (["{mine}:my_recipy"], "Did you mean my_recipe?"),
        (["{mine}:my_net"], "must be a repro.schedule.Recipe"),
        (["{mine}:impostor"], "one_model is the name of another recipe"),
        (["no_such_module:recipe"], "No module named 'no_such_module'"),
        (["{broken}:my_recipe"], "broken.py fails when it is imported (ZeroDivisionError: division by zero)"),
        (["{mine}:my_recipe", "--model", "{mine}:no_module"], "it returned list and not a torch.nn.Module"),
        (["{mine}:my_recipe", "--model", "{mine}:too_small"], "mine.py:too_small"),
        (["{mine}:my_recipe", "--model", "{mine}:wrong_shape"], "it returned (2, 11) for 2 images"),
        (["{mine}:my_recipe", "--model", "{mine}:other_arguments"], "unexpected keyword argument 'channels'"),
        (["{mine}:my_recipe", "--model", "{mine}:random_net"], "random numbers"),
        (["{mine}:my_recipe", "--model", "{mine}:my_recipe"], "is not a function"),
        (["{mine}:my_recipe", "--model", "resnet51"], "Did you mean resnet"),
        (["{mine}:my_recipe", "--model", "resnet11", "--shrink", "none", "--size", "x"], "--size"),
    ],
    ids=lambda value: " ".join(value).replace("{", "").replace("}", "") if isinstance(value, list) else "",
)
def test_what_cannot_work_is_said_in_one_line(cli, mine, digits, tmp_path, arguments, said):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    names = {"tmp": tmp_path, "mine": mine, "broken": tmp_path / "broken.py"}
    arguments = [argument.format(**names) for argument in arguments]
    status, _, stderr = cli("train", *arguments, *options(data=digits, out=str(tmp_path / "runs")))
    assert status == 2 and "Traceback" not in stderr and stderr.count("error: ") == 1
    assert said.format(**names) in stderr
    assert not list((tmp_path / "runs").glob("*/run.json"))


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(name="../away"), "a recipe's name is '../away'"),
        (dict(workers=0), "workers is 0"),
        (dict(images_per_worker=1.5), "images_per_worker is 1.5"),
        (dict(bn_momentum=2), "bn_momentum is 2"),
        (dict(evaluate_every=0), "evaluate_every is 0"),
        (dict(stride="v2"), "Did you mean v1"),
        (dict(zero_gamma="all_bloks"), "Did you mean all_blocks?"),
        (dict(stages=(Stage("one", 4, base_rate=-0.1),)), "stage one: base_rate is -0.1"),
        (dict(stages=(Stage("one", 4, base_rate=float("nan")),)), "base_rate is nan"),
        (dict(stages=(Stage("one", 4, 0.1, weight_decay=-1),)), "weight_decay is -1"),
        (dict(stages=(Stage("one", 4, 0.1, decay="cosin"),)), "Did you mean cosine?"),
        (dict(stages=(Stage("one", 4, 0.1, augmentation="nothing"),)), "unknown augmentation"),
        (dict(stages=(Stage("one", 4, 0.1), Stage("one", 4, 0.1))), "two stages share a name"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_recipe_that_cannot_be_is_refused_where_it_is_written(change, said):
    with pytest.raises(ReproError, match=re.escape(said)):
        replace(Recipe("mine", (Stage("one", 4, 0.1),), workers=2, images_per_worker=4), **change)


def test_a_switch_makes_a_variant_of_a_released_recipe_and_no_impostor(digits, tmp_path):
    switched = replace(recipes.RECIPES["one_model"], lr_formula="as_designed")
    record = prepare(switched, digits, out=str(tmp_path)).run.record
    assert (record["base"], record["shrink"], record["variant"]) == ("one_model", "laptop", "lr_formula=as_designed")
    assert json.dumps(record), "all of it can be written"
