"""What a user sees of a run from its folder: lines, curves and a bar; and who trains it."""

import json
import os
import platform
import subprocess
import sys
import threading
import time

import IPython.display
import numpy as np
import pytest

import repro
from repro import ReproError, recipes
from repro.jupyter import curves, progress
from repro.jupyter.curves import Curves
from repro.jupyter.progress import Display, Progress
from repro.run import records, state
from repro.run.settings import Settings

from conftest import python

MYSELF = f"process {os.getpid()} on {platform.node()}"
SMALL = recipes.shrink(recipes.find("collapsed_ensemble"), "smoke")
MEMBERS = "top-1 75.00, 75.00, 75.00% (members, not yet averaged)"


def row(step: int, seconds: float, loss: float = 1.0, **evaluated) -> dict:
    known = {"step": step, "epoch": SMALL.epochs(step), "stage": SMALL.stage_at(step - 1)[0].name, "rate": 0.1}
    return known | {"train_loss": loss, "train_top1": 0.5, "seconds": seconds} | evaluated


class Folder:
    """The folder of a run that this process trains, or `owner` (as its lock has it)."""

    def __init__(self, out, owner=MYSELF):
        data = {"name": "digits", "train": "digest", "test": "digest", "originals": 897}
        origin = dict.fromkeys(("variant", "model_source"), "") | {"base": "collapsed_ensemble", "shrink": "smoke"}
        self.run = records.Run(out, SMALL, Settings(), data, **origin)
        self.run.begin(ranks=2)
        self.path, self.name = self.run.folder, self.run.folder.name
        (self.path / "lock").write_text(owner)

    def write(self, *rows):
        for each in rows:
            self.run.metric(each)

    def at(self, step):
        (self.run.heartbeats / "0").write_text(f"7 30 1 node 12 step {step} of {SMALL.iterations}")

    def finish(self):
        counts = {"images": 200, "top1": 150, "top5": 190}
        ends = {stage.name: counts for stage in SMALL.stages}
        self.run.finish(ends=ends, seconds=12.3, weights_sha256="digest")


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "runs")


@pytest.fixture
def shown(monkeypatch):
    """The pictures that a notebook would show: the latest of each display."""
    pictures = []

    class Handle:
        def update(self, picture):
            pictures.append(picture)

    def display(picture, display_id):
        pictures.append(picture)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    return pictures


# --- Lines ------------------------------------------------------------------------------------------------------------
def test_each_row_is_one_line_as_it_comes(folder, capsys):
    with Progress(folder.path, live=False) as lines:
        lines.look()
        assert capsys.readouterr().out == ""
        for step in (9, 18, 27):
            folder.write(row(step, step / 10))
            lines.look()
            lines.look()
            assert capsys.readouterr().out.startswith(f"epoch {SMALL.epochs(step):6.2f}/8.2  {row(step, 0)['stage']}")


def test_a_run_that_has_not_begun_shows_nothing(tmp_path, capsys, shown):
    for live in (False, True):
        with Progress(tmp_path / "none", live) as nothing:
            nothing.look()
    assert capsys.readouterr().out == "" and shown == []


def test_only_what_this_attempt_trains_is_told(folder, capsys):
    """The earlier attempt was killed after step 27; its checkpoint is of step 18."""
    rows = [row(9, 1.0), row(18, 2.0), row(27, 3.0)]
    folder.write(*rows)
    with Progress(folder.path, live=False, step=18) as lines:
        lines.look()
        assert capsys.readouterr().out == ""
        folder.run.rewind(18, frozenset())
        lines.look()
        folder.write(row(27, 3.5))
        lines.look()
        assert capsys.readouterr().out.count("\n") == 1


# --- Curves and bar ---------------------------------------------------------------------------------------------------
def test_the_loss_is_drawn_before_any_evaluation():
    figure = Curves(SMALL)
    empty = figure.image([], 0).data
    assert figure.image([row(9, 1.0, loss=1.7)], 9).data != empty
    line = figure.losses[curves.TRUNK]
    assert list(line.get_ydata()) == [1.7] and line.get_marker() == "." and figure.loss.get_ylim()[1] > 1.7


def test_a_collapse_has_its_own_colour_in_every_curve():
    steps = range(1, SMALL.iterations + 1)
    rows = [row(step, step, loss=step, top1=step, images=100) for step in steps]
    figure = Curves(SMALL)
    figure.image(rows, 77)
    collapsed = {step for step in steps if row(step, 0)["stage"].startswith("collapse")}
    for lines in (figure.losses, figure.tested):
        drawn = {colour: {y for y in line.get_ydata() if y == y} for colour, line in lines.items()}
        assert drawn == {curves.COLLAPSE: collapsed, curves.TRUNK: set(steps) - collapsed}
    assert curves.NOTE in [text.get_text() for text in figure.loss.texts]


def test_a_loss_that_is_no_number_does_not_break_the_figure():
    Curves(SMALL).image([row(9, 1.0, loss=float("nan")), row(18, 2.0, loss=float("inf")), row(27, 3.0)], 27)


def test_what_is_shaded_is_the_collapses_of_every_recipe():
    for recipe in recipes.RECIPES.values():
        shaded = curves.other_views(recipe)
        for stage, start in zip(recipe.stages, recipe.starts):
            if stage.name.startswith("collapse"):
                assert shaded[stage.name] == (recipe.epochs(start), recipe.epochs(start + stage.iterations))
        assert not any(name.startswith(("main", "init", "cyc")) for name in shaded)


def test_a_recipe_of_many_stages_and_one_without_collapse_can_be_drawn():
    for name in ("collapse_parts", "batch_2048"):
        figure = Curves(recipes.find(name))
        assert figure.image([], 0).data.startswith(b"\x89PNG")
        assert (curves.NOTE in [text.get_text() for text in figure.loss.texts]) == (name == "collapse_parts")
    pair = curves.schedule(recipes.find("resnet50_448nodes"), recipes.find("collapsed_ensemble"))
    assert pair.data.startswith(b"\x89PNG") and pair.width == 810


def test_recipes_are_compared_over_the_epochs_that_lead_to_their_results(monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "_image", figures.append)
    one, many = recipes.find("one_model"), recipes.find("collapsed_ensemble")
    curves.lineages(one, many)
    (axis,) = figures[0].axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "one_model: collapse_long",
        "collapsed_ensemble: collapse1 + collapse2 + collapse3",
    ]
    lines = [(line.get_xdata()[0], line.get_xdata()[-1], line.get_linewidth()) for line in axis.lines]
    drawn, step = [], 0.05  # of an epoch: a line ends one step before its stage
    for recipe in (one, many):
        for stage in recipe.lineage(recipe.result):
            led = [recipe.images(each.iterations) for each in recipe.lineage([stage.name])]  # all have the same batch
            ends = sum(led) / recipe.epoch_images
            drawn.append((ends - led[-1] / recipe.epoch_images, ends, 3 if stage.name.startswith("collapse") else 1.5))
    assert len(lines) == 2 + 7 and np.allclose(lines, drawn, atol=step)


def test_a_row_of_one_step_is_no_jump_of_the_live_loss():
    """The row after an evaluation one step before the end of an epoch is the loss of a single step."""
    recipe = recipes.find("resnet50_448nodes")
    rows = [
        {"step": step, "epoch": step / 100, "stage": "main", "train_loss": loss}
        for step, loss in ((100, 2.0), (199, 1.5), (200, 9.0), (300, 1.0))
    ]
    figure = Curves(recipe)
    figure.image(rows, 300)
    line = figure.losses[curves.TRUNK]
    assert list(line.get_ydata()) == pytest.approx([2.0, (99 * 1.5 + 9.0) / 100, 1.0]) and list(line.get_xdata()) == [1, 2, 3]


def test_curves_look_the_same_whatever_settings_the_user_has():
    import matplotlib

    def drawn():
        figure = Curves(SMALL)
        return [figure.image([row(9, 1.0, loss=1.7)], 9).data, curves.schedule(SMALL).data]

    plain = drawn()
    users = {"text.usetex": True, "axes.facecolor": "0.9", "lines.marker": "x", "savefig.bbox": "tight", "font.size": 20}
    with matplotlib.rc_context(users):
        assert drawn() == plain
        assert {name: matplotlib.rcParams[name] for name in users} == users, "they stay the user's for figures of their own"


def test_the_rate_is_drawn_through_every_joint(tmp_path):
    from matplotlib.figure import Figure

    from repro.schedule import learning_rate

    for recipe in (SMALL, recipes.find("resnet50_custom_lr")):
        axis = Figure().subplots()
        curves.draw_rate(axis, recipe)
        drawn = {epoch: rate for line in axis.lines for epoch, rate in zip(*line.get_data())}
        joints = {start + offset for start in recipe.starts for offset in (-1, 0)}
        joints |= {start + stage.warmup_iterations for stage, start in zip(recipe.stages, recipe.starts)}
        for step in sorted(joints & set(range(recipe.iterations))):
            assert drawn[recipe.epochs(step)] == learning_rate(recipe, step)
        assert len(drawn) <= min(recipe.iterations, 500)


def test_the_bar_says_how_far_how_fast_and_what_the_loss_is_and_stays(folder, shown, capsys):
    with Progress(folder.path, live=True) as bar:
        bar.look()
        assert bar.display.line.shown == "[....................]   0%  epoch 0.0 of 8.213"
        folder.write(row(9, 1.0, loss=1.5), row(18, 2.0, loss=1.25))
        bar.look()
        said = "[#####...............]  23%  epoch 1.9 of 8.213, 288 images/s, about 7 s left  (init, loss 1.250)"
        assert bar.display.line.shown == said
        with pytest.raises(KeyboardInterrupt), bar:
            raise KeyboardInterrupt
    assert capsys.readouterr().out.endswith(f"\r{said}\n")


def test_between_two_rows_signs_of_life_move_the_bar_and_tell_the_pace(folder, shown, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    folder.run.update(status="stopped")
    folder.at(61)  # of an attempt that is over
    with Progress(folder.path, live=True) as bar:
        bar.look()
        assert bar.display.line.shown == "[....................]   0%  epoch 0.0 of 8.213"
        folder.run.update(status="running")
        folder.at(31)
        clock[0] += 10
        bar.look()
        assert bar.display.line.shown == "[########............]  39%  epoch 3.2 of 8.213, 96 images/s, about 16 s left"
        assert bar.display.curves.here.get_xdata() == [SMALL.epochs(30)]


def test_a_rank_that_stands_still_is_named_in_the_bar(folder, shown, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: clock[0])
    with Progress(folder.path, live=True) as bar:
        folder.write(row(9, 1.0, loss=1.5))
        for number in range(15):
            (folder.run.heartbeats / "0").write_text(f"{number} 7 1 node 12 step 10 of {SMALL.iterations}")
            (folder.run.heartbeats / "1").write_text(f"{number} 6 0 node 13 step 10 of {SMALL.iterations}")
            bar.look()
            clock[0] += 2
        said = "; stands still: rank 1 (process 13 on node) computes without progress at step 10 of 77"
        assert bar.display.line.shown.endswith(said)
        (folder.run.heartbeats / "1").write_text(f"15 7 0 node 13 step 10 of {SMALL.iterations}")
        bar.look()
        assert bar.display.line.shown.endswith("(init, loss 1.500)")


def test_a_continued_run_starts_its_bar_where_it_continues(folder, shown):
    folder.write(row(9, 1.0), row(18, 2.0))
    with Progress(folder.path, live=True, step=18) as bar:
        bar.look()
        assert bar.display.line.shown == "[#####...............]  23%  epoch 1.9 of 8.213"
        assert len(bar.display.curves.losses[curves.TRUNK].get_xdata()) == 2  # the curve has the earlier rows too


def test_the_pace_is_that_of_this_attempt(folder, shown):
    """An earlier one may have had other ranks; the seconds of all are added up."""
    folder.write(row(9, 100.0), row(18, 200.0))
    with Progress(folder.path, live=True, step=18) as bar:
        folder.write(row(27, 201.0), row(36, 202.0))
        bar.look()
        assert ", 288 images/s, about 5 s left" in bar.display.line.shown


def test_the_bar_measures_from_where_it_opens(folder, shown, monkeypatch):
    """The first drawing takes seconds, in which a run goes on: they would count as if nothing had taken time."""
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    folder.at(31)
    with Progress(folder.path, live=True) as bar:
        bar.look()
        assert bar.display.line.shown == "[########............]  39%  epoch 3.2 of 8.213"
        clock[0] += 10
        folder.at(41)
        bar.look()
        assert ", 32 images/s, about 37 s left" in bar.display.line.shown


def test_drawing_is_rare_and_the_end_is_drawn(monkeypatch, shown):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    display, rows = Display(SMALL, 0), []
    for step in range(1, 61):  # 60 rows in 6 seconds
        clock[0] += 0.1
        rows = [*rows, row(step, step)]
        display.show(rows, rows, step, "a bar", "")
    assert 4 <= len(shown) <= 8
    display.close()
    assert len(display.curves.losses[curves.TRUNK].get_xdata()) == 60


# --- Many runs --------------------------------------------------------------------------------------------------------
def test_of_many_runs_each_that_becomes_complete_has_a_line_and_one_line_has_them_all(tmp_path, capsys, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    first = Folder(tmp_path / "runs")
    runs = [
        progress.Planned("collapsed_ensemble", seed, folder, SMALL.iterations, SMALL.epochs(), SMALL.global_batch)
        for seed, folder in ((0, first.path), (1, tmp_path / "runs" / "not begun"))
    ]
    many = {live: progress.Many(runs, progress.Line(live, every=15)) for live in (True, False)}
    said = {}
    for step in (11, 22, 33):
        tested = {"top1": 16, "top5": 32, "loss": 1.0, "images": 64} if step == 22 else {}
        first.write(row(step, step / 10) | tested)
        clock[0] += 10
        for live, each in many.items():
            each.show()
            said[live, step] = capsys.readouterr().out
    line = "[####................]  21%  0 of 2 runs, about 2 minutes left, collapsed_ensemble seed 0 at epoch 4 of 8"
    assert said[True, 33].strip("\r ") == f"{line} (top-1 25.00% in init)"
    assert (said[False, 11], said[False, 33]) == ("", "") and said[False, 22].endswith(
        "seed 0 at epoch 2 of 8 (top-1 25.00% in init)\n"
    )
    first.write(row(34, 3.4) | {"stage": "a branch", "top1": 1, "top5": 2, "loss": 1.0, "images": 64})
    many[True].show()
    assert "(top-1 25.00% in init)" in capsys.readouterr().out, "the recipe's result is not from that stage"
    first.finish()
    clock[0] += 10
    for each in many.values():
        each.close()
        assert f"run 1 of 2: collapsed_ensemble, seed 0: {MEMBERS} after 12 s; 50%, about" in capsys.readouterr().out
        assert (each.share, len(each.complete), each.training) == (0.5, 1, [])


# --- Who trains -------------------------------------------------------------------------------------------------------
def test_a_process_on_this_machine_counts_while_it_lives(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder = Folder(tmp_path, owner=f"process {process.pid} on {platform.node()}")
    assert state.trained_by(folder.path) == f"process {process.pid} on {platform.node()}"
    process.kill()
    time.sleep(0.1)
    assert state.trained_by(folder.path) == ""  # not yet waited for
    process.wait()
    assert state.trained_by(folder.path) == ""


def test_a_later_process_of_the_same_number_does_not_count_and_a_step_of_the_clock_makes_none(folder):
    folder.run.release()
    folder.run.begin(ranks=2)  # whose lock says when this process began
    for seconds in (1000.0, time.time() + 7200):
        os.utime(folder.path / "lock", (seconds, seconds))
        assert state.trained_by(folder.path) == MYSELF
    later = int(records.started(os.getpid())) + 1
    (folder.path / "lock").write_text(f"{MYSELF}\n{later}")
    assert state.trained_by(folder.path) == "" and f"{MYSELF} is gone" in state.outcome(folder.path)[1]


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds): lets so many seconds pass. Sleeping does, too."""
    now = [1000.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(state.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.mark.parametrize("offset", [-86400, 86400])
def test_a_process_elsewhere_counts_while_something_changes_whatever_its_clock_says(tmp_path, clock, monkeypatch, offset):
    folder = Folder(tmp_path, owner="process 7 on another-node")
    folder.at(3)
    for file in folder.path.glob("**/*"):
        os.utime(file, (time.time() + offset,) * 2)
    assert state.trained_by(folder.path) == "process 7 on another-node"
    assert state.living([folder.path]) == [], "nothing has changed for some seconds"
    sleep, beats = state.time.sleep, folder.run.heartbeats / "0"
    monkeypatch.setattr(state.time, "sleep", lambda seconds: (sleep(seconds), beats.write_text("8 31 1 node 12 step 4 of 77")))
    assert state.living([folder.path]) == [folder.path]


def test_a_run_elsewhere_that_has_a_row_every_11_minutes_is_alive(tmp_path, clock):
    folder = Folder(tmp_path, owner="process 7 on another-node")
    pulse = state.Pulse(folder.path)
    for number in range(400):
        (folder.run.heartbeats / "0").write_text(f"{number} {number // 10} 0 another-node 7 step 2 of {SMALL.iterations}")
        assert pulse.look([]) == "" and not pulse.over()
        clock(2)
    clock(state.LOST - 3)
    pulse.look([])
    assert not pulse.over()
    clock(3)
    assert pulse.over(), "it has given no sign of life for long"


def test_a_run_here_is_not_over_while_its_process_lives(folder, clock):
    pulse = state.Pulse(folder.path)
    folder.at(3)
    pulse.look([])
    clock(2 * state.LOST)
    assert "gives no sign of life" in pulse.look([]) and not pulse.over()


@pytest.mark.parametrize("status", ["complete", "stopped", "failed"])
def test_a_run_that_has_ended_is_trained_by_nobody(folder, status):
    folder.run.update(status=status) if status != "complete" else folder.finish()
    assert state.trained_by(folder.path) == ""


# --- live -------------------------------------------------------------------------------------------------------------
def test_live_follows_a_run_of_another_process_to_its_end(folder, capsys, monkeypatch):
    monkeypatch.setattr(progress, "POLL", 0.02)
    folder.write(row(9, 1.0))

    def train():
        for step in (18, 27):
            time.sleep(0.1)
            folder.write(row(step, step / 9))
        folder.finish()

    thread = threading.Thread(target=train)
    thread.start()
    repro.live(folder.path.parent)  # the run that is being trained there
    thread.join()
    told = capsys.readouterr().out.splitlines()
    since = folder.run.record["start"].replace("T", " ").replace("+00:00", " UTC")
    assert told[0] == f"{folder.name}: trained by {MYSELF} since {since}"
    assert [line.split()[2] for line in told[1:-1]] == ["init", "cyc1"]
    assert told[-1] == f"{folder.name}: complete: {MEMBERS} in 12 s"


def test_live_says_what_has_become_of_a_run(folder, tmp_path, capsys):
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints" / "18.json").write_text("{}")
    at, again = "at epoch 1.92 of 8.213", "; the command that started it continues it"  # from what was saved
    gone = f"was killed (process 999999999 on {platform.node()} is gone) {at}{again}"
    for status, said in [("stopped", f"stopped {at}{again}"), ("failed", f"failed {at}: Disk: full{again}"), ("running", gone)]:
        folder.run.update(status=status, error="Disk: full")
        (folder.path / "lock").write_text(f"process 999999999 on {platform.node()}")
        repro.live(folder.path)
        assert capsys.readouterr().out.splitlines()[-1] == f"{folder.name}: {said}"
    repro.live(folder.path.parent)
    assert capsys.readouterr().out == f"no run is being trained in {folder.path.parent}\n"


def test_an_interrupt_ends_only_the_following(folder, capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.time, "sleep", interrupt)
    repro.live(folder.path)
    assert capsys.readouterr().out.splitlines()[-1] == "no longer followed; the run goes on"


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(ReproError, match=f"^there is no run in {tmp_path}: give a run"):
        repro.live(tmp_path)


def test_following_needs_no_torch(folder):
    folder.finish()
    said = python(
        "-c", f"import sys, repro; repro.live({str(folder.path)!r}); print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    assert said.stdout.splitlines()[-1] == "False False", said.stderr


# --- Many rows, many runs -----------------------------------------------------------------------------------------------


def test_a_look_at_a_run_parses_only_what_was_added(folder, monkeypatch):
    """Or following a run of many rows would take a core from it."""
    parsed, parse = [], records.json.loads
    rows = [row(step, seconds=step) for step in range(1, 8)]
    folder.write(*rows[:5])
    follower = records.Rows(folder.path)
    assert follower.look() == rows[:5]
    monkeypatch.setattr(records.json, "loads", lambda text: parsed.append(text) or parse(text))
    assert follower.look() == rows[:5] and not parsed
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps(rows[5]) + "\n" + json.dumps(rows[6])[:20])  # the last one is still being written
    assert follower.look() == rows[:6] and len(parsed) == 1


@pytest.mark.parametrize("kept, added", [(2, 0), (2, 5), (0, 0), (0, 9)])
def test_rows_that_a_continued_run_has_dropped_are_gone_at_the_next_look(folder, kept, added):
    before = [row(step, seconds=step) for step in range(1, 6)]
    folder.write(*before)
    follower = records.Rows(folder.path)
    assert follower.look() == before
    folder.run.rewind(kept, frozenset())
    again = [row(step, seconds=step + 0.5) for step in range(kept + 1, kept + 1 + added)]
    folder.write(*again)
    assert follower.look() == before[:kept] + again == records.metric_rows(folder.path)


def test_runs_are_looked_for_only_where_a_process_has_the_lock(folder, monkeypatch):
    (folder.path / "lock").write_text("")  # as a run that has ended leaves it
    monkeypatch.setattr(records, "read", lambda _: pytest.fail("its record was read"))
    assert state.trained_by(folder.path) == ""
