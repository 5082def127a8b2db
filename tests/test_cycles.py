"""Averages, trunks, restarts and cycles: rates as their sources have them, images and views as the ensemble's."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler, swa_utils

from repro.baselines.averages import EMA, SWA
from repro.model import Network
from repro.recipes import RECIPES, cycles, shrink
from repro.recipes.baselines import OF_CYCLES
from repro.schedule import Recipe, Stage, at, learning_rate

OF_ENSEMBLES = "tuned_ensemble", "constant_ensemble", "falling_ensemble", "triangular_ensemble", "snapshot_ensemble_restarts"
MEMBERS = ["collapse1", "collapse2", "collapse3"]


def rates(recipe, *names):
    """The rates of the stages of these names, one stage after the other."""
    places = {stage.name: range(start, start + stage.iterations) for stage, start in zip(recipe.stages, recipe.starts)}
    return [learning_rate(recipe, step) for name in names for step in places[name]]


def torchs(make, number, rate=1.0):
    """The rates of one of torch's schedulers, before each of its steps."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=0.9)
    scheduler, found = make(optimizer), []
    for _ in range(number):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def spent(recipe, names):
    """Iterations, and those in the collapse's view, of all stages that lead to the ends of these."""
    path = recipe.lineage(names)
    return sum(stage.iterations for stage in path), sum(stage.iterations for stage in path if stage.augmentation == "none")


# --- The averages, beside torch's own ---------------------------------------------------------------------------------

HALF_LIFE = 0.25  # of a stage of 20 steps


@pytest.mark.parametrize(
    "rule, numbers, torchs_own",
    [
        (SWA, {}, swa_utils.get_swa_avg_fn()),
        (EMA, {"half_life": HALF_LIFE}, swa_utils.get_ema_avg_fn(0.5 ** (1 / (HALF_LIFE * 20)))),
    ],
)
def test_an_average_of_a_constant_stage_is_torchs_and_any_other_stage_ends_with_its_weights(rule, numbers, torchs_own):
    stages = Stage("main", 7, 0.4), Stage("average", 20, 0.1, power=0), Stage("again", 20, 0.1, power=0, starts_from="main")
    recipe, network = Recipe("r", stages, 1, 1), Network(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    torch.manual_seed(0)
    network.weights.normal_()
    update, plain = rule(network, recipe, **numbers), {}
    for now in (at(recipe, step) for step in range(recipe.iterations)):
        if now.iteration == 0:
            if now.stage.starts_from:
                network.weights.copy_(plain[now.stage.starts_from])
            update.begin(now.stage)
            averaged = swa_utils.AveragedModel(network.model, avg_fn=torchs_own)
        update.step(torch.randn_like(network.weights), now)
        plain[now.stage.name] = network.weights.clone()
        if now.stage.name == "main":
            assert torch.equal(update.finished(), network.weights)
        else:
            averaged.update_parameters(network.model)
            expected = torch.cat([each.flatten() for each in Network(averaged.module).parameters])
            found = torch.cat(_tensors(network, update.finished()))
            assert torch.allclose(found, expected, atol=1e-6)
            assert now.iteration == 0 or not torch.allclose(found, torch.cat(_tensors(network, network.weights)), atol=1e-3)


def _tensors(network, vector):
    starts = [0, *network.ends]
    return [vector[start : start + each.numel()] for start, each in zip(starts, network.parameters)]


# --- The rates, as their sources have them ----------------------------------------------------------------------------


def test_warm_restarts_are_torchs_cosine_annealing_with_warm_restarts():
    recipe = RECIPES["warm_restarts"]
    top = cycles.WARM_RESTARTS_TOP
    expected = torchs(lambda sgd: lr_scheduler.CosineAnnealingWarmRestarts(sgd, 3675, T_mult=2), recipe.iterations, top)
    assert rates(recipe, "cyc1", "cyc2", "cyc3")[1560:] == expected[1560:], "to the bit, after a warm-up that it has not"
    crop = RECIPES["warm_restarts_crop"]
    found = rates(crop, "cyc1", "cyc2", "cyc3", "end")
    assert found[1560 : 25725 - 4680] == expected[1560 : 25725 - 4680]
    assert max(abs(one - other) for one, other in zip(found[-4680:], expected[-4680:])) < 0.021 * top, "near its end a square"


def test_triangles_are_torchs_cyclical_rates():
    top, half = cycles.TRIANGLES_TOP, 3508
    cyclical = torchs(lambda sgd: lr_scheduler.CyclicLR(sgd, top / 3, top, half, cycle_momentum=False), 6 * half)
    found = rates(RECIPES["triangular_ensemble"], *(f"{part}{number}" for number in (1, 2, 3) for part in ("rise", "trunk")))
    assert found == pytest.approx(cyclical, rel=1e-9)


@pytest.mark.parametrize("end", ["plain", "end"])
def test_one_cycle_is_torchs(end):
    top = cycles.ONE_CYCLE_TOP
    options = dict(total_steps=25730, pct_start=0.3, anneal_strategy="linear", div_factor=25, final_div_factor=math.inf)
    expected = torchs(lambda sgd: lr_scheduler.OneCycleLR(sgd, top, cycle_momentum=False, **options), 25729)
    found = rates(RECIPES["one_cycle"], "rise", "fall", end)
    assert found[:-1] == pytest.approx(expected, rel=1e-9) and len(found) == 25730
    assert max(found) == found[7718] == top and found[-1] == 0


def test_a_cycle_of_snapshots_is_that_of_the_authors_one_step_later():
    """gaohuang/SnapshotEnsemble, train.lua (2799b74), counts batches from 1; TorchEnsemble's form, from 0, is ours."""

    def authors(rate, length):
        return [0.5 * rate * (1 + math.cos(math.pi * batch / length)) for batch in range(1, length + 1)]

    plain, lower = RECIPES["snapshot_ensemble"], RECIPES["snapshot_ensemble_restarts"]
    for number, length in enumerate((8576, 8576, 8578), start=1):
        first = 1560 if number == 1 else 0
        assert rates(plain, f"cyc{number}")[first + 1 :] == authors(1.6, length)[first:-1]
        rate = 1.6 * cycles.ENSEMBLE_FACTOR if number == 1 else cycles.RESTART_RATE
        found = rates(lower, f"cyc{number}")
        assert found[first + 1 :] == pytest.approx(authors(rate, length)[first : len(found) - 1], rel=1e-12)


def test_the_average_is_of_a_constant_rate_after_the_decay_of_one_model_as_tuned():
    for name in ("swa", "ema"):
        recipe = RECIPES[name]
        assert recipe.stages[0] == RECIPES["tuned_one_model"].stages[0]
        assert {stage.weight_decay for stage in recipe.stages} == {5e-5}, "the collapse's decay is for a rate that falls"
        for end in ("average", "average_main"):
            assert set(rates(recipe, end)) == {cycles.SWA_RATE}
            assert recipe.origin(next(stage for stage in recipe.stages if stage.name == end)).name == "main"
    assert rates(recipe, "main")[-1] == pytest.approx(cycles.STANDS, abs=2e-4)


def test_trunks_go_on_as_if_there_were_no_collapses():
    """One rate from end to end, momentum kept, and each collapse from the rate at which it branches off, on the next images."""
    one = RECIPES["tuned_one_model"]
    wanted = {
        "constant_ensemble": lambda step: cycles.CONSTANT_RATE,
        "constant_trunk": lambda step: cycles.CONSTANT_RATE,
        "falling_ensemble": lambda step: learning_rate(one, step),
    }
    for name, rate in wanted.items():
        recipe = RECIPES[name]
        trunk = [stage for stage in recipe.stages if stage.name.startswith("trunk")]
        found = rates(recipe, *(stage.name for stage in trunk))
        low = trunk[0].warmup_start_rate
        climb = [low + (trunk[0].base_rate - low) * step / 1560 for step in range(1560)]
        assert found == pytest.approx([*climb, *(rate(step) for step in range(1560, len(found)))], rel=1e-9), name
        assert [stage.keep_momentum for stage in trunk] == [False] + [True] * (len(trunk) - 1)
    for name in (*wanted, "triangular_ensemble"):
        recipe = RECIPES[name]
        for stage in recipe.stages:
            if stage.name.startswith("collapse"):
                origin = recipe.origin(stage)
                last, before = rates(recipe, origin.name)[:-3:-1]
                assert rates(recipe, stage.name)[0] == pytest.approx(2 * last - before, rel=1e-9), (name, stage.name)
                assert not stage.keep_momentum and stage.power == 2
                assert recipe.places[stage.name].steps == recipe.places[origin.name].steps + origin.iterations


def test_collapses_at_one_rate_differ_in_their_trunks_alone():
    ensemble, constant = RECIPES["tuned_ensemble"], RECIPES["constant_ensemble"]
    for number in (1, 2, 3):
        high, other = (
            next(stage for stage in recipe.stages if stage.name == f"{name}{number}")
            for recipe, name in ((ensemble, "high"), (constant, "collapse"))
        )
        assert replace(high, name="one", starts_from="") == replace(other, name="one", starts_from="", member=False)
        assert ensemble.places[high.name] == constant.places[other.name]
        assert ensemble.origin(high) == ensemble.origin(next(s for s in ensemble.stages if s.name == f"collapse{number}"))
    assert ensemble.result == MEMBERS


def test_one_model_is_planned_for_the_last_tenth_as_those_for_the_others_are():
    ten, one = cycles.planned(10, 1.0), RECIPES["one_model"]
    assert rates(ten, "main") == pytest.approx(rates(one, "main", "late"), rel=1e-9)
    assert rates(ten, "collapse") == pytest.approx(rates(one, "collapse"), rel=1e-9)


# --- Images and views, as the ensemble's ------------------------------------------------------------------------------


def test_all_have_as_many_images_as_the_ensemble_and_as_many_in_the_collapses_view():
    whole, in_crop = spent(RECIPES["collapsed_ensemble"], MEMBERS)
    assert (whole, in_crop) == (25730, 3 * 1560)
    sides = {name: (RECIPES[name].result, in_crop) for name in OF_ENSEMBLES}
    sides |= {name: (["average"], in_crop) for name in ("swa", "ema")}
    sides |= {"one_cycle": (["end"], in_crop), "warm_restarts_crop": (["end"], in_crop), "warm_restarts": (["cyc3"], 0)}
    sides |= {"constant_trunk": (["collapse10"], 1560)}
    for name, (ends, wanted) in sides.items():
        recipe = RECIPES[name]
        found = spent(recipe, ends)
        assert 0 <= whole - found[0] <= 5 and found[1] == wanted and recipe.global_batch == 4096, name
    for name, end in (("swa", "average_main"), ("ema", "average_main"), ("one_cycle", "plain")):
        assert spent(RECIPES[name], [end]) == (whole, 0)
    assert spent(RECIPES["constant_ensemble"], ["collapse_long"]) == (whole, in_crop)


@pytest.mark.parametrize("tenth", [3, 7])
def test_a_planned_run_has_the_images_and_the_view_of_its_tenth(tenth):
    trunk, planned = RECIPES["constant_trunk"], RECIPES[f"planned_{tenth}_tenths"]
    assert spent(planned, ["collapse"]) == spent(trunk, [f"collapse{tenth}"]) == (2417 * tenth + 1560, 1560)


def test_a_factor_of_one_changes_nothing_but_the_name():
    ensemble = cycles.tuned_ensemble(1.0)
    alone = replace(ensemble, stages=ensemble.stages[:-3])
    for tuned, plain in ((alone, "collapsed_ensemble"), (cycles.tuned_one_model(1.0), "one_model")):
        assert tuned.stages == RECIPES[plain].stages
        assert (
            replace(tuned, name=plain, summary=RECIPES[plain].summary, source=RECIPES[plain].source, cost=RECIPES[plain].cost)
            == (RECIPES[plain])
        )


@pytest.mark.parametrize("size", ["laptop", "smoke"])
@pytest.mark.parametrize("recipe", [*(each.recipe for each in OF_CYCLES), *cycles.AS_TUNED], ids=lambda recipe: recipe.name)
def test_a_small_version_keeps_the_shares_of_the_stages(recipe, size):
    small = shrink(recipe, size, 20000)
    for one, other in zip(recipe.stages, small.stages, strict=True):
        share = one.iterations / recipe.iterations
        assert other.iterations / small.iterations == pytest.approx(share, abs=2 / small.iterations)
