"""Exact top-1 and top-5 counts, for single models and for the average of their predictions."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from repro import ReproError, choose
from repro.allreduce import STATISTIC_BITS, Exact
from repro.images import ahead
from repro.images.data import Images, Stream, requests
from repro.model import Network, builder, find_device
from repro.ranks import comm
from repro.run import checkpoint, own, records
from repro.run.settings import AVERAGES, MEANS
from repro.run.shapes import recipe_of
from repro.schedule import Now, Place, at

# The views that finished models are tested in, and the number of images at most. "test" is the result; the others tell what a
# model learned from how large objects appeared to it while it was trained (`data.Images.test_batch`).
VIEWS = {"test": 0, **dict.fromkeys(records.OTHER_VIEWS, 5000)}
STATISTICS_IMAGES = 8000  # training images that batch norm's statistics are computed again from


def counts(
    world,
    members: list[tuple],
    images: Images,
    average: str = "softmax",
    device="cpu",
    precision: str = "fp32",
    threads: int = 2,
    view: str = "test",
) -> dict:
    """Evaluates each member, a (model, state) pair, and, if there are several, their ensemble. Collective.

    Returns, on every rank, {"images": n, "members": [{"top1", "top5", "loss", "correct"}, ...], "ensemble": {...}}: numbers of
    correct predictions (for top-5, the label is among the five most probable classes); loss is the mean cross-entropy;
    correct (n,) says which images the first prediction was right for. `view` is one of `VIEWS`. `average` is softmax or
    logit: the ensemble averages the members' softmax or their logits. The models' parameters are overwritten; one model may
    be used for several states. `threads` threads decode images ahead.
    """
    choose("average", average, AVERAGES)
    number = min(len(images), VIEWS[view] or len(images))
    # A chunk is one forward pass, on one rank, so every image is in the same batch on any number of ranks.
    size = 250 if images.small else 50
    chunks = range(world.rank * size, number, world.size * size)
    rows = len(members) + 1  # members, then the ensemble
    correct = torch.zeros(rows, 2, number, dtype=torch.int8)  # top-1 and top-5
    losses = torch.zeros(rows, -(-number // size), dtype=torch.float64)  # one per chunk, summed in a fixed order
    votes, labels = {}, {}
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    with world.together(), torch.inference_mode(), autocast:
        for row, (model, state) in enumerate(members):
            model.load_state_dict(state)
            model.eval()
            requests = ((start, min(start + size, number), view) for start in chunks)
            batches = ahead.ordered(images.test_batch, requests, 0 if images.small else threads, ahead=threads)
            for start, (batch, labels[start]) in zip(chunks, batches):
                logits = model(batch.to(device)).double().cpu()
                correct[row, :, start : start + size], losses[row, start // size] = _tally(logits, labels[start])
                world.beat()
                vote = logits.softmax(1) if average == "softmax" else logits
                votes[start] = votes.get(start, 0) + vote / len(members)
        for start, vote in votes.items():
            scores = vote.log() if average == "softmax" else vote
            correct[-1, :, start : start + size], losses[-1, start // size] = _tally(scores, labels[start])
    world.sum(correct.numpy())
    world.sum(losses.numpy())
    results = [
        {
            "top1": int(first.sum()),
            "top5": int(five.sum()),
            "loss": float(loss.sum()) / number,
            "correct": first.numpy().astype(bool),
        }
        for (first, five), loss in zip(correct, losses)
    ]
    return {"images": number, "members": results[:-1], "ensemble": results[-1]}


def _tally(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which labels rank first, and which among the first five (2, N), a tie going to the lower class; the sum of losses."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :5]
    hits = order == labels[:, None]
    return torch.stack([hits[:, 0], hits.any(1)]), F.cross_entropy(scores, labels, reduction="sum")


def in_all_views(world, members: list[tuple], images: Images, **options) -> tuple[dict, dict[str, np.ndarray]]:
    """Evaluates one model, or the ensemble of several, in each of `VIEWS`; options as for `counts`. Collective.

    Returns {"images", "top1", "top5", "loss", "views": {view: the same for each other view}}, and the arrays `correct` by view.
    """
    results, correct = {}, {}
    for view in VIEWS:
        counted = counts(world, members, images, view=view, **options)
        result = counted["ensemble"] if len(members) > 1 else counted["members"][0]
        correct[view] = result.pop("correct")
        results[view] = {"images": counted["images"], **result}
    return results.pop("test") | {"views": results}, correct


def recompute_statistics(world, network: Network, stream: Stream, now: Now, workers_per_pass: int, precision: str) -> None:
    """Gives a network the batch-norm statistics of its present weights: the mean over whole batches. Collective.

    They are those of the steps from `now` on, in its stage's view, of at least `STATISTICS_IMAGES` images: each worker's own
    mean and unbiased variance, averaged over workers and steps. The same bits on any number of ranks.
    """
    batch = now.workers * stream.images_per_worker
    number = -(-STATISTICS_IMAGES // batch)
    steps, images = now.place
    steps_from_now = (replace(now, place=Place(steps + step, images + step * batch)) for step in range(number))
    arithmetic = Exact(number * now.workers)
    total = torch.zeros(len(network.statistics), dtype=torch.int64)
    with world.together():
        for request in requests(steps_from_now, workers_per_pass, world.rank, world.size):
            total += arithmetic.scaled(network.observe(stream.batch(*request)[0], precision).cpu(), STATISTIC_BITS).long()
            world.beat()
    world.sum(total.numpy())
    network.statistics.copy_(arithmetic.mean(total, STATISTIC_BITS))


def mean_of_weights(world, run: dict, members: list[str], states: list[dict], network: Network, images: Images) -> dict:
    """The state of the mean of several models' weights, the ends of these stages of a run. Collective.

    A model soup (Wortsman et al., 2022, arXiv 2203.05482). Batch norm's statistics are those of the next images after the last
    of the stages, as of any averaged weights (`recompute_statistics`). `images` are the run's training images.
    """
    recipe, last = recipe_of(run), members[-1]
    network.load({name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]})
    index = [stage.name for stage in recipe.stages].index(last)
    now = at(recipe, recipe.starts[index + 1] - 1)
    place = Place(now.place.steps + 1, now.place.images + recipe.batch(now.stage))
    stream = Stream(images.first(recipe.epoch_images), run["settings"]["seed"], recipe.images_per_worker)
    precision = run["settings"]["precision"]
    recompute_statistics(world, network, stream, replace(now, place=place), recipe.workers_per_pass, precision)
    return network.state()


def open_run(folder: str | Path, stages: list[str] | None = None, data: str = "") -> tuple[dict, list[str], Images]:
    """Returns a complete run's record, the requested stages (by default those of `Recipe.result`) and its test set.

    `data` is the data set's folder, if it is not under data/. Raises ReproError if the run is incomplete, a stage is
    unknown, or the test set is not the run's.
    """
    run = records.read(folder)
    if run.get("status") != "complete":
        raise ReproError(f"{folder} is not the folder of a complete run: train it first, or continue it")
    names = [stage["name"] for stage in run["recipe"]["stages"]]
    chosen = [choose(f"stage of {run['recipe']['name']}", stage, names) for stage in stages or recipe_of(run).result]
    settings = run["settings"]
    images = Images(
        data or run["data"]["name"], settings["split"], normalization=settings["normalization"], size=settings["size"]
    )
    if images.digest != run["data"]["test"]:
        raise ReproError(
            f"{images.packed.path} is not the test set of {Path(folder).name}: name the folder of that one, or train again"
        )
    return run, chosen, images


def training_images(run: dict, data: str = "") -> Images:
    """The training images of a run, by its record. Raises ReproError if they are others now."""
    settings = run["settings"]
    found = Images(data or run["data"]["name"], "train", normalization=settings["normalization"], size=settings["size"])
    if found.digest != run["data"]["train"]:
        raise ReproError(f"{found.packed.path} is not what the run was trained on: name the folder of that one")
    return found


def build_again(run: dict, images: Images) -> nn.Module:
    """Builds the model of a run's record, for the images of its data set. Raises ReproError if its source has changed."""
    recipe = run["recipe"]
    name = own.found(recipe["model"]) if run["model_source"] else recipe["model"]
    if run["model_source"] and own.source_digest(name) != run["model_source"]:
        raise ReproError(f"{name} is no longer what it was when the run was trained: restore the former source")
    return builder(name, len(images.classes), images.channels, images.preprocessing.size, recipe["stride"])()


def ensemble(
    folder: str,
    members: list[str] | None = None,
    average: str = "softmax",
    data: str = "",
    device: str = "auto",
    world: comm.World | None = None,
) -> dict:
    """Evaluates an ensemble of models at the ends of a complete run's stages and records it in the run's folder. Collective.

    `members` names stages; default: `Recipe.result`, such as the collapsed end points. `average` is what of them is averaged:
    softmax, logit, or weights, which makes one model of them (`mean_of_weights`). `data` as for `open_run`, `world` as for
    `train.train`. Returns {"members", "average", "images", "top1", "top5", "loss"}. Raises records.Locked if another process
    evaluates this run.
    """
    world = world or comm.world()
    with world.together():
        choose("average", average, MEANS)
        run, members, images = open_run(folder, members, data)
        device = find_device(device, world.node_rank)
        model = build_again(run, images).to(device)
        states = [checkpoint.load(Path(folder) / "snapshots" / member)[0] for member in members]
        trained_on = training_images(run, data) if average == "weights" else None
    with world.together():
        lock = records.take_lock(Path(folder), "evaluated") if world.rank == 0 else nullcontext()
    with lock:  # what is recorded is read before it is written
        torch.set_num_threads(run["settings"]["threads"])
        options = dict(average=average, device=device, precision=run["settings"]["precision"])
        if trained_on:
            network = Network(model, device, recipe_of(run).images_per_worker)
            states, options["average"] = [mean_of_weights(world, run, members, states, network, trained_on)], AVERAGES[0]
        result, correct = in_all_views(world, [(model, state) for state in states], images, **options)
        entry = {"members": members, "average": average, **result}
        with world.together():  # so that no rank returns before the result is on disk
            if world.rank == 0:
                records.save_correct(folder, records.ensemble_name(members, average), correct)
                records.add_ensemble(folder, entry)
    return entry
