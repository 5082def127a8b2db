"""Independent runs, one per rank: the same weights as alone, each trained once, its ensembles evaluated."""

import json

import pytest

from repro import train
from repro.ranks import watch
from repro.ranks.comm import Alone
from repro.run import records
from repro.task import prepare

from conftest import SMOKE, mpiexec

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
    assert ensemble["members"] == ["collapse1", "collapse2"] and ensemble["images"] == 20_000


def test_a_run_that_another_process_trains_is_left_to_it(digits, tmp_path):
    task = SMOKE | {"data": digits, "out": str(tmp_path)}
    other = prepare(**task).run
    other.begin(ranks=1, workers=14)
    try:
        train.train_all([task])
        assert json.loads((other.folder / "run.json").read_text())["status"] == "running"
        with pytest.raises(records.Locked, match="is being trained by process"):
            train.train(world=Alone(), **task)
    finally:
        other.release()


def test_a_request_to_stop_is_honoured_between_two_runs(digits, whole):
    task = SMOKE | {"data": digits, "out": str(whole.parent)}  # complete already
    watch.asked.set()
    try:
        with pytest.raises(records.Stopped, match="between two runs"):
            train.train_all([task, task])
    finally:
        watch.asked.clear()
