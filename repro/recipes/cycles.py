"""Recipes of averages of weights, of collapses from other trunks, and of restarts: what one may do instead of the ensemble.

Each has the images of `collapsed_ensemble`, 25,730 iterations of 4,096, or up to five iterations less. Where its end is in the
collapse's view, as many images are: those of the ensemble's three collapses, or, of members, of one collapse for each.

A recipe with a free number is a function of it, which `baselines.TUNED` lists. The numbers in capitals are those that
`bench.tuning` chose; the comments beside them say what was tried first.
"""

import math
from dataclasses import replace
from typing import Any

from repro.recipes.controls import BUDGET, LONG, OWN, collapsed_ensemble, one_model, snapshot_ensemble_crop
from repro.recipes.released import COLLAPSE
from repro.recipes.released import resnet50_custom_lr as cycles
from repro.schedule import Recipe, Stage, scaled

ENSEMBLE_FACTOR = 0.25  # on the rates of the ensemble, first the released ones
ONE_MODEL_FACTOR = 0.3536  # on those of one model, first the release's at this batch
STANDS = 0.291 * ONE_MODEL_FACTOR  # the rate at which the decay of one model stands when the average begins
SWA_RATE = 0.1224  # first the same
EMA_HALF_LIFE = 0.2  # of the averaged stage: about 1,000 iterations, as mosaicml/composer has by default
CONSTANT_RATE = 0.165  # first the mean rate of the released ensemble's trunk, so that the rates add up to the same
TRIANGLES_TOP = 0.495  # first 0.99, the same mean of triangles from a third of it
RESTART_RATE = 0.382  # first 0.191, at which the second cycle of the tuned ensemble starts
WARM_RESTARTS_TOP = 0.4  # first the release's at this batch
ONE_CYCLE_TOP = 0.4  # first the release's at this batch
SCHEDULE_FREE_RATE = 4.0  # first ten times the release's, the least that the authors advise for SGD

RELEASED_RATE = 1.6  # the rate to which the release warms up at this batch
WARMUP: dict[str, Any] = dict(warmup_iterations=1560, warmup_start_rate=0.1)  # the release's
END = replace(COLLAPSE, iterations=BUDGET - LONG)  # one in the collapse's view that is as long as the ensemble's three
AT_ONE_RATE = replace(END, power=0, weight_decay=5e-5)  # the same without a fall of the rate, with the main stages' decay
PLACES = 11550, 16300, 21050  # iterations of the ensemble's trunk after which its collapses begin


def _own(name: str, summary: str, *stages: Stage, **fields: Any) -> Recipe:
    return replace(cycles, name=name, summary=summary, stages=stages, **OWN, **fields)


# --- What is compared with, tuned as the others are ---------------------------------------------------------------------


def tuned_ensemble(factor: float) -> Recipe:
    what = "collapsed_ensemble with a factor of its own on the rates; and its collapses from the rate of a constant trunk"
    from_constant = [
        replace(COLLAPSE, name=f"high{number}", base_rate=CONSTANT_RATE, starts_from=f"cyc{number}", member=False)
        for number in (1, 2, 3)
    ]
    return _own("tuned_ensemble", what, *scaled(collapsed_ensemble.stages, 1, factor), *from_constant)


def tuned_one_model(factor: float) -> Recipe:
    return _own("tuned_one_model", "one_model with a factor of its own on the rates", *scaled(one_model.stages, 1, factor))


# --- Averages of weights ------------------------------------------------------------------------------------------------


def _averaged(name: str, summary: str, rule: str, rate: float, **numbers: float) -> Recipe:
    """The main stage of `tuned_one_model`; then a rate that stays while weights are averaged, in either view."""
    average = replace(AT_ONE_RATE, name="average", base_rate=rate, starts_from="main")
    in_main_view = replace(average, name="average_main", augmentation="scale_aspect", member=False)
    main, *_ = scaled(one_model.stages, 1, ONE_MODEL_FACTOR)
    rule = f"repro.baselines.averages:{rule}"
    return _own(name, summary, main, average, in_main_view, update=rule, update_numbers=tuple(numbers.items()))


def swa(rate: float) -> Recipe:
    return _averaged("swa", "Stochastic weight averaging (Izmailov et al., 2018), at a constant rate", "SWA", rate)


def ema(half_life: float) -> Recipe:
    return _averaged("ema", "swa with an exponential average of the weights", "EMA", SWA_RATE, half_life=half_life)


# --- Collapses from other trunks ----------------------------------------------------------------------------------------


def _collapsing(trunk: list[Stage]) -> tuple[Stage, ...]:
    """A trunk without interruption, then a collapse from the end of each of its stages that is called trunk1, trunk2, ..."""
    goes_on = [trunk[0], *(replace(stage, keep_momentum=True) for stage in trunk[1:])]
    ends = [stage for stage in trunk if stage.name.startswith("trunk")]
    collapses = [
        replace(COLLAPSE, name=f"collapse{number}", base_rate=_end(stage), starts_from=stage.name)
        for number, stage in enumerate(ends, start=1)
    ]
    return *goes_on, *collapses


def _end(stage: Stage) -> float:
    """The rate at which a stage of constant or linearly falling rate ends."""
    return stage.base_rate * (1 - stage.iterations / stage.horizon if stage.power else 1)


def _pieces(*places: int) -> list[tuple[int, Stage]]:
    """Stages trunk1, trunk2, ... that end at these iterations, each with its first iteration; the first one warms up."""
    pieces = []
    for number, (start, end) in enumerate(zip((0, *places), places), start=1):
        warmup: dict[str, Any] = {} if start else WARMUP
        pieces.append((start, Stage(f"trunk{number}", end - start, RELEASED_RATE, **warmup)))
    return pieces


def _constant(rate: float, *places: int) -> list[Stage]:
    return [replace(stage, base_rate=rate, power=0) for _, stage in _pieces(*places)]


def _falling(*places: int) -> list[Stage]:
    """The linear decay of `one_model`."""
    return [
        replace(stage, base_rate=RELEASED_RATE * (1 - start / BUDGET), horizon=BUDGET - start)
        for start, stage in _pieces(*places)
    ]


def _triangles(top: float, number: int, half: int) -> list[Stage]:
    """So many rises from a third of the top rate and falls back to it, each of `half` iterations."""
    rise: dict[str, Any] = dict(warmup_iterations=half, warmup_start_rate=top / 3)
    return [
        stage
        for each in range(1, number + 1)
        for stage in (Stage(f"rise{each}", half, top, **rise), Stage(f"trunk{each}", half, top, horizon=half * 3 // 2))
    ]


TENTH = (BUDGET - COLLAPSE.iterations) // 10
TENTHS = tuple(TENTH * number for number in range(1, 11))


def constant_trunk(rate: float) -> Recipe:
    what = "Warm-up, stable, decay: a constant rate, and a collapse from each tenth; the last ends at the ensemble's images"
    return _own("constant_trunk", what, *_collapsing(_constant(rate, *TENTHS)))


def constant_ensemble(rate: float) -> Recipe:
    what = (
        "collapsed_ensemble from a constant rate instead of cycles; and from the last place one collapse as long as its three"
    )
    long = replace(END, name="collapse_long", base_rate=rate, starts_from="trunk3", member=False)
    return _own("constant_ensemble", what, *_collapsing(_constant(rate, *PLACES)), long)


def falling_ensemble(factor: float) -> Recipe:
    what = "collapsed_ensemble from the linear decay of one_model instead of cycles"
    return _own("falling_ensemble", what, *scaled(_collapsing(_falling(*PLACES)), 1, factor))


def triangular_ensemble(top: float) -> Recipe:
    what = "collapsed_ensemble from three triangles (cyclical rates; Smith, 2015) instead of its cycles"
    return _own("triangular_ensemble", what, *_collapsing(_triangles(top, 3, LONG // 6)))


def planned(tenth: int, factor: float) -> Recipe:
    images = TENTHS[tenth - 1] + COLLAPSE.iterations
    what = f"one_model with the released collapse, planned for the images that lead to collapse{tenth} of constant_trunk"
    main = Stage("main", TENTHS[tenth - 1], RELEASED_RATE, horizon=images, **WARMUP)
    collapse = replace(COLLAPSE, base_rate=RELEASED_RATE * COLLAPSE.iterations / images)
    return _own(f"planned_{tenth}_tenths", what, *scaled((main, collapse), 1, factor))


# --- Schedule-free ------------------------------------------------------------------------------------------------------


def _schedule_free(name: str, what: str, rate: float, iterations: int, *more: Stage) -> Recipe:
    """A constant rate after the release's warm-up, from the same share of the rate."""
    warmup = WARMUP | dict(warmup_start_rate=rate * WARMUP["warmup_start_rate"] / RELEASED_RATE)
    main = Stage("main", iterations, rate, power=0, **warmup)
    return _own(name, what, main, *more, update="repro.baselines.schedule_free:ScheduleFree")


def schedule_free(rate: float) -> Recipe:
    return _schedule_free("schedule_free", "Schedule-free SGD (Defazio et al., 2024), in the main view", rate, BUDGET)


def schedule_free_crop(rate: float) -> Recipe:
    what = "schedule_free with an end in the collapse's view, averaged anew, for as many images as in the ensemble's collapses"
    end = replace(AT_ONE_RATE, name="end", base_rate=rate)
    return _schedule_free("schedule_free_crop", what, rate, LONG, end)


# --- Restarts and one cycle ---------------------------------------------------------------------------------------------


def _restarts(top: float, in_crop: int) -> tuple[Stage, ...]:
    """Three cosine cycles, each twice as long as the one before; the last `in_crop` iterations are in the collapse's view."""
    first = BUDGET // 7
    stages = []
    for number, length in enumerate((first, 2 * first, 4 * first), start=1):
        more: dict[str, Any] = WARMUP if number == 1 else dict(keep_momentum=True)
        iterations = length - (in_crop if number == 3 else 0)
        stages.append(Stage(f"cyc{number}", iterations, top, decay="cosine", horizon=length, **more))
    if in_crop:
        rate = top * (math.pi / 2 * in_crop / length) ** 2  # near its end a cosine is a square, as in `controls`
        stages.append(replace(END, name="end", iterations=in_crop, base_rate=rate))
    return tuple(stages)


def warm_restarts(top: float) -> Recipe:
    what = "Warm restarts (Loshchilov and Hutter, 2017): cosine cycles of one, two and four lengths, the momentum kept"
    return _own("warm_restarts", what, *_restarts(top, in_crop=0))


def warm_restarts_crop(top: float) -> Recipe:
    what = "warm_restarts with its end in the collapse's view, for as many images as in the ensemble's collapses"
    return _own("warm_restarts_crop", what, *_restarts(top, in_crop=END.iterations))


def snapshot_ensemble_restarts(rate: float) -> Recipe:
    what = "snapshot_ensemble_crop with tuned_ensemble's first rate, another after each restart, and the momentum kept"
    factors = [ENSEMBLE_FACTOR if number < 2 else rate / RELEASED_RATE for number in range(6)]  # of each cycle and its end
    stages = [
        replace(stage, base_rate=stage.base_rate * factor, keep_momentum=number > 0)
        for number, (stage, factor) in enumerate(zip(snapshot_ensemble_crop.stages, factors))
    ]
    return _own("snapshot_ensemble_restarts", what, *stages)


def one_cycle(top: float) -> Recipe:
    """The rates of torch's OneCycleLR with linear parts, pct_start 0.3 and div_factor 25, and a last rate of zero."""
    what = "One cycle (Smith and Topin, 2017): a linear rise, a linear fall to zero; its end in either view"
    rise = round(0.3 * BUDGET) - 1
    to_zero = BUDGET - 1 - rise  # at the last step
    fall = BUDGET - rise - END.iterations
    late: dict[str, Any] = dict(base_rate=top * (1 - fall / to_zero), horizon=to_zero - fall)
    return _own(
        "one_cycle",
        what,
        Stage("rise", rise, top, warmup_iterations=rise, warmup_start_rate=top / 25),
        Stage("fall", fall, top, horizon=to_zero, keep_momentum=True),
        Stage("plain", END.iterations, keep_momentum=True, **late),
        replace(END, name="end", power=1, starts_from="fall", **late),
    )


# With the number of one that is tuned: constant_ensemble, tuned_one_model, warm_restarts_crop, schedule_free_crop.
AS_TUNED = (
    constant_trunk(CONSTANT_RATE),
    falling_ensemble(ONE_MODEL_FACTOR),
    planned(3, ONE_MODEL_FACTOR),
    planned(7, ONE_MODEL_FACTOR),
    warm_restarts(WARM_RESTARTS_TOP),
    schedule_free(SCHEDULE_FREE_RATE),
)
