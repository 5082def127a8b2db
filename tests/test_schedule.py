"""Learning rates and recipes against the released solver files, transcribed here a second time."""

import dataclasses
import json

import pytest

from repro import ReproError
from repro.recipes import RECIPES, SHRINKS, find, shrink
from repro.schedule import SWITCHES, Recipe, Stage, learning_rate

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
OWN = {
    "resnet50_448nodes_no_warmup": {
        "main": dict(batch=14336, runs=7638, base=4.8, power=1, horizon=8040),
        "collapse": COLLAPSE_448,
    },
    "collapsed_ensemble": {
        "init": INIT,
        "cyc1": CYCLE_1,
        "collapse1": COLLAPSE | dict(base=0.255),
        "cyc2": CYCLE_2,
        "collapse2": COLLAPSE | dict(base=0.191),
        "cyc3": CYCLE_3,
        "collapse3": COLLAPSE,
    },
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
    assert set(SOLVERS) == set(WORKERS) and set(RECIPES) == {*SOLVERS, *OWN, "one_model"}  # the last has a test of its own


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
        ("one_model", 82.261),
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
        ("one_model", "main", "collapse", 0.1033, 0.0970),
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
    for name, factor in (("resnet50_448nodes", 2), ("resnet50_custom_lr", 4), ("collapsed_ensemble", 4), ("one_model", 4)):
        for stage in RECIPES[name].stages:
            collapse = stage.name.startswith("collapse")
            assert stage.augmentation == ("none" if collapse else "scale_aspect")
            assert stage.weight_decay == pytest.approx(5e-5 * (factor if collapse else 1))
            assert stage.member == collapse


def test_one_model_costs_as_many_iterations_as_the_ensemble():
    assert RECIPES["one_model"].iterations == RECIPES["collapsed_ensemble"].iterations == 25730
    assert RECIPES["one_model"].global_batch == RECIPES["collapsed_ensemble"].global_batch


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
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused(stages, words):
    with pytest.raises(ReproError, match=words):
        Recipe("r", stages, workers=1, images_per_worker=2)


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


@pytest.mark.parametrize("profile", SHRINKS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_small_recipe_keeps_the_ratios_and_says_so(name, profile):
    large, factor = RECIPES[name], SHRINKS[profile].epochs
    small = shrink(large, profile, images=10**6)
    assert small.name == f"{name}-{profile}" and large.name == name
    assert small.epoch_images == SHRINKS[profile].images
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


@pytest.mark.parametrize("formula", ["as_released", "as_designed"])
@pytest.mark.parametrize("name", ["resnet50_448nodes", "resnet50_custom_lr", "collapsed_ensemble", "one_model"])
def test_a_small_schedule_has_the_shape_of_the_large_one(name, formula):
    """At the same place in each stage the rates agree, but for a step of rounding: decays still end where they did."""
    large, small = RECIPES[name], shrink(RECIPES[name], "laptop", 900)
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
