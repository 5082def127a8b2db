"""Recipes of the methods that the paper's references would have used with the same images: the rivals of its own.

Units are ImageNet's, as in `released` and `controls`. A rule other than SGD is named, and its class is in `repro.baselines`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import Any, NamedTuple

import repro.recipes.cycles as cycles
from repro.recipes.controls import BATCHES, at_batch
from repro.recipes.released import resnet50_448nodes_uncollapsed
from repro.schedule import Recipe, scaled


class Tuned(NamedTuple):
    """A recipe with one free number. `paper.choice` chooses it, of as many tried values for each, on validation images.

    The number must be one that can be doubled and halved: a factor on the rates, a ratio, a horizon. It is the choice in
    results/reference/bench/tuning.csv as soon as that has the recipe, which a test checks; until then it is the first.
    """

    make: Callable[[float], Recipe]  # the recipe with this number
    value: float  # what was chosen, or the first
    first: float = 1.0  # what is tried first, from the method's source
    number: str = "factor on the rates"  # what the number is, in words

    @property
    def recipe(self) -> Recipe:
        return self.make(self.value)


def _recipe(of: Recipe, name: str, summary: str, **fields: Any) -> Recipe:
    return replace(of, name=name, summary=summary, source=OWN, hardware="", cost="", reported="", **fields)


OWN = "this project; not a released configuration"

# --- SGD and LARS over the batch --------------------------------------------------------------------------------------

RATIO = (("ratio", 0.001),)  # of the release's two recipes with LARS, AlexNet and VGG-16
NORMS_AT = 4096, 32768  # batches at which batch norm is left out, too


def _sgd(batch: int, factor: float, decay_norms: bool = True) -> Recipe:
    of = at_batch(resnet50_448nodes_uncollapsed, batch)
    return _recipe(
        of,
        f"sgd_{batch}" + ("" if decay_norms else "_norms_not_decayed"),
        f"batch_{batch} with its own factor on the linear rule's rates"
        + ("" if decay_norms else ", without weight decay on batch norm"),
        stages=scaled(of.stages, 1, factor),
        decay_bn=decay_norms,
    )


def _lars(batch: int, factor: float, rule: str = "LARS", name: str = "", what: str = "") -> Recipe:
    """`name` and `what` say in which the rule differs from the released one.

    A factor of 1 is a base rate of 32 at batch 32768, and as the square root of the batch below (the README of
    NUS-HPC-AI-Lab/LARS-ImageNet-PyTorch at a8222c6), with the images, the shape of the schedule and the warm-up of SGD.
    """
    of = at_batch(resnet50_448nodes_uncollapsed, batch)
    rate = 32 * sqrt(batch / 32768) / of.stages[0].base_rate
    return _recipe(
        of,
        f"lars_{batch}{name}",
        f"batch_{batch} by LARS as the release's solver has it{what}",
        stages=scaled(of.stages, 1, rate * factor),
        update=f"repro.baselines.lars:{rule}",
        update_numbers=RATIO,
    )


SGD_FACTORS = {2048: 1.0, 4096: 1.0, 8192: 1.0, 16384: 1.0, 32768: 1.0}
LARS_FACTORS = {2048: 1.0, 4096: 1.0, 8192: 1.0, 16384: 1.0, 32768: 1.0}
NOT_DECAYED_FACTORS = {4096: 1.0, 32768: 1.0}
WITHOUT_NORMS_FACTORS = {4096: 1.0, 32768: 1.0}
_LEFT: dict[str, Any] = dict(
    rule="WithoutNorms", name="_without_norms", what=", but not on batch norm and biases, which are not decayed"
)
_II: dict[str, Any] = dict(rule="RateOutside", name="_rate_outside", what=", but with the rate outside the momentum buffer")
_III: dict[str, Any] = dict(
    rule="BothOutside", name="_both_outside", what=", but with rate and trust ratio outside the momentum buffer"
)
_UNFUSED: dict[str, Any] = dict(rule="Unfused", name="_unfused", what="'s other path, by the norm of the decayed gradient")

BY_BATCH = (
    *(Tuned(partial(_sgd, batch), SGD_FACTORS[batch]) for batch in BATCHES),
    *(Tuned(partial(_lars, batch), LARS_FACTORS[batch]) for batch in BATCHES),
    *(Tuned(partial(_sgd, batch, decay_norms=False), NOT_DECAYED_FACTORS[batch]) for batch in NORMS_AT),
    *(Tuned(partial(_lars, batch, **_LEFT), WITHOUT_NORMS_FACTORS[batch]) for batch in NORMS_AT),
    Tuned(partial(_lars, 32768, **_II), 1.0),
    Tuned(partial(_lars, 32768, **_III), 1.0),
)
# One switch of the release, and nothing else: so with the factor of the other path.
LARS_UNFUSED = _lars(32768, LARS_FACTORS[32768], **_UNFUSED)

# --- Averages of weights, collapses from other trunks, restarts (`recipes.cycles`) --------------------------------------

OF_CYCLES = (
    Tuned(cycles.tuned_ensemble, cycles.ENSEMBLE_FACTOR),
    Tuned(cycles.tuned_one_model, cycles.ONE_MODEL_FACTOR),
    Tuned(cycles.swa, cycles.SWA_RATE, 0.291, "rate while weights are averaged"),
    Tuned(cycles.ema, cycles.EMA_HALF_LIFE, 0.2, "half life, as a share of the averaged stage"),
    Tuned(cycles.constant_ensemble, cycles.CONSTANT_RATE, 0.66, "constant rate"),
    Tuned(cycles.triangular_ensemble, cycles.TRIANGLES_TOP, 0.99, "top rate"),
    Tuned(cycles.warm_restarts_crop, cycles.WARM_RESTARTS_TOP, 1.6, "rate after a restart"),
    Tuned(cycles.snapshot_ensemble_restarts, cycles.RESTART_RATE, 0.764, "rate after a restart"),
    Tuned(cycles.one_cycle, cycles.ONE_CYCLE_TOP, 1.6, "top rate"),
    Tuned(cycles.schedule_free_crop, cycles.SCHEDULE_FREE_RATE, 16.0, "rate"),
)

# --- Asynchronous -----------------------------------------------------------------------------------------------------

GROUPS = 2, 4, 8  # each a group of workers that average; between groups all is asynchronous
GROUP_IMAGES = 4096  # images of a group's gradient: synchronous, 8 groups share a step of 32768


def _of_groups(name: str, batch: int, staleness: int, summary: str, factor: float, **fields: Any) -> Recipe:
    """The 448-node run without its collapse, over the same images, `batch` of them an update; rates as those of `sgd_{batch}`.

    All have the rule of asynchronous SGD, also without staleness, so that batch norm's statistics are computed anew for all.
    """
    of = at_batch(resnet50_448nodes_uncollapsed, batch)
    rule = dict(update="repro.baselines.asynchronous:Asynchronous", update_numbers=(("staleness", staleness),))
    stages = scaled(of.stages, 1, factor)
    return _recipe(of, name, f"batch_{batch} {summary}", stages=stages, **(rule | fields))


def _asynchronous(groups: int, factor: float) -> Recipe:
    summary = f"by asynchronous SGD of {groups} groups: an update has the gradient of one, {groups - 1} updates late"
    return _of_groups(f"asynchronous_{groups}_groups", GROUP_IMAGES, groups - 1, summary, factor)


def _compensated(groups: int, factor: float, lam: float, rule: str = "DelayCompensated") -> Recipe:
    which = "" if rule == "DelayCompensated" else "adaptive "
    return _of_groups(
        f"{which.replace(' ', '_')}delay_compensation_{groups}_groups",
        GROUP_IMAGES,
        groups - 1,
        f"by asynchronous SGD of {groups} groups with {which}delay compensation (Zheng et al., 2017)",
        factor,
        update=f"repro.baselines.asynchronous:{rule}",
        update_numbers=(("staleness", groups - 1), ("lam", lam)),
    )


_SEQUENTIAL = "sequential", GROUP_IMAGES, 0, "by SGD whose updates wait for nobody: as asynchronous SGD without delay"
_SYNCHRONOUS = "synchronous_8_groups", 8 * GROUP_IMAGES, 0, "by SGD whose updates wait for 8 groups of 4096 images"
ASYNCHRONOUS_FACTORS = {2: 1.0, 4: 1 / 3, 8: 1 / 7}
_LAM = f"lam, at a factor of {ASYNCHRONOUS_FACTORS[8]:.3g} on the rates"

OF_GROUPS = (
    Tuned(partial(_of_groups, *_SEQUENTIAL), 1.0),
    Tuned(partial(_of_groups, *_SYNCHRONOUS), 1.0),
    # First the linear rule's rate over the staleness (Zhang et al., arXiv 1511.05950).
    *(Tuned(partial(_asynchronous, n), ASYNCHRONOUS_FACTORS[n], 1 / (n - 1)) for n in reversed(GROUPS)),
    # At the rate of asynchronous SGD, so that is tuned before; first the defaults of MXNet, and of torch_scala.
    Tuned(partial(_compensated, 8, ASYNCHRONOUS_FACTORS[8]), 0.04, 0.04, _LAM),
    Tuned(partial(_compensated, 8, ASYNCHRONOUS_FACTORS[8], rule="AdaptivelyCompensated"), 2.0, 2.0, _LAM),
)

# --- All --------------------------------------------------------------------------------------------------------------

TUNED: tuple[Tuned, ...] = (*BY_BATCH, *OF_CYCLES, *OF_GROUPS)
BASELINES: tuple[Recipe, ...] = (*(each.recipe for each in TUNED), LARS_UNFUSED, *cycles.AS_TUNED)
