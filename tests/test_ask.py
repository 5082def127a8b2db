"""Questions of one's own: what is refused, what is trained, which runs of the reference stand, and what is answered."""

import math
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from repro import Question, ReproError, Side
from repro.cli import commands
from repro.jupyter.notebooks import FOLDER
from repro.paper import ask, figures, questions
from repro.recipes import RECIPES, shrink
from repro.run.identity import code_digest
from repro.schedule import learning_rate

from test_tables import IMAGES, RUNS, noise, write_run

LINEAR = Side("one_model", "collapse_long")
MINE = replace(RECIPES["resnet50_448nodes"], name="mine")


def test_a_side_without_stages_is_the_recipes_result():
    better, other, own, two, last = ask.spelt_out_sides(
        [
            Side("one_model"),
            Side("three_models"),
            Side(MINE),
            Side("five_members", "collapse1+collapse2", "logit"),
            Side(replace(MINE, stages=MINE.stages[:1])),
        ]
    )
    assert (better.members, better.average, better.recipe) == ("collapse_long", "", RECIPES["one_model"])
    assert (other.members, other.average) == ("collapse1 + collapse2 + collapse3", "softmax")
    assert (own.members, own.recipe) == ("collapse", MINE)
    assert (two.members, two.average) == ("collapse1 + collapse2", "logit")
    assert last.members == "main", "it has no member"


@pytest.mark.parametrize(
    "asked, seeds, words",
    [
        ([Question("q", LINEAR, Side("one_modle"))], range(3), "unknown recipe 'one_modle'. Did you mean one_model?"),
        (
            [Question("q", LINEAR, Side("one_model", "colapse"))],
            range(3),
            "unknown stage of one_model 'colapse'. Did you mean coll",
        ),
        ([Question("q", LINEAR, Side("one_model"))], range(3), r"both sides of 'q' are one_model \(collapse_long\): name two"),
        ([Question("q", LINEAR, Side(MINE, average="max"))], range(3), "unknown average 'max'"),
        ([Question("q", LINEAR, "one_model")], range(3), "a side is 'one_model': it must be a repro.Side"),
        (
            [Question("q", Side(MINE), Side(replace(MINE, workers=8)))],
            range(3),
            "two different recipes, .* are called mine: rename",
        ),
        ([Question("q", LINEAR, Side(MINE))], [0, 1], r"seeds is \[0, 1\]: an interval takes 3 different ones or more"),
        ([Question("q", LINEAR, Side(MINE))], [0, 0, 1], r"seeds is \[0, 0, 1\]: "),
        ([Question("q", LINEAR, Side(MINE))], [], r"seeds is \[\]: an interval takes 3"),
        ([Question("q", LINEAR, Side(MINE))], [0, 1, -2], "seed is -2: it must be a whole number"),
        ([Question("q", LINEAR, Side(MINE, model="resnet49"))], range(3), "unknown model 'resnet49'. Did you mean resnet50?"),
        ([LINEAR], range(3), r"questions is \[Side.*: it must be a list of questions"),
        ([], range(3), "questions is .*: it must be a list of questions"),
        ({"q": LINEAR}, range(3), "questions is .*: it must be a list of questions"),
    ],
)
def test_what_cannot_be_asked_is_one_line_before_anything_starts(monkeypatch, asked, seeds, words):
    monkeypatch.setattr(ask.engines, "start", lambda *_: pytest.fail("engines are started"))
    monkeypatch.setattr(ask.notebooks, "pack", lambda _: None)
    monkeypatch.setattr(ask.notebooks, "Packed", lambda *_: range(20_000))
    with pytest.raises(ReproError, match=words) as error:
        ask.ask(asked, seeds)
    assert "\n" not in str(error.value)


def test_questions_are_loaded_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from repro import Question, Side\n"
        "one = Question('q', Side('one_model'), Side('three_models'))\nmany = [one]\nside = one.better\n"
    )
    assert ask.load(f"{file}:one") == ask.load(f"{file}:many") == ask.spelt_out([Question("q", LINEAR, Side("three_models"))])
    for name, words in ((f"{file}:side", "side is Side.*: it must be a list"), ("mine", "'mine' names no questions")):
        with pytest.raises(ReproError, match=words):
            ask.load(name)


def test_what_a_file_of_questions_names_is_found_beside_it(tmp_path, monkeypatch):
    (folder := tmp_path / "mine").mkdir()
    (folder / "nets.py").write_text(
        "from dataclasses import replace\nfrom repro.recipes import find\n"
        "mine = replace(find('one_model'), name='mine', model='nets.py:net')\ndef net(classes, channels, size): ...\n"
    )
    (folder / "asked.py").write_text(
        "from repro import Question, Side\n"
        "q = Question('q', Side('nets.py:mine'), Side('one_model', model='nets.py:net', update='here.py:Rule'))\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("mine/asked.py:q", f"{folder}/asked.py:q"):
        (question,) = ask.load(name)
        assert question.better.recipe.name == "mine"
        assert question.better.recipe.model == question.other.model == f"{folder}/nets.py:net"
        assert question.other.update == "here.py:Rule", "it is not there, so it may be in the working directory"


def test_tasks_are_the_runs_that_the_questions_need():
    tasks = ask.tasks(questions.of(["collapse"]), [0, 1], data="digits")
    assert [(task["recipe"], task["seed"], task["data"]) for task in tasks] == [("collapse_parts", n, "digits") for n in (0, 1)]
    everything = ask.tasks(questions.QUESTIONS, [7])
    sides = [side for question in questions.QUESTIONS for side in question.sides]
    assert len(everything) == len({side.training for side in sides})
    assert {side.recipe for side in sides} == {task["recipe"] for task in everything}
    assert everything[0]["recipe"] == "one_deep_model", "the longest first"
    for side in sides:
        assert not side.average or (side.members.split(" + "), side.average) in ask.ensembles(sides)[side.recipe]
    twice = [Question("q", LINEAR, LINEAR._replace(model="resnet18")), Question("r", LINEAR, Side("one_model", "plain"))]
    assert [task["model"] for task in ask.tasks(twice, [0])] == ["", "resnet18"]


class Engine:
    """Stands for engines: says of a task what `task.describe` would, with these names of folders by recipe and seed."""

    def __init__(self, out, names):
        self.out, self.names = out, names

    def run(self, function, tasks):
        assert function == "repro.task:describe_all"
        names = [self.names.get((task["recipe"].name, task["seed"]), "never") for task in tasks]
        plan = {"kernels": "AVX2", "complete": False, "images": shrink(RECIPES["one_model"], "laptop").images()}
        return [[plan | {"folder": str(self.out / name)} for name in names]]


@pytest.fixture
def asking(tmp_path, monkeypatch):
    """Asks whether resnet50_448nodes, under the name "mine" and with 3 seeds, beats one_model, of which a reference has 5 runs.

    A function of the facts in which the reference's runs differ, and of whether they have the names that they would have here;
    returns the answers, and what would have been trained.
    """

    def ask_(asked=None, seeds=range(3), same_names=True, small="", **facts):
        names, here = {}, {"kernels": "AVX2", "code": code_digest()}
        for seed in range(5):
            kept = write_run(tmp_path / "reference", "one_model", seed, **here | facts)
            names["one_model", seed] = kept.name if same_names else f"{kept.name}-here"
            if seed in seeds:  # as they would be trained here
                names["mine", seed] = write_run(tmp_path / "runs", "resnet50_448nodes", seed, **here).name
                linear = write_run(tmp_path / "runs", "one_model", seed, **here)
                linear.rename(linear.with_name(names["one_model", seed]))
        trained = []
        monkeypatch.setattr(ask.notebooks, "check_run", lambda *_: 1)
        monkeypatch.setattr(ask.notebooks, "train_all", lambda engine, tasks, *_: trained.extend(tasks))
        asked = asked or [Question("mine is better", Side(MINE, "collapse"), LINEAR)]
        engine = Engine(tmp_path / "runs", names)
        out, reference = tmp_path / "runs", tmp_path / "reference"
        answers = ask.ask(asked, seeds, shrink=small, out=out, engine=engine, live=False, reference=reference)
        return answers, [(task["recipe"].name, task["seed"]) for task in trained]

    return ask_


def top1(base, stage, seeds):
    return np.array([100 * (RUNS[base][stage] + noise(seed, base, stage)) / IMAGES for seed in seeds])


def test_runs_of_the_reference_that_this_code_would_train_stand_with_all_their_seeds(asking, capsys):
    answers, trained = asking()
    assert trained == [("mine", seed) for seed in range(3)]
    (row,) = answers.itertuples()
    mine, linear = top1("resnet50_448nodes", "collapse", range(3)), top1("one_model", "collapse_long", range(5))
    assert (row.n, row.n_other, row.compared) == (3, 5, "Welch's t")
    assert row.difference == pytest.approx(mine.mean() - linear.mean())
    assert (row.better, row.other) == ("mine (collapse)", "one_model (collapse_long)")
    assert np.isfinite([row.low, row.low_originals]).all(), "the predictions of both places are read"
    said = capsys.readouterr().out
    assert "one_model: 5 runs of the reference stand here, as code, images and processor kernels are the same\n" in said
    sides = f"mine (collapse) has {row.top1:.2f}%, one_model (collapse_long) {row.against:.2f}%, with n = 3 and 5 seeds"
    line = f"mine is better: {row.verdict}. {sides}; the first minus the second is {row.difference:+.2f} points (95% interval "
    *_, last = said.splitlines()
    assert len(last) <= ask.LINE and not last.startswith("mine is better"), "a long sentence has several lines"
    said = " ".join(said.split())
    assert line in said
    enlarged = f"{row.difference_zoom:+.2f} ({row.low_zoom:+.2f} to {row.high_zoom:+.2f})"
    cut = f"{row.difference_scale_aspect:+.2f}"  # without a spread in these runs
    assert f"; with the test images enlarged {enlarged}, cut as in training {cut}." in said
    assert row.verdict != "not resolved" or f"about {row.needed:.0f} seeds a side if" in said
    figure = figures.answers(answers)
    texts = " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))
    assert "mine is better mine (collapse), n\xa0=\xa03, minus one_model (collapse_long), n\xa0=\xa05" in texts


def test_a_verdict_that_hangs_on_single_seeds_says_so(asking):
    answers, _ = asking(seeds=range(4))
    for seeds, said in ((0, False), (float("nan"), False), (2, True)):
        (sentence,) = ask.told(answers.assign(hangs_on=seeds))
        assert ("hangs on 2 of the seeds: without any one of them it would be another" in sentence) == said


def test_before_training_it_says_what_the_runs_took_in_the_reference(asking, capsys):
    """One model's runs took 30 seconds on 2 ranks, and mine have as many images, whether or not one model's are asked for."""
    took = dict(seconds=30.0, ranks=2)
    asking(same_names=False, **took)
    said = ", about 6 core-minutes if an image takes as long as in the reference (a processor)\n"
    assert f"runs to train: 6{said}" in capsys.readouterr().out
    asking([Question("q", Side(MINE, "collapse"), Side(MINE, "main"))], small="laptop", **took)
    assert "runs to train: 3" + said.replace("6", "3") in capsys.readouterr().out, "the reference has none of mine"
    asking([Question("q", Side(MINE, "collapse"), Side(MINE, "main"))], **took)
    assert "runs to train: 3\n" in capsys.readouterr().out, "the reference has none of this size"
    asking([Question("q", Side("one_model", "plain"), LINEAR)], **took)
    assert "runs to train" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "facts, reason",
    [
        ({"kernels": "NEON"}, r"by other kernels (NEON; here AVX2)"),
        ({"code": "0ther", "same_names": False}, "by other code (0.1.0)"),
        ({"same_names": False}, "on other images, or with other numbers or settings"),
    ],
)
def test_runs_of_the_reference_that_would_be_others_here_are_trained(asking, capsys, facts, reason):
    answers, trained = asking(**facts)
    assert set(trained) == {(name, seed) for name in ("mine", "one_model") for seed in range(3)}
    assert (answers.n[0], answers.n_other[0]) == (3, 3)
    assert (
        f"one_model: the reference's runs cannot stand here, as they were trained {reason}; so runs of this code do\n"
        in capsys.readouterr().out
    )


def test_runs_of_the_reference_without_the_predictions_of_a_side_are_trained(asking, monkeypatch):
    """`keep` leaves out those that no question of the paper reads."""
    monkeypatch.setattr(ask.records, "tested", lambda folder: ["main", "plain"])
    assert ("one_model", 0) in asking()[1]


def test_two_names_of_one_run_are_no_question(asking):
    with pytest.raises(ReproError, match="both sides of 'q' are the same run: one_model-laptop-digits-seed0"):
        asking([Question("q", LINEAR, LINEAR._replace(model="resnet11"))])


def test_two_models_of_one_run_are_paired(asking):
    answers, trained = asking([Question("q", Side("one_model", "plain"), LINEAR)])
    assert trained == [] and (answers.compared[0], answers.n[0]) == ("paired t", 5)
    assert answers.difference[0] == pytest.approx(
        (top1("one_model", "plain", range(5)) - top1("one_model", "collapse_long", range(5))).mean()
    )


def test_the_seeds_that_an_interval_takes_are_those_of_the_pilot(asking):
    (row,) = asking()[0].itertuples()
    limit, seeds, most = ask.needed(row)
    assert limit > row.sd and most >= seeds >= 3
    assert seeds == ask.statistics.needed(row.sd, paired=False) and most == ask.statistics.needed(limit, paired=False)
    assert np.isnan(ask.needed(row._replace(n=2))).all() and np.isnan(ask.needed(row._replace(compared="exact ranks"))).all()


def test_the_command_writes_the_table_and_the_figure(asking, monkeypatch, tmp_path, capsys):
    answers, given = asking()[0], {}
    monkeypatch.setattr(
        ask, "ask", lambda asked, seeds, **options: given.update(asked=asked, seeds=seeds, **options) or answers
    )
    (tmp_path / "mine.py").write_text(
        "from repro.paper.questions import *\nmine = Question('q', Side('one_model'), ENSEMBLE)\n"
    )
    command = ["repro", "ask", f"{tmp_path}/mine.py:mine", "--seeds", "4", "--results", str(tmp_path / "own")]
    monkeypatch.setattr("sys.argv", command)
    assert commands.main() == 0
    assert given["asked"] == ask.spelt_out(Question("q", LINEAR, questions.ENSEMBLE)) and list(given["seeds"]) == [0, 1, 2, 3]
    assert "reference" not in given
    table, figure = map(Path, capsys.readouterr().out.splitlines()[-2:])
    assert [table.name, figure.name] == ["mine-mine.csv", "mine-mine.svg"], "another list of questions has other files"
    assert list(pd.read_csv(table).claim) == list(answers.claim) and figure.read_text().startswith("<?xml")
    monkeypatch.setattr("sys.argv", [*command, "--no-reference"])
    assert commands.main() == 0 and given["reference"] is None


def test_the_notebooks_cosine_has_one_models_images_and_goes_over_into_its_collapse():
    cells = {cell.id: cell.source for cell in nbformat.read(FOLDER / "05-your-question.ipynb", as_version=4).cells}
    names: dict = {}
    exec(cells["05-01"] + "\n" + cells["05-05"], names)
    mine, main = names["my_cosine"], RECIPES["one_model"].stages[0]
    assert [stage.iterations for stage in mine.stages] == [stage.iterations for stage in RECIPES["one_model"].stages[:2]]
    rates = [learning_rate(mine, step) for step in (main.iterations - 1, main.iterations)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-3)
    middle = main.iterations // 2
    cosine = 1.6 * (1 + math.cos(math.pi * middle / main.horizon)) / 2
    assert learning_rate(mine, middle) == pytest.approx(cosine) != learning_rate(RECIPES["one_model"], middle)
