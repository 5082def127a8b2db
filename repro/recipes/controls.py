"""This project's own recipes: the Collapsed Ensemble as a whole, and what the paper's claims are compared with.

The released recipes are in `released`; these have the same units, ImageNet's iterations and rates, and none was released.
"""

import math
from dataclasses import replace
from typing import Any

from repro.recipes.released import COLLAPSE, CYCLE_1, CYCLE_2, CYCLE_3, INIT, resnet50_448nodes, resnet50_448nodes_uncollapsed
from repro.recipes.released import resnet50_custom_lr as cycles
from repro.schedule import NEW_WEIGHTS, Recipe, Stage, scaled

# --- The Collapsed Ensemble -------------------------------------------------------------------------------------------

collapsed_ensemble = replace(
    cycles,
    name="collapsed_ensemble",
    stages=(
        INIT,
        CYCLE_1,
        # Each collapse starts at the rate at which its cycle ends by design, like the released one.
        replace(COLLAPSE, name="collapse1", base_rate=0.255),
        replace(CYCLE_2, starts_from="cyc1"),
        replace(COLLAPSE, name="collapse2", base_rate=0.191),
        replace(CYCLE_3, starts_from="cyc2"),
        replace(COLLAPSE, name="collapse3"),
    ),
    summary="resnet50_custom_lr with a collapse after every cycle: three members, one training budget of 82.3 epochs",
    source="this project: the released cycles, branched as the release's README describes; the paper's own member "
    "count and schedule were not released",
    cost="not known; 82.3 epochs are 1.14 times resnet50_custom_lr",
    reported="",
)

OWN: dict[str, Any] = dict(source="this project; not a released configuration", cost="", reported="")
BUDGET = collapsed_ensemble.iterations  # 25730, of 4096 images


def _cycle(number: int) -> tuple[Stage, Stage]:
    """One more cycle and its collapse, by the released cycles' rule: each rate is three quarters of the cycle's before."""
    fall = 0.75 ** (number - 3)
    cycle = replace(
        CYCLE_3,
        name=f"cyc{number}",
        base_rate=CYCLE_3.base_rate * fall,
        warmup_start_rate=CYCLE_3.warmup_start_rate * fall,
        starts_from=f"cyc{number - 1}",
    )
    return cycle, replace(COLLAPSE, name=f"collapse{number}", base_rate=COLLAPSE.base_rate * fall)


five_members = replace(
    collapsed_ensemble,
    name="five_members",
    stages=(*collapsed_ensemble.stages, *_cycle(4), *_cycle(5)),
    summary="collapsed_ensemble, then two more cycles: five members, 122.6 epochs; its first three are collapsed_ensemble's",
    **OWN,
)

# --- What the ensemble is compared with, at its number of images --------------------------------------------------------


def _falling(done: int, iterations: int, **fields) -> Stage:
    """A part of one model's linear decay from 1.6 to zero over the ensemble's budget, from iteration `done` on."""
    return Stage(iterations=iterations, base_rate=1.6 * (1 - done / BUDGET), horizon=BUDGET - done, **fields)


LONG = BUDGET - 3 * COLLAPSE.iterations  # iteration at which a collapse begins that is as long as the ensemble's three
SHORT = BUDGET - COLLAPSE.iterations

one_model = replace(
    cycles,
    name="one_model",
    stages=(
        Stage("main", LONG, base_rate=1.6, warmup_iterations=1560, warmup_start_rate=0.1, horizon=BUDGET),
        replace(COLLAPSE, name="collapse_long", iterations=3 * COLLAPSE.iterations, base_rate=1.6 * (1 - LONG / BUDGET)),
        _falling(LONG, SHORT - LONG, name="late", starts_from="main"),
        replace(COLLAPSE, base_rate=1.6 * (1 - SHORT / BUDGET), member=False),
        _falling(SHORT, BUDGET - SHORT, name="plain", starts_from="late"),
    ),
    summary="Control: one model of collapsed_ensemble's number of images, with a collapse as long as its three together "
    "(equal exposure to the collapse's view), as long as one, and with none",
    **OWN,
)

one_deep_model = replace(
    one_model,
    name="one_deep_model",
    stages=one_model.stages[:2],
    model="resnet152",
    summary="Control: one model of collapsed_ensemble's number of images and about its cost of inference",
    **OWN,
)

one_deep_model_third = replace(
    one_deep_model,
    name="one_deep_model_third",
    stages=scaled(one_deep_model.stages, 1 / 3, 1),
    summary="Control: one_deep_model over a third of the images, which take about the arithmetic of collapsed_ensemble's "
    "training",
    **OWN,
)


def _snapshots(in_crop: int) -> tuple[Stage, ...]:
    """Three cosine cycles from the full rate to zero; the last `in_crop` iterations of each are in the collapse's view."""
    stages = []
    for number, length in enumerate((BUDGET // 3, BUDGET // 3, BUDGET - 2 * (BUDGET // 3)), start=1):
        warmup: dict[str, Any] = dict(warmup_iterations=1560, warmup_start_rate=0.1) if number == 1 else {}
        stages.append(
            Stage(f"cyc{number}", length - in_crop, 1.6, decay="cosine", horizon=length, member=not in_crop, **warmup)
        )
        if in_crop:  # near its end a cosine is a square: (1 + cos(pi x)) / 2 = (pi / 2)**2 (1 - x)**2 + ...
            rate = 1.6 * (math.pi / 2 * in_crop / length) ** 2
            end = replace(COLLAPSE, name=f"end{number}", iterations=in_crop, base_rate=rate, starts_from="", member=True)
            stages.append(end)
    return tuple(stages)


snapshot_ensemble = replace(
    cycles,
    name="snapshot_ensemble",
    stages=_snapshots(in_crop=0),
    summary="Control: a snapshot ensemble (Huang et al., 2017) of as many images: its cycles end at rate zero",
    **OWN,
)

snapshot_ensemble_crop = replace(
    snapshot_ensemble,
    name="snapshot_ensemble_crop",
    stages=_snapshots(in_crop=COLLAPSE.iterations),
    summary="Control: the same, with each cycle's end in the collapse's view, for as many images as in the collapses",
    **OWN,
)

_THIRD = BUDGET // 3 - COLLAPSE.iterations
three_models = replace(
    cycles,
    name="three_models",
    stages=tuple(
        stage
        for number in (1, 2, 3)
        for stage in (
            Stage(
                f"main{number}",
                _THIRD,
                base_rate=1.6,
                warmup_iterations=520,  # a third of the released one
                warmup_start_rate=0.1,
                horizon=BUDGET // 3,
                starts_from=NEW_WEIGHTS if number > 1 else "",
            ),
            replace(COLLAPSE, name=f"collapse{number}", base_rate=1.6 * COLLAPSE.iterations / (BUDGET // 3)),
        )
    ),
    summary="Control: three models from different initial weights, each of a third of collapsed_ensemble's images",
    **OWN,
)

# --- The collapse taken apart -------------------------------------------------------------------------------------------

_MAIN, _COLLAPSE = resnet50_448nodes.stages
collapse_parts = replace(
    resnet50_448nodes,
    name="collapse_parts",
    stages=(
        _MAIN,
        *(
            replace(
                _COLLAPSE,
                name=f"{rate}-{view}-{decay}",
                power=2 if rate == "zero" else 0,
                augmentation="none" if view == "crop" else "scale_aspect",
                weight_decay=_COLLAPSE.weight_decay if decay == "x2" else _MAIN.weight_decay,
                starts_from=_MAIN.name,
                member=(rate, view, decay) == ("zero", "crop", "x2"),  # the released one
            )
            for rate in ("keep", "zero")
            for view in ("main", "crop")
            for decay in ("x1", "x2")
        ),
        Stage("plain", 402, base_rate=0.24, starts_from=_MAIN.name),  # 4.8 (8040 - 7638) / 8040
        # At rate zero nothing but batch norm's running statistics moves.
        replace(_COLLAPSE, name="statistics", base_rate=0.0, augmentation="none", starts_from="zero-main-x1", member=False),
    ),
    summary="resnet50_448nodes, whose end is trained nine times from one snapshot: each combination of rate (kept, to zero), "
    "view (main, or the collapse's) and weight decay (once, or doubled), and the plain end of the linear decay; then one of "
    "them with batch norm's statistics of the collapse's view",
    **OWN,
)

# --- Batches and lengths --------------------------------------------------------------------------------------------------


def at_batch(recipe: Recipe, batch: int) -> Recipe:
    """The recipe with another global batch, for as many images: rates by the linear rule (Goyal et al., 2017)."""
    factor = batch / recipe.global_batch
    return replace(recipe, workers=batch // recipe.images_per_worker, stages=scaled(recipe.stages, 1 / factor, factor, factor))


def at_length(recipe: Recipe, epochs: float) -> Recipe:
    """The recipe over another number of epochs, each stage in proportion."""
    return replace(recipe, stages=scaled(recipe.stages, epochs / recipe.epochs(), 1))


BATCHES = 2048, 4096, 8192, 16384, 32768
LENGTHS = 30, 60, 90, 120


def _sweep(batch: int, warmup: bool) -> Recipe:
    recipe = at_batch(resnet50_448nodes_uncollapsed, batch)
    stages = recipe.stages if warmup else tuple(replace(stage, warmup_iterations=0) for stage in recipe.stages)
    return replace(
        recipe,
        name=f"batch_{batch}" + ("" if warmup else "_no_warmup"),
        stages=stages,
        summary=f"resnet50_448nodes_uncollapsed at batch {batch}, rates by the linear rule"
        + ("" if warmup else ", started at the full rate"),
        **OWN,
    )


def _length(epochs: int, batch: int) -> Recipe:
    return replace(
        at_batch(at_length(resnet50_448nodes, epochs), batch),
        name=f"epochs_{epochs}_batch_{batch}",
        summary=f"resnet50_448nodes over {epochs} epochs at batch {batch}",
        **OWN,
    )


CONTROLS = (
    collapsed_ensemble,
    five_members,
    one_model,
    one_deep_model,
    one_deep_model_third,
    snapshot_ensemble,
    snapshot_ensemble_crop,
    three_models,
    collapse_parts,
    *(_sweep(batch, warmup) for batch in BATCHES for warmup in (True, False)),
    *(_length(epochs, batch) for epochs in LENGTHS for batch in (4096, 14336)),
)
