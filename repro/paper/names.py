"""Names for people, and one look for each thing: what a recipe, a column and a state are called, and how they are drawn.

The colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart. In grey they cannot all be
told apart, so each thing has a marker and a line of its own as well.
"""

import re
from typing import NamedTuple

from repro.paper.questions import ENSEMBLE_LABEL, MEMBER_LABEL, ONE_MODEL_LABEL, SNAPSHOT_CROP_LABEL

INK, GREY, PALE = "#222222", "#6f6f6f", "#d4d4d4"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY = "#e69f00", "#56b4e9"
COLOURS = {
    "ink": INK,
    "grey": GREY,
    "pale": PALE,
    "blue": BLUE,
    "vermilion": VERMILION,
    "green": GREEN,
    "purple": PURPLE,
    "orange": ORANGE,
    "sky": SKY,
}


class Look(NamedTuple):
    colour: str
    marker: str
    line: str = "-"


LOOKS = {
    # Models and ensembles
    "trunk": Look(INK, "."),
    MEMBER_LABEL: Look(VERMILION, "o", "--"),  # and the collapse that it comes from
    ENSEMBLE_LABEL: Look(BLUE, "D"),
    ONE_MODEL_LABEL: Look(GREEN, "s"),
    "one model at batch 4096": Look(GREY, "v", "-."),
    "snapshot ensemble": Look(PURPLE, "^"),
    SNAPSHOT_CROP_LABEL: Look(PURPLE, "P"),
    "three models of a third each": Look(ORANGE, "X"),
    # Whose number it is
    "published": Look(INK, "D"),
    "this paper": Look(VERMILION, "D"),
    # Verdicts
    "supported": Look(GREEN, "o"),
    "contradicted": Look(VERMILION, "X"),
    "equivalent": Look(BLUE, "s"),
    "not resolved": Look(GREY, "d"),
    # Formulas of the learning rate
    "as_released": Look(INK, ".", "-"),
    "as_designed": Look(ORANGE, ".", "--"),
    # Scaling
    "weak": Look(BLUE, "o"),
    "strong": Look(VERMILION, "s"),
    "compute": Look(GREY, ""),  # parts of a bar: the marker is a hatch
    "waiting": Look(ORANGE, "///"),
    "allreduce": Look(BLUE, "xxx"),
}
RANKS = Look(BLUE, "o"), Look(VERMILION, "s", "--"), Look(GREEN, "^", "-."), Look(PURPLE, "v", ":")  # 1, 2, ... ranks

_RECIPES = {
    "resnet50_448nodes": "448 nodes",
    "resnet50_448nodes_uncollapsed": "448 nodes, no collapse",
    "resnet50_custom_lr": "64 nodes, three cycles",
    "resnet_50_256_nodes_8k_batch": "Intel, 256 nodes",
    "collapsed_ensemble": "Collapsed Ensemble",
    "five_members": "Collapsed Ensemble, five members",
    "one_model": "one model, equal images",
    "one_deep_model": "one deep model",
    "snapshot_ensemble": "snapshot ensemble",
    "snapshot_ensemble_crop": SNAPSHOT_CROP_LABEL,
    "three_models": "three models of a third each",
    "collapse_parts": "the collapse taken apart",
}
_PATTERNS = {
    r"default_resnet50_(\d+)nodes": r"Intel, \1 nodes",
    r"batch_(\d+)": r"batch \1",
    r"batch_(\d+)_no_warmup": r"batch \1, no warm-up",
    r"epochs_(\d+)_batch_(\d+)": r"\1 epochs, batch \2",
}


def recipe(name: str) -> str:
    """What a recipe is called in figures and the report; a recipe of your own keeps its name."""
    for pattern, text in _PATTERNS.items():
        if found := re.fullmatch(pattern, name):
            return found.expand(text)
    return _RECIPES.get(name, name)


TOPICS = {
    "collapse": "What the collapse does",
    "ensemble": "The Collapsed Ensemble against other uses of its images",
    "cost": "The Collapsed Ensemble against one model that costs as much to evaluate",
    "batch": "Large batches and warm-up",
    "length": "Longer training",
}


class Column(NamedTuple):
    """A column's heading, with its unit, and how a number in it is written: a format, "any" for any size, "" for text."""

    heading: str
    form: str = ""


COLUMNS = {
    "id": Column("no."),
    "claim": Column("claim"),
    "published": Column("published"),
    "ours": Column("ours"),
    "state": Column("state"),
    "n": Column("n, seeds", ".0f"),
    "interval": Column("95% interval"),
    "cost": Column("what a run costs"),
    "verdict": Column("verdict"),
    "difference": Column("difference, points", "+.2f"),
    "top1": Column("top\u20111, %", ".2f"),
    "against": Column("of the other, %", ".2f"),
    "top5": Column("top\u20115, %", ".2f"),
    "sd": Column("standard deviation", ".2f"),
    "smallest": Column("smallest", ".2f"),
    "largest": Column("largest", ".2f"),
    "detectable": Column("detectable, points", ".2f"),
    "p_holm": Column("p, corrected", ".3f"),
    "views": Column("other views"),
    "recipe": Column("recipe"),
    "model": Column("network"),
    "variant": Column("variant"),
    "shrink": Column("size"),
    "data": Column("data"),
    "members": Column("model or members"),
    "average": Column("mean of"),
    "epochs": Column("epochs", ".2f"),
    "nodes": Column("nodes", ".0f"),
    "global_batch": Column("global batch", ",.0f"),
    "minutes": Column("time, minutes", ".3g"),
    "images_per_s": Column("images/s", ",.0f"),
    "run": Column("run"),
    "year": Column("year", ".0f"),
    "hardware": Column("hardware"),
    "source": Column("source of the published number"),
    "ratio": Column("ratio"),
    "imagenet": Column("ImageNet", "any"),
    "small": Column("test bed", "any"),
    "factor": Column("factor", ".2f"),
    "kept": Column("kept"),
    "reason": Column("if not, why"),
    "predicted": Column("predicted, minutes", ".1f"),
    "measured": Column("measured, minutes", ".1f"),
    "error": Column("error, %", "+.0f"),
    "ranks": Column("ranks", ".0f"),
    "images": Column("images a rank", ".0f"),
    "seconds": Column("step, s", ".3f"),
    "seconds_MODEL": Column("step by MODEL, s", ".3f"),
    "efficiency": Column("efficiency, %", ".0f"),
    "known": Column("fitted to"),
    "error_percent": Column("error, %", "+.1f"),
    "check": Column("check"),
    "folder": Column("run"),
    "seed": Column("seed", ".0f"),
    "status": Column("status"),
    "weights_sha256": Column("SHA-256 of the weights"),
    "n_steps": Column("n, steps", ".0f"),
    "band": Column("5 to 95%, s"),
    "step_rate": Column("images/s", ".1f"),
    "n_runs": Column("n, runs", ".0f"),
    "predicted_s": Column("predicted, s", ".3f"),
    "measured_s": Column("measured, s", ".3f"),
    "buckets": Column("buckets", ".0f"),
    "efficiency_text": Column("efficiency, % (band)"),
    "efficiency_48_cores": Column("of all 48 cores, %", ".0f"),
    "minutes_90": Column("90 epochs, minutes", ".0f"),
    "predicted_run": Column("predicted run"),
    "rate_text": Column("predicted, images/s (band)"),
    "published_rate": Column("published, images/s", ",.0f"),
}
