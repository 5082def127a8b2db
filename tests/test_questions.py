"""The declared questions and their answers, on made-up accuracies whose differences are known."""

import digits
import fashion_mnist
import numpy as np
import pandas as pd
import pytest

from repro import ReproError
from repro.paper import answering, ask, questions, ratios, tables
from repro.paper.answering import Question, Side
from repro.paper.questions import QUESTIONS
from repro.paths import REFERENCE
from repro.recipes import RECIPES, shrink
from repro.run import records

SEEDS, ORIGINALS, IMAGES = range(6), 40, 400
PLAIN, COLLAPSED = Side("collapse_parts", "plain"), Side("collapse_parts", "zero-crop-x2")


def runs(out, top1, variant="", default_model=True, seeds=SEEDS):
    """`tables.models` of runs in which the side `which` recognises a share of `top1[which]` of the images, +-0.2 points."""
    rows, random = [], np.random.default_rng(len(variant))
    for side, share in top1.items():
        for seed in seeds:
            folder = f"{side.recipe}-{seed}{variant}"
            percent = share + random.normal(0, 0.2)
            correct = random.random(IMAGES) < percent / 100
            model = side.members.replace(" ", "") + (f".{side.average}" if side.average else "")
            (out / folder).mkdir(exist_ok=True)
            records.save_correct(out / folder, model, {"test": correct})
            rows.append(
                dict(
                    folder=folder,
                    recipe=side.recipe,
                    shrink="laptop",
                    model="resnet11",
                    variant=variant,
                    data="digits",
                    seed=seed,
                )
                | dict(members=side.members, average=side.average, epochs=1.0, top1=percent, top5=99.0, test_images=IMAGES)
                | dict(top1_zoom=percent - 1, top1_scale_aspect=percent - 20, originals=ORIGINALS, default_model=default_model)
            )
    return pd.DataFrame(rows)


def answer(table, out, claim):
    found = answering.answers(QUESTIONS, table, out).set_index("claim")
    return found.loc[claim]


RELEASED = next(question.claim for question in QUESTIONS if question.better == COLLAPSED and question.other == PLAIN)


@pytest.mark.parametrize(
    "shift, verdict", [(2.0, "supported"), (-2.0, "contradicted"), (0.0, "equivalent")], ids=["better", "worse", "equal"]
)
def test_a_known_difference_has_its_verdict(tmp_path, shift, verdict):
    table = runs(tmp_path, {PLAIN: 75.0, COLLAPSED: 75.0 + shift})
    if shift == 0:  # almost the same models on both sides
        other = table[table.members == PLAIN.members].top1.to_numpy()
        table.loc[table.members == COLLAPSED.members, "top1"] = other + 0.01 * np.arange(len(SEEDS))
    row = answer(table, tmp_path, RELEASED)
    assert row.verdict == verdict and row.n == len(SEEDS)
    assert row.difference == pytest.approx(shift, abs=0.4)
    assert row.low <= row.difference <= row.high
    assert row.views == ("same sign in all views" if shift else row.views)


def test_questions_without_runs_are_not_run_and_count_in_the_correction(tmp_path):
    found = answering.answers(QUESTIONS, runs(tmp_path, {PLAIN: 75.0, COLLAPSED: 77.0}), tmp_path)
    assert len(found) == len(QUESTIONS)
    (asked,) = found[found.verdict != "not run"].to_dict("records")
    declared = sum(question.topic == "collapse" and not question.control for question in QUESTIONS)
    assert asked["claim"] == RELEASED and asked["p_holm"] == pytest.approx(declared * asked["p"])


def test_a_question_of_another_topic_changes_no_answer(tmp_path):
    table = runs(tmp_path, {PLAIN: 75.0, COLLAPSED: 77.0})
    more = [Question(f"number {number}", PLAIN, COLLAPSED) for number in range(50)]
    before, after = (answering.answers(asked, table, tmp_path) for asked in (QUESTIONS, [*QUESTIONS, *more]))
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert set(after.verdict[len(before) :]) == {"contradicted"}


def test_a_claim_of_not_being_worse_allows_its_margin(tmp_path):
    table = runs(tmp_path, {PLAIN: 75.0, COLLAPSED: 74.0})
    asked = [Question(f"{m}", COLLAPSED, PLAIN, not_worse_by=m) for m in (0, 0.1, 3)]
    found = answering.answers(asked, table, tmp_path)
    assert list(found.verdict) == ["contradicted", "contradicted", "supported"]
    assert found.difference.nunique() == found.low.nunique() == 1


@pytest.mark.parametrize("shrink, resolved", [("laptop", True), ("smoke", False)])
def test_tiny_runs_resolve_nothing(tmp_path, shrink, resolved):
    row = answer(runs(tmp_path, {PLAIN: 75.0, COLLAPSED: 77.0}).assign(shrink=shrink), tmp_path, RELEASED)
    assert row.p_holm < 0.05 and row.verdict == ("supported" if resolved else "not resolved")


def test_only_a_data_set_with_a_run_of_a_recipe_asked_about_has_answers(tmp_path):
    table = runs(tmp_path, {PLAIN: 75.0, COLLAPSED: 77.0})
    others = table.assign(data="shapes", recipe="short_decay")
    found = answering.answers(QUESTIONS, pd.concat([table, others]), tmp_path)
    assert set(found.data) == {"digits"} and len(found) == len(QUESTIONS)
    none = answering.answers(QUESTIONS, others, tmp_path)
    assert none.empty and list(none.columns) == list(found.columns)


def test_a_verdict_hangs_on_the_seeds_without_any_one_of_which_it_is_another(tmp_path):
    table = runs(tmp_path, {PLAIN: 75.0, COLLAPSED: 75.0})
    plain = table[table.members == PLAIN.members].top1.to_numpy()
    table.loc[table.members == COLLAPSED.members, "top1"] = plain + [0.2, 0.9, 1.2, 1.4, 0.6, 1.0]
    found = answering.answers(QUESTIONS, table, tmp_path)
    without = [answering.answers(QUESTIONS, table[table.seed != seed], tmp_path).verdict for seed in SEEDS]
    pd.testing.assert_series_equal(
        found.hangs_on, sum(verdicts != found.verdict for verdicts in without).where(found.n > 0), check_names=False
    )
    row = found.set_index("claim").loc[RELEASED]
    assert row.verdict == "supported" and 0 < row.hangs_on < len(SEEDS)
    few = answering.answers(QUESTIONS, table[table.seed < 3], tmp_path)
    tiny = answering.answers(QUESTIONS, table.assign(shrink="smoke"), tmp_path)
    assert few.hangs_on.isna().all() and tiny.hangs_on.isna().all()


def test_runs_that_fail_are_counted_and_compared_by_ranks(tmp_path):
    question = next(q for q in questions.WARMUP if not q.control)
    warm, cold = runs(tmp_path, {question.better: 80.0}), runs(tmp_path, {question.other: 70.0})
    cold.loc[cold.index[:2], "top1"] = 10.0, 11.0
    (row,) = answering.answers([question], pd.concat([warm, cold]), tmp_path).itertuples()
    assert (row.compared, row.failed, row.failed_other, row.verdict) == ("exact ranks", 0, 2, "supported")
    assert np.isnan(row.low_originals) and row.low < row.difference < row.high
    by_welch = Question(question.claim, question.better, question.other)
    assert answering.answers([by_welch], pd.concat([warm, cold]), tmp_path).verdict[0] == "not resolved"


def test_a_sign_that_depends_on_the_view_is_said(tmp_path):
    table = runs(tmp_path, {PLAIN: 75.0, COLLAPSED: 77.0})
    table.loc[table.members == COLLAPSED.members, "top1_scale_aspect"] -= 5
    assert answer(table, tmp_path, RELEASED).views == "the sign depends on the view"


def test_runs_of_a_variant_or_of_another_model_move_no_row(tmp_path):
    default = runs(tmp_path, {PLAIN: 75.0, COLLAPSED: 77.0})
    others = [
        runs(tmp_path, {COLLAPSED: 60.0}, variant="lr_formula=as_designed"),
        runs(tmp_path, {COLLAPSED: 60.0}, default_model=False).assign(model="resnet38"),
    ]
    pd.testing.assert_frame_equal(
        answering.answers(QUESTIONS, pd.concat([default, *others]), tmp_path), answering.answers(QUESTIONS, default, tmp_path)
    )


def test_a_side_of_another_precision_is_answered_by_its_own_runs(tmp_path):
    plain = Side("batch_2048", "main")
    half = plain._replace(precision="bf16")
    tables = [runs(tmp_path, {plain: 80.0}), runs(tmp_path, {half: 77.0}, variant="precision=bf16")]
    (row,) = answering.answers([Question("bf16", half, plain)], pd.concat(tables), tmp_path).itertuples()
    assert (row.n, row.n_other, row.compared, row.verdict) == (6, 6, "Welch's t", "contradicted")
    assert row.difference == pytest.approx(-3, abs=0.4)
    found = ask.tasks([Question("bf16", half, plain)], [0], data="digits")
    assert [task["precision"] for task in found] == ["bf16", "auto"]
    with pytest.raises(ReproError, match="precision"):
        ask.spelt_out_sides([plain._replace(precision="bf61")])


def test_paired_sides_share_their_seeds_and_others_need_not(tmp_path):
    fewer = pd.concat([runs(tmp_path, {PLAIN: 75.0}), runs(tmp_path, {COLLAPSED: 77.0}, seeds=range(2, 9))])
    assert answer(fewer, tmp_path, RELEASED).n == 4


@pytest.mark.parametrize("side", sorted({side for q in QUESTIONS for side in (q.better, q.other)}), ids=str)
def test_each_side_is_a_model_that_a_recipe_makes(side):
    stages = [stage.name for stage in RECIPES[side.recipe].stages]
    members = side.members.split(" + ")
    assert set(members) <= set(stages)
    assert (len(members) > 1) == bool(side.average)
    assert ask.spelt_out_sides([side]) == [side._replace(recipe=RECIPES[side.recipe])], "nothing is left out"


def test_no_question_is_asked_twice():
    for question in QUESTIONS:
        assert question.better != question.other
    assert len({question.claim for question in QUESTIONS}) == len({(q.better, q.other) for q in QUESTIONS}) == len(QUESTIONS)


def test_the_ensemble_and_one_model_have_equal_images_and_equal_exposure():
    def images(side, view=None):
        recipe = RECIPES[side.recipe]
        path = recipe.lineage(side.members.split(" + "))
        return sum(stage.iterations for stage in path if view in (None, stage.augmentation)) * recipe.global_batch

    for other in (questions.ONE_MODEL, *(q.other for q in QUESTIONS if q.other.recipe == "snapshot_ensemble_crop")):
        assert images(other) == images(questions.ENSEMBLE)
        assert images(other, "none") == images(questions.ENSEMBLE, "none")
    for question in questions.ENSEMBLES:
        if question.other.recipe in ("snapshot_ensemble", "three_models"):
            assert images(question.other) == pytest.approx(images(questions.ENSEMBLE), rel=1e-3)


@pytest.mark.slow  # all answers of the reference, twice
def test_a_collapse_that_keeps_its_rate_is_contradicted():
    """The reference's own branches at a kept rate, in the main view, stand for the released collapse."""
    models = tables.models(REFERENCE / "runs")
    assert answer(models, REFERENCE / "runs", RELEASED).verdict == "supported"
    kept = models[models.members == "keep-main-x2"].set_index("seed").top1
    collapsed = models.members == COLLAPSED.members
    models.loc[collapsed, "top1"] = models[collapsed].seed.map(kept)
    assert answer(models, REFERENCE / "runs", RELEASED).verdict == "contradicted"


@pytest.mark.parametrize(
    "profile, seen",
    [("laptop", digits.PREPROCESSING), ("photographs", fashion_mnist.PREPROCESSING)],
    ids=["digits", "photographs"],
)
def test_each_ratio_is_kept_or_explained(profile, seen):
    table = ratios.table(seen, profile)
    assert "not explained" not in set(table.reason)
    kept = table.set_index(["recipe", "ratio"]).kept
    for recipe in ratios.COMPARED:
        for ratio in ("batch, share of the training images", "weight decay, sum over the run", "warm-up, share of the run"):
            assert kept[recipe, ratio]


def test_a_shrink_keeps_the_summed_weight_decay():
    for name in ("resnet50_448nodes", "collapsed_ensemble", "batch_2048", "epochs_30_batch_14336"):
        large, small = (ratios.of(recipe) for recipe in (RECIPES[name], shrink(RECIPES[name], "laptop")))
        assert small["weight decay, sum over the run"] == pytest.approx(large["weight decay, sum over the run"], rel=0.02)
