"""Independent runs, one per rank: the same weights as alone, each trained once, its ensembles evaluated."""

import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from repro import evaluate, train
from repro.jupyter import engines, notebooks
from repro.ranks import stop
from repro.ranks.comm import World
from repro.run import records
from repro.task import prepare

from conftest import COUNTS, SMOKE, mpiexec

ENSEMBLES = {"three_models": [(["collapse1", "collapse2"], "softmax")]}


def weights(folder):
    return records.read(folder)["weights_sha256"]


@pytest.mark.slow
def test_ranks_share_runs_and_each_has_the_weights_of_a_run_alone(digits, whole, tmp_path):
    task = SMOKE | {"data": digits, "out": str(tmp_path)}
    tasks = [task | {"seed": seed} for seed in (SMOKE["seed"], 6)] + [task | {"recipe": "three_models"}]
    code = f"from repro.train import train_all; train_all({tasks!r}, {ENSEMBLES!r})"
    for _ in range(2):  # again: nothing is left to do
        done = mpiexec(2, "-c", code, timeout=100)
        assert done.returncode == 0, done.stderr
    folders = records.complete_runs(tmp_path)
    assert len(folders) == 3
    assert {records.read(folder)["ranks"] for folder in folders} == {1}
    assert all(len(records.read(folder)["attempts"]) == 0 for folder in folders)
    assert weights(tmp_path / whole.name) == weights(whole)
    (ensemble,) = next(records.ensembles(folder) for folder in folders if "three_models" in folder.name)
    assert ensemble["members"] == ["collapse1", "collapse2"] and ensemble["images"] == COUNTS["test"]


def test_a_run_that_another_process_trains_is_left_to_it_and_named(digits, tmp_path):
    """When all others are done: answers from fewer runs than were asked for would look as good as any."""
    task = SMOKE | {"data": digits, "out": str(tmp_path)}
    other = prepare(**task).run
    other.begin(ranks=1, workers=14)
    try:
        with pytest.raises(records.Locked, match=f"^1 of 2 runs .* {other.folder} is being trained by process"):
            train.train_all([task, task | {"seed": 6}])
        assert json.loads((other.folder / "run.json").read_text())["status"] == "running"
        assert [folder.name.split("-")[-2] for folder in records.complete_runs(tmp_path)] == ["seed6"]
        with pytest.raises(records.Locked, match="is being trained by process"):
            train.train(world=World(), **task)
    finally:
        other.release()


def test_an_ensemble_is_evaluated_once_although_another_rank_passes_meanwhile(digits, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / whole.name)
    task = SMOKE | {"data": digits, "out": str(tmp_path)}
    wanted = {SMOKE["recipe"]: [(["main", "collapse"], average) for average in ("softmax", "logit")]}
    evaluated = []

    def views(world, members, images, average, **options):
        evaluated.append(average)
        if len(evaluated) == 1:
            with pytest.raises(records.Locked, match="is being evaluated by process"):
                train.train_all([task], wanted)
        return {"images": 1, "top1": 0, "top5": 0}, {"test": np.array([False])}

    monkeypatch.setattr(evaluate, "in_all_views", views)
    train.train_all([task], wanted)
    assert evaluated == ["softmax", "logit"] == [entry["average"] for entry in records.ensembles(tmp_path / whole.name)]
    train.train_all([task], wanted)  # nothing is left to do
    assert len(evaluated) == 2


@pytest.mark.slow
@pytest.mark.counts_for("stop")
def test_ranks_that_are_asked_to_stop_from_outside_stop_the_call_and_the_next_one_continues(digits, tmp_path):
    tasks = [SMOKE | {"data": digits, "out": str(tmp_path), "seed": seed} for seed in (5, 6, 7)]

    def ask(pids):
        while not list(tmp_path.glob("*/metrics.jsonl")):
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)

    with engines.start(2) as cluster:
        thread = threading.Thread(target=ask, args=[cluster.pids])
        thread.start()
        with pytest.raises(records.Stopped, match=r"^stopped: \d+% of the images are done; run this again to continue$"):
            notebooks.train_all(cluster, tasks, {}, live=False)
        thread.join()
        assert "stopped" in [records.read(folder)["status"] for folder in records.all_runs(tmp_path)]
        folders = notebooks.train_all(cluster, tasks, {}, live=False)
    assert sorted(folders) == sorted(map(str, records.complete_runs(tmp_path))) and len(folders) == 3


def test_a_request_to_stop_is_honoured_between_two_runs(digits, whole):
    task = SMOKE | {"data": digits, "out": str(whole.parent)}  # complete already
    stop.asked.set()
    try:
        with pytest.raises(records.Stopped, match="between two runs"):
            train.train_all([task, task])
        assert not stop.asked.is_set(), "the next job of these ranks would stop after one step"
    finally:
        stop.asked.clear()
