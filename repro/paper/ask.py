"""Asks questions: trains the runs that they need, unless they are there, and answers them. `repro.ask`, and notebook 12.

The paper's own questions (`questions.QUESTIONS`) are one list of them. No torch here: the engines train.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import pandas as pd

from repro import ReproError, choose, cores, recipes
from repro.jupyter import engines, notebooks, progress
from repro.paper import answering, questions, statistics, tables
from repro.paper.answering import Question, Side
from repro.paths import REFERENCE, RUNS, given
from repro.run import own, records
from repro.run.identity import code_digest
from repro.run.settings import MEANS, PRECISIONS
from repro.schedule import MODELS, Recipe

LIST = "a list of questions, each a repro.Question"
LINE = 100  # characters: JupyterLab breaks longer ones within words
DEEP = {"resnet152": 3.0, "resnet38": 3.0}  # what an image of the deep networks costs, in images of the other


def ask(
    asked: Sequence[Question],
    seeds: Iterable[int],
    *,
    data: str = "digits",
    shrink: str = "",
    out: Path | str = RUNS,
    engine: engines.Cluster | None = None,
    live: bool | None = None,
    apart: bool = True,
    reference: Path | None = REFERENCE / "runs",
) -> pd.DataFrame:
    """Trains what the questions need, one run a core, and returns their answers; says them in sentences as well.

    Each side is trained once per seed. Complete runs are left unchanged, interrupted ones are continued. `data`, `out` and
    `shrink` are as for `task.prepare`, except that all sides have the same shrink: by default laptop if one of them is a recipe
    of ours, and none otherwise. `engine` is a running one; without it, ranks are started here, and ended. `live` and `apart`
    are as for `notebooks.train_all`.

    Runs in the folder `reference` stand on a side, with all their seeds, if this code would train the same weights: they
    have its name, which is that of code, images, numbers and settings, and the same processor kernels. Before training, it
    says how many runs there are, and how many core-minutes such runs took in the reference, if it has any.

    Returns the table of `answering.answers` with the columns better and other (the sides, in words), needed and
    needed_at_most (`needed`). Raises ReproError, before anything runs, for questions or seeds that cannot be answered.
    """
    asked, seeds = spelt_out(asked), list(seeds)
    labels = labelled(asked)
    shrink = shrink or ("laptop" if any(recipe.name in recipes.RECIPES for recipe, *_ in labels) else "none")
    if len(set(seeds)) < statistics.FEWEST and shrink != "smoke":
        raise ReproError(f"seeds is {seeds}: an interval takes {statistics.FEWEST} different ones or more, such as range(6)")
    for recipe, model, *_ in labels:
        notebooks.check_run([recipe], data, shrink, seeds, 0, model)
    with nullcontext(engine) if engine else engines.start(min(cores(), len(labels) * len(seeds))) as cluster:
        missing, used = _plan(cluster, asked, seeds, dict(data=data, shrink=shrink, out=str(out)), reference)
        sides = [*(side for question in asked for side in question.sides), *spelt_out_sides(questions.GROWING)]
        live = progress.in_notebook() if live is None else live
        if missing:
            notebooks.train_all(cluster, missing, ensembles(sides), live, apart)
    plain = [
        question._replace(better=_by_label(question.better, labels), other=_by_label(question.other, labels))
        for question in asked
    ]
    answers = answering.answers(plain, _models(used, labels), "")
    answers["better"], answers["other"] = zip(*(map(_words, question.sides) for question in plain))
    answers["needed"], answers["needed_at_most"] = zip(*(needed(row)[1:] for row in answers.itertuples()))
    print("\n".join(fill(line, LINE, break_long_words=False, break_on_hyphens=False) for line in told(answers)))
    return answers


# --- What is asked ----------------------------------------------------------------------------------------------------


def load(name: str) -> list[Question]:
    """The questions in a file of the user's, such as mine.py:questions, spelt out.

    A file that a side names, such as another.py:my_net, is looked for beside that of the questions, then in the working
    directory.
    """
    if not own.is_own(name):
        raise ReproError(f"{name!r} names no questions: name a file and {LIST}, as in mine.py:questions")
    return spelt_out(own.load(name), name, beside=given(name.rpartition(":")[0]).parent if ".py:" in name else None)


def spelt_out(asked: Sequence[Question], name: str = "questions", beside: Path | None = None) -> list[Question]:
    """The questions with each side's recipe, stages and average. Raises ReproError for what cannot be asked.

    `beside` is the folder of the file that they are from, for the files that they name.
    """
    asked = [asked] if isinstance(asked, Question) else asked
    if not isinstance(asked, (list, tuple)) or not asked or not all(isinstance(each, Question) for each in asked):
        raise ReproError(f"{name} is {asked!r:.60}: it must be {LIST}")
    found = []
    for question in asked:
        better, other = spelt_out_sides(question.sides, beside)
        if better == other:
            raise ReproError(f"both sides of {question.claim!r} are {_words(better)}: name two different models")
        found.append(question._replace(better=better, other=other))
    return found


def spelt_out_sides(sides: Iterable[Side], beside: Path | None = None) -> list[Side]:
    found = []
    for side in sides:
        if not isinstance(side, Side):
            raise ReproError(f"a side is {side!r:.60}: it must be a repro.Side, such as Side('one_model')")
        side = side._replace(**_placed(beside, side, "recipe", "model", "update"))
        recipe = recipes.find(side.recipe)
        recipe = replace(recipe, **_placed(beside, recipe, "model", "update"))
        members = [member.strip() for member in side.members.split("+")] if side.members else recipe.result
        for member in members:
            choose(f"stage of {recipe.name}", member, [stage.name for stage in recipe.stages])
        if side.model and not own.is_own(side.model):
            choose("model", side.model, MODELS)
        choose("precision", side.precision, PRECISIONS)
        average = choose("average", side.average or ("softmax" if members[1:] else ""), ["", *MEANS])
        found.append(side._replace(recipe=recipe, members=" + ".join(members), average=average))
    return found


def _placed(folder: Path | None, of: Side | Recipe, *parts: str) -> dict[str, Any]:
    """Those of these parts that name a file which is in the folder, as its path there."""
    named = {part: name for part in parts if own.is_own(name := getattr(of, part))} if folder else {}
    return {part: str(folder / name) for part, name in named.items() if folder and (folder / name.rpartition(":")[0]).is_file()}


def labelled(asked: list[Question]) -> dict[tuple, str]:
    """A name for each training: its recipe's, with another model, rule or precision."""
    labels = {}
    for training in dict.fromkeys(side.training for question in asked for side in question.sides):
        recipe, *others = training
        label = ", ".join([recipe.name, *(own.short(other) for other in others if other not in ("", "auto"))])
        if label in labels.values():
            raise ReproError(f"two different recipes, models or rules are called {label}: rename one of them")
        labels[training] = label
    return labels


def _by_label(side: Side, labels: dict[tuple, str]) -> Side:
    """The side with its training's label as the recipe, as `_models` has it."""
    return side._replace(recipe=labels[side.training], model="", update="", precision="auto")


def _words(side: Side) -> str:
    recipe = side.recipe if isinstance(side.recipe, str) else side.recipe.name
    return f"{recipe} ({side.average + ' mean of ' if side.average else ''}{side.members})"


# --- What it takes ----------------------------------------------------------------------------------------------------


def tasks(asked: Sequence[Question], seeds: Iterable[int], **parameters) -> list[dict]:
    """The runs that questions need, as parameters of `train.train`, seed by seed; `parameters` are the other ones."""
    trainings = dict.fromkeys(side.training for question in asked for side in question.sides)

    def cost(training: tuple) -> float:
        recipe = recipes.find(training[0])
        return recipe.images() * DEEP.get(recipe.model, 1)

    # The longest first: at the end no rank has to wait long for another.
    ordered = [
        dict(zip(("recipe", "model", "update", "precision"), each)) for each in sorted(trainings, key=cost, reverse=True)
    ]
    return [training | {"seed": seed} | parameters for seed in seeds for training in ordered]


def ensembles(sides: Iterable[Side]) -> dict:
    """The ensembles to evaluate at the end of each recipe's run: (stages, what of them is averaged)."""
    wanted: dict = {}
    for side in sides:
        entry = side.members.split(" + "), side.average
        if side.average and entry not in wanted.setdefault(side.recipe, []):
            wanted[side.recipe].append(entry)
    return wanted


def _plan(
    cluster: engines.Cluster, asked: list[Question], seeds: list[int], parameters: dict, reference: Path | None
) -> tuple[list[dict], dict[tuple, list[Path]]]:
    """The runs that are to be trained, and the folders of all that stand for each training; says which are the reference's."""
    stored = {folder.name: records.read(folder) for folder in records.complete_runs(reference)} if reference else {}
    wanted = tasks(asked, sorted({*seeds, *(run["settings"]["seed"] for run in stored.values())}), **parameters)
    plans = cluster.run("repro.task:describe_all", wanted)[0]
    sides = [side for question in asked for side in question.sides]
    missing, used = [], {}
    for task, plan in zip(wanted, plans):
        training, folder = tuple(task[part] for part in ("recipe", "model", "update", "precision")), Path(plan["folder"])
        files, run = {side.file for side in sides if side.training == training}, stored.get(folder.name, {})
        if run and reference and run.get("kernels") == plan["kernels"] and files <= {*records.tested(reference / folder.name)}:
            used.setdefault(training, []).append(reference / folder.name)
        elif task["seed"] in seeds:
            used.setdefault(training, []).append(folder)
            missing.append(task)
    for question in asked:
        better, other = ((used[side.training], side.file) for side in question.sides)
        if better == other:
            raise ReproError(f"both sides of {question.claim!r} are the same run: {better[0][0].name}")
    data = Path(parameters["data"]).name
    for training, label in labelled(asked).items():
        kind = training[0].name, parameters["shrink"], data
        alike = [run for run in stored.values() if (run["base"], run["shrink"], run["data"]["name"]) == kind]
        if number := sum(folder.parent == reference for folder in used[training]):
            print(f"{label}: {number} runs of the reference stand here, as code, images and processor kernels are the same")
        elif alike:
            why = _otherwise(alike[0], plans[0])
            print(f"{label}: the reference's runs cannot stand here, as they were trained {why}; so runs of this code do")
    to_train = [(task["recipe"], plan) for task, plan in zip(wanted, plans) if task in missing and not plan["complete"]]
    if done := len(missing) - len(to_train):
        print(f"runs that are complete, and not trained again: {done}")
    if to_train:
        alike = [run for run in stored.values() if (run["shrink"], run["data"]["name"]) == (parameters["shrink"], data)]
        print(f"runs to train: {len(to_train)}{_cost(to_train, alike, parameters['shrink'])}")
    return missing, used


def _cost(to_train: list[tuple[Recipe, dict]], alike: list[dict], shrink: str) -> str:
    """The core-minutes of these runs, in words, from finished runs of their shrink and data; "" if there are none."""
    known = core_seconds(alike)
    theirs = {name: recipes.shrink(recipes.find(name), shrink) for name in known if name in recipes.RECIPES}
    work = {name: recipe.images() * DEEP.get(recipe.model, 1) for name, recipe in theirs.items()}
    work |= {recipe.name: plan["images"] * DEEP.get(recipe.model, 1) for recipe, plan in to_train}
    seconds = costs(work, known)
    if not seconds:
        return ""
    minutes = sum(seconds[recipe.name] for recipe, _ in to_train) / 60
    machines = " and ".join(sorted({run["processor"] for run in alike}))
    return f", about {minutes:.0f} core-minutes if an image takes as long as in the reference ({machines})"


def costs(work: dict[str, float], known: dict[str, float]) -> dict[str, float]:
    """Core-seconds of a run of each recipe whose work is in images: what is known, and for the others their images at the same
    pace. Empty if none is known."""
    pace = [known[name] / work[name] for name in work if name in known]
    return {name: known.get(name, median(pace) * images) for name, images in work.items()} if pace else {}


def core_seconds(runs: Iterable[dict]) -> dict[str, float]:
    """What a run of each recipe took, by these records: median seconds, times ranks."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if run["status"] == "complete" and not run["variant"]:
            found.setdefault(run["base"], []).append(run["seconds"] * run["ranks"])
    return {name: median(seconds) for name, seconds in found.items()}


def _otherwise(run: dict, plan: dict) -> str:
    if run["code"] != code_digest():
        return f"by other code ({run['version']})"
    if run.get("kernels") != plan["kernels"]:
        return f"by other kernels ({run.get('kernels')}; here {plan['kernels']})"
    return "on other images, or with other numbers or settings"


# --- The answers ------------------------------------------------------------------------------------------------------


def _models(used: dict[tuple, list[Path]], labels: dict[tuple, str]) -> pd.DataFrame:
    """`tables.models` of the runs that stand for each training, with its label as the recipe, and whole paths as folders."""
    rows = []
    for out in {folder.parent for folders in used.values() for folder in folders}:
        names = {training: [folder.name for folder in folders if folder.parent == out] for training, folders in used.items()}
        table = tables.models(out, [name for each in names.values() for name in each])
        for training, label in labels.items():
            part = table[table.folder.isin(names[training])]
            rows.append(part.assign(folder=f"{out}/" + part.folder, recipe=label, variant="", default_model=True))
    return pd.concat(rows, ignore_index=True)


def needed(row) -> tuple[float, float, float]:
    """Of a row of `answering.answers`: the upper limit of its sd; the seeds per side that put its difference into an interval
    of +-`statistics.MARGIN` points, by its sd; the same by the limit. Missing without a spread, and for rank tests.
    """
    n = min(row.n, row.n_other)
    if n < statistics.FEWEST or not row.sd > 0 or row.compared == "exact ranks":
        return statistics.NONE, statistics.NONE, statistics.NONE
    paired = row.compared == "paired t"
    limit = statistics.sd_limit(row.sd, n, paired)
    return limit, statistics.needed(row.sd, paired), statistics.needed(limit, paired)


def told(answers: pd.DataFrame) -> list[str]:
    """The answers of `ask`, each in a sentence or two."""
    lines = []
    for row in answers.itertuples():
        line = f"{row.claim}: {row.verdict}. {row.better} has {row.top1:.2f}%, {row.other} {row.against:.2f}%, with"
        line += f" n = {row.n} and {row.n_other} seeds; the first minus the second is {row.difference:+.2f} points"
        line += f" ({'no interval' if pd.isna(row.low) else f'95% interval {row.low:+.2f} to {row.high:+.2f}'})"
        line += f"; with the test images enlarged {row.difference_zoom:+.2f}{_interval(row.low_zoom, row.high_zoom)}, cut as in"
        line += f" training {row.difference_scale_aspect:+.2f}{_interval(row.low_scale_aspect, row.high_scale_aspect)}."
        if row.hangs_on > 0:
            line += f" The verdict hangs on {row.hangs_on:.0f} of the seeds: without any one of them it would be another."
        if row.shrink == "smoke":
            line += " Tiny runs resolve nothing."
        elif row.verdict == "not resolved" and row.needed > 0:
            few, most = min(row.n, row.n_other), row.needed_at_most
            line += f" To know the difference to within {row.margin:g} points takes about {row.needed:.0f} seeds a side if"
            line += f" seeds differ as much as these do. But {few} seeds show that only roughly: it may take up to {most:.0f} a"
            line += " side."
        lines.append(line)
    return lines


def _interval(low: float, high: float) -> str:
    return "" if pd.isna(low) else f" ({low:+.2f} to {high:+.2f})"
