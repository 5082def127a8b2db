"""What a run will take: the arithmetic against a count by hand, what is recorded, and what is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from repro import ReproError, recipes
from repro.paper import tables
from repro.run import checkpoint, identity, records
from repro.run.state import duration
from repro.scaling import forecast
from repro.scaling.steptime import Layout
from repro.schedule import Recipe, Stage, due

from conftest import SMOKE, mpiexec

SMALL = Recipe(
    name="small",
    stages=(Stage("a", 6, 0.1), Stage("b", 4, 0.1)),
    workers=6,
    images_per_worker=8,
    epoch_images=96,
    record_every=1,
    evaluate_every=2,
)


def probed(ranks: int = 2) -> dict:
    """A probe of a machine without noise: 0.5 s a step, 0.1 s an image; the average takes no time, loading 0.01 s an image."""

    def row(kind, workers, seconds):
        return {"kind": kind, "ranks": ranks, "vector": 8, "images": 8, "workers": workers, "seconds": [[seconds] * 5] * ranks}

    rows = [row("compute", 1, 1.3), row("compute", 2, 2.1), row("loading", 1, 1.38), row("step", 1, 1.3)]
    if ranks == 1:
        rows.pop()
    return {
        "rows": rows,
        "ranks": ranks,
        "nodes": 1,
        "buckets": 4,
        "evaluated_per_second": 50,
        "save_seconds": 0.25,
        "state_bytes": 1000,
        "parameters": 200,
        "peak_bytes": 10**9,
    }


def test_a_count_by_hand():
    found = forecast.estimate(SMALL, probed(), 100, Layout(per_node=2))
    step = 0.5 + 3 * 0.8 + 24 * 0.01  # 6 workers on 2 ranks: 3 a rank
    # 2 steps an epoch: rows after steps 2, 4, 6, 8, 10; evaluations after 4 and 8 and at the stages' ends, 6 and 10, where
    # there are three views
    evaluation = (100 + 300 + 100 + 300) / 50
    seconds = 10 * step + evaluation + (2 * 2 + (10 * step + evaluation) / 30) * 0.25
    assert found["step_seconds"] == pytest.approx(step) and found["evaluations"] == 4
    assert found["seconds"] == pytest.approx(seconds) and found["hours"] == pytest.approx(seconds / 3600)
    assert found["seconds_low"] == pytest.approx(seconds) == pytest.approx(found["seconds_high"])  # no noise
    assert found["run_bytes"] == 2 * 1000 + 4 * (1000 + 800)
    assert found["node_bytes"] == 2 * 10**9 and found["images"] == 10 * 48
    assert found["label"] == "measured pace"


def test_the_other_views_of_a_large_test_set_are_of_its_first_images_only():
    few, many = (forecast.estimate(SMALL, probed() | {"save_seconds": 0}, n, Layout(per_node=2)) for n in (4_000, 50_000))
    assert few["seconds"] - many["seconds"] == pytest.approx((8 * 4_000 - (4 * 50_000 + 4 * 5_000)) / 50)


def test_so_many_checkpoints_are_on_disk_at_once(tmp_path):
    found = []
    for step in range(1, 9):
        checkpoint.save(tmp_path / "checkpoints" / str(step), {"weights": torch.zeros(3)}, {})
        found.append(len(checkpoint.generations(tmp_path / "checkpoints")))
        checkpoint.prune(tmp_path / "checkpoints")
    assert max(found) == forecast.MOST_KEPT


def test_other_ranks_than_those_at_hand_are_the_models():
    for layout in (Layout(nodes=3, per_node=2), Layout(nodes=1, per_node=1), Layout(nodes=1, per_node=3)):
        found = forecast.estimate(SMALL, probed(), 100, layout)
        assert found["label"] == "MODEL"
        assert found["node_hours"] == pytest.approx(layout.nodes * found["hours"])
    assert forecast.estimate(SMALL, probed(), 100, Layout(3, 2))["step_seconds"] == pytest.approx(1.3 + 0.08, rel=1e-3)


def test_a_probe_on_several_nodes_counts_them_and_measures_their_link():
    several = probed(4) | {"nodes": 2}
    found = forecast.estimate(SMALL, several, 100, Layout(nodes=2, per_node=2))
    assert found["label"] == "measured pace" and found["node_hours"] == pytest.approx(2 * found["hours"])
    assert forecast.estimate(SMALL, several, 100, Layout(nodes=1, per_node=4))["label"] == "MODEL"
    several["rows"].append({"kind": "allreduce", "ranks": 4, "vector": 8, "bytes": 8, "seconds": [[0.4] * 5] * 4})
    slower = forecast.estimate(SMALL, several, 100, Layout(nodes=3, per_node=2))["step_seconds"]
    assert slower > 0.4  # by the measured link, not by an assumed one


def test_too_few_steps_have_no_band():
    few = probed()
    for row in few["rows"]:
        row["seconds"] = [times[:2] for times in row["seconds"]]
    found = forecast.estimate(SMALL, few, 100, Layout(per_node=2))
    assert found["seconds_low"] is None and found["timed_steps"] == 2


@pytest.mark.parametrize("shrink", ["laptop", "smoke", "rehearsal"])
def test_rows_and_evaluations_are_those_of_the_trainer(shrink):
    for recipe in recipes.RECIPES.values():
        if shrink == "rehearsal" and recipe.global_batch > 2**14:
            continue  # larger than a rehearsal's images
        small = recipes.shrink(recipe, shrink)
        for every in (small.evaluate_every, small.record_every):
            found = due(small, every)
            for step in range(1, small.iterations + 1):
                completes = small.epochs(step) // every > small.epochs(step - 1) // every
                assert (step in found) == (completes or step in small.starts)


# --- With a probe -----------------------------------------------------------------------------------------------------
def test_a_forecast_is_recorded_and_stands_beside_the_measured_time(digits, tmp_path, monkeypatch):
    from repro.train import train

    monkeypatch.setattr(forecast, "SECONDS", 1.0)
    task = SMOKE | {"data": digits, "out": str(tmp_path / "runs")}
    (before,) = forecast.expected([task])
    assert not before["complete"] and before["seconds"] > 0
    (again,) = forecast.expected([task])
    assert again["seconds"] == before["seconds"]  # the recorded one: no second probe
    run = records.read(train(**task))
    table = tables.predictions(tmp_path / "runs")
    assert list(table.recipe) == [SMOKE["recipe"], "all"] and list(table.n) == [1, 1]
    assert table.predicted[0] == pytest.approx(before["seconds"] / 60)
    assert table.measured[0] == pytest.approx(run["seconds"] / 60)
    assert table.error[0] == pytest.approx(100 * (before["seconds"] / run["seconds"] - 1))
    (after,) = forecast.expected([task])
    assert after["complete"]


def test_a_prediction_for_other_ranks_is_not_compared(whole, tmp_path):
    records.predict(tmp_path / "runs", {whole.name: {"ranks": 7, "seconds": 1.0}})
    (tmp_path / "runs").symlink_to(whole.parent)
    assert tables.predictions(tmp_path / "runs").empty


def test_nothing_planned_is_an_empty_table(whole):
    assert isinstance(tables.predictions(whole.parent), pd.DataFrame)


def test_beyond_the_ranks_at_hand_nothing_is_recorded(digits, tmp_path):
    found = forecast.plan(**SMOKE, data=digits, out=str(tmp_path / "runs"), nodes=2, seconds=0.5)
    assert found["asked"]["label"] == "MODEL" and found["asked"]["nodes"] == 2
    assert records.predictions(tmp_path / "runs") == {}


def test_a_plan_is_written_with_what_it_was_made_on_and_by(cli, digits, tmp_path):
    options = ["--shrink", "smoke", "--device", "cpu", "--seconds", "0.5", "--data", digits, "--out", str(tmp_path / "runs")]
    status, said, _ = cli("plan", SMOKE["recipe"], *options, "--json", str(tmp_path / "made" / "plan.json"))
    written = json.loads((tmp_path / "made" / "plan.json").read_text())
    assert status == 0 and f"{written['images_per_s']:.4g} images/s; 24 steps" in said
    assert written["command"].startswith(f"python -m repro plan {SMOKE['recipe']} --shrink smoke ")
    assert written["gpu"] == "" and written["cores"] and written["version"] == identity.code_version()


def test_a_time_limit_finds_the_largest_shrink_within_it(digits, tmp_path, monkeypatch):
    hours = {"laptop": 2.0, "rehearsal": 1.0, "smoke": 0.1, "none": 900.0}
    monkeypatch.setattr(
        forecast,
        "forecast",
        lambda tasks, *_: [
            {"shrink": task["shrink"], "hours": hours.get(task["shrink"], 0.5), "images": 1000 * hours.get(task["shrink"], 0.5)}
            for task in tasks
        ],
    )
    asked = {"recipe": "resnet50_448nodes", "data": digits, "out": str(tmp_path / "runs"), "shrink": "laptop"}
    for limit, largest in ((1000, "none"), (1.5, "rehearsal"), (0.2, "smoke"), (0.01, "")):
        assert forecast.plan(hours=limit, **asked)["largest"] == largest


@pytest.mark.parametrize(
    "change, said",
    [
        ({"nodes": -2}, "nodes is -2"),
        ({"ranks_per_node": -1}, "ranks_per_node is -1"),
        ({"network": "omnipath"}, "Did you mean omni-path"),
        ({"nodes": 15}, "7 passes of 2 workers, which 15 ranks cannot"),
        ({"hours": -1}, "hours is -1"),
        ({"recipe": "resnet50_448node"}, "Did you"),
        ({"shrnk": "laptop"}, "Did you mean shrink"),
        ({"seconds": 0}, "seconds is 0"),
    ],
)
def test_what_cannot_be_planned_is_named(digits, tmp_path, change, said):
    with pytest.raises(ReproError, match=said):
        forecast.plan(**{**SMOKE, "data": digits, "out": str(tmp_path / "runs"), "seconds": 0.5} | change)


def test_a_plan_of_a_run_that_was_begun_says_what_is_left():
    found = forecast.estimate(SMALL, probed(), 100, Layout(per_node=2)) | {
        "complete": False,
        "data_bytes": 1,
        "folder": "runs/it",
    }
    planned = {"others": [], "hours": 0, "memory": 1}
    begun = forecast.describe(planned | {"asked": found | {"step": 4}})
    assert f"\n40% of it is done, in runs/it: {duration(0.6 * 3600 * found['hours'])} are left" in begun
    assert "is done" not in forecast.describe(planned | {"asked": found | {"step": 0}})


def test_damaged_predictions_are_named(tmp_path):
    (tmp_path / "forecasts.json").write_text("{")
    with pytest.raises(ReproError, match="forecasts.json is damaged"):
        records.predictions(tmp_path / "runs")


def test_the_command_line_on_two_ranks(digits, tmp_path):
    done = mpiexec(
        2,
        "-m",
        "repro",
        "plan",
        "resnet50_448nodes",
        "--data",
        digits,
        "--shrink",
        "smoke",
        "--seconds",
        "1",
        "--out",
        tmp_path / "runs",
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert "measured pace resnet50_448nodes-smoke" in done.stdout and "1 x 2 ranks" in done.stdout
    (recorded,) = records.predictions(tmp_path / "runs").values()
    assert recorded["ranks"] == 2 and Path(recorded["folder"]).parent == tmp_path / "runs"
