"""The ablation of the release's switches: one change each, asked where it can act, and listed where it cannot."""

from dataclasses import fields, replace

import pytest
import torch

from repro.paper import switches
from repro.paper.questions import of
from repro.recipes import RECIPES
from repro.recipes.baselines import ABLATION, SWITCHED_TO_LARS
from repro.recipes.released import resnet50_448nodes
from repro.resnet import build
from repro.run.identity import TEXTS
from repro.schedule import Recipe

CHANGED = {
    "as_designed": {"lr_formula": "as_designed"},
    "corrected": {"momentum_correction": "warmup"},
    "norms_not_decayed": {"decay_bn": False},
    "no_zero_gamma": {"zero_gamma": "none"},
    "bn_momentum": {"bn_momentum": 0.1},
    "stride_v1": {"stride": "v1"},
    "cycles_as_designed": {"lr_formula": "as_designed"},
}
KEPT = "kept_momentum", "cycles_kept_momentum"


def differences(one: Recipe, other: Recipe) -> dict:
    names = [field.name for field in fields(Recipe) if field.name not in ("name", *TEXTS)]
    return {name: getattr(one, name) for name in names if getattr(one, name) != getattr(other, name)}


def base(name: str) -> Recipe:
    return RECIPES["resnet50_custom_lr" if name.startswith("cycles") else "resnet50_448nodes"]


RECIPES_OF = *ABLATION, SWITCHED_TO_LARS.recipe


@pytest.mark.parametrize("recipe", RECIPES_OF, ids=[recipe.name for recipe in RECIPES_OF])
def test_an_ablation_changes_one_thing(recipe):
    name = recipe.name.removeprefix("ablation_")
    changed = differences(recipe, base(name))
    if "lars" in name:
        factors = [stage.base_rate / plain.base_rate for stage, plain in zip(recipe.stages, base(name).stages)]
        assert set(changed) == {"stages", "update", "update_numbers", "keep_decay"} and factors == pytest.approx(
            factors[:1] * 2
        )
        assert recipe.stages[0].base_rate == pytest.approx(32 * (14336 / 32768) ** 0.5 * SWITCHED_TO_LARS.value)
        return
    if name not in KEPT:
        assert changed == CHANGED[name]
        return
    assert set(changed) == {"stages"}
    released = {stage.name: stage for stage in base(name).stages}
    for stage in recipe.stages:
        plain = replace(stage, keep_momentum=False, starts_from="", name="collapse" if stage.name == "kept" else stage.name)
        assert replace(plain, member=released[plain.name].member) == released[plain.name]
    keeping = [stage.name for stage in recipe.stages if stage.keep_momentum]
    assert keeping == (["kept"] if name == "kept_momentum" else list(released)[1:])
    assert recipe.result == ["collapse"]


def test_both_collapses_start_from_one_model_and_see_the_same_images():
    recipe = RECIPES["ablation_kept_momentum"]
    kept, released = recipe.stages[1:]
    assert recipe.origin(kept) is recipe.origin(released) is recipe.stages[0]
    assert recipe.places["kept"] == recipe.places["collapse"]
    (question,) = [each for each in of(["ablation"]) if each.better.recipe == recipe.name]
    assert question.paired and (question.better.members, question.other.members) == ("collapse", "kept")


@pytest.fixture(scope="module")
def acting(digits):
    return switches.acting(digits).set_index(["switch", "value"])


def test_what_can_act_is_asked_and_what_cannot_is_not(acting):
    asked = [differences(RECIPES[question.other.recipe], resnet50_448nodes) for question in of(["ablation"])]
    for (name, value), row in acting.iterrows():
        found = any(str(changed.get(name)) == value for changed in asked) or name in ("keep_momentum", "lars")
        assert found == (row.weights_differ or row.statistics_differ), name


def test_the_switches_that_change_no_weights(acting):
    """bn_momentum decides only with which statistics a model is tested; a group of one block has only its last one."""
    assert list(acting.index[~acting.weights_differ]) == [("zero_gamma", "all_blocks"), ("bn_momentum", "0.1")]
    assert list(acting.index[~acting.statistics_differ]) == [("zero_gamma", "all_blocks")]
    for name, same in (("resnet11", True), ("resnet38", False)):
        weights = []
        for zero_gamma in ("last_of_stage", "all_blocks"):
            torch.manual_seed(0)
            weights.append(torch.cat([value.flatten() for value in build(name, 10, 1, zero_gamma=zero_gamma).parameters()]))
        assert torch.equal(*weights) == same


def test_a_switch_that_changes_no_weights_is_compared_seed_by_seed(acting):
    alike = {f"ablation_{name}" for (name, _), row in acting.iterrows() if row.statistics_differ and not row.weights_differ}
    paired = {each.other.recipe for each in of(["ablation"]) if each.paired and each.better.recipe != each.other.recipe}
    assert paired == alike == {"ablation_bn_momentum"}


def test_the_two_norms_of_lars_give_other_weights(digits):
    plain, decayed = (recipe for (name, _), recipe in switches.variants().items() if name == "lars")
    one, other = (switches._first_steps(recipe, digits, "laptop")[0] for recipe in (plain, decayed))
    assert not torch.equal(one, other) and differences(plain, decayed) == {"update": "repro.baselines.lars:LARS"}


def test_a_switch_that_does_nothing_is_found(digits, monkeypatch):
    monkeypatch.setattr(switches, "variants", lambda: {("lr_formula", "as_released"): replace(resnet50_448nodes)})
    (row,) = switches.acting(digits).itertuples()
    assert not row.weights_differ and not row.statistics_differ
