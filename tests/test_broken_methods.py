"""A method that is broken on purpose is trained and judged as any other: it must not look like one that works.

Each broken stage is the same as the one that it is compared with, so both ends must have the same accuracy to the last image;
any difference would be made by the test bed.
"""

from dataclasses import replace

import pytest

from repro.paper import answering, ask, questions, tables
from repro.recipes import RECIPES
from repro.train import train_all

pytestmark = pytest.mark.slow
SEEDS = 0, 1, 2


@pytest.fixture
def answers(monkeypatch, tmp_path, digits):
    """answers(recipes): the answers of runs in which these recipes stand for the ones of their names, by claim."""

    def answer(*recipes):
        for recipe in recipes:
            monkeypatch.setitem(RECIPES, recipe.name, recipe)
        runs = dict(data=digits, shrink="smoke", out=str(tmp_path / "runs"))
        sides = [side for question in questions.QUESTIONS for side in question.sides]
        train_all([dict(recipe=recipe.name, seed=seed, **runs) for seed in SEEDS for recipe in recipes], ask.ensembles(sides))
        return answering.answers(questions.QUESTIONS, tables.models(tmp_path / "runs"), tmp_path / "runs").set_index("claim")

    return answer


def with_stages(name, changed):
    """The recipe with other stages: `changed(stage, {name: stage})`."""
    recipe = RECIPES[name]
    known = {stage.name: stage for stage in recipe.stages}
    return replace(recipe, stages=tuple(changed(stage, known) for stage in recipe.stages))


def claim(better, other):
    (found,) = [q.claim for q in questions.QUESTIONS if (q.better.members, q.other.members) == (better, other)]
    return found


def test_a_collapse_that_is_none_differs_nowhere_from_the_plain_end(answers):
    kept = {"zero-crop-x2": "plain", "zero-main-x1": "keep-main-x1"}
    broken = with_stages("collapse_parts", lambda stage, all: replace(all[kept.get(stage.name, stage.name)], name=stage.name))
    found = answers(broken)
    for better, other in kept.items():
        row = found.loc[claim(better, other)]
        assert (row.n, row.difference, row.verdict) == (len(SEEDS), 0, "not resolved")


def test_one_model_three_times_differs_nowhere_from_its_last_member(answers):
    def same(stage, all):
        if stage.name in ("cyc2", "cyc3"):
            return replace(all["cyc1"], name=stage.name, starts_from="init")
        return replace(all["collapse1"], name=stage.name) if stage.name in ("collapse2", "collapse3") else stage

    row = answers(with_stages("five_members", same)).loc["The Collapsed Ensemble beats its last member"]
    assert (row.n, row.difference, row.verdict) == (len(SEEDS), 0, "not resolved")


def test_a_warm_up_of_no_length_makes_no_difference(answers):
    broken = with_stages("batch_4096", lambda stage, all: replace(stage, warmup_iterations=0))
    row = answers(broken, RECIPES["batch_4096_no_warmup"]).loc["Batch 4096 needs warm-up"]
    assert (row.n, row.top1 - row.against, row.verdict) == (len(SEEDS), 0, "not resolved")
