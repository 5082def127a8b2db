"""Learning rates and recipes against the released solver files, transcribed here a second time."""

import dataclasses
import json
import math
import re

import digits
import fashion_mnist
import pytest

from repro import ReproError
from repro.images.packed import Preprocessing
from repro.paper import ratios
from repro.recipes import RECIPES, SHRINKS, find, shrink
from repro.recipes.baselines import BASELINES
from repro.recipes.controls import at_batch
from repro.schedule import NEW_WEIGHTS, SWITCHES, Recipe, Stage, at, due, joints, learning_rate

from conftest import python

# By recipe and stage: the solver's numbers. `runs`: how long it ran (the 448-node one was left at iteration 7638);
# `horizon`: lr_iter, or max_iter where the solver has none; `decays`: iterations from the end of warm-up to zero in the
# formula that the rates at the joints fit.
WARM_448 = dict(start=0.1, warmup=446)
COLLAPSE_448 = dict(batch=14336, runs=402, base=0.254, power=2, horizon=402, decay=1e-4, augmentation="none")
INIT = dict(batch=4096, runs=7800, base=1.6, start=0.1, warmup=1560, power=1, horizon=18720, decays=17160)
CYCLE_1 = dict(batch=4096, runs=3750, base=1.02, power=2, horizon=7500)
CYCLE_2 = dict(batch=4096, runs=4750, base=0.764, start=0.255, warmup=1000, power=2, horizon=7500, decays=7500)
CYCLE_3 = dict(batch=4096, runs=4750, base=0.572, start=0.19, warmup=1000, power=2, horizon=7500, decays=7500)
COLLAPSE = dict(batch=4096, runs=1560, base=0.143, power=2, horizon=1560, decay=2e-4, augmentation="none")
INTEL_8K = dict(batch=8192, runs=14075, base=3.2, start=0.1, warmup=780, steps=(4680, 9360, 12480), decay=1e-4)
SOLVERS = {
    "resnet50_448nodes": {
        "main": dict(batch=14336, runs=7638, base=4.8, power=1, horizon=8040, decays=7594, **WARM_448),
        "collapse": COLLAPSE_448,
    },
    "resnet50_448nodes_uncollapsed": {
        "main": dict(batch=14336, runs=8040, base=4.8, power=1, horizon=8040, decays=7594, **WARM_448)
    },
    "resnet50_custom_lr": {"init": INIT, "cyc1": CYCLE_1, "cyc2": CYCLE_2, "cyc3": CYCLE_3, "collapse": COLLAPSE},
    "default_resnet50_8nodes": {"main": dict(batch=1024, runs=112600, base=0.4, steps=(37440, 74880, 99840), decay=1e-4)},
    "default_resnet50_16nodes": {
        "main": dict(batch=2048, runs=56300, base=0.8, start=0.1, warmup=3125, steps=(18750, 37500, 50000), decay=1e-4)
    },
    "default_resnet50_64nodes": {"main": INTEL_8K},
    "resnet_50_256_nodes_8k_batch": {"main": INTEL_8K | dict(augmentation="scale")},
}
# Not solvers of the release: its stages, branched and rearranged.
ENSEMBLE = {
    "init": INIT,
    "cyc1": CYCLE_1,
    "collapse1": COLLAPSE | dict(base=0.255),
    "cyc2": CYCLE_2,
    "collapse2": COLLAPSE | dict(base=0.191),
    "cyc3": CYCLE_3,
    "collapse3": COLLAPSE,
}
OWN = {
    "collapsed_ensemble": ENSEMBLE,
    "five_members": ENSEMBLE
    | {
        "cyc4": CYCLE_3 | dict(base=0.429, start=0.1425),
        "collapse4": COLLAPSE | dict(base=0.10725),
        "cyc5": CYCLE_3 | dict(base=0.32175, start=0.106875),
        "collapse5": COLLAPSE | dict(base=0.0804375),
    },
}
BATCHES, LENGTHS = (2048, 4096, 8192, 16384, 32768), (30, 60, 90, 120)
CONTROLS = {  # held to their properties below
    "one_model",
    "one_deep_model",
    "one_deep_model_third",
    "snapshot_ensemble",
    "snapshot_ensemble_crop",
    "three_models",
    "collapse_parts",
    *(f"batch_{batch}" for batch in BATCHES),
    *(f"batch_{batch}_no_warmup" for batch in BATCHES),
    *(f"epochs_{epochs}_batch_{batch}" for epochs in LENGTHS for batch in (4096, 14336)),
}
WORKERS = {
    "resnet50_448nodes": (896, 16),
    "resnet50_448nodes_uncollapsed": (896, 16),
    "resnet50_custom_lr": (128, 32),
    "default_resnet50_8nodes": (32, 32),
    "default_resnet50_16nodes": (64, 32),
    "default_resnet50_64nodes": (256, 32),
    "resnet_50_256_nodes_8k_batch": (256, 32),
}


def caffe_rate(solver, iteration, designed=False):
    """Caffe's `linear` warm-up, then `multistep` or `poly` / `poly_cyc`; as designed: the decay starts after warm-up."""
    warmup = solver.get("warmup", 0)
    if iteration < warmup:
        return solver["start"] + (solver["base"] - solver["start"]) * iteration / warmup
    if "steps" in solver:
        return solver["base"] * 0.1 ** len([step for step in solver["steps"] if iteration >= step])
    if designed:
        return solver["base"] * (1 - (iteration - warmup) / solver.get("decays", solver["horizon"])) ** solver["power"]
    return solver["base"] * (1 - iteration / solver["horizon"]) ** solver["power"]


def test_every_released_recipe_is_held_to_its_solver():
    assert set(SOLVERS) == set(WORKERS) and set(RECIPES) == {*SOLVERS, *OWN, *CONTROLS, *(each.name for each in BASELINES)}
    assert all((name in SOLVERS) == recipe.source.startswith("sara-nl/caffe") for name, recipe in RECIPES.items())
    assert [name for name, recipe in RECIPES.items() if recipe.reported] == [
        "resnet50_448nodes",
        "resnet50_448nodes_uncollapsed",
        "resnet50_custom_lr",
    ]


@pytest.mark.parametrize("formula", ["as_released", "as_designed"])
@pytest.mark.parametrize("name", [*SOLVERS, *OWN])
def test_rate_equals_the_solvers_at_each_step(name, formula):
    recipe, step = RECIPES[name], 0
    for solver in (SOLVERS | OWN)[name].values():
        for iteration in range(solver["runs"]):
            expected = caffe_rate(solver, iteration, designed=formula == "as_designed")
            assert abs(learning_rate(recipe, step, formula) - expected) <= 1e-12 * expected, (step, iteration)
            step += 1
    assert step == recipe.iterations


@pytest.mark.parametrize("name", [*SOLVERS, *OWN])
def test_stages_have_the_solvers_batch_decay_and_augmentation(name):
    recipe, solvers = RECIPES[name], (SOLVERS | OWN)[name]
    assert [stage.name for stage in recipe.stages] == list(solvers)
    for stage, solver in zip(recipe.stages, solvers.values()):
        assert recipe.global_batch == solver["batch"]
        assert stage.weight_decay == solver.get("decay", 5e-5)
        assert stage.augmentation == solver.get("augmentation", "scale_aspect")


@pytest.mark.parametrize("name", WORKERS)
def test_workers_are_the_processes_or_ghost_batches_of_the_release(name):
    recipe = RECIPES[name]
    assert (recipe.workers, recipe.images_per_worker, recipe.momentum) == (*WORKERS[name], 0.9)
    assert recipe.stride == ("v1" if name.startswith("default") else "v1.5")
    assert recipe.bn_momentum == (0.05 if name.startswith("resnet50_") else 0.1)
    assert recipe.epoch_images == 1281167


@pytest.mark.parametrize(
    "name, epochs",
    [
        ("resnet50_448nodes", 89.966),
        ("resnet50_448nodes_uncollapsed", 89.966),
        ("resnet50_custom_lr", 72.286),
        ("default_resnet50_8nodes", 89.998),
        ("default_resnet50_16nodes", 89.998),
        ("default_resnet50_64nodes", 89.998),
        ("resnet_50_256_nodes_8k_batch", 89.998),
        ("collapsed_ensemble", 82.261),
        ("five_members", 122.608),
        ("collapse_parts", 130.4507),
        ("snapshot_ensemble", 82.261),
        ("snapshot_ensemble_crop", 82.261),
        ("three_models", 82.255),
        ("batch_4096", 89.966),
    ],
)
def test_epochs(name, epochs):
    assert RECIPES[name].epochs() == pytest.approx(epochs, abs=6e-4)


def test_boundaries_of_the_cycles_in_epochs():
    recipe = RECIPES["resnet50_custom_lr"]
    assert [recipe.epochs(start) for start in recipe.starts[1:]] == pytest.approx(
        [24.937, 36.926, 52.112, 67.299, 72.286], abs=6e-4
    )
    assert [recipe.epochs(stage.warmup_iterations) for stage in recipe.stages] == pytest.approx(
        [4.987, 0, 3.197, 3.197, 0], abs=6e-4
    )


def test_the_release_steps_down_where_warmup_ends_and_the_design_does_not():
    for name, stage, peak, released in (
        ("resnet50_448nodes", 0, 4.8, 4.534),
        ("resnet50_custom_lr", 0, 1.6, 1.467),
        ("resnet50_custom_lr", 2, 0.764, 0.5738),
        ("resnet50_custom_lr", 3, 0.572, 0.4296),
    ):
        recipe = RECIPES[name]
        end = recipe.starts[stage] + recipe.stages[stage].warmup_iterations
        climb = learning_rate(recipe, end - 1) - learning_rate(recipe, end - 2)
        assert learning_rate(recipe, end - 1) + climb == pytest.approx(peak, rel=1e-12)
        assert learning_rate(recipe, end, "as_designed") == peak
        assert learning_rate(recipe, end, "as_released") == pytest.approx(released, abs=5e-4)


@pytest.mark.parametrize(
    "name, stage, follower, designed, released",
    [
        ("resnet50_448nodes", "main", "collapse", 0.2541, 0.2400),
        ("resnet50_custom_lr", "init", "cyc1", 1.0182, 0.9333),
        ("resnet50_custom_lr", "cyc1", "cyc2", 0.2550, 0.2550),
        ("resnet50_custom_lr", "cyc2", "cyc3", 0.1910, 0.1027),
        ("resnet50_custom_lr", "cyc3", "collapse", 0.1430, 0.0769),
        ("collapsed_ensemble", "cyc1", "collapse1", 0.2550, 0.2550),
        ("collapsed_ensemble", "cyc2", "collapse2", 0.1910, 0.1027),
        ("collapsed_ensemble", "cyc3", "collapse3", 0.1430, 0.0769),
    ],
)
def test_the_rates_at_the_joints_were_set_for_the_designed_formula(name, stage, follower, designed, released):
    """Where a stage ends and where the next starts: equal as designed, but for the rounding of the hand-set rates."""
    recipe = RECIPES[name]
    place = {stage.name: index for index, stage in enumerate(recipe.stages)}
    for formula, end in (("as_designed", designed), ("as_released", released)):
        last, before = (learning_rate(recipe, recipe.starts[place[stage] + 1] - back, formula) for back in (1, 2))
        assert 2 * last - before == pytest.approx(end, abs=6e-5), formula
    start = learning_rate(recipe, recipe.starts[place[follower]], "as_designed")
    assert start == pytest.approx(designed, abs=2e-3)
    assert recipe.origin(recipe.stages[place[follower]]).name == stage


def test_a_collapse_drops_the_augmentation_and_raises_the_weight_decay():
    factors = {"resnet50_448nodes": 2, "epochs_30_batch_4096": 2}
    for name in (
        *factors,
        "resnet50_custom_lr",
        "collapsed_ensemble",
        "five_members",
        "one_model",
        "one_deep_model",
        "one_deep_model_third",
        "three_models",
    ):
        for stage in RECIPES[name].stages:
            collapse = stage.name.startswith("collapse")
            assert stage.augmentation == ("none" if collapse else "scale_aspect")
            assert stage.weight_decay == pytest.approx(5e-5 * (factors.get(name, 4) if collapse else 1))
            assert stage.member == (collapse and (name, stage.name) != ("one_model", "collapse"))


def test_the_ensembles_cycles_continue_from_cycles_not_from_collapses():
    recipe = RECIPES["collapsed_ensemble"]
    assert {stage.name: getattr(recipe.origin(stage), "name", None) for stage in recipe.stages} == {
        "init": None,
        "cyc1": "init",
        "collapse1": "cyc1",
        "cyc2": "cyc1",
        "collapse2": "cyc2",
        "cyc3": "cyc2",
        "collapse3": "cyc3",
    }


# --- This project's own recipes ------------------------------------------------------------------------------------------


def end_rate(recipe, name, formula="as_released"):
    """The rate that the step after the end of this stage would have, if it went on by as much."""
    stage = next(index for index, stage in enumerate(recipe.stages) if stage.name == name)
    last, before = (learning_rate(recipe, recipe.starts[stage + 1] - back, formula) for back in (1, 2))
    return 2 * last - before


def first_rate(recipe, name):
    return learning_rate(recipe, next(start for start, stage in zip(recipe.starts, recipe.stages) if stage.name == name))


def path(recipe, end):
    """The names of the stages that lead to the end of this one, found backwards."""
    stages = {stage.name: stage for stage in recipe.stages}
    names = []
    while end:
        names.insert(0, end)
        earlier = list(stages)[list(stages).index(end) - 1] if end != recipe.stages[0].name else ""
        end = {"": earlier, NEW_WEIGHTS: ""}.get(stages[end].starts_from, stages[end].starts_from)
    return names


def iterations(recipe, names, augmentation=None):
    """Of the stages of these names, in this view or in any."""
    return sum(
        stage.iterations for stage in recipe.stages if stage.name in names and augmentation in (None, stage.augmentation)
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_lineage_of_an_end_is_what_was_trained_for_it(name):
    recipe = RECIPES[name]
    names = [stage.name for stage in recipe.stages]
    for end in names:
        assert [stage.name for stage in recipe.lineage([end])] == path(recipe, end)
    some = names[-1:] + names[:2]
    assert {stage.name for stage in recipe.lineage(some)} == {each for end in some for each in path(recipe, end)}
    assert [stage.name for stage in recipe.lineage(names[::-1])] == names, "in the recipe's order, each once"
    assert recipe.lineage([]) == []


def test_five_members_begins_with_the_ensembles_stages():
    ensemble, five = RECIPES["collapsed_ensemble"], RECIPES["five_members"]
    assert five.stages[:7] == ensemble.stages and (five.workers, five.model) == (ensemble.workers, ensemble.model)
    assert [stage.name for stage in five.stages if stage.member] == [f"collapse{number}" for number in range(1, 6)]
    for number in (4, 5):
        assert first_rate(five, f"cyc{number}") == pytest.approx(end_rate(five, f"cyc{number - 1}", "as_designed"), rel=5e-3)
        assert path(five, f"collapse{number}") == ["init", *(f"cyc{i}" for i in range(1, number + 1)), f"collapse{number}"]


def test_each_end_of_one_model_costs_as_many_images_as_the_ensemble():
    ensemble, one = RECIPES["collapsed_ensemble"], RECIPES["one_model"]
    assert ensemble.iterations == 25730 and ensemble.global_batch == one.global_batch == 4096
    paths = {
        "collapse_long": ["main", "collapse_long"],
        "collapse": ["main", "late", "collapse"],
        "plain": ["main", "late", "plain"],
    }
    for end, names in paths.items():
        assert path(one, end) == names and iterations(one, names) == 25730
    assert iterations(one, paths["collapse_long"], "none") == iterations(ensemble, list(ENSEMBLE), "none") == 3 * 1560
    assert iterations(one, paths["collapse"], "none") == 1560 and iterations(one, paths["plain"], "none") == 0
    collapse = ensemble.stages[-1]
    for stage in (stage for stage in one.stages if stage.name.startswith("collapse")):
        assert (stage.power, stage.weight_decay, stage.augmentation) == (collapse.power, collapse.weight_decay, "none")


def test_the_rates_of_one_model_are_one_linear_decay_with_a_collapse_at_two_places():
    one = RECIPES["one_model"]
    rates = []
    for name in ("main", "late", "plain"):
        stage = next(stage for stage in one.stages if stage.name == name)
        start = one.starts[one.stages.index(stage)]
        rates += [learning_rate(one, start + iteration) for iteration in range(stage.iterations)]
    for iteration, rate in enumerate(rates):
        line = 0.1 + 1.5 * iteration / 1560 if iteration < 1560 else 1.6 * (1 - iteration / 25730)
        assert rate == pytest.approx(line, rel=1e-9), iteration
    for origin, collapse in (("main", "collapse_long"), ("late", "collapse")):
        assert first_rate(one, collapse) == pytest.approx(end_rate(one, origin), rel=1e-9)
        assert end_rate(one, collapse) == pytest.approx(0, abs=1e-6)


def test_one_deep_model_is_one_models_longest_collapse_of_a_deeper_network():
    one, deep = RECIPES["one_model"], RECIPES["one_deep_model"]
    assert (one.model, deep.model) == ("resnet50", "resnet152") and deep.iterations == 25730
    texts = {name: getattr(deep, name) for name in ("name", "summary", "model")}
    assert dataclasses.replace(one, stages=one.stages[:2], **texts) == deep


@pytest.mark.parametrize("small", [False, True])
def test_a_third_of_the_images_takes_the_deeper_network_the_arithmetic_of_the_ensemble(small):
    names = "one_deep_model_third", "one_deep_model", "collapsed_ensemble"
    third, deep, ensemble = (shrink(RECIPES[name], "laptop") if small else RECIPES[name] for name in names)
    assert third.model == deep.model and third.epochs() == pytest.approx(deep.epochs() / 3, rel=2e-3)
    pairs = [(learning_rate(third, step), learning_rate(deep, 3 * step)) for step in range(third.iterations)]
    apart = [abs(one - other) / max(rate for pair in pairs for rate in pair) for one, other in pairs]
    assert max(apart) < 0.1 and sum(apart) / len(apart) < 0.002, "but for the step at which warm-up ends"
    if small:  # multiply-adds of the laptop's networks for an image
        assert third.epochs() * 943_872 == pytest.approx(ensemble.epochs() * 317_184, rel=0.01)


@pytest.mark.parametrize("name, in_crop", [("snapshot_ensemble", 0), ("snapshot_ensemble_crop", 1560)])
def test_a_snapshot_ensemble_has_the_budget_and_its_cycles_end_at_rate_zero(name, in_crop):
    recipe = RECIPES[name]
    assert recipe.iterations == 25730 and recipe.global_batch == 4096
    members = [stage for stage in recipe.stages if stage.member]
    assert len(members) == 3 and iterations(recipe, [stage.name for stage in recipe.stages], "none") == 3 * in_crop
    for number, member in enumerate(members, start=1):
        names = [f"cyc{number}", f"end{number}"] if in_crop else [f"cyc{number}"]
        stages = [stage for stage in recipe.stages if stage.name in names]
        assert member is stages[-1] and stages[0].starts_from == "", "each cycle goes on from the one before"
        assert member.weight_decay == (2e-4 if in_crop else 5e-5), "a collapse's"
        length, start = sum(stage.iterations for stage in stages), recipe.starts[recipe.stages.index(stages[0])]
        assert length in (8576, 8578)
        for iteration in range(1560, length, 7):  # the cosine; its end in the collapse's view is a square, like a collapse
            cosine = 1.6 * (1 + math.cos(math.pi * iteration / length)) / 2
            tolerance = dict(abs=0.0025 * 1.6) if iteration >= length - in_crop else dict(rel=1e-9)
            assert learning_rate(recipe, start + iteration) == pytest.approx(cosine, **tolerance), iteration
        assert learning_rate(recipe, start) == pytest.approx(0.1 if number == 1 else 1.6)
        assert learning_rate(recipe, start + length - 1) < 1e-6
        assert stages[-1].augmentation == ("none" if in_crop else "scale_aspect")


def test_three_models_share_the_budget_and_nothing_else():
    recipe = RECIPES["three_models"]
    assert 0 <= 25730 - recipe.iterations < 3 and recipe.global_batch == 4096
    for number in (1, 2, 3):
        names = [f"main{number}", f"collapse{number}"]
        assert path(recipe, names[1]) == names and iterations(recipe, names) == 25730 // 3
        assert iterations(recipe, names, "none") == 1560
        assert first_rate(recipe, names[0]) == 0.1 and first_rate(recipe, names[1]) == pytest.approx(
            end_rate(recipe, names[0]), rel=1e-9
        )
        assert (recipe.origin(recipe.stages[2 * number - 2]), recipe.stages[2 * number - 1].member) == (None, True)
    ones = [[dataclasses.replace(stage, name="one", starts_from="") for stage in recipe.stages[first::2]] for first in (0, 1)]
    assert all(stage == stages[0] for stages in ones for stage in stages), "all three are trained alike"


def test_branches_see_the_images_that_follow_their_start_and_new_weights_see_new_ones():
    def first(recipe, name):
        return recipe.places[name].steps

    parts = RECIPES["collapse_parts"]
    assert [first(parts, stage.name) for stage in parts.stages] == [0, *[7638] * 9, 7638 + 402]
    assert [at(parts, 7638 + 402 * branch + 5).place for branch in range(9)] == [(7643, 7643 * 14336)] * 9
    cycles = RECIPES["collapsed_ensemble"]
    init, cycle_1, collapse_1, cycle_2, collapse_2, cycle_3, collapse_3 = cycles.stages
    assert first(cycles, "collapse1") == first(cycles, "cyc2") == init.iterations + cycle_1.iterations
    assert at(cycles, cycles.iterations - 1).place.steps + 1 == sum(
        stage.iterations for stage in (init, cycle_1, cycle_2, cycle_3, collapse_3)
    )
    linear = RECIPES["resnet50_448nodes"]
    assert all(at(linear, step).place == (step, 14336 * step) for step in range(0, linear.iterations, 97))
    three = RECIPES["three_models"]
    assert [first(three, stage.name) for stage in three.stages] == list(three.starts[:-1])


def test_collapse_parts_has_each_combination_of_what_a_collapse_changes():
    recipe, released = RECIPES["collapse_parts"], RECIPES["resnet50_448nodes"]
    main, *ends = recipe.stages
    assert main == released.stages[0] and (recipe.workers, recipe.images_per_worker) == (896, 16)
    statistics, plain = ends.pop(), ends.pop()
    assert plain.name == "plain" and len(ends) == 8 and len({stage.name for stage in ends}) == 8
    assert {stage.starts_from for stage in (*ends, plain)} == {"main"}
    assert recipe.result == ["zero-crop-x2"], "as released"
    assert {stage.iterations for stage in (*ends, plain)} == {402}
    combinations = set()
    for stage in ends:
        rate, view, decay = stage.name.split("-")
        falls = end_rate(recipe, stage.name) < 1e-6
        assert falls == (rate == "zero") and (
            falls or learning_rate(recipe, recipe.starts[recipe.stages.index(stage)] + 401) == 0.254
        )
        assert stage.augmentation == {"main": "scale_aspect", "crop": "none"}[view]
        assert stage.weight_decay == {"x1": 5e-5, "x2": 1e-4}[decay]
        assert first_rate(recipe, stage.name) == 0.254 == pytest.approx(end_rate(recipe, "main", "as_designed"), rel=1e-3)
        combinations.add((falls, stage.augmentation, stage.weight_decay))
    assert len(combinations) == 8
    whole = next(stage for stage in ends if stage.name == "zero-crop-x2")
    assert dataclasses.replace(whole, name="collapse", starts_from="") == released.stages[1]
    uncollapsed, place = RECIPES["resnet50_448nodes_uncollapsed"], recipe.starts[recipe.stages.index(plain)]
    for iteration in range(402):  # the plain end is the uncollapsed run's
        expected = learning_rate(uncollapsed, 7638 + iteration)
        assert learning_rate(recipe, place + iteration) == pytest.approx(expected, rel=1e-9)
    assert (plain.augmentation, plain.weight_decay) == ("scale_aspect", 5e-5)
    assert (statistics.starts_from, statistics.augmentation, statistics.iterations) == ("zero-main-x1", "none", 402)
    first = recipe.starts[recipe.stages.index(statistics)]
    assert {learning_rate(recipe, first + iteration) for iteration in range(402)} == {0.0}, "no weight moves"


@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_of_the_sweep_keeps_images_and_warm_up_and_follows_the_linear_rule(batch):
    base, warm, cold = (
        RECIPES[name] for name in ("resnet50_448nodes_uncollapsed", f"batch_{batch}", f"batch_{batch}_no_warmup")
    )
    for recipe in (warm, cold):
        (stage,) = recipe.stages
        assert recipe.global_batch == batch and recipe.images_per_worker == 16
        assert stage.iterations == round(8040 * 14336 / batch), "the same images, but for half a batch"
        assert stage.base_rate == pytest.approx(4.8 * batch / 14336)
        assert end_rate(recipe, "main") == pytest.approx(0, abs=1e-9)
        assert (stage.weight_decay, stage.augmentation, recipe.model) == (5e-5, "scale_aspect", base.model)
    assert warm.stages[0].warmup_iterations == round(446 * 14336 / batch)
    assert first_rate(warm, "main") == pytest.approx(0.1 * batch / 14336)
    assert cold.stages[0].warmup_iterations == 0 and first_rate(cold, "main") == cold.stages[0].base_rate


@pytest.mark.parametrize("batch", [4096, 14336])
@pytest.mark.parametrize("epochs", LENGTHS)
def test_a_length_scales_each_stage_of_the_448_node_run(epochs, batch):
    recipe, base = RECIPES[f"epochs_{epochs}_batch_{batch}"], RECIPES["resnet50_448nodes"]
    assert recipe.global_batch == batch and recipe.epochs() == pytest.approx(epochs, abs=2 * batch / 1281167)
    for stage, other in zip(recipe.stages, base.stages, strict=True):
        for part in ("iterations", "warmup_iterations", "horizon"):
            share, expected = (getattr(each, part) / whole.iterations for each, whole in ((stage, recipe), (other, base)))
            assert share == pytest.approx(expected, abs=2 / recipe.iterations)
        assert stage.base_rate == pytest.approx(other.base_rate * batch / 14336)
        assert stage.warmup_start_rate == pytest.approx(other.warmup_start_rate * batch / 14336)
        assert (stage.name, stage.power, stage.weight_decay, stage.augmentation) == (
            other.name,
            other.power,
            other.weight_decay,
            other.augmentation,
        )


# --- Recipes of any kind ---------------------------------------------------------------------------------------------------


def test_each_step_belongs_to_one_stage():
    recipe = Recipe("r", (Stage("a", 3, 1.0), Stage("b", 1, 1.0), Stage("c", 2, 1.0)), workers=2, images_per_worker=2)
    assert [(stage.name, iteration) for stage, iteration in map(recipe.stage_at, range(6))] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
        ("c", 0),
        ("c", 1),
    ]
    for step in (-1, 6):
        with pytest.raises(ReproError, match=f"step {step} is outside"):
            recipe.stage_at(step)


@pytest.mark.parametrize(
    "stages, words",
    [
        ((Stage("a", 3, 1.0), Stage("a", 3, 1.0)), "share a name"),
        ((Stage("a", 3, 1.0, starts_from="b"), Stage("b", 3, 1.0)), "starts from b"),
        ((Stage("a", 3, 1.0, warmup_iterations=4),), "warm-up"),
        ((Stage("a", 0, 1.0),), "at least 1"),
        ((), "a tuple of one Stage or more"),
        ([Stage("a", 3, 1.0)], "a tuple of one Stage or more"),
        ((Stage("a", 3, 1.0), Stage("A", 3, 1.0)), "share a name"),
        ((Stage("a", 100, 1.0, horizon=50),), "negative rate: with lr_formula=as_released its decay ends 50 iterations"),
        ((Stage("a", 100, 1.0, horizon=50, power=1.5),), "make horizon larger"),
        ((Stage("a", 100, 1.0, horizon=50, decay="cosine"),), "make horizon larger"),
        ((Stage("a", 100, 1.0, warmup_iterations=10, designed_horizon=60),), "make designed_horizon larger"),
        ((Stage("a", 100, 1.0, drops=(-1,)),), "a drop is -1"),
        ((Stage("a", 100, 1.0, drops=(30.0,)),), "a drop is 30.0"),
        ((Stage("a", 100, 1.0, drops=30),), "a tuple of iterations"),
        ((Stage("a", 3, float("nan")),), "base_rate is nan"),
        ((Stage("a", 3, 1.0, power=float("inf")),), "power is inf"),
        ((Stage("a", 3, 1.0, power=-1),), "power is -1"),
        ((Stage("a", 3, 1.0, weight_decay=True),), "weight_decay is True"),
        ((Stage("a", 3, 1.0, workers=-1),), "workers is -1"),
        ((Stage("a", 3, 1.0, keep_momentum=True),), "keeps momentum, but does not go on"),
        ((Stage("a", 3, 1.0), Stage("b", 3, 1.0, keep_momentum=True, starts_from=NEW_WEIGHTS)), "keeps momentum"),
        ((Stage("a", 3, 1.0), Stage("b", 3, 1.0), Stage("c", 3, 1.0, keep_momentum=True, starts_from="a")), "keeps momentum"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_trained_is_refused(stages, words):
    with pytest.raises(ReproError, match=re.escape(words)):
        Recipe("r", stages, workers=1, images_per_worker=2)


@pytest.mark.parametrize(
    "numbers", [{"bn_momentum": 0}, {"bn_momentum": float("nan")}, {"momentum": 1}, {"momentum": -0.1}], ids=str
)
def test_a_recipes_own_numbers_are_checked(numbers):
    (name,) = numbers
    with pytest.raises(ReproError, match=f"recipe r: {name} is"):
        Recipe("r", (Stage("a", 3, 1.0),), workers=1, images_per_worker=2, **numbers)


@pytest.mark.parametrize("decay", ["polynomial", "cosine"])
@pytest.mark.parametrize("power", [0, 0.5, 1, 1.5, 2])
@pytest.mark.parametrize(
    "warmup, horizon, designed", [(0, 0, 0), (3, 0, 0), (9, 0, 0), (10, 0, 0), (3, 9, 0), (3, 9, 6), (0, 99, 50)]
)
def test_whatever_is_accepted_has_sensible_rates(decay, power, warmup, horizon, designed):
    """Real, and from zero to the base rate: with the shortest horizons that are accepted, too."""
    stage = Stage("a", 10, 1.5, warmup, 0.5, decay, power, horizon, designed)
    recipe = Recipe("r", (stage,), workers=1, images_per_worker=2)
    for formula in ("as_released", "as_designed"):
        rates = [learning_rate(recipe, step, formula) for step in range(10)]
        assert all(isinstance(rate, float) and 0 <= rate <= 1.5 for rate in rates), rates


def test_a_stage_with_workers_of_its_own_keeps_their_share_when_the_recipe_is_made_small():
    stages = Stage("a", 400, 1.0), Stage("b", 400, 1.0, workers=512, keep_momentum=True)
    recipe = Recipe("r", stages, workers=128, images_per_worker=32)
    for small in (shrink(recipe, "laptop", 20_000), at_batch(recipe, 1024)):
        assert small.stages[1].workers == 4 * small.workers and small.stages[1].keep_momentum
        assert small.images() / small.epoch_images == pytest.approx(
            recipe.epochs() * (2 / 15 if small.epoch_images == 20_000 else 1), rel=0.02
        )


PATHS = ["../x", "/tmp/x", "a/b", "", ".", "..", ".a", "-a", "a+b", "a b", "a\n", "a" * 81, "é", None, 3]


@pytest.mark.parametrize("name", PATHS, ids=repr)
def test_a_name_that_is_no_name_of_a_file_is_refused(name):
    for recipe, stage in (("r", name), (name, "s")):
        with pytest.raises(ReproError, match="name is"):
            Recipe(recipe, (Stage(stage, 3, 1.0),), workers=1, images_per_worker=2)


def test_the_number_of_workers_may_grow_from_stage_to_stage():
    """Steps, images and places in the stream, against a loop over the steps that lead to each stage."""
    stages = (
        Stage("a", 3, 1.0),
        Stage("b", 2, 1.0, workers=5),
        Stage("c", 4, 1.0, workers=7, starts_from="a"),
        Stage("d", 2, 1.0, workers=1, starts_from="b"),
        Stage("new", 2, 1.0, workers=2, starts_from=NEW_WEIGHTS),
    )
    recipe = Recipe("r", stages, workers=2, images_per_worker=3, workers_per_pass=2, epoch_images=10)
    batches = {"a": 6, "b": 15, "c": 21, "d": 3, "new": 6}
    on_the_way = {"a": [], "b": ["a"], "c": ["a"], "d": ["a", "b"]}
    seen = 0
    for step in range(recipe.iterations):
        now = at(recipe, step)
        assert (now.step, now.workers * 3) == (step, batches[now.stage.name])
        assert recipe.images(step) == seen and recipe.epochs(step) == seen / 10
        if now.stage.name != "new":
            way = [stage for stage in stages if stage.name in on_the_way[now.stage.name]]
            steps = sum(stage.iterations for stage in way) + now.iteration
            images = sum(stage.iterations * batches[stage.name] for stage in way) + now.iteration * batches[now.stage.name]
            assert now.place == (steps, images)
        else:
            assert now.place == (step, seen), "new weights see new images"
        seen += now.workers * 3
    assert recipe.images() == seen and recipe.passes == 1
    periods = [recipe.images(step) // 25 for step in range(14)]  # 2.5 epochs are 25 images
    assert due(recipe, 2.5) == {step for step in range(1, 14) if step in recipe.starts or periods[step] > periods[step - 1]}


@pytest.mark.parametrize(
    "call, meant",
    [
        (lambda: find("resnet50_448node"), "Did you mean resnet50_448nodes?"),
        (lambda: find("one_model", lr_formula="as_design"), "Did you mean as_designed?"),
        (lambda: find("one_model", lr_formulas="as_designed"), "Did you mean lr_formula?"),
        (lambda: find("one_model", bn_momentum=0.2), "0.05, 0.1"),
        (lambda: shrink(find("one_model"), "labtop", 900), "Did you mean laptop?"),
        (lambda: learning_rate(find("one_model"), 0, "designed"), "Did you mean as_designed?"),
    ],
)
def test_a_misspelt_name_is_told_what_was_meant(call, meant):
    with pytest.raises(ReproError) as caught:
        call()
    assert meant in str(caught.value)


def test_find_sets_any_value_of_any_switch():
    for switch, values in SWITCHES.items():
        for value in values:
            assert getattr(find("resnet50_custom_lr", **{switch: value}), switch) == value
    assert find("default_resnet50_8nodes").bn_momentum == 0.1, "a switch that is not given stays the recipe's"


SMALL = [  # batch_32768 is larger than the images of a rehearsal
    (name, profile)
    for name, recipe in RECIPES.items()
    for profile, small in SHRINKS.items()
    if recipe.global_batch / small.divide_batch <= small.images
]


@pytest.mark.parametrize("name, profile", SMALL)
def test_a_small_recipe_keeps_the_ratios_and_says_so(name, profile):
    large, factor = RECIPES[name], SHRINKS[profile].epochs
    small = shrink(large, profile, images=10**6)
    assert small.name == f"{name}-{profile}" and large.name == name
    assert small.epoch_images == round(SHRINKS[profile].images * large.epoch_images / 1281167)
    half = 0.5001 * small.global_batch / small.epoch_images  # iterations are whole, and at least one
    for stage, tiny in zip(large.stages, small.stages, strict=True):
        for many, few in ((stage.iterations, tiny.iterations), (stage.warmup_iterations, tiny.warmup_iterations)):
            assert small.epochs(few) == pytest.approx(factor * large.epochs(many), abs=half) or few == bool(many)
        for rate, scaled in ((stage.base_rate, tiny.base_rate), (stage.warmup_start_rate, tiny.warmup_start_rate)):
            linear = rate / large.global_batch * small.global_batch
            assert scaled == pytest.approx(SHRINKS[profile].rate * linear)
        assert (tiny.name, tiny.power, tiny.augmentation, tiny.starts_from, tiny.member) == (
            stage.name,
            stage.power,
            stage.augmentation,
            stage.starts_from,
            stage.member,
        )


def test_a_recipe_is_made_small_by_a_shrink_of_ones_own():
    one = dataclasses.replace(SHRINKS["laptop"], name="faster", rate=2 * SHRINKS["laptop"].rate, scale_decay=False)
    known = dict(SHRINKS)
    for recipe in RECIPES.values():
        plain, faster = (shrink(recipe, profile, 20_000) for profile in ("laptop", one))
        assert faster.name == f"{recipe.name}-faster" and faster.iterations == plain.iterations
        assert [stage.base_rate for stage in faster.stages] == [2 * stage.base_rate for stage in plain.stages]
    assert shrink(recipe, SHRINKS["laptop"], 20_000) == plain and known == SHRINKS


def decay_sum(recipe):
    """Sum over all steps of rate times weight decay: how much the weights shrink over the recipe."""
    steps = range(recipe.iterations)
    return sum(learning_rate(recipe, step) * recipe.stage_at(step)[0].weight_decay for step in steps)


@pytest.mark.parametrize("profile, images", [("laptop", 20_000), ("photographs", 55_000)])
@pytest.mark.parametrize("name", RECIPES)
def test_beds_keep_the_share_of_a_batch_and_the_summed_decay(name, profile, images):
    large, small = RECIPES[name], shrink(RECIPES[name], profile, images)
    worker = small.images_per_worker / 20_000  # a batch is whole workers
    assert small.images_per_worker == large.images_per_worker
    assert abs(small.global_batch / 20_000 - large.global_batch / 1281167) <= 0.51 * worker or small.workers == 1
    if large.keep_decay:
        assert [stage.weight_decay for stage in small.stages] == [stage.weight_decay for stage in large.stages]
        return
    for stage, tiny in zip(large.stages, small.stages):  # iterations are whole
        decays = [each.weight_decay * each.base_rate * each.iterations for each in (stage, tiny)]
        assert decays[1] == pytest.approx(decays[0], rel=0.51 / tiny.iterations)
    if large.iterations < 20_000:  # otherwise this loop takes long
        assert decay_sum(small) == pytest.approx(decay_sum(large), rel=0.02)


@pytest.mark.parametrize(
    "profile, seen",
    [("laptop", digits.PREPROCESSING), ("photographs", fashion_mnist.PREPROCESSING)],
    ids=["digits", "photographs"],
)
def test_every_ratio_that_a_bed_does_not_keep_has_a_reason(profile, seen):
    table = ratios.table(seen, profile).set_index(["recipe", "ratio"])
    assert set(table.index.get_level_values(0)) == {"", "resnet50_448nodes", "collapsed_ensemble"}
    assert (table.kept == table.factor.between(0.5, 2)).all()
    assert table.reason[~table.kept].isin(set(ratios.DEPARTURES.values())).all() and (table.reason[table.kept] == "").all()
    for recipe in ratios.COMPARED:
        for ratio in ("batch, share of the training images", "weight decay, sum over the run"):
            assert table.factor[recipe, ratio] == pytest.approx(1, rel=0.02)
        for ratio in ("images per worker", "warm-up, share of the run", "last collapse, share of the run"):
            assert table.factor[recipe, ratio] == pytest.approx(1, rel=0.05)
        assert table.factor[recipe, "epochs"] == pytest.approx(SHRINKS[profile].epochs, rel=0.01)


def test_ratios_of_views_by_hand():
    # A box as large as the image or one pixel less, from 2 x 2 pixels: sides 2 or 1.
    seen = Preprocessing(size=2, short_side=2, mean=(0,), scale=(1,), mirror=True, smallest_area=1.0)
    found = ratios.of_view(seen, draws=1000)
    assert found["median enlargement by the training view"] == 1 and found["seen, share of the stored side"] == 1
    assert found["entropy of the training view, bits"] == 1, "the whole image, mirrored or not"
    free = ratios.of_view(dataclasses.replace(seen, size=16, short_side=18, smallest_area=0.3, mirror=False))
    assert free["entropy of the training view, bits"] == pytest.approx(11.0, abs=0.1), "counted over 200,000 boxes"
    assert free["median enlargement by the training view"] == pytest.approx(1.19, abs=0.01)


def test_ratios_are_of_one_models_lineage():
    large = RECIPES["resnet50_448nodes"]
    found = ratios.of(large)
    assert found["weight decay, sum over the run"] == pytest.approx(decay_sum(large) / (1 - 0.9), rel=1e-9)
    assert found["largest weight decay of a step"] == pytest.approx(4.8 * 5e-5 / 0.1, rel=0.01)
    assert found["warm-up, in horizons of momentum"] == pytest.approx(44.6)
    assert (found["steps"], found["epochs"]) == (8040, large.epochs())
    ensemble = ratios.of(RECIPES["collapsed_ensemble"])
    assert ensemble["steps"] == 7800 + 3750 + 4750 + 4750 + 1560, "not the other collapses"
    assert ensemble["last collapse, share of the run"] == pytest.approx(1560 / 22610)


@pytest.mark.parametrize("name, profile", SMALL)
def test_a_pass_has_as_many_workers_as_the_shrink_allows(name, profile):
    large, small, most = RECIPES[name], shrink(RECIPES[name], profile), SHRINKS[profile].pass_images
    together = small.workers_per_pass * small.images_per_worker
    assert large.workers_per_pass == 1 and large.passes == large.workers
    assert small.workers_per_pass == 1 if not most else together <= most
    if most:  # and with a pass fewer they would not fit
        assert small.workers / (small.passes - 1 or 1) * small.images_per_worker > most or small.passes == 1
    assert (small.passes - 1) * small.workers_per_pass < small.workers <= small.passes * small.workers_per_pass


@pytest.mark.parametrize("profile, small, deep", [("laptop", "resnet11", "resnet38"), ("rehearsal", "resnet50", "resnet152")])
def test_a_small_recipe_has_a_small_model(profile, small, deep):
    assert shrink(RECIPES["one_model"], profile).model == small
    assert shrink(RECIPES["one_deep_model"], profile).model == deep
    assert shrink(dataclasses.replace(RECIPES["one_model"], model="resnet18"), profile).model == "resnet18"


def test_a_small_model_may_be_wider():
    wide = dataclasses.replace(SHRINKS["laptop"], widen=2)
    names = {"one_model": "resnet11x2", "one_deep_model": "resnet38x2"}
    assert {name: shrink(RECIPES[name], wide).model for name in names} == names
    assert shrink(dataclasses.replace(RECIPES["one_model"], model="resnet18"), wide).model == "resnet18"


@pytest.mark.parametrize("formula", ["as_released", "as_designed"])
@pytest.mark.parametrize(
    "name", ["resnet50_448nodes", "resnet50_custom_lr", "collapsed_ensemble", "one_model", "snapshot_ensemble_crop"]
)
def test_a_small_schedule_has_the_shape_of_the_large_one(name, formula):
    """At the same place in each stage the rates agree, but for a step of rounding: decays still end where they did."""
    large, small = RECIPES[name], shrink(RECIPES[name], "laptop", 20_000)
    scale = small.stages[0].base_rate / large.stages[0].base_rate
    for index, (stage, tiny) in enumerate(zip(large.stages, small.stages)):
        for place in (0.3, 0.5, 0.8):
            rate = learning_rate(large, large.starts[index] + int(place * stage.iterations), formula)
            mapped = learning_rate(small, small.starts[index] + int(place * tiny.iterations), formula)
            assert mapped == pytest.approx(scale * rate, abs=scale * stage.base_rate * 2 / tiny.iterations), stage.name


def test_shrink_none_changes_nothing_and_too_few_images_are_an_error():
    assert shrink(RECIPES["one_model"], "none", 900) == RECIPES["one_model"]
    batch = shrink(RECIPES["resnet50_448nodes"], "smoke", 900).global_batch
    with pytest.raises(ReproError, match=f"{batch} images a step, but the data set has only {batch - 1}"):
        shrink(RECIPES["resnet50_448nodes"], "smoke", batch - 1)


@pytest.mark.parametrize("name", RECIPES)
def test_joints_are_where_a_look_at_every_step_finds_them(name):
    recipe, found, before = shrink(RECIPES[name], "laptop"), {}, None
    for step in range(recipe.iterations):
        stage, iteration = recipe.stage_at(step)
        if stage != before:
            found[step] = f"{stage.name} starts"
        elif iteration == stage.warmup_iterations:
            found[step] = f"{stage.name} warm-up ends"
        elif iteration in stage.drops:
            found[step] = f"{stage.name} rate drops"
        before = stage
    assert list(joints(recipe).items()) == list(found.items())


def test_a_joint_that_no_step_reaches_is_none():
    main = Stage("main", 10, base_rate=1.0, warmup_iterations=10, drops=(12,))
    stages = main, Stage("later", 10, base_rate=1.0, drops=(4,)), dataclasses.replace(main, name="last")
    recipe = dataclasses.replace(RECIPES["one_model"], name="short", stages=stages)
    assert joints(recipe) == {0: "main starts", 10: "later starts", 14: "later rate drops", 20: "last starts"}


def test_lr_prints_steps_and_rates():
    said = python("-m", "repro", "lr", "resnet50_448nodes", "--steps", "0,445,446,7638")
    lines = [line.split(",") for line in said.stdout.splitlines()]
    assert [int(step) for step, _ in lines] == [0, 445, 446, 7638]
    assert [float(rate) for _, rate in lines] == pytest.approx([0.1, 4.789462, 4.533731, 0.254], abs=1e-6)
    designed = python("-m", "repro", "lr", "resnet50_448nodes", "--steps", "446", "--formula", "as_designed")
    assert designed.stdout == "446,4.8\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["resnet50_448nodes", "--steps", "0,x"], "0,x"),
        (["resnet50_448nodes", "--steps", "8040"], "steps 0 to 8039"),
        (["resnet50", "--steps", "0"], "unknown recipe 'resnet50'"),
    ],
)
def test_lr_refuses_in_one_line(arguments, words):
    said = python("-m", "repro", "lr", *arguments)
    assert said.returncode == 2 and said.stdout == "" and words in said.stderr
    assert said.stderr.startswith("error: ") and said.stderr.count("\n") == 1


def test_recipes_lists_every_recipe_and_as_json_every_number():
    listing = python("-m", "repro", "recipes").stdout
    assert all(name in listing for name in RECIPES)
    table = json.loads(python("-m", "repro", "recipes", "--json").stdout)
    assert table == json.loads(json.dumps([dataclasses.asdict(recipe) for recipe in RECIPES.values()]))
