"""The benchmark compares like with like, counts operations right, and judges by the goal; speed itself is never asserted."""

import json
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from bench import apparent_size, figures, pilot, precise_statistics, regime, report, scale, step, yardsticks
from bench.report import Goal
from repro import ReproError
from repro.images.data import Images
from repro.images.packed import Packed
from repro.paper import questions, tables
from repro.paper.profiles import PROFILES, Profile
from repro.paths import REFERENCE
from repro.ranks.comm import World
from repro.recipes import RECIPES, SHRINKS, shrink
from repro.run import records
from repro.schedule import due
from repro.train import train


def test_a_small_peer_computes_the_same_loss():
    variant = replace(step.FOR_DIGITS, ranks=1)
    losses = []
    for kind, setup in (("ours", step._ours), ("ddp", step._ddp)):
        torch.manual_seed(0)
        losses.append(setup(replace(variant, kind=kind), World())())
    torch.distributed.destroy_process_group()
    assert losses[0][0] == pytest.approx(losses[1], rel=1e-5)


def test_a_profile_says_what_of_a_step_is_convolutions_and_what_is_batch_norm():
    size, model = 32, torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.BatchNorm2d(64))
    images = torch.randn(32, 64, size, size)
    convolution, norm = (step.shares(step.profiled(lambda part=part: part(images).sum().backward(), 2)) for part in model)
    assert convolution["convolutions and products"] > 0.5 and convolution["batch norm"] == 0
    assert norm["batch norm"] > 0.5 and norm["convolutions and products"] == 0
    assert sum(convolution.values()) == pytest.approx(1) and sum(norm.values()) == pytest.approx(1)


def test_operations_are_those_of_every_convolution_forward_and_twice_backward():
    """By hand for ResNet-50: 2 operations a multiply-add; the stem needs no gradient of the images."""
    model, counted = step.build("resnet50", 1000), []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda layer, _, out: counted.append(layer.weight[0].numel() * out[0].numel()))
    model(torch.zeros(2, 3, 64, 64))
    forward = 2 * (sum(counted) + 2048 * 1000)
    assert step.operations(64) == 3 * forward - 2 * counted[0]


@pytest.mark.parametrize(
    "ours, goal, met",
    [
        (2.0, Goal(">=", 1.9), True),
        (2.0, Goal(">=", 2.1), False),
        (2.0, Goal("<=", 2.1), True),
        (2.0, Goal("<=", 1.9), False),
        (2.0, None, None),
    ],
)
def test_a_goal_is_met_by_the_medians_alone(ours, goal, met):
    assert report.row("", [ours, 0.0, 9.0], [1.0, 1.0, 1.0], "", "", goal)["met"] is met


def test_every_row_is_made_of_variants_that_are_measured_and_is_published(tmp_path, capsys):
    found = {
        name: [{"seconds": 1.0 + number, "peak": 1000.0, "product": 1e12} for number in range(3)] for name in step.VARIANTS
    }
    rows = step.rows_of(found)
    report.publish("bench", rows, {"command": "make bench"}, tmp_path)
    training = rows[0]
    assert (training["ours"], training["ratio"], training["met"]) == (32.0, 1.0, False)
    saved = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert saved["command"] == "make bench" and saved["rows"] == rows and rows[0]["goal"] == {"sign": ">=", "bound": 4.0}
    assert (tmp_path / "figures" / "bench-bench.svg").exists()
    drawn = pd.read_csv(tmp_path / "figures" / "bench-bench.csv")
    assert len(drawn) == 3 * sum(row["goal"] is not None for row in rows)
    assert re.search(r"^training  .* >= 4 +missed", capsys.readouterr().out, flags=re.M)


def test_a_goal_in_seconds_has_no_peer_to_draw():
    rows = [report.row("import", [0.1], [1.0], report.SECOND, "s", Goal("<=", 0.15)), report.row("a", [1.0], [1.0], "b", "s")]
    assert report.ratios(rows).empty


def test_the_figure_of_sizes_draws_the_means_over_seeds():
    table = pd.read_csv(REFERENCE / "bench" / "apparent_size.csv")
    figure = figures.apparent_size(table, {"digits": 1.2, "fashion_mnist": 1.3})
    panels = ("digits", "drawn"), ("digits", "scaled"), ("fashion_mnist", "scaled")
    for axes, (data, how) in zip(figure.axes, panels, strict=True):
        for bars, stage in zip(axes.containers, ("zero-main-x1", "zero-crop-x1")):
            rows = table[(table.data == data) & (table.how == how) & (table.stage == stage)]
            means = [rows[rows["size"] == size].top1.mean() for size in sorted(set(rows["size"]))]
            assert bars[0].get_ydata() == pytest.approx(means)
    plt.close(figure)


def test_digits_of_size_one_are_the_test_set_and_others_differ_in_size_alone(digits, monkeypatch):
    monkeypatch.setattr(apparent_size, "NUMBER", 1000)
    images = Images(digits, "test")
    expected, labels = images.test_batch(0, 1000)
    for make in (apparent_size.drawn, apparent_size.scaled):
        found, same = make(images, 1.0)
        assert torch.equal(found, expected) and torch.equal(same, labels)
    small, large = (apparent_size.drawn(images, size)[0] for size in (0.9, 1.2))
    scaled, _ = apparent_size.scaled(images, 1.2)
    corner = [float(each[:, 0, :2, :2].std()) for each in (expected, small, scaled)]  # mostly background
    assert corner[1] == pytest.approx(corner[0], rel=0.03) and corner[2] < 0.95 * corner[0], "scaling smooths the noise"
    ink = [float((each.mean((0, 1)) - each[:, 0, :2, :2].mean()).sum()) for each in (small, expected, large)]
    assert ink[0] < 0.95 * ink[1] and ink[2] > 1.02 * ink[1]


def test_trials_train_small_recipes_and_leave_the_shrinks_as_they_are(digits, tmp_path, monkeypatch):
    known, asked = dict(SHRINKS), []

    def train(recipe, **given):
        asked.append((recipe, given))
        return str(tmp_path)

    monkeypatch.setattr(regime, "train", train)
    run = {"ends": {"main": {"top1": 3, "images": 4, "train_top1": 0.5}}, "seconds": 5.0, "evaluating": 1.0, "ranks": 2}
    monkeypatch.setattr(regime.records, "read", lambda _: run)
    rows = regime.trials("rate", "batch_2048", (3.0, 48.0), digits, tmp_path, epochs=1 / 30)
    assert known == SHRINKS and list(rows.validation_top1) == [75.0] * 4 and list(rows.seed) == [*regime.SEEDS] * 2
    assert list(rows.seconds) == [10.0] * 4
    for (recipe, given), value in zip(asked, (3.0, 3.0, 48.0, 48.0)):
        assert recipe.name == f"batch_2048-rate-{value:g}" and given["split"] == "val"
        expected = value / 128 * RECIPES["batch_2048"].stages[0].base_rate * 128 / 64  # a 64th of the batch
        assert recipe.stages[0].base_rate == pytest.approx(expected)


def test_a_trial_that_diverges_has_no_image_right(digits, tmp_path, monkeypatch):
    reason = "a gradient or batch statistic is 1e+12: the run has diverged"

    def train(*_, **given):
        raise ReproError(reason)

    monkeypatch.setattr(regime, "train", train)
    rows = regime.trials("rate", "batch_2048", (96.0,), digits, tmp_path)
    assert list(rows.validation_top1) == [0.0, 0.0] and list(rows.seed) == [*regime.SEEDS]
    reason = "the disk is full"
    with pytest.raises(ReproError, match="disk is full"):
        regime.trials("rate", "batch_2048", (96.0,), digits, tmp_path)


def test_the_largest_rate_is_chosen_only_if_its_double_was_tried(tmp_path, monkeypatch):
    accuracy = {rate: rate for rate in (*regime.RATES, 96.0)} | {192.0: 40.0}  # better and better, up to a cliff

    def trials(number, recipe, values, data, out, **chosen):
        return pd.DataFrame([{"value": value, "recipe": recipe, "validation_top1": accuracy[value]} for value in values])

    monkeypatch.setattr(regime, "trials", trials)
    rows = regime.rates("digits", tmp_path, 2 / 15)
    assert list(rows.value) == [*regime.RATES, 96, 192] and regime.largest_stable(rows) == 96
    accuracy[24.0] = 100.0
    assert list(regime.rates("digits", tmp_path, 2 / 15).value) == [*regime.RATES]


def test_the_rate_must_suit_each_recipe_of_the_bed():
    rows = {"batch_2048": [80.0, 80.5, 80.9, 80.6], regime.ONE_MODEL: [78.0, 80.0, 79.5, 72.0]}
    frame = pd.DataFrame(
        [
            {"recipe": recipe, "value": value, "validation_top1": accuracy}
            for recipe, found in rows.items()
            for value, accuracy in zip((6.0, 12.0, 24.0, 48.0), found)
        ]
    )
    assert regime.largest_stable(frame[frame.recipe == "batch_2048"]) == 48
    assert regime.largest_stable(frame) == 24
    with pytest.raises(ReproError, match=f"suits all of batch_2048, {regime.ONE_MODEL}"):
        regime.largest_stable(
            frame[(frame.value == 24) & (frame.recipe == "batch_2048") | (frame.value == 12)].replace(80.9, 99)
        )
    assert set(regime.bed("fashion_mnist").stable) == {"batch_2048", regime.ONE_MODEL}
    assert regime.bed("digits").stable == ("batch_2048",)


def test_a_beds_trials_have_its_own_images_batches_and_profile(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(regime, "Images", lambda data, split: range({"train": 55_000, "val": 5000}[split]))
    monkeypatch.setattr(regime, "train", lambda recipe, **given: asked.append(recipe) or str(tmp_path))
    run = {"ends": {"main": {"top1": 3, "images": 4, "train_top1": 0.5}}, "seconds": 5.0, "evaluating": 1.0, "ranks": 1}
    monkeypatch.setattr(regime.records, "read", lambda _: run)
    rows = regime.trials("widen", "resnet50_448nodes", (1, 2), "fashion_mnist", tmp_path, epochs=1 / 30)
    bed = SHRINKS["photographs"]
    assert [recipe.model for recipe in asked] == ["resnet11"] * 2 + ["resnet11x2"] * 2
    assert {recipe.epoch_images for recipe in asked} == {bed.images}
    assert {recipe.global_batch for recipe in asked} == {14336 // bed.divide_batch}
    assert list(rows.images) == [recipe.images() for recipe in asked]
    # Of 4 evaluations a run, some are ends of its 2 stages; each end is tested in two more views.
    during = len(due(asked[0], asked[0].evaluate_every)) - 2
    assert set(rows.tested) == {during * 5000 + 2 * 15_000} and 1 <= during <= 4


def test_what_a_profile_takes_at_each_width_is_counted_run_by_run():
    """At a second for 1,000 images trained or 4,000 tested, twice as much at the second width; a shared run counts once."""
    profile = Profile("fashion_mnist", "photographs", {"ensemble": 2, "cost": 3}, {}, "")
    one = dict(seconds=3.0, evaluating=1.0, images=2000, tested=4000)
    rows = pd.DataFrame(
        [dict(value=1, **one), dict(value=1, **one), dict(value=2, **one | {"seconds": 6.0, "evaluating": 2.0})]
    )
    hours = regime.core_hours(rows, profile, {"train": 55_000, "test": 10_000}, epochs=1 / 30)

    def run(name, deep=1):
        small = shrink(RECIPES[name], replace(SHRINKS["photographs"], epochs=1 / 30), 55_000)
        return deep * (small.images() / 1000 + regime.tested(name, small, 10_000) / 4000) / 3600

    shared = {"five_members", "one_model", "snapshot_ensemble", "snapshot_ensemble_crop", "three_models"}
    assert hours[1]["ensemble"] == pytest.approx(2 * sum(map(run, shared)))
    deep = 3 * (run("one_deep_model", 3) + run("one_deep_model_third", 3))
    assert hours[1]["cost"] == pytest.approx(deep + run("five_members")), "the third seed alone is new"
    assert list(hours[2]) == pytest.approx(list(2 * hours[1]))


@pytest.mark.parametrize("hours, width", [((1.0, 2.0, 11.0), 2), ((1.0, 2.0, 10.0), 4), ((11.0, 12.0, 20.0), 1)])
def test_the_width_is_the_largest_that_fits_into_the_hours(hours, width):
    assert regime.widest(pd.DataFrame({each: [hour / 2] * 2 for each, hour in zip((1, 2, 4), hours)})) == width


def test_a_trial_with_all_images_has_the_beds_batch_and_as_many_more_steps(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(yardsticks, "Images", lambda data, split: range(55_000))
    monkeypatch.setattr(yardsticks, "train", lambda recipe, **given: asked.append((recipe, given)) or str(tmp_path))
    end = {"top1": 3, "images": 4, "train_top1": 0.5, "epoch": 11.0}
    run = {"ends": {"collapse_long": end}, "seconds": 5.0, "ranks": 2, "model": "resnet11"}
    monkeypatch.setattr(yardsticks.records, "read", lambda _: run)
    row = yardsticks.tried(yardsticks.Trial(3, 2), "fashion_mnist", tmp_path)
    assert (row["images"], row["validation_top1"], row["train_top1"], row["seconds"]) == (55_000, 75.0, 50.0, 10.0)
    (trained, given), bed = asked[0], shrink(RECIPES["one_model"], "photographs")
    assert given["split"] == "val" and given["seed"] not in range(max(PROFILES["photographs"].seeds.values()))
    assert (trained.model, trained.global_batch, trained.epoch_images) == ("resnet11x2", bed.global_batch, 55_000)
    assert [stage.name for stage in trained.stages] == ["main", "collapse_long"]
    for stage, small in zip(trained.stages, bed.stages):
        assert stage.iterations == pytest.approx(3 * 2.75 * small.iterations, rel=1e-3)
        assert stage.base_rate == pytest.approx(small.base_rate)


def test_the_linear_model_is_the_best_of_its_penalties_on_the_test_view(digits, monkeypatch):
    monkeypatch.setattr(yardsticks.recipes, "SHRINKS", SHRINKS | {"laptop": replace(SHRINKS["laptop"], images=500)})
    tops = []
    for penalty in (0.1, 1e-9):
        monkeypatch.setattr(yardsticks, "PENALTIES", (penalty,))
        tops.append(yardsticks.linear(digits)["validation_top1"])
    for penalties in ((0.1, 1e-9), (1e-9, 0.1)):
        monkeypatch.setattr(yardsticks, "PENALTIES", penalties)
        row = yardsticks.linear(digits)
        assert row["images"] == 500 and row["validation_top1"] == max(tops) > 30 and tops[0] != tops[1]
    expected, labels = Images(digits, "val").test_batch(0, 20)
    rows, found = yardsticks.seen(Images(digits, "val"))
    assert (rows[:20] == expected.flatten(1).numpy()).all() and (found[:20] == labels.numpy()).all()


CHOSEN = REFERENCE / "bench" / "regime_fashion_mnist.csv"


def test_photographs_have_what_their_regime_chose():
    if not CHOSEN.exists():
        assert not list((REFERENCE / "runs").glob("fashion_mnist-*")), "runs of which nobody has chosen the numbers"
        pytest.skip("the regime of photographs has not been run")
    rows, bed = pd.read_csv(CHOSEN), SHRINKS["photographs"]
    rates, widths = (rows[rows.number == number] for number in ("rate", "widen"))
    assert (bed.rate, bed.epochs) == (regime.largest_stable(rates), SHRINKS["laptop"].epochs)
    hours = regime.core_hours(widths, PROFILES["photographs"], {"train": 55_000, "test": 10_000}, bed.epochs)
    assert bed.widen == regime.widest(hours)


def test_answers_with_recomputed_statistics_follow_from_the_runs_accuracies():
    """With statistics that change nothing they are the reference's answers; with ones that favour a side, by so much."""
    runs = REFERENCE / "runs"
    models = tables.only(tables.models(runs), recipe="collapse_parts", data="digits")
    asked = questions.of(["collapse"])
    found = precise_statistics.answered(models.assign(precise=models.top1), asked)
    stored = pd.read_csv(REFERENCE / "tables" / "answers.csv").query("topic == 'collapse' and data == 'digits'")
    for column in ("claim", "n", "difference", "low", "high", "p_holm", "verdict"):
        pd.testing.assert_series_equal(found[column].reset_index(drop=True), stored[column].reset_index(drop=True))
    better = models.members == "zero-crop-x1"
    moved = precise_statistics.answered(models.assign(precise=models.top1 + 5 * better), asked).set_index("claim").difference
    changes = moved - found.set_index("claim").difference
    assert sorted(changes.round(6)) == [-5, 0, 0, 0, 0, 5]


def test_a_model_that_several_questions_and_precisions_ask_about_is_tested_once(digits, tmp_path):
    folder = Path(train("batch_2048", data=digits, shrink="smoke", out=str(tmp_path), device="cpu"))
    (row,) = precise_statistics.tested(folder, digits)
    assert (row["folder"], row["members"], row["average"]) == (folder.name, "main", "") and 0 <= row["precise"] <= 100


def test_a_pilots_runs_are_those_that_were_asked_for():
    variants = {"split=val, device=cpu": "", "precision=bf16, split=val, device=cpu": "precision=bf16", "": ""}
    assert {variant: pilot.as_asked(variant) for variant in variants} == variants


def test_images_are_scaled_only_as_far_as_their_centre_fills_the_view(digits, monkeypatch):
    monkeypatch.setattr(apparent_size, "NUMBER", 100)
    found = apparent_size.sized(Images(digits, "test"))
    assert {how: min(size for each, size in found if each == how) for how, _ in found} == {"drawn": 0.8, "scaled": 0.9}
    assert all(batch.shape == (100, 1, 16, 16) for batch, _ in found.values())


@pytest.mark.parametrize("how, sizes", [("drawn", [0.9, 1.2, 1.3]), ("scaled", [16 / 18, 22 / 18, 23 / 18])])
def test_the_true_size_is_that_of_whole_pixels(how, sizes):
    assert [apparent_size.true_size(how, size, 18) for size in (0.9, 1.2, 1.3)] == pytest.approx(sizes)


@pytest.fixture(scope="module")
def grown(tmp_path_factory, digits):
    """The files of `bench.scale`, small."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RUNS": 3, "RECORDS": 20, "ROWS": 2000, "DATA": digits}.items():
            patch.setattr(scale, name, value)
        folder = tmp_path_factory.mktemp("grown")
        scale.make_files(folder)
        yield folder


def test_what_grows_is_made_in_the_size_that_is_asked_for(grown):
    assert len(records.complete_runs(grown / "runs")) == 3
    (long,) = (grown / "long").iterdir()
    assert 2000 <= (long / "metrics.jsonl").stat().st_size < 2500 and len(records.metric_rows(long)) > 5
    assert len(Packed(grown / "images" / "train.lmdb", "images", "train")) == 20


@pytest.mark.parametrize("part", scale.PARTS, ids=", ".join)
def test_what_is_timed_of_it_runs(grown, part):
    scale.PARTS[part](grown)()
