"""Exact top-1 and top-5 counts, for models alone and for the average of their predictions."""

import torch
from torch.nn import functional as F

from repro import choose
from repro.data import Images

CHUNK = 250  # images a forward pass: a chunk is one rank's, so every image meets the same batch on any number of ranks
AVERAGES = ("softmax", "logit")


def counts(world, model, states: list[dict], images: Images, average: str = "softmax", device="cpu",
           precision: str = "fp32") -> dict:
    """Evaluates each state of `model` and, if there are several, their ensemble. Collective; the same on every rank.

    Returns {"images": n, "members": [{"top1", "top5", "loss"}, ...], "ensemble": {...}}: counts of correct images
    (top-5 counts a label among the five most probable; loss is the mean cross-entropy). `average` says whether the
    ensemble takes the mean of the members' softmax or of their logits. The model's parameters are overwritten.
    """
    choose("average", average, AVERAGES)
    model.eval()
    chunks = range(world.rank * CHUNK, len(images), world.size * CHUNK)
    rows = len(states) + 1  # members, then the ensemble
    correct = torch.zeros(rows, 2, dtype=torch.int64)
    losses = torch.zeros(rows, -(-len(images) // CHUNK), dtype=torch.float64)  # one a chunk: summed in one order
    votes = {}
    with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        for row, state in enumerate(states):
            model.load_state_dict(state)
            for start in chunks:
                batch, labels = images.test_batch(start, min(start + CHUNK, len(images)))
                logits = model(batch.to(device)).double().cpu()
                _tally(logits, labels, correct[row], losses[row], start // CHUNK)
                vote = logits.softmax(1) if average == "softmax" else logits
                votes[start] = votes.get(start, 0) + vote / len(states)
        for start, vote in votes.items():
            labels = torch.tensor([images.load(i)[0] for i in range(start, start + len(vote))])
            _tally(vote.log() if average == "softmax" else vote, labels, correct[-1], losses[-1], start // CHUNK)
    world.sum(correct.numpy())
    world.sum(losses.numpy())
    results = [{"top1": int(top1), "top5": int(top5), "loss": float(loss.sum()) / len(images)}
               for (top1, top5), loss in zip(correct, losses)]
    return {"images": len(images), "members": results[:-1], "ensemble": results[-1]}


def _tally(scores, labels, correct, losses, chunk):
    """Counts labels that rank first and among the first five; a tie goes to the lower class."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :5]
    hits = order == labels[:, None]
    correct += torch.stack([hits[:, 0].sum(), hits.sum()])
    losses[chunk] = F.cross_entropy(scores, labels, reduction="sum")
