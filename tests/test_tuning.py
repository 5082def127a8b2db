"""Every method is tuned alike: by as many values, by one rule, on validation images, and each recipe has what it chose."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from bench import tuning
from repro.paper import choice, tables
from repro.paper.profiles import FULL
from repro.paths import REFERENCE
from repro.recipes import RECIPES
from repro.recipes.baselines import TUNED, Tuned
from repro.recipes.controls import at_batch
from repro.schedule import scaled

# --- The rule ---------------------------------------------------------------------------------------------------------


def walked(accuracy, first=1.0):
    """The values that the rule tries, by a function that gives each its accuracy."""
    tried: dict[float, float] = {}
    while values := choice.following(tried, first):
        tried |= {value: accuracy(value) for value in values}
    return tried


@pytest.mark.parametrize("first", [1.0, 0.04])
@pytest.mark.parametrize("octaves", [-3, -2.5, -1.3, -0.5, 0, 0.4, 1, 2.3, 3])
def test_a_peak_within_three_octaves_is_found_to_half_of_one_by_the_same_number_of_values(first, octaves):
    tried = walked(lambda value: -abs(math.log2(value / first) - octaves), first)
    assert len(tried) == choice.TRIES and list(tried)[:3] == [first, 2 * first, first / 2]
    assert abs(math.log2(choice.chosen(tried) / first) - octaves) <= 0.51


def test_the_rule_walks_to_the_best_and_then_looks_beside_it():
    """By the validation accuracies of a pilot of LARS at batch 32768, whose unit was the linear rule's rate."""
    pilot = {0.5: 20.5, 1: 45.0, 2: 63.9, 4: 78.4, 8: 81.0, 16: 77.3, 32: 69.3, 5.657: 80.0, 11.31: 80.0}
    assert list(walked(pilot.get)) == [1, 2, 0.5, 4, 8]
    assert list(walked(pilot.get, first=4)) == [4, 8, 2, 16, 5.657], "its better neighbour is 4"
    assert list(walked({1: 73.6, 2: 40, 0.5: 80.7, 0.25: 70.0, 0.7071: 81.0, 0.5946: 0}.get)) == [
        *(1, 2, 0.5, 0.25),
        0.7071,  # towards 1
    ]
    assert list(walked({1: 80.0, 2: 40, 0.5: 79.0, 0.7071: 81.0, 0.8409: 0}.get)) == [
        *(1, 2, 0.5),
        0.7071,  # towards 0.5
        0.8409,  # the gaps beside it are equal: towards 1, its better neighbour
    ]
    assert choice.chosen({1: 50.0, 2: 50.0, 0.5: 49.0}) == 1, "of equal ones the first"


# --- The runs ---------------------------------------------------------------------------------------------------------


def made(value):
    batch = at_batch(RECIPES["resnet50_448nodes_uncollapsed"], 2048)
    return replace(batch, name="made", stages=scaled(batch.stages, 1, value))


def test_all_methods_get_as_many_runs_on_validation_images_with_seeds_apart(tmp_path, monkeypatch):
    trained, folders = [], {}

    def train_all(tasks, ensembles):
        assert all(task["split"] == "val" for task in tasks)
        trained.extend(tasks)

    def prepare(world, **task):
        folder = tmp_path / f"{task['recipe'].name}-{task['seed']}"
        folders[folder] = task
        return SimpleNamespace(run=SimpleNamespace(folder=folder))

    def result(folder):
        task = folders[folder]
        octaves = math.log2(task["recipe"].stages[0].base_rate / made(1).stages[0].base_rate)
        return {"top1": 800 - abs(octaves - 2) * 100 + (task["seed"] - 1001), "images": 1000}

    monkeypatch.setattr(tuning, "train_all", train_all)
    monkeypatch.setattr(tuning, "prepare", prepare)
    monkeypatch.setattr(tuning.records, "result", result)
    methods = [Tuned(made, 4.0), Tuned(lambda value: replace(made(value / 64), name="other"), 1.0, first=64.0)]
    rows = tuning.tune(methods, tmp_path, data="digits", shrink="laptop")
    assert list(rows.groupby("recipe").size()) == [choice.TRIES * len(choice.SEEDS)] * 2 == [len(trained) / 2] * 2
    assert set(rows.seed).isdisjoint(range(max(FULL.values()))) and set(rows.seed) == set(choice.SEEDS)
    assert len({(task["recipe"].name, task["seed"]) for task in trained}) == len(trained)
    assert not {task["recipe"].name for task in trained} & set(RECIPES)
    tried = choice.means(rows, "made")
    assert choice.chosen(tried) == 4 and tried[4.0] == pytest.approx(80.05) and list(tried)[:3] == [1, 2, 0.5]
    assert choice.chosen(choice.means(rows, "other")) == 256
    assert choice.differences(rows, methods) == ["other: the recipe has 1, and the rule chooses 256"]
    cut = rows[(rows.recipe != "made") | (rows.value != 0.5)]
    assert choice.differences(cut, methods[:1]) == ["made: 4 values were tried, not 5"]
    other = [methods[0]._replace(number="ratio")]
    said = "made: what was tuned is the factor on the rates, and not the ratio: tune it again"
    assert choice.differences(rows, other) == [said]
    tables.put(rows, tmp_path / "tuning.csv", ["recipe"])
    tables.put(rows[rows.recipe == "other"].assign(validation_top1=1.0), tmp_path / "tuning.csv", ["recipe"])
    again = pd.read_csv(tmp_path / "tuning.csv")
    assert choice.means(again, "made") == pytest.approx(tried) and set(choice.means(again, "other").values()) == {1.0}


# --- What the recipes have --------------------------------------------------------------------------------------------


def test_each_recipe_has_the_number_that_was_chosen_or_the_first():
    table = REFERENCE / "bench" / "tuning.csv"
    rows = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["recipe", "value", "validation_top1"])
    assert choice.differences(rows) == []
    untuned = [method for method in TUNED if method.recipe.name not in set(rows.recipe)]
    assert [method.recipe.name for method in untuned if method.value != method.first] == []


@pytest.mark.parametrize("method", TUNED, ids=lambda method: method.recipe.name)
def test_a_number_changes_its_recipe_and_not_its_name(method):
    one, other = method.make(method.first), method.make(2 * method.first)
    assert one != other and one.name == other.name == method.recipe.name
    assert tuning.trial(method, 0.5).name == f"{one.name}-0.5"
