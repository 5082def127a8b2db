"""Exact top-1 and top-5 counts, for single models and for the average of their predictions."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from repro import ReproError, ahead, checkpoint, choose, comm, own, records
from repro.data import Images
from repro.model import builder, find_device

AVERAGES = ("softmax", "logit")


def counts(
    world,
    members: list[tuple],
    images: Images,
    average: str = "softmax",
    device="cpu",
    precision: str = "fp32",
    threads: int = 2,
) -> dict:
    """Evaluates each member, a (model, state) pair, and, if there are several, their ensemble. Collective.

    Returns, on every rank, {"images": n, "members": [{"top1", "top5", "loss"}, ...], "ensemble": {...}}: numbers of
    correct predictions (for top-5, the label is among the five most probable classes); loss is the mean cross-entropy.
    `average` is softmax or logit: the ensemble averages the members' softmax or their logits. The models' parameters are
    overwritten; one model may be used for several states. `threads` threads decode images ahead.
    """
    choose("average", average, AVERAGES)
    # A chunk is one forward pass, on one rank, so every image is in the same batch on any number of ranks.
    size = 250 if images.small else 50
    chunks = range(world.rank * size, len(images), world.size * size)
    rows = len(members) + 1  # members, then the ensemble
    correct = torch.zeros(rows, 2, dtype=torch.int64)
    losses = torch.zeros(rows, -(-len(images) // size), dtype=torch.float64)  # one per chunk, summed in a fixed order
    votes, labels = {}, {}
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    with world.together(), torch.inference_mode(), autocast:
        for row, (model, state) in enumerate(members):
            model.load_state_dict(state)
            model.eval()
            requests = ((start, min(start + size, len(images))) for start in chunks)
            batches = ahead.ordered(images.test_batch, requests, 0 if images.small else threads, ahead=threads)
            for start, (batch, labels[start]) in zip(chunks, batches):
                logits = model(batch.to(device)).double().cpu()
                _tally(logits, labels[start], correct[row], losses[row], start // size)
                world.beat()
                vote = logits.softmax(1) if average == "softmax" else logits
                votes[start] = votes.get(start, 0) + vote / len(members)
        for start, vote in votes.items():
            scores = vote.log() if average == "softmax" else vote
            _tally(scores, labels[start], correct[-1], losses[-1], start // size)
    world.sum(correct.numpy())
    world.sum(losses.numpy())
    results = [
        {"top1": int(top1), "top5": int(top5), "loss": float(loss.sum()) / len(images)}
        for (top1, top5), loss in zip(correct, losses)
    ]
    return {"images": len(images), "members": results[:-1], "ensemble": results[-1]}


def _tally(scores, labels, correct, losses, chunk):
    """Counts labels that rank first and among the first five; a tie goes to the lower class."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :5]
    hits = order == labels[:, None]
    correct += torch.stack([hits[:, 0].sum(), hits.sum()])
    losses[chunk] = F.cross_entropy(scores, labels, reduction="sum")


def open_run(folder: str | Path, stages: list[str] | None = None, data: str = "") -> tuple[dict, list[str], Images]:
    """Returns a complete run's record, the requested stages (by default the recipe's members) and its test set.

    `data` is the data set's folder, if it is not under data/. Raises ReproError if the run is incomplete, a stage is
    unknown, or the test set is not the run's.
    """
    run = records.read(folder)
    if run.get("status") != "complete":
        raise ReproError(f"{folder} is not the folder of a complete run: train it first, or continue it")
    names = [stage["name"] for stage in run["recipe"]["stages"]]
    members = [stage["name"] for stage in run["recipe"]["stages"] if stage["member"]]
    chosen = [choose(f"stage of {run['recipe']['name']}", stage, names) for stage in stages or members]
    settings = run["settings"]
    images = Images(data or run["data"]["name"], "test", normalization=settings["normalization"], size=settings["size"])
    if images.digest != run["data"]["test"]:
        raise ReproError(
            f"{images.packed.path} is not the test set of {Path(folder).name}: name the folder of that one, or train again"
        )
    return run, chosen, images


def build_again(run: dict, images: Images) -> nn.Module:
    """Builds the model of a run's record, for the images of its data set. Raises ReproError if its source has changed."""
    recipe = run["recipe"]
    if run["model_source"] and own.source_digest(recipe["model"]) != run["model_source"]:
        raise ReproError(f"{recipe['model']} is no longer what it was when the run was trained: restore the former source")
    return builder(recipe["model"], len(images.classes), images.channels, images.preprocessing.size, recipe["stride"])()


def ensemble(
    folder: str, members: list[str] | None = None, average: str = "softmax", data: str = "", device: str = "auto"
) -> dict:
    """Evaluates an ensemble of models at the ends of a complete run's stages, on all ranks, and records it in the run's folder.

    `members` names stages; default: the recipe's members, which are its collapsed end points. `data` as for `open_run`.
    Returns {"members", "average", "images", "top1", "top5", "loss"}.
    """
    world = comm.world()
    with world.together():
        run, members, images = open_run(folder, members, data)
        device = find_device(device, world.node_rank)
        model = build_again(run, images).to(device)
        pairs = [(model, checkpoint.load(Path(folder) / "snapshots" / member)[0]) for member in members]
    torch.set_num_threads(run["settings"]["threads"])
    counted = counts(world, pairs, images, average, device, precision=run["settings"]["precision"])
    entry = {"members": members, "average": average, "images": counted["images"], **counted["ensemble"]}
    with world.together():  # so that no rank returns before the result is on disk
        if world.rank == 0:
            records.add_ensemble(folder, entry)
    return entry
