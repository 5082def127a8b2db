"""Tables of synthetic runs, statistics against hand-made numbers; published files complete with sources."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import repro
from repro import ReproError, recipes, records
from repro.paper import figures, report, tables

from conftest import python

SHRINK = "laptop-few"
IMAGES = 4000  # of the test set
DEFAULTS = {"size": 0, "normalization": "release", "reduction": "exact", "precision": "fp32", "device": "cpu", "threads": 1}
# Correct images at the end of each stage with seed 0, and of each ensemble.
RUNS = {
    "resnet50_448nodes": {"main": 2900, "collapse": 2960},
    "resnet50_448nodes_no_warmup": {"main": 2700, "collapse": 2800},
    "resnet50_448nodes_uncollapsed": {"main": 2930},
    "one_model": {"main": 2850, "collapse": 2920},
    "collapsed_ensemble": dict(init=2700, cyc1=2750, collapse1=2900, cyc2=2800, collapse2=2910, cyc3=2820, collapse3=2930),
}
ENSEMBLES = {("collapse1", "collapse2", "collapse3"): 2980, ("cyc1", "cyc2", "cyc3"): 2830}


def noise(seed, *names) -> int:
    return int(np.random.default_rng([seed, *map(ord, "".join(names))]).integers(20))


def write_run(out, base, seed=0, shrink=SHRINK, model="resnet11", variant="", worse=0, **facts):
    """Writes a run's folder as the trainer leaves it; `worse` images fewer are correct. Returns the folder."""
    recipe = asdict(recipes.shrink(recipes.find(base), shrink)) | {"model": model}
    folder = out / f"{recipe['name']}-digits-seed{seed}-{len(list(out.glob('*'))):08}"
    folder.mkdir(parents=True)
    rows, step = [], 0
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
        rows += [{"step": step - 1} | row, {"step": step} | row | {"images": IMAGES, "top1": top1, "top5": 3900, "loss": 0.8}]
    run = {
        "format": 2,
        "base": base,
        "shrink": shrink,
        "model": model,
        "variant": variant,
        "recipe": recipe,
        "settings": {"seed": seed} | DEFAULTS,
        "data": {"name": "digits"},
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
        "images": IMAGES,
        "top1": top1,
        "top5": 3900,
        "seconds": step / 100,
        "weights_sha256": "5a",
    } | facts
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if base == "collapsed_ensemble":
        for members, correct in ENSEMBLES.items():
            for average in ("softmax", "logit"):
                top1 = correct + noise(seed, *members, average) - worse
                counts = {"images": IMAGES, "top1": top1, "top5": 3900, "loss": 0.8}
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
    assert len(runs) == 20 and runs.folder.is_unique
    row = runs[(runs.recipe == "resnet50_448nodes") & (runs.seed == 3)].iloc[0]
    small = recipes.shrink(recipes.find("resnet50_448nodes"), SHRINK)
    for name in ("workers", "images_per_worker", "global_batch", "iterations", "momentum", "lr_formula", "bn_momentum"):
        assert row[name] == getattr(small, name), name
    assert row.epochs == pytest.approx(small.epochs())
    assert row[list(DEFAULTS)].to_dict() == DEFAULTS
    facts = "shrink", "model", "variant", "data", "ranks", "status", "code", "torch", "weights_sha256", "processor"
    assert tuple(row[list(facts)]) == (SHRINK, "resnet11", "", "digits", 2, "complete", "c0de", "2.9", "5a", "a processor")
    assert row.top1 == pytest.approx(100 * records.read(out / row.folder)["top1"] / IMAGES)
    assert row.top5 == pytest.approx(97.5)
    assert not runs.isna().any(axis=None)


def test_evaluations_have_one_row_per_metric_row_and_are_in_per_cent(out):
    runs, evaluations = repro.runs(out)
    assert len(evaluations) == sum(len(records.metric_rows(out / folder)) for folder in runs.folder)
    one = evaluations[(evaluations.recipe == "one_model") & (evaluations.seed == 0)]
    assert list(one.stage) == ["main", "main", "collapse", "collapse"]
    assert list(one.train_top1) == [75.0] * 4 and list(one.top1.isna()) == [True, False, True, False]
    assert one.top1.iloc[-1] == runs[(runs.recipe == "one_model") & (runs.seed == 0)].top1.iloc[0]
    assert one.top5.iloc[-1] == 97.5 and one.test_loss.iloc[-1] == 0.8 and one.test_images.iloc[-1] == IMAGES


def test_an_incomplete_run_is_there_with_its_status_and_in_no_table_of_the_paper(out):
    before = tables.accuracy(tables.models(out))
    folder = write_run(out, "one_model", seed=9, status="stopped")
    run = json.loads((folder / "run.json").read_text())
    for missing in ("images", "top1", "top5", "seconds", "weights_sha256"):
        del run[missing]
    (folder / "run.json").write_text(json.dumps(run))
    runs, evaluations = repro.runs(out)
    row = runs[runs.folder == folder.name].iloc[0]
    assert row.status == "stopped" and np.isnan(row.top1) and (evaluations.folder == folder.name).sum() == 4
    pd.testing.assert_frame_equal(tables.accuracy(tables.models(out)), before)
    assert 9 not in set(tables.curves(out).seed)


def test_no_runs_at_all_are_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(ReproError, match=f"no runs in {tmp_path}"):
        repro.runs(tmp_path)


def test_importing_repro_loads_no_pandas_and_the_tables_no_torch():
    said = python("-c", "import repro, sys; print('pandas' in sys.modules); import repro.tidy; print('torch' in sys.modules)")
    assert said.stdout.split() == ["False", "False"], said.stderr


# --- Runs of several kinds beside one another -------------------------------------------------------------------------
def kinds_beside(out):
    """Runs of a worse variant, of another model and of another shrink, on the same seeds."""
    for base in RUNS:
        for seed in range(4):
            write_run(out, base, seed, variant="lr_formula=as_designed", worse=120 if "ensemble" in base else 0)
            write_run(out, base, seed, model="resnet18", worse=50 * seed)
            write_run(out, base, seed, shrink="laptop", worse=300)


def default_rows(table):
    kept = table[(table["shrink"] == SHRINK) & (table.model == "resnet11") & (table.variant == "")]
    return kept.reset_index(drop=True)


@pytest.mark.parametrize("table", [tables.accuracy, tables.effects])
def test_the_rows_of_default_runs_are_the_same_whatever_runs_are_beside_them(out, table):
    before = table(tables.models(out))
    assert len(before) == len(default_rows(before)) == (18 if table is tables.accuracy else len(tables.CLAIMS))
    assert set(before.n) == {4}
    kinds_beside(out)
    after = table(tables.models(out))
    pd.testing.assert_frame_equal(default_rows(after), default_rows(before), check_exact=True)
    assert len(after) == 4 * len(before) and set(after.n) == {4}  # each kind has rows of its own


def test_a_variant_is_compared_with_its_own_kind_only(out):
    kinds_beside(out)
    found = tables.effects(tables.models(out))
    found = found[(found.claim == tables.CLAIMS[3].text) & (found["shrink"] == SHRINK) & (found.model == "resnet11")]
    assert list(found.variant) == ["", "lr_formula=as_designed"]
    default, variant = found.difference
    assert variant == pytest.approx(default - 3)  # 120 of 4000 images


def test_half_of_a_comparison_is_no_row(out):
    write_run(out, "collapsed_ensemble", 0, variant="reduction=fast")
    found = tables.effects(tables.models(out))
    assert set(found[found.variant != ""].claim) == {claim.text for claim in tables.CLAIMS[4:]} | {tables.CLAIMS[2].text}


def test_of_two_runs_with_equal_keys_the_newest_counts_once(out):
    before = tables.effects(tables.models(out))
    write_run(out, "one_model", 2, worse=800, code="older", end="2025-12-31T00:00:00+00:00")
    pd.testing.assert_frame_equal(tables.effects(tables.models(out)), before)
    newer = write_run(out, "one_model", 2, worse=800, code="newer", end="2026-02-01T00:00:00+00:00")
    after = tables.effects(tables.models(out))
    assert after.n[3] == before.n[3] == 4
    assert after.difference[3] == pytest.approx(before.difference[3] + 5)  # 800 of 4000 images of one of four seeds
    curves = tables.curves(out)
    assert set(curves[(curves.recipe == "one_model") & (curves.seed == 2)].folder) == {newer.name}


def test_named_folders_count_even_if_newer_runs_with_their_keys_are_there(out):
    mine = write_run(out, "one_model", 7)
    write_run(out, "one_model", 7, end="2027-01-01T00:00:00+00:00")
    assert set(tables.models(out, [mine.name]).folder) == {mine.name}


def test_models_name_the_stages_that_they_are_made_of(out):
    models = tables.models(out)
    one = models[(models.recipe == "collapsed_ensemble") & (models.seed == 1)]
    assert list(one.members)[:8] == [*RUNS["collapsed_ensemble"], tables.ENSEMBLE]
    ensemble, last = (one[one.members == members].iloc[0] for members in (tables.ENSEMBLE, "collapse3"))
    assert ensemble.average == "softmax" and ensemble.epochs == last.epochs
    assert last.top1 == repro.runs(out)[0].set_index("folder").top1[last.folder]


def test_figures_tell_kinds_apart(out):
    kinds_beside(out)
    curves = tables.only(tables.curves(out), shrink=SHRINK)
    legend = {text.get_text() for text in figures.training_curves(curves).axes[0].get_legend().get_texts()}
    assert {"one_model, resnet11", "one_model, resnet18", "one_model, resnet11, lr_formula=as_designed"} <= legend
    legend = figures.training_curves(tables.only(curves, model="resnet11", variant="")).axes[0].get_legend()
    assert {text.get_text() for text in legend.get_texts()} == set(RUNS)
    labels = {
        text.get_text().replace("\n", " ")
        for text in figures.effects(tables.effects(tables.models(out))).axes[0].get_yticklabels()
    }
    assert len(labels) == 4 * len(tables.CLAIMS)
    assert f"Large batch needs warm-up (digits, {SHRINK}, resnet11, lr_formula=as_designed)" in labels


def test_what_is_not_there_is_named(out):
    with pytest.raises(ReproError, match="no complete runs of shrink smoke, variant default"):
        tables.only(tables.models(out), shrink="smoke", variant="")


# --- The paired test --------------------------------------------------------------------------------------------------


def series(*values):
    return pd.Series(values, index=range(len(values)), dtype=float)


def test_paired_difference_and_interval_by_hand():
    better, other = series(93, 94, 95, 93.5), series(92, 93.5, 94, 93)
    row = tables.compare(better, other)
    difference = [1, 0.5, 1, 0.5]
    mean, sd = 0.75, (4 * 0.25**2 / 3) ** 0.5
    half = stats.t.ppf(0.975, 3) * sd / 2
    assert row["n"] == 4 and row["difference"] == pytest.approx(mean) == pytest.approx(sum(difference) / 4)
    assert (row["low"], row["high"]) == pytest.approx((mean - half, mean + half))
    assert row["verdict"] == "supported"


def test_pairing_is_by_seed_not_by_order():
    better, other = series(90, 80, 70), pd.Series({2: 69.0, 1: 79.0, 0: 89.0})
    assert tables.compare(better, other)["difference"] == pytest.approx(1)


def test_a_difference_within_the_noise_is_not_resolved():
    assert tables.compare(series(93, 92, 94), series(92, 93, 93.5))["verdict"] == "not resolved"


def test_a_difference_the_wrong_way_is_contradicted():
    assert tables.compare(series(90, 91, 92), series(92.1, 93, 93.9))["verdict"] == "contradicted"


def test_two_seeds_resolve_nothing():
    assert tables.compare(series(99, 99.1), series(1, 1.1))["verdict"] == "not resolved"


def test_no_seeds_is_not_run():
    assert tables.compare(series(), series())["verdict"] == "not run"


@pytest.mark.parametrize("name", ["claims", "released_runs", "peers", "epochs_by_batch"])
def test_every_published_number_has_its_source(name):
    table = tables.published(name)
    assert len(table) and table.source.notna().all()


def test_rates_show_both_sides_of_each_joint():
    recipe = recipes.find("resnet50_448nodes")
    rates = tables.rates([recipe], points=10)
    assert {445, 446, 7637, 7638, recipe.iterations - 1} <= set(rates.step)


def test_without_runs_the_error_names_the_command(tmp_path):
    with pytest.raises(ReproError, match="make reproduce"):
        tables.runs_or_reference(str(tmp_path))


# --- The report -------------------------------------------------------------------------------------------------------
def test_findings_leave_out_what_there_is_not(tmp_path):
    for seed in range(2):
        for base in ("one_model", "collapsed_ensemble"):
            write_run(tmp_path / "runs", base, seed)
    tables.save(tables.effects(tables.models(tmp_path / "runs")), tmp_path, "effects")
    said = report._findings(report._table(tmp_path, "effects"))
    assert "nan" not in said and "interval" not in said
    assert said.count("<b>not run</b>") == 2 and f"(digits, {SHRINK}, resnet11: " in said and ", n = 2)" in said
