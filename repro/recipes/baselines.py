"""Recipes of the methods that the paper's references would have used with the same images: the rivals of its own.

Units are ImageNet's, as in `released` and `controls`. A rule other than SGD is named, and its class is in `repro.baselines`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import Any, NamedTuple

import repro.recipes.cycles as cycles
from repro.recipes.controls import BATCHES, OWN, at_batch
from repro.recipes.released import resnet50_448nodes, resnet50_448nodes_uncollapsed, resnet50_custom_lr
from repro.schedule import IMAGENET_IMAGES, Recipe, scaled


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
    return replace(of, name=name, summary=summary, hardware="", **OWN, **fields)


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
    The weight decay is the release's in small recipes, too: it stands beside the gradient's norm, and twenty times as much
    shrinks the tensors whose gradients are small at first to nothing, such as branches that begin with a gamma of zero.
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
        keep_decay=True,
    )


SGD_FACTORS = {2048: 0.5, 4096: 0.25, 8192: 0.3536, 16384: 0.25, 32768: 0.125}
LARS_FACTORS = {2048: 2.0, 4096: 2.0, 8192: 1.414, 16384: 2.0, 32768: 2.0}
NOT_DECAYED_FACTORS = {4096: 0.25, 32768: 0.25}
WITHOUT_NORMS_FACTORS = {4096: 1.414, 32768: 1.0}
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
    Tuned(partial(_lars, 32768, **_II), 2.0),
    Tuned(partial(_lars, 32768, **_III), 1.414),
)
# One switch of the release, and nothing else: so with the factor of the other path.
LARS_UNFUSED = _lars(32768, LARS_FACTORS[32768], **_UNFUSED)

# --- Batches that grow, ghost batch norm, fewer images ------------------------------------------------------------------

STEP = 4  # by which the rate falls, or the batch grows, after each third of the images


def _staircase(name: str, fall: int, grow: int, summary: str) -> Recipe:
    """batch_2048 at a constant rate, which falls, or whose batch grows, twice; momentum goes on."""
    of = at_batch(resnet50_448nodes_uncollapsed, 2048)
    (main,) = of.stages
    constant = replace(main, iterations=main.iterations // 3, power=0, horizon=0)
    later = replace(constant, warmup_iterations=0, warmup_start_rate=0.0, keep_momentum=True)
    stages = [replace(constant, name="first", member=False)]
    for number, stage in ((1, "second"), (2, "third")):
        batch = grow**number
        stages.append(
            replace(
                later,
                name=stage,
                member=stage == "third",
                iterations=round(constant.iterations / batch),
                base_rate=main.base_rate / fall**number,
                workers=of.workers * batch if batch > 1 else 0,
            )
        )
    return _recipe(of, name, summary, stages=tuple(stages))


GROWING = (
    _staircase("rate_falls", STEP, 1, "batch_2048 whose rate falls to a quarter after each third of the images"),
    _staircase("batch_grows", 1, STEP, "batch_2048 whose batch grows fourfold after each third of the images, at one rate"),
    _staircase("neither_changes", 1, 1, "batch_2048 at one rate"),
)

GHOSTS = 8, 32, 64, 128  # images of one batch norm; sgd_16384 has 16


def _ghost(images: int) -> Recipe:
    of = _sgd(16384, SGD_FACTORS[16384])
    summary = f"sgd_16384 with batch norm over {images} images instead of {of.images_per_worker}"
    return _recipe(of, f"ghost_{images}", summary, workers=of.global_batch // images, images_per_worker=images)


PARTS = 2, 4, 8  # of the training images, of which batch_2048 has all


def _fewer(part: int, equal: str) -> Recipe:
    of = at_batch(resnet50_448nodes_uncollapsed, 2048)
    return _recipe(
        of,
        f"images_1_{part}_equal_{equal}",
        f"batch_2048 on the first 1/{part} of the training images, for as many {equal}",
        stages=scaled(of.stages, 1 / part if equal == "epochs" else 1, 1),
        epoch_images=IMAGENET_IMAGES // part,
    )


FEWER = tuple(_fewer(part, equal) for equal in ("epochs", "steps") for part in PARTS)
BATCHED = (*GROWING, *map(_ghost, GHOSTS), *FEWER)

# --- Averages of weights, collapses from other trunks, restarts (`recipes.cycles`) --------------------------------------

OF_CYCLES = (
    Tuned(cycles.tuned_ensemble, cycles.ENSEMBLE_FACTOR),
    Tuned(cycles.tuned_one_model, cycles.ONE_MODEL_FACTOR),
    Tuned(cycles.swa, cycles.SWA_RATE, cycles.STANDS, "rate while weights are averaged"),
    # At SWA's rate, so that is tuned before.
    Tuned(cycles.ema, cycles.EMA_HALF_LIFE, 0.2, f"half life, as a share of the stage, at a rate of {cycles.SWA_RATE:g}"),
    Tuned(cycles.constant_ensemble, cycles.CONSTANT_RATE, 0.66, "constant rate"),
    Tuned(cycles.triangular_ensemble, cycles.TRIANGLES_TOP, 0.99, "top rate"),
    Tuned(cycles.warm_restarts_crop, cycles.WARM_RESTARTS_TOP, 1.6, "rate after a restart"),
    Tuned(cycles.snapshot_ensemble_restarts, cycles.RESTART_RATE, 0.764 * cycles.ENSEMBLE_FACTOR, "rate after a restart"),
    Tuned(cycles.one_cycle, cycles.ONE_CYCLE_TOP, 1.6, "top rate"),
    Tuned(cycles.schedule_free_crop, cycles.SCHEDULE_FREE_RATE, 16.0, "rate"),
)

# --- Ablation: the release's switches, one at a time ------------------------------------------------------------------


def _switched(of: Recipe, name: str, summary: str, **changes: Any) -> Recipe:
    return _recipe(of, f"ablation_{name}", f"{of.name}, but {summary}", **changes)


def _with_lars(factor: float, rule: str = "LARS", name: str = "lars", what: str = "") -> Recipe:
    """A factor of 1, and the weight decay, as in `_lars`."""
    of = resnet50_448nodes
    rate = 32 * sqrt(of.global_batch / 32768) / of.stages[0].base_rate
    changes: dict[str, Any] = dict(update=f"repro.baselines.lars:{rule}", update_numbers=RATIO, keep_decay=True)
    return _switched(of, name, f"by LARS{what}", stages=scaled(of.stages, 1, rate * factor), **changes)


_MAIN, _COLLAPSE = resnet50_448nodes.stages
_FIRST, *_OTHERS = resnet50_custom_lr.stages
SWITCHED_TO_LARS = Tuned(_with_lars, 2.0)

ABLATION = (
    _switched(resnet50_448nodes, "as_designed", "with the designed formula of the rate", lr_formula="as_designed"),
    _switched(resnet50_448nodes, "corrected", "with momentum corrected in warm-up", momentum_correction="warmup"),
    _switched(resnet50_448nodes, "norms_not_decayed", "without weight decay on batch norm", decay_bn=False),
    _switched(resnet50_448nodes, "no_zero_gamma", "with every gamma at one in the beginning", zero_gamma="none"),
    _switched(resnet50_448nodes, "bn_momentum", "with Intel's faster averages of batch norm", bn_momentum=0.1),
    _switched(resnet50_448nodes, "stride_v1", "with the stride in the 1x1 convolution, as in Intel's nets", stride="v1"),
    _switched(
        resnet50_448nodes,
        "kept_momentum",
        "collapsed twice: with the momentum kept, and with zero momentum as released",
        stages=(
            _MAIN,
            replace(_COLLAPSE, name="kept", keep_momentum=True, member=False),
            replace(_COLLAPSE, starts_from=_MAIN.name),
        ),
    ),
    _switched(resnet50_custom_lr, "cycles_as_designed", "with the designed formula of the rate", lr_formula="as_designed"),
    _switched(
        resnet50_custom_lr,
        "cycles_kept_momentum",
        "with the momentum kept from stage to stage",
        stages=(_FIRST, *(replace(stage, keep_momentum=True) for stage in _OTHERS)),
    ),
    _with_lars(SWITCHED_TO_LARS.value, "Unfused", "lars_unfused", ", by the norm of the decayed gradient"),
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


def _without_momentum(groups: int, factor: float) -> Recipe:
    return replace(
        _asynchronous(groups, factor),
        name=f"asynchronous_{groups}_groups_without_momentum",
        momentum=0.0,
        summary=f"asynchronous_{groups}_groups without momentum",
    )


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
ASYNCHRONOUS_FACTORS = {2: 0.25, 4: 0.1667, 8: 0.101}
_LAM = f"lam, at a factor of {ASYNCHRONOUS_FACTORS[8]:.3g} on the rates"

OF_GROUPS = (
    Tuned(partial(_of_groups, *_SEQUENTIAL), 0.25),
    Tuned(partial(_of_groups, *_SYNCHRONOUS), 0.25),
    # First a rate at which a gradient moves the weights as far as with momentum.
    Tuned(partial(_without_momentum, 8), 1.01, 10 / 7),
    # First the linear rule's rate over the staleness (Zhang et al., arXiv 1511.05950).
    *(Tuned(partial(_asynchronous, n), ASYNCHRONOUS_FACTORS[n], 1 / (n - 1)) for n in reversed(GROUPS)),
    # At the rate of asynchronous SGD, so that is tuned before. First a hundred times the default of MXNet, which changes these
    # gradients by less than a thousandth, so that nothing within reach of it could act; and the default of torch_scala.
    Tuned(partial(_compensated, 8, ASYNCHRONOUS_FACTORS[8]), 8.0, 4.0, _LAM),
    Tuned(partial(_compensated, 8, ASYNCHRONOUS_FACTORS[8], rule="AdaptivelyCompensated"), 8.0, 2.0, _LAM),
)

# --- All --------------------------------------------------------------------------------------------------------------

TUNED: tuple[Tuned, ...] = (*BY_BATCH, *OF_CYCLES, SWITCHED_TO_LARS, *OF_GROUPS)
BASELINES: tuple[Recipe, ...] = (*(each.recipe for each in TUNED), LARS_UNFUSED, *cycles.AS_TUNED, *ABLATION, *BATCHED)
