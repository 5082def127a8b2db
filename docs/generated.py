"""What the site's pages say that the code says already: recipes, commands and their options, columns of tables.

A page marks the place by <!-- generated: NAME -->, where NAME is a key of PLACES.
"""

import argparse
import re

from repro.cli.arguments import Parser
from repro.cli.commands import US, parser
from repro.paper.names import COLUMNS
from repro.recipes import SHRINKS
from repro.recipes.baselines import BASELINES
from repro.recipes.controls import CONTROLS
from repro.recipes.released import RELEASED
from repro.schedule import Recipe

from write_numbers import table

PLACE = re.compile(r"<!-- generated: ([\w-]+) -->")


def fill(app, name: str, source: list[str]) -> None:
    """Sphinx's `source-read`: fills every place that the page marks."""
    source[0] = PLACE.sub(lambda found: PLACES[found[1]](), source[0])


# --- Commands ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    """A section for each command of `python -m repro`, from its parser."""
    (listed,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return "\n\n".join(command(name, subparser) for name, subparser in listed.choices.items())


def command(name: str, subparser: Parser) -> str:
    arguments = [action for action in subparser._actions if action.dest != "help"]
    needed = [written(action) for action in arguments if action.required]
    usage = " ".join([US, name, *needed, *(["[OPTION ...]"] if len(needed) < len(arguments) else [])])
    parts = [f"## {name}", subparser.description or "", f"```\n{usage}\n```"]
    rows = [[f"`{written(action)}`", meaning(subparser, action)] for action in arguments]
    if rows:
        parts.append(table("argument | meaning", rows))
    parts.append(f"For example:\n\n```\n{subparser.example.strip()}\n```")
    return "\n\n".join(parts)


def written(action: argparse.Action) -> str:
    """How an argument is written: `--seed SEED`, `--json`, `FILE`."""
    value = str(action.metavar or action.dest.upper())
    return " ".join([*action.option_strings[-1:], *([value] if action.nargs != 0 else [])])


def meaning(subparser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = subparser._get_formatter()._expand_help(action) if action.help else ""
    missing = [str(choice) for choice in action.choices or () if str(choice) not in text]
    return text + (f" ({', '.join(map(str, action.choices or ()))})" if missing else "")


# --- Recipes ----------------------------------------------------------------------------------------------------------


def released() -> str:
    rows = [[*row(recipe), recipe.reported or "not stated"] for recipe in RELEASED]
    return table(f"{HEAD} | top-1 / top-5, %", rows)


def controls() -> str:
    return table(HEAD, [row(recipe) for recipe in CONTROLS])


def baselines() -> str:
    return table(HEAD, [row(recipe) for recipe in BASELINES])


HEAD = "recipe | batch | epochs | stages"


def row(recipe: Recipe) -> list:
    stages = ", ".join(stage.name for stage in recipe.stages)
    batch = f"{recipe.global_batch} = {recipe.workers} x {recipe.images_per_worker}"
    return [f"`{recipe.name}`<br>{recipe.summary}", batch, f"{recipe.epochs():.2f}", stages]


def shrinks() -> str:
    return table("shrink | what it does", [[f"`{name}`", shrink.summary] for name, shrink in SHRINKS.items()])


# --- Results ----------------------------------------------------------------------------------------------------------


def columns() -> str:
    described = {name: column.meaning for name, column in COLUMNS.items() if column.meaning}
    return table("column | meaning", [[f"`{name}`", meaning] for name, meaning in described.items()])


PLACES = {
    "commands": commands,
    "released": released,
    "controls": controls,
    "baselines": baselines,
    "shrinks": shrinks,
    "columns": columns,
}
