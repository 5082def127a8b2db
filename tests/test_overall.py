"""What `make reproduce` says on the way, whether it has anything to do, and one table or figure alone: with small files."""

import json
import os
import platform
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

from repro import ReproError
from repro.images import packed
from repro.jupyter import notebooks, progress
from repro.paper import ask, current, overall, questions, reproduce, tables
from repro.paper.profiles import DISTRIBUTED, PROFILES
from repro.paths import REFERENCE
from repro.ranks import stop
from repro.recipes import RECIPES, shrink
from repro.run import identity, kept, records, state

SMOKE = PROFILES["smoke"]
KNOWN = next(run for run in map(records.read, records.all_runs(REFERENCE / "runs")) if run["base"] == "resnet50_448nodes")


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds): lets so many seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Packed digits, as far as anything here looks at them."""
    monkeypatch.setattr(packed, "DATA", tmp_path / "data")
    for split in packed.SPLITS:
        items = lambda start: [packed.Item(0, b"ink")] * 300  # noqa: E731
        packed.write(tmp_path / "data" / "digits" / f"{split}.lmdb", "digits", split, ["0"], items)


@pytest.fixture
def reproduction(data, tmp_path, clock):
    """A smoke reproduction of which nothing is done yet."""
    (tmp_path / "runs").mkdir()
    return overall.Overall(SMOKE, tmp_path / "runs")


def train(of: overall.Overall, run: progress.Planned, steps: int, status: str = "running", **changed) -> None:
    """Writes what a run has in its folder after so many steps."""
    folder = Path(f"{run.folder}{changed.get('code', 'ours')[:8]:0<8}")
    folder.mkdir(exist_ok=True)
    facts = KNOWN | {"status": status, "variant": run.variant, "code": of.code, "seconds": 40.0}
    facts["data"] = KNOWN["data"] | {"train": of.data}
    ends = KNOWN["ends"] | {"collapse": {"top1": 9, "top5": 9, "images": 10}}
    (folder / "run.json").write_text(json.dumps(facts | {"ends": ends} | changed))
    (folder / "lock").write_text(f"process {os.getpid()} on {platform.node()}")
    row = {"step": steps, "epoch": run.epochs * steps / run.steps, "stage": "main", "rate": 0.1, "seconds": 1.0}
    row |= {"train_loss": 2.0, "train_top1": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def test_what_is_planned_is_what_the_notebooks_train(tmp_path):
    full = PROFILES["full"]
    runs = overall.planned(full, 20_000, tmp_path)
    wanted = {(DISTRIBUTED, 0, "auto")}
    for topic, seeds in full.seeds.items():
        tasks = ask.tasks(questions.of([topic]), range(seeds))
        assert not any(task["model"] or task["update"] for task in tasks), "which no planned run has"
        wanted |= {(task["recipe"], task["seed"], task["precision"]) for task in tasks}
    found = {(run.recipe, run.seed, run.variant.removeprefix("precision=") or "auto") for run in runs}
    assert found == wanted and len(runs) == len(wanted)
    assert sum(run.variant == "precision=bf16" for run in runs) == 3 * full.seeds["precision"]


def test_a_run_costs_what_it_took_in_the_reference_or_by_its_images(tmp_path, monkeypatch):
    plain = [run for run in records.read_all(REFERENCE / "runs").values() if not run["variant"] and run["shrink"] == "laptop"]
    full = PROFILES["full"]
    costs = {run.recipe: run.cost * run.steps for run in overall.planned(full, 20_000, tmp_path)}
    for recipe in ("one_deep_model", DISTRIBUTED):
        took = [run["seconds"] * run["ranks"] for run in plain if run["base"] == recipe]
        assert costs[recipe] == pytest.approx(pd.Series(took).median())
    monkeypatch.setattr(ask, "core_seconds", lambda runs: {"one_model": 50.0})
    runs = {run.recipe: run for run in overall.planned(full, 20_000, tmp_path)}
    deep, other = (find_and_shrink(name).global_batch for name in ("one_deep_model", "one_model"))
    assert runs["one_model"].cost * runs["one_model"].steps == pytest.approx(50)
    assert runs["one_deep_model"].cost / deep == pytest.approx(3 * runs["one_model"].cost / other)


def find_and_shrink(name):
    return shrink(RECIPES[name], "laptop", 20_000)


@pytest.mark.parametrize(
    "profile, said", [("laptop", r"all runs take about \d+ core-minutes if .* \(.*\); "), ("smoke", ""), ("cifar10", "")]
)
def test_what_it_costs_is_said_of_data_that_are_in_the_reference(reproduction, profile, said):
    reproduction.profile = PROFILES[profile]
    assert re.fullmatch(f"{said}the time left (here )?is known after the first( run)?", reproduction.cost)


def test_what_the_others_cost_is_said_of_a_reproduction_that_goes_on(reproduction):
    runs = [run._replace(steps=60, cost=60.0) for run in reproduction.planned]  # an hour of a core each
    reproduction.planned, reproduction.profile = runs, PROFILES["laptop"]
    assert reproduction.cost.startswith(f"all runs take about {60 * len(runs)} core-minutes if")
    reproduction.complete = {runs[0]}
    assert reproduction.cost.startswith(f"the others take about {60 * (len(runs) - 1)} core-minutes if")
    reproduction.complete = {*runs}
    assert reproduction.cost == ""


def test_a_run_of_another_precision_does_not_stand_for_the_plain_one(reproduction):
    first, *_ = reproduction.planned
    train(reproduction, first, first.steps, "complete", variant="precision=bf16")
    reproduction.show()
    assert reproduction.find(first) is None and not reproduction.complete
    assert reproduction.find(first._replace(variant="precision=bf16"))


def test_a_line_for_each_run_that_becomes_complete_and_the_time_left_by_the_pace(reproduction, clock, capsys):
    first, second, *others = reproduction.planned
    reproduction.begin("10-train")
    assert capsys.readouterr().out == "10-train\n"
    clock(10)
    train(reproduction, first, first.steps // 2)
    reproduction.show()
    assert capsys.readouterr().out == "" and reproduction.training == [f"{first.recipe} seed 0 at epoch 4 of 9"]
    clock(10)
    train(reproduction, first, first.steps, "complete")
    train(reproduction, second, 0)
    reproduction.show()
    work, total = first.steps * first.cost, sum(run.steps * run.cost for run in reproduction.planned)
    left = 20 * (total - work) / work + sum(overall.NOT_TRAINING.values()) + SMOKE.scaling["seconds"]
    said = capsys.readouterr().out
    count = len(reproduction.planned)
    assert said.startswith(f"run 1 of {count}: {first.recipe}, seed 0: top-1 90.00% after 40 s; {work / total:.0%}, about ")
    assert said.endswith(f"about {state.duration(left)} left\n")
    clock(10)
    reproduction.show()
    assert capsys.readouterr().out == "", "it is not said twice"


def test_runs_that_are_kept_in_files_count_as_complete(reproduction, tmp_path):
    first, second, *_ = reproduction.planned
    for run in (first, second):
        train(reproduction, run, run.steps, "complete")
    runs = {folder.name: kept.Kept(records.read(folder), [], [], {}) for folder in records.all_runs(tmp_path / "runs")}
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    kept.keep_runs(tmp_path / "runs", "digits", runs)
    assert overall.Overall(SMOKE, tmp_path / "runs").complete == {first, second}


def test_the_account_of_where_the_time_went_adds_up(reproduction, clock):
    distributed, *alone = reproduction.planned
    reproduction.begin("11-scaling")
    clock(30)
    reproduction.end("11-scaling")
    train(reproduction, distributed, 1, "complete", ranks=2, seconds=20.0, evaluating=4.0)  # both ranks at 20 of the seconds
    for run in alone:  # on a rank each, two at a time
        train(reproduction, run, 1, "complete", ranks=1, seconds=10.0, evaluating=1.0)
    reproduction.begin("01-recipes, 20-tables, 21-figures")
    clock(10)
    reproduction.end("20-tables")
    clock(2)
    reproduction.end("21-figures")
    steps, evaluations = 16 + 4.5 * len(alone), 4 + 0.5 * len(alone)
    shares = [steps, evaluations, 30, 12, 200 - steps - evaluations - 30 - 12]
    said = reproduction.account(200, ranks=2)
    assert [float(share) for share in re.findall(r"(\d+)%", said)] == pytest.approx([share / 2 for share in shares], abs=0.51)


def test_a_reproduction_that_continued_gives_no_account(reproduction, tmp_path):
    first = reproduction.planned[0]
    train(reproduction, first, first.steps, "complete")
    assert overall.Overall(SMOKE, tmp_path / "runs").account(100, ranks=2) == ""


def test_runs_of_other_code_or_data_or_an_earlier_version_do_not_count(reproduction, clock):
    first = reproduction.planned[0]
    train(reproduction, first, first.steps, "complete", code="another")
    train(reproduction, first, first.steps, "complete", data=KNOWN["data"])
    clock(2)
    reproduction.show()
    assert not reproduction.complete
    train(reproduction, first, first.steps, "complete", format=1)
    clock(2)
    reproduction.show()
    assert not reproduction.complete
    train(reproduction, first, first.steps, "complete")
    clock(2)
    reproduction.show()
    assert reproduction.complete == {first}


def test_a_run_whose_process_was_killed_is_not_being_trained(reproduction, clock, tmp_path):
    """A request to stop would otherwise wait for it."""
    first = reproduction.planned[0]
    train(reproduction, first, 3)
    (lock,) = tmp_path.glob("runs/*/lock")
    lock.write_text(f"process {2**22 + 1} on {platform.node()}")
    reproduction.show()
    assert reproduction.training == []


@pytest.mark.parametrize("training", [[], ["one_model seed 0 at epoch 4 of 9"]])
def test_a_stop_waits_for_what_is_trained_and_for_nothing_else(training, tmp_path, monkeypatch):
    ended, asked, others = threading.Event(), threading.Event(), SimpleNamespace(training=training)
    others.begin = others.end = lambda name: None
    others.show = stop.asked.set  # the request comes while the notebook runs

    def execute(*arguments, **options):
        assert (asked if training else ended).wait(10), "the engines are asked to stop, or else the kernel is ended"
        (tmp_path / "10-train.failed.ipynb").touch()
        raise notebooks.ReproError("stopped")

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(notebooks, "end_kernels", ended.set)
    try:
        with pytest.raises(records.Stopped, match="what was trained so far is kept"):
            reproduce._run({"10-train": {}}, tmp_path, others, SimpleNamespace(ask_to_stop=asked.set))
        assert asked.is_set() and ended.is_set() == (not training) and not list(tmp_path.iterdir())
        monkeypatch.setattr(notebooks, "execute", lambda *_: pytest.fail("a notebook was begun after the request"))
        with pytest.raises(records.Stopped):
            reproduce._run({"10-train": {}}, tmp_path, others)
    finally:
        stop.asked.clear()


def test_engines_that_were_asked_to_stop_from_outside_stop_the_reproduction(tmp_path, monkeypatch):
    """Its exit status would otherwise be that of a failure."""

    def execute(*arguments, **options):
        (tmp_path / "10-train.failed.ipynb").touch()
        raise records.Stopped("notebook 10-train: stopped at epoch 3.0 of 8.2")

    monkeypatch.setattr(notebooks, "execute", execute)
    others = SimpleNamespace(training=[], begin=lambda name: None, show=lambda: None)
    with pytest.raises(records.Stopped, match="The same command continues"):
        reproduce._run({"10-train": {}}, tmp_path, others)
    assert not list(tmp_path.iterdir())


# --- Is there anything to do? -----------------------------------------------------------------------------------------


@pytest.fixture
def results(data, tmp_path, monkeypatch):
    """A folder of results that is current, and one of code beside it."""
    code = "repro/a.py", "repro/paper/report.css", "repro/paper/report.html.j2", "notebooks/b.ipynb"
    made = "runs/r/run.json", "runs/r/correct/m.npz", "runs/digits-runs.jsonl.gz", "tables/t.csv", "figures/f.svg"
    made += "bench/scaling.json", "figures/bench-apparent_size.svg", "notebooks/20-tables.ipynb"
    for name in (*(f"code/{name}" for name in code), *(f"results/{name}" for name in made)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(current, "ROOT", tmp_path / "code")
    assert current.difference("smoke", tmp_path / "results") == "no reproduction was completed here yet"
    current.note("smoke", tmp_path / "results")
    assert current.difference("smoke", tmp_path / "results") == ""
    return tmp_path / "results"


@pytest.mark.parametrize(
    "name, what",
    [
        ("code/repro/a.py", "code"),
        ("code/repro/paper/report.css", "code"),
        ("code/repro/paper/report.html.j2", "code"),
        ("code/notebooks/b.ipynb", "code"),
        ("results/runs/r/run.json", "runs"),
        ("results/runs/r/correct/m.npz", "runs"),
        ("results/runs/digits-runs.jsonl.gz", "runs"),
        ("results/tables/t.csv", "results"),
        ("results/figures/f.svg", "results"),
        ("results/bench/scaling.json", "measurements"),
        ("results/figures/bench-apparent_size.svg", "measurements"),
    ],
)
@pytest.mark.parametrize("change", ["changed", "deleted"])
def test_whatever_changes_is_found(results, name, what, change):
    path = results.parent / name
    if change == "changed":
        path.write_text("2")
    else:
        path.unlink()
    assert current.difference("smoke", results) == f"changed since the last time: {what}"


def test_benchmarks_that_it_does_not_read_and_times_in_notebooks_are_no_change(results):
    """`make bench` writes the first two, and each `make table-NAME` executes a notebook again."""
    for name in ("bench/bench.json", "figures/bench-bench.svg", "notebooks/20-tables.ipynb"):
        (results / name).parent.mkdir(exist_ok=True)
        (results / name).write_text("at another time")
    assert current.difference("smoke", results) == ""
    (results / "notebooks" / "20-tables.ipynb").unlink()
    assert current.difference("smoke", results) == "changed since the last time: notebooks"


def test_another_profile_other_packages_and_other_data_are_changes(results, monkeypatch):
    assert current.difference("letters", results).startswith("changed since the last time: profile, data")
    monkeypatch.setattr(identity, "package_versions", lambda: {"torch": "0"})
    assert current.difference("smoke", results) == "changed since the last time: packages"
    (results / current.NAME).write_text("[]")
    assert current.difference("smoke", results).startswith("changed since the last time: profile, code")
    (results / current.NAME).write_text("{")
    assert current.difference("smoke", results) == "no reproduction was completed here yet"


def test_other_images_are_a_change_of_a_data_set_without_a_validation_split(data, results, tmp_path):
    def pack(image):
        for split in ("train", "test"):
            path = tmp_path / "data" / "cifar10" / f"{split}.lmdb"
            packed.write(path, "cifar10", split, ["0"], lambda start: [packed.Item(0, image)])

    pack(b"old")
    current.note("cifar10", results)
    assert current.difference("cifar10", results) == ""
    pack(b"new")
    assert current.difference("cifar10", results) == "changed since the last time: data"


# --- One table or figure ----------------------------------------------------------------------------------------------


@pytest.mark.slow  # a kernel starts
def test_a_table_is_written_by_the_notebook_that_makes_it(tmp_path):
    made = reproduce.make("tables", "recipes", tmp_path)
    assert made == [tmp_path / "tables" / "recipes.csv"]
    found, whole = pd.read_csv(made[0]), tables.recipes()
    shown = ["recipe", "global batch", "epochs"]
    assert found[shown].equals(whole[whole.recipe.isin(found.recipe)][shown].reset_index(drop=True))


@pytest.mark.parametrize("kind", reproduce.ALONE)
def test_each_is_saved_by_the_notebook_that_it_is_said_to_be(kind):
    """By the notebooks' text; tests/test_reproduce.py compares with what they write."""
    saved = {}
    for notebook in ("01-recipes", "20-tables", "21-figures"):  # the last that saves one is the one that makes it
        cells = nbformat.read(notebooks.FOLDER / f"{notebook}.ipynb", as_version=4).cells
        for cell in cells:
            if f"{kind}.save(" in cell.source:
                named = re.findall(rf'{kind}\.save\(.*, "(\w+)"\)|\[\("(\w+)", \w+\)', cell.source)
                assert named, cell.source
                saved |= {first or second: notebook for first, second in named}
    assert saved == reproduce.names(kind)


def test_a_parameter_that_is_none_is_refused(tmp_path):
    with pytest.raises(ReproError, match="unknown parameter 'dta'. Did you mean data?"):
        reproduce.make("figures", "time_to_train", tmp_path, dta="digits")


def test_a_look_lists_the_folder_of_runs_once_for_all_that_are_planned(reproduction, monkeypatch):
    listed, listdir, scandir = [], os.listdir, os.scandir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    reproduction.show()
    assert len(reproduction.planned) > 5 and len(listed) == 2  # once for folders, once for files of kept runs
