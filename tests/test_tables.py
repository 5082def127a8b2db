"""Tables of synthetic runs, answers from them, figures of them; published files complete with sources."""

import json
import re
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

import repro
from repro import ReproError, recipes
from repro.paper import answering, figures, names, questions, tables
from repro.run import records, state
from repro.run.identity import code_digest

from conftest import ROOT, python

SHRINK = "laptop"
IMAGES = 4000  # of the test set
DEFAULTS = {
    "size": 0,
    "normalization": "release",
    "reduction": "exact",
    "precision": "fp32",
    "split": "test",
    "device": "cpu",
    "threads": 1,
}
# Correct images at the end of each stage with seed 0, and of each ensemble.
RUNS = {
    "resnet50_448nodes": {"main": 2900, "collapse": 2960},
    "resnet50_448nodes_uncollapsed": {"main": 2930},
    "one_model": dict(main=2850, collapse_long=2940, late=2860, collapse=2920, plain=2900),
    "five_members": dict(init=2700)
    | {f"cyc{n}": 2740 + 20 * n for n in range(1, 6)}
    | {f"collapse{n}": 2890 + 10 * n for n in range(1, 6)},
}
MEMBERS, CYCLES = ("collapse1", "collapse2", "collapse3"), ("cyc1", "cyc2", "cyc3")
ENSEMBLES = {MEMBERS: 2980, CYCLES: 2830}
ENSEMBLE = " + ".join(MEMBERS)
ORIGINALS = 100  # of the test images
DATA = {"name": "digits", "originals": ORIGINALS, "train": "7a19", "test": "7e57"}


def noise(seed, *names) -> int:
    return int(np.random.default_rng([seed, *map(ord, "".join(names))]).integers(20))


def write_run(out, base, seed=0, shrink=SHRINK, model="resnet11", variant="", worse=0, **facts):
    """Writes a run's folder as the trainer leaves it; `worse` images fewer are correct. Returns the folder."""
    recipe = asdict(recipes.shrink(recipes.find(base), shrink)) | {"model": model}
    folder = out / f"{recipe['name']}-digits-seed{seed}-{len(list(out.glob('*'))):08}"
    folder.mkdir(parents=True)
    rows, step, generator = [], 0, np.random.default_rng(seed)

    def evaluated(name, top1):
        """An evaluation in all views, which is recorded by image, too: the zoomed view is worse by 500 images in 4000."""
        tests = {"test": (IMAGES, top1), "zoom": (400, top1 // 10 - 50), "scale_aspect": (200, top1 // 20)}
        correct = {view: generator.permutation(np.arange(images) < right) for view, (images, right) in tests.items()}
        records.save_correct(folder, name, correct)
        views = {view: {"images": images, "top1": right} for view, (images, right) in tests.items() if view != "test"}
        return {"images": IMAGES, "top1": top1, "top5": 3900, "loss": 0.8, "views": views}

    for stage in recipe["stages"]:
        step += stage["iterations"]
        row = {
            "epoch": step * recipe["workers"] * recipe["images_per_worker"] / recipe["epoch_images"],
            "stage": stage["name"],
            "rate": 0.1,
            "train_loss": 1.5,
            "train_top1": 0.75,
            "seconds": step / 100,
        }
        top1 = RUNS[base][stage["name"]] + noise(seed, base, stage["name"]) - worse
        rows += [{"step": step - 1} | row, {"step": step} | row | evaluated(stage["name"], top1)]
    run = {
        "format": records.FORMAT,
        "base": base,
        "shrink": shrink,
        "model": model,
        "variant": variant,
        "model_source": "",
        "recipe": recipe,
        "settings": {"seed": seed} | DEFAULTS,
        "data": DATA,
        "code": "c0de",
        "ranks": 2,
        "status": "complete",
        "start": "2026-01-01T00:00:00+00:00",
        "end": "2026-01-01T00:01:00+00:00",
        "host": "node",
        "cores": 2,
        "processor": "a processor",
        "version": "0.1.0",
        "packages": {"python": "3.11", "torch": "2.9"},
        "seconds": step / 100,
        "weights_sha256": "5a",
        "attempts": [],
        "ends": {row["stage"]: row for row in rows if "top1" in row},
    } | facts
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if base == "five_members":
        for members, correct in ENSEMBLES.items():
            for average in ("softmax", "logit"):
                top1 = correct + noise(seed, *members, average) - worse
                counts = evaluated("+".join(members) + f".{average}", top1)
                records.add_ensemble(folder, {"members": list(members), "average": average, **counts})
    return folder


@pytest.fixture
def out(tmp_path):
    """A folder with a run of each recipe on four seeds."""
    for base in RUNS:
        for seed in range(4):
            write_run(tmp_path / "runs", base, seed)
    return tmp_path / "runs"


# --- Two tidy tables of all runs --------------------------------------------------------------------------------------
def test_runs_have_one_row_per_folder_with_keys_settings_numbers_and_facts(out):
    runs, evaluations = repro.runs(out)
    assert len(runs) == 16 and runs.folder.is_unique
    row = runs[(runs.recipe == "resnet50_448nodes") & (runs.seed == 3)].iloc[0]
    small = recipes.shrink(recipes.find("resnet50_448nodes"), SHRINK)
    for name in ("workers", "images_per_worker", "global_batch", "iterations", "momentum", "lr_formula", "bn_momentum"):
        assert row[name] == getattr(small, name), name
    assert row.epochs == pytest.approx(small.epochs())
    assert row[list(DEFAULTS)].to_dict() == DEFAULTS
    facts = "shrink", "model", "variant", "data", "ranks", "status", "code", "torch", "weights_sha256", "processor"
    assert tuple(row[list(facts)]) == (SHRINK, "resnet11", "", "digits", 2, "complete", "c0de", "2.9", "5a", "a processor")
    assert row.top5 == pytest.approx(97.5)
    assert not runs.drop(columns=["top1", "top5", "test_images"]).isna().any(axis=None)


def test_a_runs_accuracy_is_that_of_its_recipes_result_and_not_of_its_last_stage(out):
    runs = repro.runs(out)[0].set_index(["recipe", "seed"])
    for base, result in (
        ("resnet50_448nodes", "collapse"),
        ("resnet50_448nodes_uncollapsed", "main"),
        ("one_model", "collapse_long"),
    ):
        row = runs.loc[base, 3]
        assert row.result == result and row.test_images == IMAGES
        assert row.top1 == 100 * (RUNS[base][result] + noise(3, base, result)) / IMAGES
        assert state.attained(out / row.folder) == f"top-1 {row.top1:.2f}%"
    row, five = runs.loc["five_members", 3], [f"collapse{n}" for n in range(1, 6)]
    assert row.result == " + ".join(five) and np.isnan([row.top1, row.top5, row.test_images]).all(), "only three were averaged"
    assert re.fullmatch(r"top-1 (\d\d\.\d\d, ){4}\d\d\.\d\d% \(members, not yet averaged\)", state.attained(out / row.folder))
    for average, top1 in (("logit", 2000), ("softmax", 3000)):
        entry = {"members": five, "average": average, "images": IMAGES, "top1": top1, "top5": 3900}
        records.add_ensemble(out / row.folder, entry)
    assert repro.runs(out)[0].set_index(["recipe", "seed"]).top1["five_members", 3] == 75
    assert state.attained(out / row.folder) == "top-1 75.00% (ensemble of 5)"


def test_each_recipe_of_ours_has_one_result():
    several = {
        "collapsed_ensemble": 3,
        "five_members": 5,
        "snapshot_ensemble": 3,
        "snapshot_ensemble_crop": 3,
        "three_models": 3,
        "tuned_ensemble": 3,
        "constant_trunk": 10,
        "constant_ensemble": 3,
        "falling_ensemble": 3,
        "triangular_ensemble": 3,
        "snapshot_ensemble_restarts": 3,
    }
    assert {name: len(recipe.result) for name, recipe in recipes.RECIPES.items() if len(recipe.result) > 1} == several
    assert recipes.RECIPES["one_model"].result == [questions.ONE_MODEL.members]


def test_evaluations_have_one_row_per_metric_row_and_are_in_per_cent(out):
    runs, evaluations = repro.runs(out)
    assert len(evaluations) == sum(len(records.metric_rows(out / folder)) for folder in runs.folder)
    one = evaluations[(evaluations.recipe == "one_model") & (evaluations.seed == 0)]
    assert list(one.stage) == [stage for stage in RUNS["one_model"] for _ in range(2)]
    assert list(one.train_top1) == [75.0] * 10 and list(one.top1.isna()) == [True, False] * 5
    zoomed, other = one.top1_zoom, one.top1_scale_aspect  # at the ends of stages only
    assert list(zoomed.isna()) == list(other.isna()) == list(one.top1.isna())
    correct = np.round(one.top1.iloc[1::2] * 40)  # of 4000
    assert list(zoomed.iloc[1::2]) == pytest.approx(list((correct // 10 - 50) / 4))
    assert list(other.iloc[1::2]) == pytest.approx(list((correct // 20) / 2))
    assert one.top1.iloc[3] == runs[(runs.recipe == "one_model") & (runs.seed == 0)].top1.iloc[0], "collapse_long"
    assert one.top5.iloc[-1] == 97.5 and one.test_loss.iloc[-1] == 0.8 and one.test_images.iloc[-1] == IMAGES


def test_a_number_is_rounded_once_wherever_it_is_written():
    """A mean that lies between two hundredths: numpy's round and a format would write it differently."""
    models = pd.DataFrame({"top1": [79.895], "top5": 99.0, "epochs": 11.0, "members": "plain", "average": ""})
    (row,) = tables.accuracy(models.assign(**dict.fromkeys(tables.GROUP, "a"))).to_dict("records")
    assert np.round(row["top1"], 2) == 79.9 and f"{row['top1']:.2f}" == names.written(row["top1"], "top1") == "79.89"
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert path.stem == "04-by-hand" or ".round(" not in path.read_text(), path


def test_an_interval_has_the_digits_of_its_difference():
    interval = pd.DataFrame([{"difference": 1.0, "low": -10.123, "high": 12.1}])
    assert all(f">{text}</td>" in tables.shown(interval).to_html() for text in ("+1.00", "-10.12", "+12.10"))
    assert ">0.01235</td>" in tables.shown(pd.DataFrame([{"seconds": 0.02, "low": 0.012345}])).to_html()


def test_an_incomplete_run_is_there_with_its_status_and_in_no_table_of_the_paper(out):
    before = tables.accuracy(tables.models(out))
    folder = write_run(out, "one_model", seed=9, status="stopped")
    run = json.loads((folder / "run.json").read_text())
    for missing in ("seconds", "weights_sha256"):
        del run[missing]
    (folder / "run.json").write_text(json.dumps(run))
    runs, evaluations = repro.runs(out)
    row = runs[runs.folder == folder.name].iloc[0]
    assert row.status == "stopped" and np.isnan(row.top1) and (evaluations.folder == folder.name).sum() == 10
    pd.testing.assert_frame_equal(tables.accuracy(tables.models(out)), before)
    assert 9 not in set(tables.curves(out).seed)


def test_no_runs_at_all_are_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(ReproError, match=f"no runs in {tmp_path}"):
        repro.runs(tmp_path)


def test_importing_repro_loads_no_pandas_and_the_tables_no_torch():
    code = "import repro, sys; print('pandas' in sys.modules)\nimport repro.run.tidy; print('torch' in sys.modules)"
    said = python("-c", code)
    assert said.stdout.split() == ["False", "False"], said.stderr


# --- Runs of several kinds beside one another -------------------------------------------------------------------------
def kinds_beside(out):
    """Runs of a worse variant, of another model and of another shrink, on the same seeds."""
    for base in RUNS:
        for seed in range(4):
            write_run(out, base, seed, variant="lr_formula=as_designed", worse=120 if "ensemble" in base else 0)
            write_run(out, base, seed, model="resnet18", worse=50 * seed)
            write_run(out, base, seed, shrink="smoke", worse=300)


def default_rows(table):
    kept = table[(table["shrink"] == SHRINK) & (table.model == "resnet11") & (table.variant == "")]
    return kept.reset_index(drop=True)


def test_the_rows_of_default_runs_are_the_same_whatever_runs_are_beside_them(out):
    before = tables.accuracy(tables.models(out))
    assert len(before) == len(default_rows(before)) == 2 + 1 + 5 + 11 + 4 and set(before.n) == {4}
    kinds_beside(out)
    after = tables.accuracy(tables.models(out))
    pd.testing.assert_frame_equal(default_rows(after), default_rows(before), check_exact=True)
    assert len(after) == 4 * len(before) and set(after.n) == {4}  # each kind has rows of its own


def test_of_two_runs_with_equal_keys_the_newest_counts_once(out):
    def mean(end="collapse_long"):
        models = tables.models(out)
        chosen = models[(models.recipe == "one_model") & (models.members == end)]
        assert len(chosen) == 4
        return chosen.top1.mean()

    before = mean()
    write_run(out, "one_model", 2, worse=800, end="2025-12-31T00:00:00+00:00")
    assert mean() == before
    newer = write_run(out, "one_model", 2, worse=800, end="2026-02-01T00:00:00+00:00")
    assert mean() == pytest.approx(before - 5)  # 800 of 4000 images of one of four seeds
    curves = tables.curves(out)
    assert set(curves[(curves.recipe == "one_model") & (curves.seed == 2)].folder) == {newer.name}


OTHER = {  # how later runs may differ from earlier ones
    "code": {"code": "0ther"},
    "training images": {"data": DATA | {"train": "0ther"}},
    "test images": {"data": DATA | {"test": "0ther"}},
}


@pytest.mark.parametrize("facts", OTHER.values(), ids=OTHER)
def test_runs_of_two_codes_or_on_two_sets_of_images_are_in_no_answer_together(out, facts, caplog):
    """An update, after which only some of the seeds were trained again."""
    newer = {
        write_run(out, base, seed, worse=100, end="2026-02-01T00:00:00+00:00", **facts).name
        for base in RUNS
        for seed in (2, 3, 4)
    }
    models, curves = tables.models(out), tables.curves(out)
    assert set(models.folder) == set(curves.folder) == newer
    row = answer(answered(out), questions.ENSEMBLE, questions.ONE_MODEL)
    assert (row.n, row.n_other) == (3, 3)
    assert [message for message in caplog.messages if "16 complete runs are left out" in message] == caplog.messages[:1]


def test_seeds_of_a_recipe_whose_numbers_have_changed_are_not_averaged(out):
    """As one of one's own may, or a control in an update; other recipes are compared with it as before."""
    for seed in (0, 1):
        folder = write_run(out, "one_model", seed, worse=800, end="2026-02-01T00:00:00+00:00")
        run = json.loads((folder / "run.json").read_text())
        run["recipe"]["stages"][0]["base_rate"] *= 2
        (folder / "run.json").write_text(json.dumps(run))
    models = tables.models(out)
    assert models[models.recipe == "one_model"].groupby("members").top1.count().eq(2).all()
    assert models[models.recipe != "one_model"].groupby("recipe").seed.nunique().eq(4).all()


def test_runs_by_the_code_at_hand_count_before_newer_ones(out):
    """Whoever goes back to an earlier version need not train again."""
    mine = {write_run(out, "one_model", seed, code=code_digest(), end="2025-12-31T00:00:00+00:00").name for seed in range(2)}
    assert set(tables.models(out).folder) == mine


def test_runs_of_another_data_set_shrink_or_variant_may_be_by_another_code(out):
    before = tables.models(out)
    for other in ({"data": DATA | {"name": "letters"}}, {"shrink": "smoke"}, {"variant": "lr_formula=as_designed"}):
        write_run(out, "one_model", 0, code="newer", end="2026-02-01T00:00:00+00:00", **other)
    after = tables.models(out)
    pd.testing.assert_frame_equal(after[after.folder.isin(before.folder)].reset_index(drop=True), before)
    assert after.folder.nunique() == before.folder.nunique() + 3


def test_named_folders_count_even_if_newer_runs_with_their_keys_are_there(out):
    mine = write_run(out, "one_model", 7)
    write_run(out, "one_model", 7, end="2027-01-01T00:00:00+00:00")
    assert set(tables.models(out, [mine.name]).folder) == {mine.name}


def test_models_name_the_stages_that_they_are_made_of(out):
    models = tables.models(out)
    one = models[(models.recipe == "five_members") & (models.seed == 1)]
    stages = [stage.name for stage in recipes.find("five_members").stages]
    assert list(one.members) == [*stages, ENSEMBLE, ENSEMBLE, " + ".join(CYCLES), " + ".join(CYCLES)]
    assert list(one.average) == [""] * 11 + ["softmax", "logit"] * 2
    collapse = models[models.recipe == "resnet50_448nodes"].query("members == 'collapse'").set_index("folder").top1
    assert len(collapse) == 4 and collapse.equals(repro.runs(out)[0].set_index("folder").top1[collapse.index])
    pd.testing.assert_frame_equal(repro.models(out), models)
    assert set(models.originals) == {ORIGINALS} and set(models.test_images) == {IMAGES}


def test_models_have_the_epochs_of_all_training_that_led_to_them_and_of_no_other(out):
    led = {
        "five_members": {
            "cyc2": "init cyc1 cyc2",
            "collapse1": "init cyc1 collapse1",
            "collapse3": "init cyc1 cyc2 cyc3 collapse3",
            ENSEMBLE: "init cyc1 collapse1 cyc2 collapse2 cyc3 collapse3",
            " + ".join(CYCLES): "init cyc1 cyc2 cyc3",
            "collapse5": "init cyc1 cyc2 cyc3 cyc4 cyc5 collapse5",
        },
        "one_model": {"collapse_long": "main collapse_long", "plain": "main late plain", "collapse": "main late collapse"},
        "resnet50_448nodes": {"main": "main", "collapse": "main collapse"},
    }
    models = tables.models(out)
    for recipe, ends in led.items():
        small = recipes.shrink(recipes.find(recipe), SHRINK)
        steps = {stage.name: stage.iterations for stage in small.stages}
        for members, stages in ends.items():
            found = models[(models.recipe == recipe) & (models.members == members)].epochs
            expected = sum(steps[name] for name in stages.split()) * small.global_batch / 20_000
            assert len(found) and list(found) == pytest.approx([expected] * len(found)), (recipe, members)


def test_epochs_are_of_each_stages_own_batch(tmp_path):
    folder = write_run(tmp_path, "one_model")
    run = json.loads((folder / "run.json").read_text())
    stages = {stage["name"]: stage for stage in run["recipe"]["stages"]}
    stages["collapse_long"]["workers"] = 2 * run["recipe"]["workers"]  # a branch: "late" goes on from "main"
    (folder / "run.json").write_text(json.dumps(run))
    epochs = {
        name: stage["iterations"] * (stage["workers"] or run["recipe"]["workers"]) * run["recipe"]["images_per_worker"] / 20_000
        for name, stage in stages.items()
    }
    found = tables.models(tmp_path).set_index("members").epochs
    assert found["collapse_long"] == pytest.approx(epochs["main"] + epochs["collapse_long"])
    assert found["late"] == pytest.approx(epochs["main"] + epochs["late"])
    assert repro.runs(tmp_path)[0].epochs[0] == pytest.approx(sum(epochs.values()))


def test_models_are_in_other_views_too(out):
    models = tables.models(out)
    correct = np.round(models.top1 * 40)
    assert list(models.top1_zoom) == pytest.approx(list((correct // 10 - 50) / 4))
    assert list(models.top1_scale_aspect) == pytest.approx(list((correct // 20) / 2))


def test_models_say_whether_the_model_is_the_recipes_own(out):
    write_run(out, "one_model", 0, model="resnet38")
    mine = write_run(out, "one_model", 0, model="resnet18")  # of a recipe that is not ours, so any model is its own
    (mine / "run.json").write_text(json.dumps(records.read(mine) | {"base": "my_recipe"}))
    models = tables.models(out)
    own = models.drop_duplicates("folder").set_index(["recipe", "model"]).default_model
    assert set(own.index) == {*((base, "resnet11") for base in RUNS), ("one_model", "resnet38"), ("my_recipe", "resnet18")}
    assert not own["one_model", "resnet38"].any() and own.drop(("one_model", "resnet38")).all()


# --- The answers to the questions -------------------------------------------------------------------------------------


def answered(out):
    return answering.answers(questions.QUESTIONS, tables.models(out), out)


def answer(table, better, other, **keys):
    """The row of the question with these sides, from a table of one data set and shrink or with `keys` for it."""
    places = [place for place, each in enumerate(questions.QUESTIONS) if (each.better, each.other) == (better, other)]
    table = tables.only(table, **keys).reset_index(drop=True)
    return table.iloc[places[0]]


def top1(out, side, **keys):
    models = tables.only(tables.models(out), recipe=side.recipe, members=side.members, average=side.average, variant="", **keys)
    return models.set_index("seed").top1


def test_answers_are_differences_of_the_runs_at_hand(out):
    table = answered(out)
    assert list(table.claim) == [question.claim for question in questions.QUESTIONS]
    sides = questions.ENSEMBLE, questions.ONE_MODEL
    row = answer(table, *sides)
    better, other = (top1(out, side) for side in sides)
    assert (row.n, row.n_other, row.compared) == (4, 4, "Welch's t")
    assert row.difference == pytest.approx(better.mean() - other.mean())
    assert row.views == "same sign in all views" and row.low < row.difference < row.high
    assert row.low_originals < row.low and row.high < row.high_originals, "new originals differ, too"
    last = answer(table, questions.ENSEMBLE, answering.Side("five_members", "collapse3"))
    assert last.compared == "paired t" and last.difference == pytest.approx(
        (better - top1(out, answering.Side("five_members", "collapse3"))).mean()
    )
    at_hand = {*RUNS}
    for question, found in zip(questions.QUESTIONS, table.itertuples()):
        runs = (side.recipe in at_hand and side.precision == "auto" for side in question.sides)
        assert (found.verdict == "not run") == (not all(runs)), question.claim


def test_answers_are_of_default_runs_whatever_runs_are_beside_them(out):
    before = answered(out)
    kinds_beside(out)
    after = answered(out)
    assert set(after["shrink"]) == {SHRINK, "smoke"} and len(after) == 2 * len(before)
    kept = after[after["shrink"] == SHRINK].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before.reset_index(drop=True), check_exact=True)
    sides = questions.ENSEMBLE, questions.ONE_MODEL
    assert answer(after, *sides, shrink="smoke").difference == pytest.approx(answer(before, *sides).difference)


def test_half_of_a_comparison_is_not_run(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "five_members", seed)
    table = answered(tmp_path)
    row = answer(table, questions.ENSEMBLE, questions.ONE_MODEL)
    assert (row.n, row.n_other, row.verdict, row.views) == (3, 0, "not run", "")
    last = answer(table, questions.ENSEMBLE, answering.Side("five_members", "collapse3"))
    assert (last.n, last.n_other) == (3, 3) and last.verdict != "not run"


def titles(figure):
    return {axis.get_title(loc="left").replace("\n", " ").replace("\u00a0", " ") for axis in figure.axes}


def test_figures_tell_kinds_apart(out):
    kinds_beside(out)
    curves = tables.only(tables.curves(out), shrink=SHRINK)
    one = names.recipe("one_model")
    wanted = {f"{one} (n = 4)", f"{one}, resnet18 (n = 4)", f"{one}, lr_formula=as_designed (n = 4)"}
    assert wanted <= titles(figures.training_curves(curves))
    plain = tables.only(curves, model="resnet11", variant="")
    assert titles(figures.training_curves(plain)) == {f"{names.recipe(base)} (n = 4)" for base in RUNS}
    table = tables.only(answered(out), shrink=SHRINK)
    drawn = [text.get_text().replace("\n", " ") for axis in figures.answers(table).axes for text in axis.texts]
    run = table[(table.n > 0) & (table.n_other > 0)]
    claims = run.claim + np.where(run.control, " (control)", "")
    assert set(claims) <= set(drawn) and len(claims) == 4


def test_what_is_not_there_is_named(out):
    with pytest.raises(ReproError, match="no complete runs of shrink smoke, variant default"):
        tables.only(tables.models(out), shrink="smoke", variant="")


@pytest.mark.parametrize("name", ["claims", "released_runs", "peers", "baselines", "epochs_by_batch"])
def test_every_published_number_has_its_source(name):
    table = tables.published(name)
    assert len(table) and table.source.notna().all()


def test_published_numbers_of_the_references_are_numbers_and_say_who_read_them():
    table = tables.published("baselines")
    numbers = table[["batch", "epochs", "value", "sd", "n"]]
    assert (
        all(map(pd.api.types.is_numeric_dtype, numbers.dtypes))
        and (numbers.fillna(1) > 0).all(axis=None)
        and table.value.notna().all()
    )
    assert set(table.primary) == {"yes", "second hand"} and set(table.unit) == {"%", "minutes", "images"}
    assert (table.value[table.unit == "%"] < 100).all() and not table.duplicated().any()
    peers = tables.published("peers").set_index("work")
    for work in ("Cho et al. (PowerAI DDL)", "Akiba et al."):  # which both tables have
        (row,) = table[(table.work == work) & (table.net == "ResNet-50")].itertuples()
        assert row.value == peers.minutes[work] and peers.source[work].startswith(row.source)


def test_the_epochs_to_the_smallest_batchs_accuracy_less_half_a_point():
    rows = [("batch_2048", 12, (80.0, 80.4)), ("batch_4096", 12, (79.8, 79.7)), ("batch_8192", 12, (79.6, 79.7))]
    rows += [("sgd_8192", 12, (81.0, 81.0)), ("epochs_30_batch_14336", 4, (69.7, 69.7))]
    rows += [("epochs_60_batch_14336", 8, (89.7, 89.7))]
    models = pd.DataFrame(
        [
            dict(recipe=recipe, epochs=epochs, top1=top1, seed=seed, members="collapse" if recipe[0] == "e" else "main")
            for recipe, epochs, both in rows
            for seed, top1 in enumerate(both)
        ]
    ).assign(average="", variant="", default_model=True)
    found = tables.reached(models).set_index(["method", "batch"])
    assert found.target.unique() == pytest.approx([79.7])  # 80.2 less half a point
    assert found.epochs[names.LINEAR, 2048] == found.epochs[names.LINEAR, 4096] == found.epochs[names.OWN_RATE, 8192] == 12
    assert found.state[names.LINEAR, 8192] == "not reached" and np.isnan(found.epochs[names.LINEAR, 8192])
    assert found.epochs[names.COLLAPSED, 14336] == pytest.approx(32**0.5) and found.lengths[names.COLLAPSED, 14336] == 2
    joined = tables.time_to_accuracy(found.reset_index(), draws=5)
    one = joined[(joined.method == names.LINEAR) & (joined.batch == 2048) & (joined.nodes == 1)]
    assert one.speedup.item() == 1 and set(joined.label) == {"MODEL"} and "minutes" not in joined
    none = tables.time_to_accuracy(tables.reached(models[models.recipe == "sgd_8192"]))
    assert none.empty and tables.published_time_to_accuracy(draws=5).label.unique() == ["MODEL"]


def test_a_table_in_a_notebook_has_headings_with_units_and_nothing_for_what_is_missing():
    table = pd.DataFrame(
        {"recipe": ["mine"], "top1": [85.47], "sd": [float("nan")], "base_rate": [0.00005], "images_per_s": [1234.5]}
    )
    page = tables.shown(table, ["recipe", "top1", "sd", "base_rate"]).to_html()
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page)
    assert cells == ["recipe", "top\u20111, %", "standard deviation", "base rate", "mine", "85.47", "", "5e-05"]


def test_rates_show_both_sides_of_each_joint():
    recipe = recipes.find("resnet50_448nodes")
    rates = tables.rates([recipe], points=10)
    assert {445, 446, 7637, 7638, recipe.iterations - 1} <= set(rates.step)


def test_without_runs_the_error_names_the_command(tmp_path):
    with pytest.raises(ReproError, match="make reproduce"):
        tables.runs_or_reference(str(tmp_path))


def test_the_parts_of_a_step_are_drawn_as_long_as_they_take():
    table = tables.on_the_papers_nodes(draws=20)
    assert sorted(set(table.nodes)) == [64, 448, 1536]
    figure = figures.step_parts(table)
    for axes, (_, rows) in zip(figure.axes, table.groupby("images")):
        ends = [max(bar.get_x() + bar.get_width() for bar in axes.patches if round(bar.get_y() + 0.35) == n) for n in range(6)]
        assert ends == pytest.approx(list(1000 * (rows.compute + rows.waiting + rows.allreduce)))
        assert [text.get_text() for text in axes.texts if text.get_text().endswith("%")] == [
            f" {value:.0f}%" for value in rows.efficiency
        ]
