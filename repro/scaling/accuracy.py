"""The time to a fixed accuracy over nodes: epochs by batch, times the model's seconds of an epoch. No torch, no MPI.

A larger batch keeps more nodes busy, and needs more epochs for the same accuracy, or never gets there. So the time is

    minutes(batch, nodes) = epochs to the accuracy at that batch x images of an epoch / images per second at both

and for each number of nodes there is a batch that gets there first. The epochs are measured, or published; the images per
second are `steptime`'s, so every time has the label MODEL.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from repro.scaling.steptime import MODEL, Assumed, Layout, Published, band, fitted_machines, step

NOT_REACHED = math.nan


def published_epochs(accuracy_points: list[tuple[float, float]], batch: float) -> float:
    """Epochs to a fixed accuracy at a global batch, interpolated between published (batch, epochs) points; NaN outside them."""
    batches, epochs = zip(*sorted(accuracy_points))
    if not batches[0] <= batch <= batches[-1]:
        return float("nan")
    return float(np.interp(np.log(batch), np.log(batches), epochs))


def epochs_to(lengths: Iterable[tuple[float, float]], target: float) -> float:
    """Epochs after which an accuracy is reached, from (epochs, accuracy) at the ends of runs of several lengths.

    Between the shortest length that reaches it and the next shorter one it is interpolated in the logarithm of epochs. If no
    shorter one was tried, the shortest length is the answer, and an upper limit. NOT_REACHED (NaN) if no length reaches it.
    """
    before = None
    for epochs, accuracy in sorted(lengths):
        if accuracy >= target:
            if before is None:
                return epochs
            shorter, lower = before
            share = (target - lower) / (accuracy - lower)
            return shorter * (epochs / shorter) ** share
        before = epochs, accuracy
    return NOT_REACHED


def over_nodes(
    epochs: Mapping[int, float], known: Published, nodes: Iterable[int], epoch_images: int, buckets: int = 0, draws: int = 200
) -> list[dict]:
    """MODEL: the minutes to an accuracy at each batch on each number of the known run's nodes, with 5 to 95% bands.

    `epochs` are those to the accuracy by the global batch; a batch that does not reach it (NaN) has no rows, nor have nodes
    with more processes than images of a step. `buckets` are those of the allreduce, by default the most that are assumed.

    Rows: label, batch, nodes, epochs, images_per_s, minutes with minutes_low and minutes_high, node_hours, and first, which
    says whether no other batch takes fewer minutes on as many nodes.
    """
    assumed = Assumed()
    drawn = list(fitted_machines(known, replace(assumed, buckets=(buckets or max(assumed.buckets),)), draws))
    reached = {batch: number for batch, number in epochs.items() if not np.isnan(number)}
    rows = []
    for count in nodes:
        found = []
        for batch, number in reached.items():
            images = batch / (count * known.per_node)
            if images < 1:
                continue
            layout = [Layout(count, known.per_node, hidden) for _, _, hidden in drawn]
            seconds = [step(machine, each, images, 1, link)["total"] for (machine, link, _), each in zip(drawn, layout)]
            points = band(number * epoch_images / batch * each / 60 for each in seconds)
            found.append(
                {
                    "label": MODEL,
                    "batch": batch,
                    "nodes": count,
                    "epochs": number,
                    "images_per_s": batch / float(np.median(seconds)),
                    "minutes": points["middle"],
                    "minutes_low": points["low"],
                    "minutes_high": points["high"],
                    "node_hours": count * points["middle"] / 60,
                }
            )
        least = min((row["minutes"] for row in found), default=NOT_REACHED)
        rows += [row | {"first": row["minutes"] == least} for row in found]
    return rows
