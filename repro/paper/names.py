"""Names for people, and one look for each thing: what a recipe, a column and a state are called, and how they are drawn.

The colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart. In grey they cannot all be
told apart, so each thing has a marker and a line of its own as well.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from repro.recipes.baselines import GHOSTS, PARTS
from repro.recipes.controls import BATCHES, LENGTHS

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


# What is compared over a number of epochs
MEMBER, ENSEMBLE = "a member of the ensemble", "Collapsed Ensemble, first to fifth member"
ONE_MODEL, ONE_AT_4096 = "one model, equal images and exposure", "one model at batch 4096"
SNAPSHOTS, SNAPSHOTS_IN_CROP = "snapshot ensemble", "snapshot ensemble, ends in the collapse's view"
THREE_MODELS = "three models, a third of the images each"
# What is compared over the batch
LINEAR, OWN_RATE, LARS = "SGD, the linear rule's rate", "SGD, its own best rate", "LARS, its own best rate"
COLLAPSED, PUBLISHED_LARS = "SGD, the linear rule's rate, with the collapse", "LARS, published"
CONSTANT_TRUNK, PLANNED = "a collapse at each tenth of a constant rate", "one model, planned for that length"
ONE_DEEP = "one deeper model, equal images and exposure"
# Pairs of models that are compared
MEMBERS_OF_ONE, SAME_OF_TWO = "members of one ensemble", "third members of two ensembles"
PAIRS = "members 1 and 2", "members 2 and 3", "members 1 and 3", "two of three models"
BEFORE, AFTER = "before a collapse", "after it"
# What is compared over groups of workers
SYNCHRONOUS, BACKUP = "synchronous", "synchronous, with backup ranks"
ASYNCHRONOUS, WITHOUT_MOMENTUM = "asynchronous", "asynchronous, without momentum"
COMPENSATED, ADAPTIVE = "asynchronous, delay compensation", "asynchronous, adaptive delay compensation"


class Look(NamedTuple):
    colour: str
    marker: str
    line: str = "-"


LOOKS = {
    # Models and ensembles
    "trunk": Look(INK, "."),
    MEMBER: Look(VERMILION, "o", "--"),  # and the collapse that it comes from
    ENSEMBLE: Look(BLUE, "D"),
    ONE_MODEL: Look(GREEN, "s"),
    ONE_AT_4096: Look(GREY, "v", "-."),
    SNAPSHOTS: Look(PURPLE, "^"),
    SNAPSHOTS_IN_CROP: Look(PURPLE, "P"),
    THREE_MODELS: Look(ORANGE, "X"),
    CONSTANT_TRUNK: Look(BLUE, "."),
    PLANNED: Look(GREEN, "P", ":"),
    ONE_DEEP: Look(SKY, "p"),
    MEMBERS_OF_ONE: Look(BLUE, "D"),
    SAME_OF_TWO: Look(GREY, "s"),
    **dict(zip(PAIRS, (Look(BLUE, "o"), Look(GREEN, "s", "--"), Look(VERMILION, "^", "-."), Look(GREY, "X", ":")))),
    BEFORE: Look(INK, "s", "--"),
    AFTER: Look(VERMILION, "o"),
    # Whose number it is
    "published": Look(INK, "D"),
    "this paper": Look(VERMILION, "D"),
    # Verdicts
    "supported": Look(GREEN, "o"),
    "contradicted": Look(VERMILION, "X"),
    "equivalent": Look(BLUE, "s"),
    "not resolved": Look(GREY, "d"),
    # Warm-up
    "with warm-up": Look(BLUE, "o"),
    "without warm-up": Look(VERMILION, "X", "--"),
    # Methods over the batch
    LINEAR: Look(GREY, "v", "-."),
    OWN_RATE: Look(BLUE, "o"),
    LARS: Look(VERMILION, "s", "--"),
    COLLAPSED: Look(GREEN, "D", ":"),
    PUBLISHED_LARS: Look(INK, "D"),
    # Synchronous and asynchronous
    SYNCHRONOUS: Look(BLUE, "o"),
    BACKUP: Look(GREEN, "^", "-."),
    ASYNCHRONOUS: Look(VERMILION, "X", "--"),
    WITHOUT_MOMENTUM: Look(SKY, "v"),
    COMPENSATED: Look(PURPLE, "P"),
    ADAPTIVE: Look(ORANGE, "D"),
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
WARMUP = {"with warm-up": "batch_{}", "without warm-up": "batch_{}_no_warmup"}  # recipes over the batch, by their label
OVER_BATCH = {LINEAR: "batch_{}", OWN_RATE: "sgd_{}", LARS: "lars_{}"}
RANKS = Look(BLUE, "o"), Look(VERMILION, "s", "--"), Look(GREEN, "^", "-."), Look(PURPLE, "v", ":")  # 1, 2, ... ranks

BEDS = Look(BLUE, "o"), Look(VERMILION, "s", "--"), Look(GREEN, "^", "-.")  # the data sets of one figure, in their order

_RECIPES = {
    "resnet50_448nodes": "448 nodes",
    "resnet50_448nodes_uncollapsed": "448 nodes, no collapse",
    "resnet50_custom_lr": "64 nodes, three cycles",
    "resnet_50_256_nodes_8k_batch": "Intel, 256 nodes",
    "collapsed_ensemble": "Collapsed Ensemble",
    "five_members": "Collapsed Ensemble, five members",
    "one_model": "one model, equal images",
    "one_deep_model": "one deep model",
    "one_deep_model_third": "one deep model, a third of the images",
    "snapshot_ensemble": SNAPSHOTS,
    "snapshot_ensemble_crop": SNAPSHOTS_IN_CROP,
    "three_models": THREE_MODELS,
    "collapse_parts": "the collapse taken apart",
    # Batches that grow
    "rate_falls": "the rate falls",
    "batch_grows": "the batch grows",
    "neither_changes": "neither changes",
    "tuned_ensemble": "Collapsed Ensemble, tuned rates",
    "tuned_one_model": "one model, tuned rates",
    "swa": "SWA",
    "ema": "exponential average",
    "constant_trunk": CONSTANT_TRUNK,
    "constant_ensemble": "collapses from a constant rate",
    "falling_ensemble": "collapses from one linear decay",
    "triangular_ensemble": "collapses from triangles",
    "warm_restarts": "warm restarts",
    "warm_restarts_crop": "warm restarts, end in the collapse's view",
    "snapshot_ensemble_restarts": "snapshot ensemble, tuned restarts",
    "one_cycle": "one cycle",
    "ablation_as_designed": "448 nodes, rate as designed",
    "ablation_corrected": "448 nodes, momentum corrected",
    "ablation_norms_not_decayed": "448 nodes, no decay on batch norm",
    "ablation_no_zero_gamma": "448 nodes, every gamma at one",
    "ablation_bn_momentum": "448 nodes, Intel's averages of batch norm",
    "ablation_stride_v1": "448 nodes, stride in the 1x1",
    "ablation_kept_momentum": "448 nodes, collapse with momentum kept",
    "ablation_lars": "448 nodes, LARS",
    "ablation_lars_unfused": "448 nodes, LARS, decayed gradient",
    "ablation_cycles_as_designed": "64 nodes, rate as designed",
    "ablation_cycles_kept_momentum": "64 nodes, momentum kept",
    "schedule_free": "schedule-free SGD",
    "schedule_free_crop": "schedule-free SGD, end in the collapse's view",
    "sequential": "sequential SGD",
}
_PATTERNS = {
    r"default_resnet50_(\d+)nodes": r"Intel, \1 nodes",
    r"batch_(\d+)": r"batch \1",
    r"batch_(\d+)_no_warmup": r"batch \1, no warm-up",
    r"epochs_(\d+)_batch_(\d+)": r"\1 epochs, batch \2",
    # SGD and LARS over the batch
    r"sgd_(\d+)": r"SGD at its own rate, batch \1",
    r"sgd_(\d+)_norms_not_decayed": r"SGD, batch norm not decayed, batch \1",
    r"lars_(\d+)": r"LARS, batch \1",
    r"lars_(\d+)_without_norms": r"LARS, not on batch norm and biases, batch \1",
    r"lars_(\d+)_rate_outside": r"LARS, rate outside the buffer, batch \1",
    r"lars_(\d+)_both_outside": r"LARS, rate and ratio outside, batch \1",
    r"lars_(\d+)_unfused": r"LARS, norm of the decayed gradient, batch \1",
    # Ghost batch norm, fewer images
    r"ghost_(\d+)": r"batch norm over \1 images",
    r"images_1_(\d+)_equal_(\w+)": r"1/\1 of the images, equal \2",
    r"planned_(\d+)_tenths": r"one model, \1 tenths of the images",
    # Synchronous and asynchronous
    r"synchronous_(\d+)_groups": rf"{SYNCHRONOUS}, \1 groups",
    r"asynchronous_(\d+)_groups": rf"{ASYNCHRONOUS}, \1 groups",
    r"asynchronous_(\d+)_groups_without_momentum": rf"{WITHOUT_MOMENTUM}, \1 groups",
    r"delay_compensation_(\d+)_groups": rf"{COMPENSATED}, \1 groups",
    r"adaptive_delay_compensation_(\d+)_groups": rf"{ADAPTIVE}, \1 groups",
}


def recipe(name: str) -> str:
    """What a recipe is called in figures and the report; a recipe of your own keeps its name."""
    for pattern, text in _PATTERNS.items():
        if found := re.fullmatch(pattern, name):
            return found.expand(text)
    return _RECIPES.get(name, name)


# Recipes that differ in one number, and that a figure shows together: its title, and the name of each.
TOGETHER = {
    "batch, with warm-up": {f"batch_{n}": f"{n}" for n in BATCHES},
    "batch, without warm-up": {f"batch_{n}_no_warmup": f"{n}" for n in BATCHES},
    "epochs at batch 4096": {f"epochs_{n}_batch_4096": f"{n}" for n in LENGTHS},
    "epochs at batch 14336": {f"epochs_{n}_batch_14336": f"{n}" for n in LENGTHS},
    "batch, SGD at its own rate": {f"sgd_{n}": f"{n}" for n in BATCHES},
    "batch, LARS": {f"lars_{n}": f"{n}" for n in BATCHES},
    "images of a batch norm": {f"ghost_{n}": f"{n}" for n in GHOSTS},
    "part of the images, equal epochs": {f"images_1_{n}_equal_epochs": f"1/{n}" for n in PARTS},
    "part of the images, equal steps": {f"images_1_{n}_equal_steps": f"1/{n}" for n in PARTS},
}


def panel(name: str) -> str:
    """The title of the panel in which a figure shows a recipe."""
    return next((title for title, together in TOGETHER.items() if name in together), recipe(name))


def in_panel(name: str) -> str:
    """What a recipe is called in a panel that it shares."""
    return TOGETHER[panel(name)][name]


def order(name: str) -> tuple[int, str]:
    """The place of a recipe among others: as they are declared, and then your own by their names."""
    declared = [*_RECIPES, *(each for together in TOGETHER.values() for each in together)]
    return (declared.index(name) if name in declared else len(declared)), name


TOPICS = {
    "collapse": "What the collapse does",
    "ensemble": "The Collapsed Ensemble against other uses of its images",
    "cost": "The Collapsed Ensemble against one model that costs as much to evaluate",
    "batch": "Large batches",
    "warm-up": "Warm-up",
    "length": "Longer training",
    "tuned": "Large batches, each at its own best rate",
    "lars": "LARS",
    "growing": "A batch that grows instead of a rate that falls",
    "ghost": "Ghost batch norm",
    "precision": "bf16 against float32",
    "data": "Fewer images",
    "averages": "Averages of weights",
    "cooldown": "Collapses from other trunks",
    "restarts": "Restarts, triangles and one cycle",
    "ablation": "The release's switches, one at a time",
    "asynchronous": "Asynchronous SGD",
}


class Column(NamedTuple):
    """A column's heading, with its unit; how a number in it is written; and, if it is in a table of results, what it means.

    `form` is a format, "any" for any size, "" for text.
    """

    heading: str
    form: str = ""
    meaning: str = ""


def written(value: Any, name: str) -> str:
    """A table's value as people read it, with the digits of its column; "" for what is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    form = COLUMNS[name].form if name in COLUMNS else ""
    if isinstance(value, str) or not form and not isinstance(value, float):
        return str(value)
    if form in ("", "any"):
        form = ".4g"
    if form.endswith("g") and abs(value) >= 1000:
        form = ",.0f"
    return format(value, form)


# A name means the same in every table. The page of the results' files (docs/results.md) has those with a meaning.
COLUMNS = {
    # What was run
    "recipe": Column("recipe", meaning="what was trained; in `predictions` the last row is all of them together"),
    "shrink": Column("size", meaning="how it was made small"),
    "model": Column("network", meaning="the network"),
    "variant": Column("variant", meaning="the settings that are not the defaults"),
    "data": Column("data", meaning="the data set"),
    "members": Column("model or members", meaning="the stage whose end is tested, or those whose predictions are averaged"),
    "average": Column("mean of", meaning="what of several members is averaged: softmax, logit or weights"),
    "epochs": Column("epochs", ".2f", "passes over the training images, of all training that led to a model"),
    "n": Column("n, seeds", ".0f", "runs, or timed steps"),
    # Accuracy
    "top1": Column("top\u20111, %", ".2f", "top-1 accuracy, per cent; over several runs their mean"),
    "top5": Column("top\u20115, %", ".2f", "top-5 accuracy, in the same way"),
    "sd": Column(
        "standard deviation",
        ".2f",
        "standard deviation over seeds, points; in `answers`, of the difference if paired, else both sides' root mean square",
    ),
    "smallest": Column("smallest", ".2f", "the smallest top-1 over seeds, per cent"),
    "largest": Column("largest", ".2f", "the largest top-1 over seeds, per cent"),
    # Questions and their answers
    "topic": Column("topic", meaning="what a question is about"),
    "claim": Column("claim", meaning="a claim of the paper, or a question's"),
    "control": Column("control", meaning="whether the question should show nothing, or nothing new"),
    "compared": Column(
        "compared by",
        meaning="paired t: both sides come from one run of each seed; Welch's t: they do not; exact ranks: runs may fail",
    ),
    "n_other": Column("n of the other", ".0f", "runs of the other side"),
    "failed": Column("failed", ".0f", "runs with less than half of the best accuracy on either side"),
    "failed_other": Column("of the other", ".0f", "the same of the other side"),
    "against": Column("of the other, %", ".2f", "`top1` of the other side, per cent; if compared by ranks, both are medians"),
    "difference": Column(
        "difference, points", "+.2f", "better minus other, points; if compared by ranks, the median of all pairs of runs"
    ),
    "low": Column("from", meaning="lower end of the 95% interval of `difference` or `ours`, or the 5% point of `seconds`"),
    "high": Column("to", meaning="upper end, or the 95% point"),
    "r": Column("correlation", ".2f", "correlation of the two sides over the seeds"),
    "not_worse_by": Column(
        "not worse by, points", ".2f", "0: the claim is that one side is better; else that it is not worse by more than so much"
    ),
    "margin": Column("margin, points", ".2f", "what counts as equal, points"),
    "p": Column("p", ".3f", "p of no difference, or of one of -`not_worse_by`"),
    "p_holm": Column("p, Holm", ".3f", "`p`, corrected for all questions of the topic (Holm)"),
    "p_equivalent": Column("p of equivalence", ".3f", "p of a difference smaller than the margin"),
    "p_equivalent_holm": Column("p of equivalence, Holm", ".3f", "`p_equivalent`, corrected in the same way"),
    "detectable": Column(
        "detectable, points",
        ".2f",
        "the smallest true distance from 0, or from -`not_worse_by`, that so many runs find with a power of 80%, points",
    ),
    "difference_zoom": Column("enlarged view", "+.2f", "the difference in an enlarged test view, points"),
    "difference_scale_aspect": Column("training view", "+.2f", "the difference in the main stages' view, points"),
    "low_zoom": Column("from, enlarged view", "+.2f", "as `low`, of `difference_zoom`"),
    "high_zoom": Column("to, enlarged view", "+.2f", "as `high`, of `difference_zoom`"),
    "low_scale_aspect": Column("from, training view", "+.2f", "as `low`, of `difference_scale_aspect`"),
    "high_scale_aspect": Column("to, training view", "+.2f", "as `high`, of `difference_scale_aspect`"),
    "recomputed": Column("with recomputed statistics"),
    "views": Column("other views", meaning="whether the difference has the same sign in all views"),
    "low_originals": Column("from, new originals", "+.2f", "as `low`, for new original images too"),
    "high_originals": Column("to, new originals", "+.2f", "as `high`, for new original images too"),
    "verdict": Column("verdict", meaning="what follows from an answer"),
    "agreement": Column("do data sets agree", meaning="whether the verdicts of all data sets that answered a question agree"),
    "hangs_on": Column(
        "seeds it hangs on", ".0f", "how many seeds there are without which, each alone, the verdict would be another"
    ),
    "interval": Column("95% interval"),
    "apart": Column("between data sets, points", "+.2f"),
    "apart_low": Column("from, between data sets", "+.2f"),
    "apart_high": Column("to, between data sets", "+.2f"),
    # The ledger
    "id": Column("no.", meaning="a claim's or a published run's number"),
    "published": Column("published", meaning="what was published"),
    "source": Column("source of the published number", meaning="where it was published"),
    "scale": Column("scale", meaning="on which data a claim is tested"),
    "test": Column("test", meaning="what is compared"),
    "tolerance": Column("tolerance", "any", "how close is close enough"),
    "why": Column("why", meaning="why that close"),
    "state": Column("state", meaning="what follows from a row, in `ledger` and `scaling_checks`"),
    "ours": Column("ours", meaning="what was found"),
    "runs": Column("runs", meaning="the runs that it was found by"),
    "commit": Column("commit", meaning="the code that trained them"),
    "node_hours": Column("node-hours", ",.0f", "what a claim's run costs, as published, where that is known"),
    "node_hours_cpu": Column(
        "node-hours on CPUs", ",.0f", "the same on nodes that can be rented, by the software of their MLPerf logs"
    ),
    "node_hours_gpu": Column("node-hours on GPUs", ",.0f", "the same on nodes with GPUs, likewise"),
    "one_gpu_hours": Column("hours on one GPU", ",.0f", "the same on one GPU by this code, without evaluations"),
    "cost": Column("what a run costs", meaning="what a recipe's source says of the cost of a run"),
    # The ensemble's members, and switches
    "seed": Column("seed", ".0f", "the run's seed; of two runs that of the first"),
    "kind": Column("pairs of", meaning="what is compared in pairs"),
    "line": Column("of a line", meaning="whether the figure joins it with others of its label"),
    "operations": Column(
        "multiply-adds, millions", ".3f", "multiply-adds for an image, of all models that are evaluated, in millions"
    ),
    "models": Column("models", ".0f", "how many models are evaluated for an image"),
    "disagreement": Column("different classes, %", ".2f", "images for which two models predict different classes, per cent"),
    "loss": Column(
        "loss", ".4f", "mean cross-entropy: of test images, or in `ensemble_sharpness` and `_rescaled` of training images"
    ),
    "calibration_error": Column(
        "calibration error, points", ".2f", "expected calibration error of 15 bins of equal width, points"
    ),
    "confidence": Column(
        "confidence, %", ".1f", "mean of the largest probability of a bin's images, per cent; ends of the bin"
    ),
    "test_images": Column("test images", ",.0f", "test images, of a bin or of all"),
    "share": Column("share of the second", ".1f", "place on the straight path between two models: 0 the first, 1 the second"),
    "view": Column("view", meaning="in which view images are, of the loss and of batch norm's statistics"),
    "draw": Column("direction", ".0f", "number of the random direction"),
    "radius": Column("length of the step", ".2f", "by how much weights move, as a share of each filter's length"),
    "rise": Column(
        "rise of the loss",
        ".4f",
        "by how much the loss rises, mean of forth and back; in `ensemble_rescaled` along a direction of a fixed length",
    ),
    "rise_filter_wise": Column("rise, filter-wise", ".4f", "the same along a direction as long as each filter"),
    "scaled_by": Column("weights times", "g", "what the weights of all convolutions were multiplied by"),
    "switch": Column("switch", meaning="a switch of the release, or another field of a recipe"),
    "value": Column("value", meaning="its value"),
    "weights_differ": Column("other weights", meaning="whether the weights of the first steps have other bits"),
    "statistics_differ": Column("other statistics", meaning="whether batch norm's running statistics have other bits"),
    # Recipes and published runs
    "workers": Column("workers", ".0f", "processes of the recipe"),
    "images per worker": Column("images per worker", ".0f", "images of one worker at a step"),
    "global batch": Column("global batch", ",.0f", "images of a step"),
    "stages": Column("stages", meaning="the recipe's stages, in order"),
    "hardware": Column("hardware", meaning="on what a recipe or a published run ran"),
    "reported top-1 / top-5": Column("reported top-1 / top-5", meaning="what a recipe's source reports, per cent"),
    "run": Column("run", meaning="a published run"),
    "year": Column("year", ".0f", "the year of its publication"),
    "nodes": Column("nodes", ".0f", "nodes of a run"),
    "processes_per_node": Column("processes per node", ".0f", "processes on each node"),
    "images_per_process": Column("images per process", ".0f", "images of one process at a step"),
    "global_batch": Column("global batch", ",.0f", "images of a step"),
    "minutes": Column("time, minutes", ".3g", "minutes of a whole run"),
    "images_per_s": Column("images/s", ",.0f", "images per second"),
    "per_node": Column("images/s of a node", ",.0f", "images per second and node"),
    "computed": Column("computed", meaning="whether images/s are computed from epochs and minutes"),
    # The ratios of the test bed
    "ratio": Column("ratio", meaning="a ratio that a shrink should keep"),
    "imagenet": Column("ImageNet", "any", "its value at ImageNet's size"),
    "small": Column("test bed", "any", "its value when shrunk"),
    "factor": Column("factor", ".2f", "small / imagenet"),
    "kept": Column("kept", meaning="whether it is kept"),
    "reason": Column("if not, why", meaning="why it is not"),
    # Forecasts and scaling
    "predicted": Column(
        "predicted, minutes", ".1f", "what was predicted: in `predictions` minutes, in `scaling_checks` seconds, else a run"
    ),
    "measured": Column("measured, minutes", ".1f", "what was measured, in the same unit"),
    "error": Column("error, %", "+.0f", "error of the prediction, per cent of what was measured"),
    "label": Column("label", meaning="*measured* or MODEL; in `ensemble_costs` what is drawn"),
    "known": Column("fitted to", meaning="the published run that MODEL is fitted to"),
    "scaling": Column("scaling", meaning="what stays while ranks are added: weak, the images of a rank; strong, the batch"),
    "size": Column("pixels", ".0f", "pixels a side"),
    "ranks": Column("ranks", ".0f", "ranks"),
    "images": Column("images a rank", ".0f", "images of a rank, or of a process, at a step"),
    "images_per_rank": Column("images a rank", ".0f", "images of a rank at a step"),
    "buckets": Column("buckets", ".0f", "buckets of the allreduce; 1: nothing overlaps"),
    "interconnect": Column("network", meaning="the assumed network between nodes"),
    "seconds": Column("step, s", ".3f", "seconds of a step"),
    "seconds_MODEL": Column("step by MODEL, s", ".3f", "seconds of a step by MODEL"),
    "compute": Column("computation, s", ".3f", "seconds of a step that are spent on computation"),
    "waiting": Column("waiting, s", ".3f", "seconds that are spent on waiting for the slowest"),
    "allreduce": Column("allreduce, s", ".3f", "seconds that are spent on the allreduce"),
    "efficiency": Column("efficiency, %", ".0f", "images/s, per cent of those of as many ranks or nodes, each alone"),
    "efficiency_48_cores": Column("of all 48 cores, %", ".0f", "the same, of a node that computes on all its cores"),
    "minutes_60": Column("60 epochs, minutes", ".0f", "minutes for 60 epochs"),
    "minutes_64": Column("64 epochs, minutes", ".0f", "minutes for 64 epochs"),
    "minutes_75": Column("75 epochs, minutes", ".0f", "minutes for 75 epochs"),
    "minutes_90": Column("90 epochs, minutes", ".0f", "minutes for 90 epochs"),
    "minutes_to_accuracy": Column(
        "minutes to 75.9%", ".0f", "minutes for the epochs that published runs with that batch needed to reach 75.9%"
    ),
    "method": Column("method"),
    "batch": Column("batch", ",.0f"),
    "epochs_of": Column("epochs of"),
    "target": Column("accuracy to reach, %", ".1f"),
    "lengths": Column("lengths", ".0f"),
    "first": Column("first"),
    "minutes_low": Column("from, minutes", ".3g"),
    "minutes_high": Column("to, minutes", ".3g"),
    "speedup": Column("speed-up", ",.1f"),
    "check": Column("check", meaning="what was predicted, from what"),
    "error_percent": Column("error, %", "+.1f", "error of the prediction, per cent of what was measured or published"),
    "allowed_percent": Column("allowed, %", ".0f", "how large the error may be, per cent"),
    # Composed by the report
    "range": Column("smallest to largest"),
    "folder": Column("run"),
    "status": Column("status"),
    "weights_sha256": Column("SHA-256 of the weights"),
    "n_steps": Column("n, steps", ".0f"),
    "band": Column("5 to 95%, s"),
    "step_rate": Column("images/s", ".1f"),
    "n_runs": Column("n, runs", ".0f"),
    "predicted_s": Column("predicted, s", ".3f"),
    "measured_s": Column("measured, s", ".3f"),
    "efficiency_text": Column("efficiency, % (band)"),
    "predicted_run": Column("predicted run"),
    "rate_text": Column("predicted, images/s (band)"),
    "published_rate": Column("published, images/s", ",.0f"),
}
