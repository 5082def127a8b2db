"""What is computed from an ensemble's members, against plain loops: differences, calibration, cost, paths, sharpness."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from repro import evaluate, recipes
from repro.images.data import Images
from repro.paper import ensembles, landscape, names, tables
from repro.paper.ensembles import Made
from repro.paths import REFERENCE
from repro.ranks.comm import World
from repro.resnet import build
from repro.run import checkpoint
from repro.schedule import Place

MAIN, COLLAPSE = "main", "collapse"


@pytest.fixture
def guesses():
    """Probabilities of 400 images, some of them beyond doubt or at a bin's edge, and labels."""
    random = np.random.default_rng(0)
    found = random.dirichlet(np.full(5, 0.4), size=400)
    found[:3] = [[1, 0, 0, 0, 0], [0.4, 0.3, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]]
    return found, random.integers(5, size=400)


def test_the_reliability_diagram_equals_a_loop_over_images(guesses):
    probabilities, labels = guesses
    bins: list[list] = [[] for _ in range(10)]
    for row, label in zip(probabilities, labels):
        confidence = max(row)
        number = next(n for n in range(10) if n / 10 < confidence <= (n + 1) / 10)
        bins[number].append((confidence, list(row).index(confidence) == label))
    diagram = ensembles.reliability(probabilities, labels, bins=10)
    assert list(diagram.test_images) == [len(each) for each in bins] and diagram.test_images.sum() == 400
    assert diagram.confidence_low.tolist() == pytest.approx([10 * n for n in range(10)])
    error = 0.0
    for row, images in zip(diagram.itertuples(), bins):
        if not images:
            assert math.isnan(row.confidence) and math.isnan(row.top1)
            continue
        confidence, right = (100 * sum(each) / len(images) for each in zip(*images))
        assert (row.confidence, row.top1) == pytest.approx((confidence, right))
        error += abs(confidence - right) * len(images) / 400
    assert ensembles.calibration_error(diagram) == pytest.approx(error) and error > 5


def test_who_is_right_as_often_as_sure_has_no_calibration_error():
    probabilities = np.array([[0.75, 0.25]] * 4)
    assert ensembles.calibration_error(ensembles.reliability(probabilities, np.array([0, 0, 1, 0]))) == pytest.approx(0)
    assert ensembles.calibration_error(ensembles.reliability(probabilities, np.array([1, 1, 1, 0]))) == pytest.approx(50)


def test_disagreement_and_loss_equal_loops(guesses):
    first, labels = guesses
    second = np.roll(first, 1, axis=0)
    differ = sum(list(a).index(max(a)) != list(b).index(max(b)) for a, b in zip(first, second))
    assert ensembles.disagreement(first, second) == 100 * differ / 400 and differ > 100
    assert ensembles.disagreement(first, first) == 0
    first = 0.9 * first + 0.02
    assert ensembles.loss(first, labels) == pytest.approx(sum(-math.log(row[label]) for row, label in zip(first, labels)) / 400)


def counted(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds, layer by layer: of each output, the weights that it is computed from."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        total += output[0].numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    model.eval()(x)
    return total


@pytest.mark.parametrize("name, channels, size, by_hand", [("resnet11", 1, 16, 317_184), ("resnet18", 3, 32, None)])
def test_operations_are_counted_layer_by_layer(name, channels, size, by_hand):
    found = ensembles.operations(build(name, 10, channels), channels, size)
    assert found == counted(build(name, 10, channels), torch.zeros(1, channels, size, size))
    assert by_hand in (found, None)


def test_the_deeper_model_costs_three_times_as_much():
    one, deep = (ensembles.operations(build(name, 10, 1), 1, 16) for name in ("resnet11", "resnet38"))
    assert 2.9 < deep / one < 3.1


# --- From a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(whole, tmp_path_factory):
    """The smoke run, as one with the default settings."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("default") / whole.name))
    text = (folder / "run.json").read_text()
    assert '"variant": "device=cpu"' in text
    (folder / "run.json").write_text(text.replace('"variant": "device=cpu"', '"variant": ""'))
    return folder


@pytest.fixture(scope="module")
def analysed(whole, digits):
    """The tables of the smoke run's two models, as if they were the ensemble's."""
    with pytest.MonkeyPatch.context() as patch:
        chosen = Made("resnet50_448nodes", (MAIN,)), Made("resnet50_448nodes", (MAIN, COLLAPSE))
        patch.setattr(ensembles, "ANALYSED", chosen)
        return ensembles.analysed(whole.parent, digits, "smoke", [5, 6])


def test_predictions_are_those_that_were_counted(analysed, whole, digits):
    model = build("resnet11", 10, 1)
    states = [(model, checkpoint.load(whole / "snapshots" / stage)[0]) for stage in (MAIN, COLLAPSE)]
    expected = evaluate.counts(World(), states, Images(digits, "test"))
    rows = analysed["ensemble_predictions"]
    assert list(rows.seed) == [5, 5] and list(rows.models) == [1, 2]
    for row, result in zip(rows.itertuples(), (expected["members"][0], expected["ensemble"])):
        assert row.top1 == pytest.approx(100 * result["top1"] / 1000)
        assert row.loss == pytest.approx(result["loss"], rel=1e-6)
    bins = analysed["ensemble_calibration"]
    assert set(bins.groupby("members").test_images.sum()) == {1000} and len(bins) == 2 * ensembles.BINS


def test_runs_without_their_models_are_left_out(whole, digits):
    assert list(ensembles.runs_of(whole.parent, "resnet50_448nodes", "digits", "smoke")) == [5]
    assert not ensembles.runs_of(whole.parent, "five_members", "digits", "smoke")
    reference = REFERENCE / "runs"  # which keeps no models
    assert not ensembles.runs_of(reference, "five_members", "digits", "laptop")
    assert all(table.empty for table in ensembles.analysed(reference, digits, "laptop", [0]).values())


def test_costs_come_from_records_alone(digits):
    models = tables.models(REFERENCE / "runs")
    table = ensembles.costs(
        models[models.recipe.isin(["five_members", "one_deep_model", "three_models"])], Images(digits, "test")
    )
    per_image = table.groupby(["label", "models"]).operations.first()
    assert list(per_image[names.ENSEMBLE]) == pytest.approx([0.317184 * number for number in range(1, 6)])
    assert per_image[names.ONE_DEEP].item() == pytest.approx(0.943872)
    assert per_image[names.THREE_MODELS].item() == pytest.approx(3 * 0.317184)
    assert table.groupby("label").seed.nunique().min() >= 3
    assert ensembles.costs(models[models["shrink"] == "smoke"], Images(digits, "test")).empty


def test_a_table_that_cannot_be_made_here_is_the_references(tmp_path, capsys):
    one = tables.pd.DataFrame({"seed": [7]})
    found = ensembles.kept({"ensemble_pairs": tables.pd.DataFrame(), "ensemble_costs": one}, tmp_path)
    assert len(found["ensemble_pairs"]) > 1 and "ensemble_pairs" in capsys.readouterr().out
    assert found["ensemble_costs"] is one and [path.name for path in tmp_path.glob("tables/*")] == ["ensemble_costs.csv"]
    assert ensembles.source(tmp_path, "digits", "laptop") == REFERENCE / "runs"


# --- The landscape ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def surface(whole, digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "STATISTICS_IMAGES", 200)
        patch.setattr(landscape, "HEIGHT_IMAGES", 300)
        yield landscape.Surface(whole, "train", "none", digits)


def test_a_height_is_the_loss_with_statistics_of_these_weights(surface, whole, digits):
    """Against a model in torch's own training mode on each worker's images, whose statistics are averaged by hand."""
    state, recipe = surface.state(COLLAPSE), recipes.shrink(recipes.find("resnet50_448nodes"), "smoke")
    height, top1 = surface.height(state)
    model = build("resnet11", 10, 1)
    model.load_state_dict(state)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = [[0.0, 0.0] for _ in norms]
    workers = range(recipe.workers)
    place = surface.now.place
    following = replace(surface.now, place=Place(place.steps + 1, place.images + recipe.global_batch))
    steps = [surface.now, following]  # of 14 workers with 8 images each: two have at least 200
    for now in steps:
        for worker in workers:
            images = surface.stream.batch(now, worker)[0]
            for norm in norms:
                norm.momentum = 1.0
            model.train()(images)
            for both, norm in zip(sums, norms):
                both[0] = both[0] + norm.running_mean.double() / (len(workers) * len(steps))
                both[1] = both[1] + norm.running_var.double() / (len(workers) * len(steps))
    for both, norm in zip(sums, norms):
        norm.running_mean.copy_(both[0])
        norm.running_var.copy_(both[1])
    images, labels = Images(digits, "train").first(300).test_batch(0, 300, "none")
    with torch.no_grad():
        logits = model.eval()(images).double()
    assert height == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert top1 == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert surface.height(state) == (height, top1)


def test_a_path_ends_at_its_two_models(surface):
    ends = surface.state(MAIN), surface.state(COLLAPSE)
    for share, end in zip((0.0, 1.0), ends):
        point = landscape.between(*ends, share)
        assert all(torch.equal(point[name], end[name]) for name in end if end[name].is_floating_point())
    middle, name = landscape.between(*ends, 0.25), "layer1.0.conv2.weight"
    assert torch.allclose(middle[name], 0.75 * ends[0][name] + 0.25 * ends[1][name])


def test_directions_have_the_lengths_that_they_are_named_after(surface):
    state = surface.state(MAIN)
    moving = landscape.matrices(state)
    assert "fc.weight" in moving and not [name for name in moving if "bn" in name or "bias" in name or "downsample.1" in name]
    direction = landscape.filter_wise(state, moving, seed=3)
    for name in moving:
        for filter_, step in zip(state[name], direction[name]):
            assert step.norm().item() == pytest.approx(filter_.norm().item(), rel=1e-5)
    flat = torch.cat([step.flatten() for step in landscape.plain(state, moving, seed=3).values()])
    assert flat.norm().item() == pytest.approx(1, rel=1e-5)
    assert all(torch.equal(step, landscape.filter_wise(state, moving, seed=3)[name]) for name, step in direction.items())
    assert not torch.equal(direction["fc.weight"], landscape.filter_wise(state, moving, seed=4)["fc.weight"])


def test_a_rescaled_network_is_the_same_function_with_another_sharpness(surface):
    """The same rise follows from a step that is rescaled as the weights are, so a step of the same length gives another."""
    state, layers = surface.state(COLLAPSE), ["conv1.weight"]
    scaled = landscape.rescaled(state, layers, 4.0)
    height = surface.height(state)[0]
    assert surface.height(scaled)[0] == pytest.approx(height, abs=1e-4)
    rises = [landscape.rise(surface, state, landscape.plain(state, layers, 0), radius, height) for radius in (0.5, 2.0)]
    of_scaled = [landscape.rise(surface, scaled, landscape.plain(scaled, layers, 0), radius, height) for radius in (2.0, 8.0)]
    assert of_scaled == pytest.approx(rises, rel=0.02, abs=2e-6) and abs(rises[1]) > 3 * abs(rises[0]) > 3e-4
    by_filter = [landscape.rise(surface, each, landscape.filter_wise(each, layers, 0), 0.5, height) for each in (state, scaled)]
    assert by_filter[0] == pytest.approx(by_filter[1], rel=0.02, abs=2e-6) and abs(by_filter[0]) > 1e-4


def test_the_tables_of_the_landscape_have_a_row_per_point(whole, digits, surface, monkeypatch):
    monkeypatch.setattr(landscape, "Surface", lambda *arguments, **options: surface)
    monkeypatch.setattr(landscape, "runs_of", lambda *arguments: {5: whole})
    monkeypatch.setattr(surface, "state", lambda stage: surface.__class__.state(surface, MAIN if "1" in stage else COLLAPSE))
    monkeypatch.setattr(landscape, "SHARES", (0.0, 0.5, 1.0))
    monkeypatch.setattr(landscape, "DRAWS", 1)
    paths = landscape.paths(whole.parent, digits, "smoke", [5])
    assert len(paths) == 4 * 3 and set(paths.share) == {0.0, 0.5, 1.0}
    ends = paths[(paths.members == "collapse1 + collapse2") & (paths.share == 0)].loss
    assert ends.iloc[0] == pytest.approx(surface.height(surface.state("collapse1"))[0])
    rises = landscape.sharpness(whole.parent, digits, "smoke", [5])
    assert len(rises) == 2 * 6 * 1 * len(landscape.RADII) and rises.rise.notna().all()
    table = landscape.same_function(surface, COLLAPSE, (1.0, 2.0))
    assert list(table.scaled_by) == [1, 2] and table.loss.iloc[0] == pytest.approx(table.loss.iloc[1], abs=1e-4)
