"""What a run's files must hold for those who read them. They hold more."""

from dataclasses import MISSING, fields
from typing import Any, get_origin

from repro import ReproError
from repro.paths import NUMBER, check_shape, is_name
from repro.run.settings import Settings
from repro.schedule import Recipe, Stage


def _shape(kind) -> dict:
    """The shape of a dataclass in JSON."""
    shapes: dict[Any, Any] = {float: NUMBER, tuple: list}
    return {field.name: shapes.get(get_origin(field.type) or field.type, field.type) for field in fields(kind)}


RUN = {
    **dict.fromkeys(("base", "shrink", "model", "variant", "model_source", "code", "status", "start", "version"), str),
    "ranks": int,
    "recipe": {**_shape(Recipe), "stages": [_shape(Stage)]},
    "settings": _shape(Settings),
    "data": {**dict.fromkeys(("name", "train", "test"), str), "originals": int},
    "packages": dict,
    "attempts": [dict],
}
COUNTS: dict = dict.fromkeys(("images", "top1", "top5"), int)
COMPLETE = {"seconds": NUMBER, "weights_sha256": str}  # and "ends", the last row of each stage
ROW = {**{"step": int, "stage": str}, **dict.fromkeys(("epoch", "rate", "train_loss", "train_top1", "seconds"), NUMBER)}
ENSEMBLES = [{"members": [str], "average": str, **COUNTS}]


def checked_run(run: dict, place: str, otherwise: str) -> dict:
    """Returns what run.json holds; what recipe and settings did not have yet when it was written has its default.

    Raises ReproError, which names the place that it comes from, if it is no run, or has names that none of ours has: files
    and folders are named after recipe, stages and data set.
    """
    recipe, settings = _filled(Recipe, run["recipe"]), _filled(Settings, run.get("settings"))
    if isinstance(recipe, dict) and isinstance(recipe.get("stages"), list):
        recipe["stages"] = [_filled(Stage, stage) for stage in recipe["stages"]]
    run |= {"recipe": recipe, "settings": settings}
    try:
        check_shape(run, RUN)
        recipe_of(run)
        if not is_name(run["data"]["name"]):
            raise ValueError(f"a data set's name is {run['data']['name']!r}")
        if run["status"] == "complete":
            check_shape(run, {**COMPLETE, "ends": {stage["name"]: COUNTS for stage in recipe["stages"]}})
    except (ValueError, TypeError, ReproError) as error:
        raise ReproError(f"{place} is damaged ({error}): {otherwise}") from error
    return run


def _filled(kind, values):
    if not isinstance(values, dict):
        return values
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()} | values


def recipe_of(run: dict) -> Recipe:
    """The recipe of a run, from its run.json."""
    stages = tuple(Stage(**_with_tuples(stage)) for stage in run["recipe"]["stages"])
    return Recipe(**_with_tuples(run["recipe"]) | {"stages": stages})


def _with_tuples(value):
    """A value from JSON with tuples instead of lists."""
    if isinstance(value, dict):
        return {name: _with_tuples(part) for name, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
