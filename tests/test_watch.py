"""`python -m repro watch`: what it shows of a run that another process trains, from the run's files alone."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import types

import pytest

from repro import ReproError
from repro.cli import watch
from repro.jupyter import progress
from repro.paths import REFERENCE
from repro.run import records, state

from conftest import launch, python

KNOWN = next(run for run in map(records.read, records.all_runs(REFERENCE / "runs")) if run["base"] == "resnet50_448nodes")
STAGES = [stage | {"iterations": steps} for stage, steps in zip(KNOWN["recipe"]["stages"], (60, 40))]
RECIPE = KNOWN["recipe"] | {"workers": 4, "images_per_worker": 8, "epoch_images": 320, "stages": STAGES}
COUNTS = {"images": 64, "top1": 30, "top5": 60}
AGAIN = "the command that started it continues it from the start"
START = "2020-02-02T02:02:02+00:00"


def row(step: int, **more) -> dict:
    values = {"step": step, "epoch": step / 10, "stage": "main", "rate": 0.1, "train_loss": 2.0, "train_top1": 0.25}
    return values | {"seconds": step / 2} | more


@pytest.fixture
def folder(tmp_path):
    """A run of 100 steps and 10 epochs that has begun."""
    path = tmp_path / "runs" / "tiny-seed0-12345678"
    (path / "heartbeats").mkdir(parents=True)
    record(path, "running")
    (path / "lock").write_text(f"process {os.getpid()} on {platform.node()}")
    return path


def record(folder, status: str, **more) -> None:
    facts = KNOWN | {"recipe": RECIPE, "start": START, "ranks": 2, "host": "here"}
    facts |= {"ends": {stage["name"]: COUNTS for stage in STAGES}, "seconds": 50.0}
    (folder / "run.json").write_text(json.dumps(facts | {"status": status} | more))


def add(folder, *rows: dict) -> None:
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def beat(folder, rank: int, number: int, beats: int, waits: int, at: str = "step 31 of 100") -> None:
    (folder / "heartbeats" / str(rank)).write_text(f"{number} {beats} {waits} host{rank} 4{rank} {at}")


def test_a_run_is_found_by_its_folder_its_name_or_as_the_last_begun(folder):
    out = folder.parent
    shutil.copytree(folder, out / "older")
    os.utime(out / "older" / "run.json", (1, 1))
    assert state.find(str(folder)) == state.find(folder.name, out) == state.find("", out) == folder
    assert state.find("older", out) == out / "older"
    with pytest.raises(ReproError, match="Did you mean tiny-seed0-12345678"):
        state.find("tiny-seed1-12345678", out)
    with pytest.raises(ReproError, match="there are no runs in"):
        state.find("", out / "nowhere")


def test_of_many_runs_the_one_that_is_trained_is_found_though_others_ended_later(folder):
    out = folder.parent
    for name, status, start in (("ended", "complete", START), ("earlier", "running", START.replace("2020", "2019"))):
        shutil.copytree(folder, out / name)
        record(out / name, status, start=start)
    os.utime(folder / "run.json", (1, 1))
    assert state.find("", out) == folder
    record(folder, "stopped")
    assert state.find("", out) == out / "earlier"
    record(out / "earlier", "complete")
    os.utime(out / "earlier" / "run.json", (2**31, 2**31))
    assert state.find("", out) == out / "earlier"


def test_rows_are_printed_as_they_come_until_the_run_ends(folder, capsys, monkeypatch):
    monkeypatch.setattr(progress, "POLL", 0.01)
    add(folder, *(row(step) for step in range(1, 21)))

    def train():
        time.sleep(0.2)
        add(folder, row(60), row(100, top1=30, top5=60, images=64, loss=1.5))
        time.sleep(0.05)
        record(folder, "complete")

    thread = threading.Thread(target=train)
    thread.start()
    outcome = watch.watch(str(folder))
    thread.join()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"tiny-seed0-12345678: 10 epochs, since {START} on 2 ranks of here"
    shown = [*range(11, 21), 60, 100]  # of what was there before, the last ten
    assert [float(line.split("/")[0].split()[1]) for line in printed[1:]] == [step / 10 for step in shown]
    assert printed[-1].endswith("top-1 46.88%  50 s")
    assert re.fullmatch(rf"complete: top-1 46.88% in 50 s, begun \d{{5,}}\.\d hours ago: {folder}", outcome), "which, and when"


def test_without_a_name_it_says_that_the_last_run_is_over(folder, capsys):
    add(folder, row(100, top1=30, top5=60, images=64, loss=1.5))
    note = "no run is being trained now (a run that was just started appears after some seconds); this is the last one\n"
    record(folder, "complete")
    watch.watch(out=folder.parent)
    assert capsys.readouterr().out.startswith(f"{note}tiny-seed0")
    watch.watch(str(folder))
    assert capsys.readouterr().out.startswith("tiny-seed0"), "it was asked for"


@pytest.mark.parametrize(
    "status, error, words",
    [
        ("stopped", records.Stopped, f"stopped at epoch 3 of 10; {AGAIN}"),
        ("failed", ReproError, f"failed at epoch 3 of 10: OSError: on purpose; {AGAIN}"),
    ],
)
def test_it_ends_with_a_run_that_is_not_complete(folder, status, error, words):
    add(folder, row(30))
    record(folder, status, error="OSError: on purpose")
    with pytest.raises(error, match=words):
        watch.watch(str(folder))


def test_what_is_saved_is_where_it_stopped(folder):
    """Its last row may be of long before."""
    add(folder, row(30))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "34.json").touch()
    record(folder, "stopped")
    with pytest.raises(records.Stopped, match="stopped at epoch 3.4 of 10;"):
        watch.watch(str(folder))


def test_a_run_whose_process_is_gone_was_killed(folder):
    assert state.state(folder) == "running"
    gone = subprocess.Popen(["true"])
    gone.wait()
    (folder / "lock").write_text(f"process {gone.pid} on {platform.node()}")
    with pytest.raises(records.Stopped, match=f"was killed \\(process {gone.pid} on .* is gone\\) at epoch 0 of 10"):
        watch.watch(str(folder))
    (folder / "lock").write_text(f"process {gone.pid} on another-host")  # nothing can be known from here
    assert state.state(folder) == "running"


def test_a_lock_or_sign_of_life_that_is_no_text_is_read_nevertheless(folder, cli):
    (folder / "heartbeats" / "0").write_bytes(b"\xff" * 9)
    (folder / "lock").write_bytes(b"\xff\xfe\0")
    assert state.state(folder) == "running" and state.Pulse(folder).look([]) == ""
    record(folder, "stopped")
    assert cli("watch", str(folder))[0] == 75
    (folder / "run.json").write_bytes(b"\xff")
    status, _, said = cli("watch", str(folder))
    assert status == 2 and said.startswith(f"error: {folder}/run.json is damaged (") and said.count("\n") == 1


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds): lets so many seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_ranks_that_beat_or_wait_for_one_that_beats_do_not_stand_still(folder, clock):
    pulse = state.Pulse(folder)
    for number in range(40):
        beat(folder, 0, number, number, 0)
        beat(folder, 1, number, 7, 1)
        assert pulse.look([]) == ""
        clock(2)


def test_a_rank_that_computes_without_progress_is_named_and_not_those_that_wait_for_it(folder, clock):
    pulse = state.Pulse(folder)
    for number in range(12):
        beat(folder, 0, number, 7, 1)
        beat(folder, 1, number, 6, 0)
        wrong = pulse.look([])
        assert bool(wrong) == (2 * number >= state.STILL)
        clock(2)
    assert wrong == "stands still: rank 1 (process 41 on host1) computes without progress at step 31 of 100"
    beat(folder, 1, 12, 7, 0)
    assert pulse.look([]) == ""


def test_a_frozen_rank_is_named(folder, clock):
    pulse = state.Pulse(folder)
    beat(folder, 0, 1, 6, 0)
    for number in range(8):
        beat(folder, 1, number, number, 1)
        wrong = pulse.look([])
        assert bool(wrong) == (2 * number > state.FROZEN)
        clock(2)
    assert wrong == "stands still: rank 0 (process 40 on host0) gives no sign of life at step 31 of 100"


def test_a_run_whose_beats_are_always_late_is_warned_about_once(folder, clock):
    """A pass of many large images on a slow core takes longer than the limit."""
    pulse, warnings = state.Pulse(folder), []
    for second in range(400):
        beat(folder, 0, second, second // 36, 0)
        warnings.append(pulse.look([]))
        clock(1)
    assert any(warnings[20:36]) and not any(warnings[36:])


def test_a_run_without_any_sign_of_life_stands_still_after_a_minute(folder, clock):
    pulse = state.Pulse(folder)
    assert pulse.look([]) == ""
    clock(59)
    assert pulse.look([]) == ""
    clock(2)
    assert pulse.look([]) == "no news for 61 s"
    assert pulse.look([row(10)]) == ""


def test_signs_of_life_that_vanish_or_are_just_being_written_are_none(folder, clock):
    """A run that ends deletes them while they are read."""
    pulse = state.Pulse(folder)
    beat(folder, 0, 1, 1, 0, "step 31 of 100")
    (folder / "heartbeats" / "1").symlink_to(folder / "deleted meanwhile")
    assert pulse.look([]) == "" and pulse.step == 30
    (folder / "heartbeats" / "0").write_text("")
    clock(5)
    assert pulse.look([]) == "" and pulse.step == 30, "the last one counts until the next is complete"
    shutil.rmtree(folder / "heartbeats")
    assert pulse.look([]) == "" and pulse.step == 0


def test_the_bar_is_of_the_steps_done_and_time_left_of_the_pace_of_the_last_rows():
    whole = state.recipe_of({"recipe": RECIPE})  # 100 steps of 32 images, 10 epochs
    slow, fast = [row(step, seconds=100 * step) for step in (1, 2)], [row(step, seconds=190 + step) for step in range(10, 21)]
    assert progress.bar(whole, 0, 0.0, []) == "[....................]   0%  epoch 0.0 of 10"
    speed = state.pace(slow + fast, 5)
    assert speed == 1, "of late; and the first row counts from the run's start"
    assert (state.pace(slow, 5), state.pace(slow[:1], 1), state.pace([], 5)) == (0.01, 0.01, 0)
    said = progress.bar(whole, 20, speed, slow + fast)
    assert said == "[####................]  20%  epoch 2.0 of 10, 32 images/s, about 80 s left  (main, loss 2.000)"
    said = progress.bar(whole, 50, speed, slow + fast)
    assert said.startswith("[##########..........]  50%  epoch 5.0 of 10, 32 images/s, about 50 s left")


def test_a_terminal_gets_a_line_that_is_written_over(folder):
    """`script` gives the command a terminal; the run stands still in it, until it is stopped."""
    if not shutil.which("script"):
        pytest.skip("no `script` (util-linux) to make a terminal with")
    add(folder, row(30))
    beat(folder, 0, 1, 1, 0, "step 51 of 100")
    process = launch("script", "-qec", f"{sys.executable} -m repro watch {folder}", "/dev/null")
    printed = ""
    while " left" not in printed and (letter := process.stdout.read(1)):
        printed += letter
    record(folder, "stopped")
    printed += process.communicate(timeout=20)[0]
    assert process.returncode == 75
    assert "[##########..........]  50%  epoch 5.0 of 10, 64 images/s, about 25 s left" in printed
    assert printed.rstrip().endswith(f"{folder.name} stopped at epoch 3 of 10; {AGAIN}")


def test_watching_needs_no_torch_and_the_run_takes_no_notice(folder):
    add(folder, *(row(step) for step in range(1, 16)))
    record(folder, "complete")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code = "import sys; sys.modules['torch'] = sys.modules['mpi4py'] = None; from repro.__main__ import main; sys.exit(main())"
    said = python("-c", code, "watch", folder.name, "--out", folder.parent)
    assert said.returncode == 0, said.stderr
    assert len(said.stdout.splitlines()) == watch.EARLIER + 2 and "complete: top-1 46.88% in 50 s" in said.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_event_files_have_the_rows_and_twice_is_once(folder, tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed: no event files to read")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    add(folder, row(10), row(30, top1=30, top5=60, images=64, loss=1.5))
    record(folder, "complete")
    for _ in range(2):
        watch.watch(str(folder), tensorboard=str(tmp_path / "board"))
    events = EventAccumulator(str(tmp_path / "board" / folder.name)).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["train/loss"] == [(10, 2.0), (30, 2.0)]
    assert found["train/top-1 %"] == [(10, 25.0), (30, 25.0)]
    assert found["test/top-1 %"] == [(30, 46.875)] and found["test/loss"] == [(30, 1.5)]
    assert found["images per second"] == [(10, 64.0), (30, 64.0)]
    assert events.Scalars("train/loss")[1].wall_time == pytest.approx(1580608922 + 15)


def test_without_the_package_it_is_said_how_to_install_it(folder, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    status, _, said = cli("watch", str(folder), "--tensorboard", "board")
    assert status == 2 and "`.venv/bin/uv pip install --python .venv/bin/python tensorboard`" in said


def test_event_files_of_many_rows_take_time_in_proportion(folder, monkeypatch):
    given = []
    monkeypatch.setattr(watch, "pace", lambda rows, last: given.append(len(rows)) or state.pace(rows, last))
    written = types.SimpleNamespace(add_scalar=lambda *_, **__: None, flush=lambda: None)
    module = types.SimpleNamespace(SummaryWriter=lambda *_, **__: written)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    watch.Board("board", folder, records.read(folder)).write([row(step) for step in range(1, 50)])
    assert len(given) == 49 and max(given) == 2
