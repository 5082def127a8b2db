"""What a run will take, before anything long starts: hours, node-hours, disk and memory, from a probe of a minute.

For the ranks at hand it is measured pace times what is to do; for other ranks or nodes it is the scaling model's, labelled
MODEL. Predictions for the ranks at hand are kept (`records.predict`), and the report shows them beside the measured times.
"""

import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from repro import ReproError, checkpoint, choose, comm, recipes, records, train
from repro.journal import CHECKPOINT_SECONDS, LONGEST_SECONDS
from repro.packed import pack_embedded
from repro.scaling import steptime
from repro.scaling.probe import probe
from repro.scaling.steptime import INTERCONNECTS, MODEL, Layout
from repro.schedule import Recipe
from repro.train import Task

MOST_KEPT = 3  # checkpoints on disk at once: the two newest, and the one being written


def expected(tasks: list[dict], seconds: float = 10.0) -> list[dict]:
    """`train.describe` of each task, with its forecast where it is not complete: the recorded one, else a new one. Collective.

    A recorded forecast counts if it is for as many ranks. All `tasks` have the same `out`.
    """
    world = comm.world()
    with world.together():
        plans = [train.describe(**task) for task in tasks]
        known = records.predictions(Path(plans[0]["folder"]).parent)
        missing = [
            task
            for task, each in zip(tasks, plans)
            if not each["complete"] and known.get(Path(each["folder"]).name, {}).get("ranks") != world.size
        ]
    for found in forecast(world.broadcast(missing), seconds) if world.broadcast(missing) else []:
        known[Path(found["folder"]).name] = found
    return [known.get(Path(each["folder"]).name, {}) | each for each in plans]


def forecast(
    tasks: list[dict], seconds: float = 60.0, nodes: int = 0, ranks_per_node: int = 0, network: str = "omni-path"
) -> list[dict]:
    """What each of `tasks` (parameters as `train.prepare` takes them) will take, in about `seconds`. Collective.

    Tasks whose steps are alike share a probe. `nodes` and `ranks_per_node` (0: as at hand) say where it shall run, `network`
    what is between nodes if there is only one at hand. Returns a dictionary a task, see `estimate`; those for the
    ranks at hand are recorded.
    """
    world = comm.world()
    with world.together():
        choose("network", network, INTERCONNECTS)
        for name, value in (("nodes", nodes), ("ranks_per_node", ranks_per_node)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ReproError(f"{name} is {value!r}: it must be a whole number, or 0 for as many as at hand")
        if world.rank == 0:
            for data in {task.get("data", "digits") for task in tasks}:
                pack_embedded(data)
    with world.together():
        prepared = [train.prepare(**task) for task in tasks]
        layout = Layout(nodes or world.nodes, ranks_per_node or world.size // world.nodes)
        for task in prepared:
            if layout.ranks > task.recipe.workers:
                raise ReproError(
                    f"{task.recipe.name} has {task.recipe.workers} workers, which {layout.ranks} ranks cannot "
                    f"share: plan for fewer nodes or ranks a node"
                )
    subjects = {_subject(task, values): (task, values) for task, values in zip(prepared, tasks)}
    probes = {key: _probe(task, values, seconds / len(subjects)) for key, (task, values) in subjects.items()}
    found = [
        {"folder": str(task.run.folder), "complete": task.run.complete, "shrink": task.run.record["shrink"]}
        | estimate(task.recipe, probes[_subject(task, values)], len(task.test), layout, network)
        | {"data_bytes": sum(os.path.getsize(images.packed.path) for images in (task.train, task.test)), "when": records.now()}
        for task, values in zip(prepared, tasks)
    ]
    with world.together():
        if world.rank == 0:
            for task, each in zip(prepared, found):
                if each["label"] != MODEL and not each["complete"]:
                    records.predict(task.run.folder.parent, {task.run.folder.name: each})
    return found


def _subject(task: Task, values: dict) -> tuple:
    """What a step's time depends on, beside the number of workers."""
    timed = {key: value for key, value in asdict(task.settings).items() if key != "seed"}
    return (
        task.recipe.model,
        task.recipe.stride,
        task.recipe.images_per_worker,
        values.get("data", ""),
        task.decoders,
        *sorted(timed.items()),
    )


def _probe(task: Task, values: dict, seconds: float) -> dict:
    """A probe of the task's own step, and the seconds that one snapshot of its network takes to write."""
    parameters = {key: value for key, value in asdict(task.settings).items() if key != "seed"}
    found = probe(
        task.recipe.model,
        [task.recipe.images_per_worker],
        values.get("data", "digits"),
        stride=task.recipe.stride,
        decoders=task.decoders,
        seconds=seconds,
        **parameters,
    )
    with tempfile.TemporaryDirectory(dir=task.run.folder.parent) as folder:
        start = time.perf_counter()
        checkpoint.save(Path(folder) / "trial", {"weights": torch.zeros(found["state_bytes"] // 4)}, {})
        return found | {"save_seconds": max(comm.world().gather(time.perf_counter() - start))}


def estimate(recipe: Recipe, probed: dict, test_images: int, layout: Layout, network: str = "omni-path") -> dict:
    """The arithmetic: from a probe of one step to the whole recipe's `seconds` (with a 5 to 95% band), hours, bytes.

    seconds = iterations x step + evaluations x test images / (images/s of evaluation) + saves x seconds of one; memory is the
    probe's measured peak a rank. The label is MODEL unless `layout` is what the probe ran on.
    """
    at_hand = (layout.nodes, layout.nodes * layout.per_node) == (probed["nodes"], probed["ranks"])
    workers = -(-recipe.workers // layout.ranks)

    def step_seconds(fitted: steptime.Fit) -> float:
        if probed["nodes"] > 1:  # the fitted link is that between nodes: every rank counts as one
            there, link = Layout(layout.ranks, buckets=probed["buckets"]), fitted.link
        else:
            there, link = layout, INTERCONNECTS[network].link()
        return steptime.step(fitted, there, recipe.images_per_worker, workers, link, loaded=True)["total"]

    steps = steptime.band(map(step_seconds, steptime.resampled(probed["rows"], draws=100)))
    timed = min(len(row["seconds"][0]) for row in probed["rows"] if row["kind"] == "compute")
    evaluation = test_images / (probed["evaluated_per_second"] * layout.ranks / probed["ranks"])
    rows, evaluations = occasions(recipe)
    seconds = {}
    for point, step in steps.items():
        running = recipe.iterations * step + evaluations * evaluation
        saves = 2 * len(recipe.stages)  # a stage's end: snapshot and checkpoint
        saves += max(min(rows, running / CHECKPOINT_SECONDS), running / LONGEST_SECONDS)
        seconds[point] = running + saves * probed["save_seconds"]
    state, momentum = probed["state_bytes"], 4 * probed["parameters"]
    if timed < 3:  # too few to say how much they differ
        seconds["low"] = seconds["high"] = None
    return {
        "label": "measured pace" if at_hand else MODEL,
        "timed_steps": timed,
        "recipe": recipe.name,
        "workers": recipe.workers,
        "global_batch": recipe.global_batch,
        "iterations": recipe.iterations,
        "epochs": recipe.epochs(),
        "images": recipe.iterations * recipe.global_batch,
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


def occasions(recipe: Recipe) -> tuple[int, int]:
    """Metric rows, and evaluations among them: as the trainer has them, at stages' ends and after so many epochs."""
    steps: Any = np.arange(recipe.iterations + 1)

    def complete(epochs: float) -> np.ndarray:
        return np.diff(recipe.epochs(steps) // epochs) > 0

    evaluates = complete(recipe.evaluate_every)
    evaluates[np.array(recipe.starts[1:]) - 1] = True
    return int((evaluates | complete(recipe.record_every)).sum()), int(evaluates.sum())


def plan(
    recipe: str,
    hours: float = 0.0,
    seconds: float = 60.0,
    nodes: int = 0,
    ranks_per_node: int = 0,
    network: str = "omni-path",
    **parameters,
) -> dict:
    """A forecast of one run, and, for a limit of `hours`, of the recipe in all its sizes: which is the largest within it?

    Returns {"asked": forecast, "others": forecasts, "largest": shrink or "", "memory": bytes of this machine}. Collective.
    """
    if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not hours >= 0:
        raise ReproError(f"hours is {hours!r}: it must be a number of hours, or 0 for no limit")
    world, asked = comm.world(), {"recipe": recipe, **parameters}
    with world.together():
        if world.rank == 0:
            pack_embedded(parameters.get("data", "digits"))
    with world.together():
        tasks, ranks = [asked], (nodes or world.nodes) * (ranks_per_node or world.size // world.nodes)
        asked_shrink = train.prepare(**asked).run.record["shrink"]
        for shrink in ["none", *recipes.SHRINKS] if hours else []:
            try:
                other = asked | {"shrink": shrink}
                if shrink != asked_shrink and train.prepare(**other).recipe.workers >= ranks:
                    tasks.append(other)
            except ReproError:  # it needs more images than there are
                continue
    found = forecast(tasks, seconds, nodes, ranks_per_node, network)
    feasible = [each for each in found if hours and each["hours"] <= hours]
    largest = max(feasible, key=lambda each: each["images"])["shrink"] if feasible else ""
    return {"asked": found[0], "others": found[1:], "hours": hours, "largest": largest, "memory": psutil.virtual_memory().total}


def describe(planned: dict) -> str:
    """A plan in a few lines."""
    asked, lines = planned["asked"], []
    for each in [asked, *planned["others"]]:
        spread = (
            f"{each['seconds_low'] / 3600:.3g} to {each['seconds_high'] / 3600:.3g}"
            if each["seconds_low"]
            else f"{each['timed_steps']} steps timed: no band"
        )
        lines.append(
            f"{each['label']:13} {each['recipe']:42} {each['nodes']} x {each['ranks'] // each['nodes']} ranks: "
            f"{each['hours']:.3g} hours ({spread}), {each['node_hours']:.3g} node-hours"
        )
    lines.append(
        f"a step of {asked['global_batch']} images: {asked['step_seconds']:.3g} s, {asked['images_per_s']:.4g} "
        f"images/s; {asked['iterations']} steps, {asked['evaluations']} evaluations"
    )
    lines.append(
        f"disk: run folder {asked['run_bytes'] / 1e6:,.0f} MB, packed data {asked['data_bytes'] / 1e6:,.0f} MB a "
        f"copy; memory: {asked['rank_bytes'] / 1e9:.2f} GB a rank (measured peak), {asked['node_bytes'] / 1e9:.2f} "
        f"GB a node (this machine has {planned['memory'] / 1e9:.0f})"
    )
    if asked["complete"]:
        lines.append(f"already complete: {asked['folder']}")
    if planned["hours"]:
        lines.append(
            f"within {planned['hours']:g} hours: "
            + (
                f"--shrink {planned['largest']} is the largest"
                if planned["largest"]
                else "none of the sizes; more nodes, or --steps for a part"
            )
        )
    return "\n".join(lines)
