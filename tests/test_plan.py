"""The plan that is written down before the runs: every change of it is listed, with a reason or as without one."""

import json
from dataclasses import replace

from repro.paper import plan, profiles, questions


def test_the_committed_plan_is_kept_or_each_deviation_has_a_reason():
    assert plan.LOCK.exists() and all(plan.deviations().values()), plan.told()


def test_each_change_of_the_plan_is_listed_until_it_is_taken_back(tmp_path, monkeypatch):
    lock = tmp_path / "plan.lock.json"
    assert plan.deviations(lock) == {} and plan.told(lock) == []
    plan.write("before the runs", lock)
    assert plan.deviations(lock) == {}
    first, *others = questions.QUESTIONS
    with monkeypatch.context() as changed:
        changed.setattr(plan, "QUESTIONS", [first._replace(not_worse_by=9.0), *others[1:]])
        changed.setitem(profiles.FULL, "length", 7)
        names = {f"question: {first.claim}", f"question: {others[0].claim}", "seeds: length"}
        assert plan.deviations(lock) == dict.fromkeys(names, "")
        assert sum("WITHOUT A REASON" in line for line in plan.told(lock)) == 3
        plan.write("a referee asked", lock)
        assert plan.deviations(lock) == dict.fromkeys(names, "a referee asked")
        changed.setitem(profiles.FULL, "length", 8)  # for which no reason was given
        assert plan.deviations(lock)["seeds: length"] == ""
    [entry] = json.loads(lock.read_text())["deviations"]
    assert plan.deviations(lock) == {} and entry["parts"].keys() == names


def test_the_parts_are_what_answers_depend_on(monkeypatch, tmp_path):
    before = plan.parts()
    recipe = plan.RECIPES["one_model"]
    monkeypatch.setitem(plan.RECIPES, "one_model", replace(recipe, momentum=0.8))
    assert {name for name, digest in plan.parts().items() if before[name] != digest} == {"recipe: one_model"}
    assert before["default: Recipe.momentum"] == "0.9" and before["default: Question.not_worse_by"] == "0.0"
    assert {"statistics: holm", "statistics: MARGIN", "choice: largest_stable", "seeds: batch"} <= set(before)


def test_what_a_recipe_has_computed_is_no_change_of_the_plan():
    before = plan.parts()
    assert all(recipe.starts for recipe in plan.RECIPES.values()) and plan.parts() == before
