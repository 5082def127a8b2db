"""Forecasts what a run will take before anything long starts: hours, node-hours, disk and memory, from a probe of a minute.

For the ranks that make it, a forecast is the measured pace times the work to do; for other ranks or nodes it comes from the
scaling model and is labelled MODEL. Forecasts of the first kind are recorded (`records.predict`), and the report shows them
beside the measured times.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from repro import ReproError, choose, limits, recipes
from repro.evaluate import VIEWS
from repro.images.data import Images
from repro.journal import CHECKPOINT_SECONDS, LONGEST_SECONDS
from repro.paths import replacing, writable_folder
from repro.ranks import comm
from repro.run import checkpoint, identity, records
from repro.run.state import duration
from repro.scaling import steptime
from repro.scaling.probe import machine, probe
from repro.scaling.steptime import INTERCONNECTS, MODEL, Layout
from repro.schedule import Recipe, due
from repro.task import Task, prepare
from repro.task import describe as described

MOST_KEPT = checkpoint.KEPT + 1  # checkpoints on disk at once: the newest, and the one being written
SECONDS = 10.0  # of the probe, where notebook 10-train forecasts what it is about to train


def expected(tasks: list[dict]) -> list[dict]:
    """`task.describe` of each task and, unless it is complete, its forecast: the recorded one, else a new one. Collective.

    A recorded forecast counts if it is for the same number of ranks. All `tasks` have the same `out`.
    """
    world = comm.world()
    plans = [described(**task) for task in tasks]
    with world.together():
        known = records.predictions(Path(plans[0]["folder"]).parent)
        missing = [
            task
            for task, plan in zip(tasks, plans)
            if not plan["complete"] and known.get(Path(plan["folder"]).name, {}).get("ranks") != world.size
        ]
    for new in forecast(world.broadcast(missing), SECONDS) if world.broadcast(missing) else []:
        known[Path(new["folder"]).name] = new
    return [known.get(Path(plan["folder"]).name, {}) | plan for plan in plans]


def forecast(
    tasks: list[dict], seconds: float = 60.0, nodes: int = 0, ranks_per_node: int = 0, network: str = "omni-path"
) -> list[dict]:
    """Forecasts each of `tasks` (parameters of `task.prepare`), measuring for about `seconds`. Collective.

    Tasks with equal steps share a probe. `nodes` and `ranks_per_node` (0: the current ones) are those that the run will use,
    and `network` is the network between nodes if the current ranks are on one node. Returns one dictionary per task, see
    `estimate`; forecasts for the current ranks are recorded.
    """
    world = comm.world()
    with world.together():
        choose("network", network, INTERCONNECTS)
        for name, value in (("nodes", nodes), ("ranks_per_node", ranks_per_node)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ReproError(f"{name} is {value!r}: it must be a whole number, or 0 for the current number")
    prepared = [prepare(**task) for task in tasks]
    with world.together():
        layout = Layout(nodes or world.nodes, ranks_per_node or world.size // world.nodes)
        for task in prepared:
            if layout.ranks > task.recipe.passes:
                raise ReproError(f"{recipes.too_many(task.recipe, layout.ranks)}: plan for fewer nodes or ranks per node")
    subjects = {_subject(task, values): (task, values) for task, values in zip(prepared, tasks)}
    probes = {key: _probe(task, values, seconds / len(subjects)) for key, (task, values) in subjects.items()}
    forecasts = [
        {
            "folder": str(task.run.folder),
            "complete": task.run.complete,
            "step": task.run.newest_step,
            "shrink": task.run.record["shrink"],
        }
        | estimate(task.recipe, probes[_subject(task, values)], len(task.test_images), layout, network)
        | {"data_bytes": _bytes(task.train_images, task.test_images), "when": identity.now()}
        for task, values in zip(prepared, tasks)
    ]
    with world.together():
        if world.rank == 0:
            for task, result in zip(prepared, forecasts):
                if result["label"] != MODEL and not result["complete"]:
                    records.predict(task.run.folder.parent, {task.run.folder.name: result})
    return forecasts


def _subject(task: Task, values: dict) -> tuple:
    """Everything that a step's time depends on, except the number of workers."""
    timed = {key: value for key, value in asdict(task.settings).items() if key != "seed"}
    return (
        task.recipe.model,
        task.recipe.stride,
        task.recipe.images_per_worker,
        task.recipe.workers_per_pass,
        values.get("data", ""),
        task.decoders,
        *sorted(timed.items()),
    )


def _probe(task: Task, values: dict, seconds: float) -> dict:
    """A probe of the task's own step, and the seconds to write one snapshot of its network."""
    parameters = {key: value for key, value in asdict(task.settings).items() if key != "seed"}
    probed = probe(
        task.recipe.model,
        [_pass_images(task.recipe)],
        values.get("data", "digits"),
        stride=task.recipe.stride,
        decoders=task.decoders,
        seconds=seconds,
        images_per_worker=task.recipe.images_per_worker,
        **parameters,
    )
    with tempfile.TemporaryDirectory(dir=task.run.folder.parent) as folder:
        start = time.perf_counter()
        checkpoint.save(Path(folder) / "trial", {"weights": torch.zeros(probed["state_bytes"] // 4)}, {})
        return probed | {"save_seconds": max(comm.world().gather(time.perf_counter() - start))}


def _bytes(*splits: Images) -> int:
    """The size of packed splits on disk."""
    return sum(os.path.getsize(images.packed.path) for images in splits)


def _pass_images(recipe: Recipe) -> int:
    """Images of one pass, which the model of a step's time takes for one worker's."""
    return recipe.workers_per_pass * recipe.images_per_worker


def estimate(recipe: Recipe, probed: dict, test_images: int, layout: Layout, network: str = "omni-path") -> dict:
    """Computes the whole recipe's `seconds` (with a 5 to 95% band), hours and bytes from a probe of one step.

    seconds = iterations x step + tested images / (images/s of evaluation) + saves x seconds per save; all test images are
    tested at each evaluation, and at stages' ends also in the other views (`evaluate.VIEWS`); memory is the probe's measured
    peak per rank. The label is MODEL unless the probe ran on `layout`.
    """
    here = (layout.nodes, layout.nodes * layout.per_node) == (probed["nodes"], probed["ranks"])
    passes = -(-recipe.passes // layout.ranks)

    def step_seconds(fitted: steptime.Fit) -> float:
        if probed["nodes"] > 1:  # the fitted link is the one between nodes: every rank counts as a node
            target, link = Layout(layout.ranks, buckets=probed["buckets"]), fitted.link
        else:
            target, link = layout, INTERCONNECTS[network].link()
        return steptime.step(fitted, target, _pass_images(recipe), passes, link, loaded=True)["total"]

    steps = steptime.band(map(step_seconds, steptime.resampled(probed["rows"], draws=100)))
    timed = min(len(row["seconds"][0]) for row in probed["rows"] if row["kind"] == "compute")
    evaluated = due(recipe, recipe.evaluate_every)
    rows, evaluations = len(evaluated | due(recipe, recipe.record_every)), len(evaluated)
    in_other_views = sum(min(number, test_images) for view, number in VIEWS.items() if view != "test")
    tested = evaluations * test_images + len(recipe.stages) * in_other_views
    evaluating = tested / (probed["evaluated_per_second"] * layout.ranks / probed["ranks"])
    seconds = {}
    for point, step in steps.items():
        running = recipe.iterations * step + evaluating
        saves = 2 * len(recipe.stages)  # snapshot and checkpoint at each stage's end
        saves += max(min(rows, running / CHECKPOINT_SECONDS), running / LONGEST_SECONDS)
        seconds[point] = running + saves * probed["save_seconds"]
    state, momentum = probed["state_bytes"], 4 * probed["parameters"]
    if timed < 3:  # too few to estimate their spread
        seconds["low"] = seconds["high"] = None
    return {
        "label": "measured pace" if here else MODEL,
        "timed_steps": timed,
        "recipe": recipe.name,
        "workers": recipe.workers,
        "global_batch": recipe.global_batch,
        "iterations": recipe.iterations,
        "epochs": recipe.epochs(),
        "images": recipe.images(),
        "ranks": layout.ranks,
        "nodes": layout.nodes,
        "step_seconds": steps["middle"],
        "images_per_s": recipe.global_batch / steps["middle"],
        "evaluations": evaluations,
        "seconds": seconds["middle"],
        "seconds_low": seconds["low"],
        "seconds_high": seconds["high"],
        "hours": seconds["middle"] / 3600,
        "node_hours": layout.nodes * seconds["middle"] / 3600,
        "run_bytes": len(recipe.stages) * state + MOST_KEPT * (state + momentum),
        "rank_bytes": probed["peak_bytes"],
        "node_bytes": layout.per_node * probed["peak_bytes"],
    }


def plan(
    recipe: str,
    hours: float = 0.0,
    seconds: float = 60.0,
    nodes: int = 0,
    ranks_per_node: int = 0,
    network: str = "omni-path",
    record: str = "",
    **parameters,
) -> dict:
    """Forecasts one run and, given a limit of `hours`, the recipe in all its sizes, to find the largest within the limit.

    With `record`, the forecast of the run is written into that JSON file, with the machine and the command.

    Returns {"asked": forecast, "others": forecasts, "largest": shrink or "", "memory": bytes of this machine}. Collective.
    """
    if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not hours >= 0:
        raise ReproError(f"hours is {hours!r}: it must be a number of hours, or 0 for no limit")
    world, asked = comm.world(), {"recipe": recipe, **parameters}
    task, original = prepare(**asked), recipes.find(recipe)
    tasks, ranks = [asked], (nodes or world.nodes) * (ranks_per_node or world.size // world.nodes)
    for shrink in ["none", *recipes.SHRINKS] if hours else []:
        with suppress(ReproError):  # this size needs more images than there are
            fits = recipes.shrink(original, shrink, len(task.train_images.packed)).passes >= ranks
            if fits and shrink != task.run.record["shrink"]:
                tasks.append(asked | {"shrink": shrink})
    forecasts = forecast(tasks, seconds, nodes, ranks_per_node, network)
    feasible = [result for result in forecasts if hours and result["hours"] <= hours]
    largest = max(feasible, key=lambda result: result["images"])["shrink"] if feasible else ""
    memory = limits.memory()
    with world.together():
        if record and world.rank == 0:
            gpu = torch.cuda.get_device_name() if task.settings.device == "cuda" else ""
            _write(Path(record), {**forecasts[0], "gpu": gpu, "memory": memory})
    return {"asked": forecasts[0], "others": forecasts[1:], "hours": hours, "largest": largest, "memory": memory}


def _write(file: Path, planned: dict) -> None:
    command = shlex.join(["python", "-m", "repro", *sys.argv[1:]])
    facts = {"command": command, "version": identity.code_version(), **machine()}
    with replacing(writable_folder(file.parent) / file.name) as temporary:
        temporary.write_text(json.dumps({**facts, **planned}, indent=1))


def describe(planned: dict) -> str:
    """A plan in a few lines."""
    asked, lines = planned["asked"], []
    for result in [asked, *planned["others"]]:
        spread = (
            f"{duration(result['seconds_low'])} to {duration(result['seconds_high'])}"
            if result["seconds_low"]
            else f"{result['timed_steps']} steps timed: no band"
        )
        lines.append(
            f"{result['label']:13} {result['recipe']:42} {result['nodes']} x {result['ranks'] // result['nodes']} ranks: "
            f"{duration(3600 * result['hours'])} ({spread}), {result['node_hours']:.3g} node-hours"
        )
    lines.append(
        f"a step of {asked['global_batch']} images: {asked['step_seconds']:.3g} s, {asked['images_per_s']:.4g} "
        f"images/s; {asked['iterations']} steps, {asked['evaluations']} evaluations"
    )
    lines.append(
        f"disk: run folder {asked['run_bytes'] / 1e6:,.0f} MB, packed data {asked['data_bytes'] / 1e6:,.0f} MB per "
        f"copy; memory: {asked['rank_bytes'] / 1e9:.2f} GB per rank (measured peak), {asked['node_bytes'] / 1e9:.2f} "
        f"GB per node (this machine has {planned['memory'] / 1e9:.0f})"
    )
    if asked["complete"]:
        lines.append(f"already complete: {asked['folder']}")
    elif asked["step"]:
        left = 1 - asked["step"] / asked["iterations"]
        lines.append(f"{1 - left:.0%} of it is done, in {asked['folder']}: {duration(left * 3600 * asked['hours'])} are left")
    if planned["hours"]:
        lines.append(
            f"within {planned['hours']:g} hour{'s' * (planned['hours'] != 1)}: "
            + (
                f"--shrink {planned['largest']} is the largest"
                if planned["largest"]
                else "none of the sizes; use more nodes, or train a part with --steps"
            )
        )
    return "\n".join(lines)
