"""`Stage`, `Recipe`, and `at`: what a step does, as a pure function of (recipe, step). No torch, no MPI.

A recipe is a tuple of stages. Warm-up, decay, re-warm-up and collapse are the same type with different numbers. A stage
starts from the weights and batch-norm statistics at the end of an earlier one, with zero momentum unless it keeps it.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from repro import ReproError, choose, whole_number

IMAGENET_IMAGES = 1_281_167  # ILSVRC2012 training images: the epoch of every released recipe

LR_FORMULAS = ("as_released", "as_designed")
SWITCHES = {  # where the authors' text and code disagree, or Intel's defaults differ; the default comes first
    "lr_formula": LR_FORMULAS,
    "momentum_correction": ("none", "warmup"),
    "decay_bn": (True, False),  # True: as executed; False: as written in the net files
    "zero_gamma": ("last_of_stage", "all_blocks", "none"),
    "bn_momentum": (0.05, 0.1),
}
STRIDES = ("v1.5", "v1")
DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet11", "resnet38")
# `resnet` builds them: the small ones also with more channels, named as in Big Transfer (arXiv 1912.11370).
MODELS = (*DEPTHS, *(f"{small}x{times}" for times in (2, 4) for small in DEPTHS[-2:]))
DECAYS = ("polynomial", "cosine")
AUGMENTATIONS = ("scale_aspect", "scale", "none")
NEW_WEIGHTS = "new weights"  # a stage that starts from these begins another model
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of recipes and stages: folders and files are named after them
LONGEST_NAME = 80  # letters: a folder's name also has the data set, the seed and a digest


@dataclass(frozen=True)
class Stage:
    """One solver of the release: a linear warm-up, then a decay that may end before it reaches zero."""

    name: str
    iterations: int
    base_rate: float
    warmup_iterations: int = 0
    warmup_start_rate: float = 0.0
    decay: str = "polynomial"  # or "cosine": half a period, from the base rate to zero at the horizon
    power: float = 1.0  # of the polynomial decay
    horizon: int = 0  # iteration, from the stage's start, at which `as_released` decays to zero; 0: the stage's end
    designed_horizon: int = 0  # iterations from the end of warm-up to zero for `as_designed`; 0: horizon - warm-up
    drops: tuple[int, ...] = ()  # multistep instead of polynomial: the rate falls tenfold at each of these iterations
    weight_decay: float = 5e-5
    augmentation: str = "scale_aspect"  # or "scale" (short side 256 to 480), or "none": random crop and mirror only
    starts_from: str = ""  # an earlier stage's end; "": the stage before; `NEW_WEIGHTS`: another set of random weights
    member: bool = False  # its end is what the recipe is trained for, or a member of the ensemble that is (`Recipe.result`)
    workers: int = 0  # that share a step of this stage: a batch that grows (Smith et al., 2018); 0: the recipe's
    keep_momentum: bool = False  # goes on with the momentum of the stage before, as a cyclical rate does


def scaled(stages: Iterable[Stage], time: float, rate: float, workers: float = 1, divide_decay: float = 1) -> tuple[Stage, ...]:
    """The stages with iterations, rates and workers multiplied by these factors, and weight decay divided by `divide_decay`."""

    def whole(number: int, factor: float) -> int:
        return max(1, round(number * factor)) if number else 0  # 0 stands for another value, or for none

    return tuple(
        replace(
            stage,
            iterations=whole(stage.iterations, time),
            warmup_iterations=whole(stage.warmup_iterations, time),
            horizon=whole(stage.horizon, time),
            designed_horizon=whole(stage.designed_horizon, time),
            drops=tuple(whole(drop, time) for drop in stage.drops),
            base_rate=stage.base_rate * rate,
            warmup_start_rate=stage.warmup_start_rate * rate,
            weight_decay=stage.weight_decay / divide_decay,
            workers=whole(stage.workers, workers),
        )
        for stage in stages
    )


class Place(NamedTuple):
    """How many steps and images led to some weights: where training goes on in the stream of training images."""

    steps: int
    images: int


@dataclass(frozen=True)
class Recipe:
    """What is trained, by how many workers, and on which schedule.

    A worker is one process of the paper's runs: it sees `images_per_worker` images per step and normalises by their
    statistics alone. The number of workers is a property of the recipe, not of the machine: each rank (an MPI process)
    computes any number of them.
    """

    name: str
    stages: tuple[Stage, ...]
    workers: int
    images_per_worker: int
    workers_per_pass: int = 1  # workers whose images share a forward and backward pass; batch norm still sees one's at a time
    epoch_images: int = IMAGENET_IMAGES
    model: str = "resnet50"
    stride: str = "v1.5"  # v1.5: the 3x3 convolution of a bottleneck has the stride; v1: the first 1x1
    momentum: float = 0.9
    lr_formula: str = "as_released"
    momentum_correction: str = "none"
    decay_bn: bool = True
    zero_gamma: str = "last_of_stage"
    bn_momentum: float = 0.05
    update: str = ""  # the rule by which weights change, such as mine.py:MyRule (`optim.Update`); "": `optim.SGD`
    update_numbers: tuple[tuple[str, float], ...] = ()  # the rule's own: (name, value)
    keep_decay: bool = False  # made small, it has these weight decays, whatever the sum of its rates: for rules such as LARS
    record_every: float = 1.0  # epochs between two metric rows; each stage's end has one too
    evaluate_every: float = 1.0  # epochs between two evaluations; each stage's end has one too
    summary: str = ""
    source: str = ""
    hardware: str = ""
    cost: str = ""
    reported: str = ""

    def __post_init__(self):
        _check_name("a recipe", self.name)
        if not isinstance(self.stages, tuple) or not self.stages or not all(isinstance(each, Stage) for each in self.stages):
            raise ReproError(f"recipe {self.name}: stages is {self.stages!r}: it must be a tuple of one Stage or more")
        names = [stage.name for stage in self.stages]
        for index, stage in enumerate(self.stages):
            _check_name(f"recipe {self.name}: a stage", stage.name)
            if stage.starts_from not in ("", NEW_WEIGHTS, *names[:index]):
                raise ReproError(
                    f"recipe {self.name}: stage {stage.name} starts from {stage.starts_from}, "
                    f"which is not one of the stages before it"
                )
            _check_stage(f"recipe {self.name}: stage {stage.name}", stage)
            if stage.keep_momentum and (index == 0 or stage.starts_from not in ("", names[index - 1])):
                raise ReproError(
                    f"recipe {self.name}: stage {stage.name} keeps momentum, but does not go on where the stage before ends"
                )
        if len({name.lower() for name in names}) < len(names):  # some file systems do not tell A from a
            raise ReproError(f"recipe {self.name}: two stages share a name ({', '.join(names)}): rename one")
        for name, least in (("workers", 1), ("images_per_worker", 1), ("workers_per_pass", 1), ("epoch_images", 1)):
            whole_number(f"recipe {self.name}: {name}", getattr(self, name), least)
        if not 0 <= self.momentum <= 0.9999:
            raise ReproError(f"recipe {self.name}: momentum is {self.momentum!r}: it must be from 0 to 0.9999")
        if not 0 < self.bn_momentum <= 1:
            raise ReproError(f"recipe {self.name}: bn_momentum is {self.bn_momentum!r}: it must be above 0 and at most 1")
        for name in ("record_every", "evaluate_every"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ReproError(
                    f"recipe {self.name}: {name} is {getattr(self, name)!r}: it must be a positive number of epochs"
                )
        choose("stride", self.stride, STRIDES)
        for switch in ("lr_formula", "momentum_correction", "decay_bn", "zero_gamma"):
            choose(f"value of {switch}", getattr(self, switch), SWITCHES[switch])
        choose("value of keep_decay", self.keep_decay, (False, True))

    @property
    def global_batch(self) -> int:
        """Images per step, over all workers, of the stages that have no number of workers of their own."""
        return self.workers * self.images_per_worker

    def workers_of(self, stage: Stage) -> int:
        """Workers that share a step of this stage."""
        return stage.workers or self.workers

    def batch(self, stage: Stage) -> int:
        """Images per step of this stage, over all its workers."""
        return self.workers_of(stage) * self.images_per_worker

    @property
    def passes(self) -> int:
        """Forward and backward passes of a step, in the stage that has the fewest: the most ranks that can share it."""
        return -(-min(map(self.workers_of, self.stages)) // self.workers_per_pass)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first step of each stage, then the number of steps of the whole recipe."""
        starts = [0]
        for stage in self.stages:
            starts.append(starts[-1] + stage.iterations)
        return tuple(starts)

    @property
    def iterations(self) -> int:
        """Steps of the whole recipe, over all its stages."""
        return self.starts[-1]

    def images(self, steps: int | None = None) -> int:
        """Images in the first `steps` steps, over all workers; without an argument, in the whole recipe."""
        steps = self.iterations if steps is None else steps
        stages = zip(self.stages, self.starts)
        return sum(min(steps - start, stage.iterations) * self.batch(stage) for stage, start in stages if start < steps)

    def epochs(self, steps: Any = None) -> float:  # drawings ask for half a step
        """Epochs (passes over the training images) in the first `steps` steps; without an argument, in the whole recipe."""
        return self.images(steps) / self.epoch_images

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """Returns the stage of this step, and the iteration within the stage."""
        if not 0 <= step < self.iterations:
            raise ReproError(f"step {step} is outside recipe {self.name}, which has steps 0 to {self.iterations - 1}")
        index = bisect_right(self.starts, step) - 1
        return self.stages[index], step - self.starts[index]

    @cached_property
    def places(self) -> dict[str, Place]:
        """The place in the stream of training images at which each stage begins, by the stage's name.

        A stage that starts from an earlier one's end goes on in the stream of training images (`images.data.Stream`) where that
        one ended. So all stages that start there see the same images, which makes a comparison between their ends sharper,
        and the images of any model are those of uninterrupted epochs. New weights see new images.
        """
        found: dict[str, Place] = {}
        for stage, start in zip(self.stages, self.starts):
            found[stage.name] = Place(start, self.images(start))
            if origin := self.origin(stage):
                steps, images = found[origin.name]
                found[stage.name] = Place(steps + origin.iterations, images + origin.iterations * self.batch(origin))
        return found

    @property
    def result(self) -> list[str]:
        """The stages whose ends are the recipe's result: its members, which an ensemble averages, or, without any, the last."""
        return [stage.name for stage in self.stages if stage.member] or [self.stages[-1].name]

    def origin(self, stage: Stage) -> Stage | None:
        """The stage whose end this one starts from; None if it starts from random weights."""
        index = self.stages.index(stage)
        if stage.starts_from == NEW_WEIGHTS:
            return None
        if stage.starts_from:
            return next(earlier for earlier in self.stages if earlier.name == stage.starts_from)
        return self.stages[index - 1] if index else None

    def lineage(self, names: Iterable[str]) -> list[Stage]:
        """The stages that were trained for the models at the ends of the stages of these names, in order."""
        needed = set()
        for name in names:
            stage = next((stage for stage in self.stages if stage.name == name), None)
            while stage and stage.name not in needed:
                needed.add(stage.name)
                stage = self.origin(stage)
        return [stage for stage in self.stages if stage.name in needed]


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ReproError(
            f"{what}'s name is {name!r}: use at most {LONGEST_NAME} letters, digits, and _ . -, and begin with no . or -, "
            f"since folders and files are named after it"
        )


def _check_stage(where: str, stage: Stage) -> None:
    """Raises ReproError for a number that gives no sensible rate."""
    for name, least in (("iterations", 1), ("warmup_iterations", 0), ("horizon", 0), ("designed_horizon", 0), ("workers", 0)):
        whole_number(f"{where}: {name}", getattr(stage, name), least)
    if stage.warmup_iterations > stage.iterations:
        raise ReproError(f"{where} has {stage.iterations} iterations, fewer than its {stage.warmup_iterations} of warm-up")
    for name in ("base_rate", "warmup_start_rate", "weight_decay", "power"):
        value = getattr(stage, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ReproError(f"{where}: {name} is {value!r}: it must be a number, at least 0")
    if not isinstance(stage.drops, tuple):
        raise ReproError(f"{where}: drops is {stage.drops!r}: it must be a tuple of iterations, such as (30, 60)")
    for drop in stage.drops:
        whole_number(f"{where}: a drop", drop)
    choose("decay", stage.decay, DECAYS)
    choose("augmentation", stage.augmentation, AUGMENTATIONS)
    # Beyond the horizon a polynomial is negative, or complex if its power is no whole number, and a cosine rises again.
    for formula in () if stage.drops else LR_FORMULAS:
        warmup = 0 if formula == "as_released" else stage.warmup_iterations
        horizon = _horizon(stage, formula)
        if stage.warmup_iterations < stage.iterations and horizon < max(1, stage.iterations - 1 - warmup):
            raise ReproError(
                f"{where} would have a negative rate: with lr_formula={formula} its decay ends {horizon} iterations after "
                f"{'its start' if formula == 'as_released' else 'its warm-up'}, but it has {stage.iterations - warmup}: "
                f"make {'designed_horizon' if warmup and stage.designed_horizon else 'horizon'} larger"
            )


# --- What a step does ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Now:
    """All that a step takes from the schedule."""

    step: int  # counted from the start of the recipe, over all its stages
    stage: Stage
    iteration: int  # the step, counted from the stage's start
    rate: float
    previous_rate: float  # that of the step before, if momentum is corrected for its change (in warm-up, by a switch); else 0.0
    workers: int  # that share the step
    place: Place  # in the stream of training images


def at(recipe: Recipe, step: int) -> Now:
    """What the recipe does at `step`, counted from its start over all its stages."""
    stage, iteration = recipe.stage_at(step)
    corrected = recipe.momentum_correction == "warmup" and 0 < iteration < stage.warmup_iterations
    previous_rate = _rate(stage, iteration - 1, recipe.lr_formula) if corrected else 0.0
    steps, images = recipe.places[stage.name]
    place = Place(steps + iteration, images + iteration * recipe.batch(stage))
    rate = _rate(stage, iteration, recipe.lr_formula)
    return Now(step, stage, iteration, rate, previous_rate, recipe.workers_of(stage), place)


def learning_rate(recipe: Recipe, step: int, formula: str = "") -> float:
    """The rate at `step`, counted from the start of the recipe over all its stages, by the recipe's own formula or `formula`.

    The released solvers divide the iteration within the stage by the horizon and ignore that warm-up has passed, so
    the rate drops where warm-up ends (4.80 to 4.534 in the 448-node run). `as_designed` counts the decay from the end
    of warm-up, which agrees with the rates that the authors set by hand between stages (0.254, 1.02, 0.191, 0.143).
    """
    return _rate(*recipe.stage_at(step), choose("learning-rate formula", formula or recipe.lr_formula, LR_FORMULAS))


def _rate(stage: Stage, iteration: int, formula: str) -> float:
    if iteration < stage.warmup_iterations:
        climb = (stage.base_rate - stage.warmup_start_rate) * iteration / stage.warmup_iterations
        return stage.warmup_start_rate + climb
    if stage.drops:
        return stage.base_rate * 0.1 ** sum(iteration >= drop for drop in stage.drops)
    if formula == "as_designed":
        iteration -= stage.warmup_iterations
    horizon = _horizon(stage, formula)
    if stage.decay == "cosine":  # Loshchilov and Hutter, arXiv 1608.03983
        return stage.base_rate * (1 + math.cos(math.pi * iteration / horizon)) / 2
    return stage.base_rate * (1 - iteration / horizon) ** stage.power


def _horizon(stage: Stage, formula: str) -> int:
    """Iterations after which a decay is at zero: from the stage's start as released, from the end of warm-up as designed."""
    horizon = stage.horizon or stage.iterations
    if formula == "as_released":
        return horizon
    return stage.designed_horizon or horizon - stage.warmup_iterations


def due(recipe: Recipe, epochs: float) -> frozenset[int]:
    """The numbers of steps after which another `epochs` epochs, or a stage, are complete."""
    counts = [recipe.epochs(step) // epochs for step in range(recipe.iterations + 1)]
    complete = {step for step in range(1, recipe.iterations + 1) if counts[step] > counts[step - 1]}
    return frozenset(complete | set(recipe.starts[1:]))


def joints(recipe: Recipe) -> dict[int, str]:
    """The steps at which another piece of the learning rate begins, in order, with what happens there: "main warm-up ends"."""
    found = {}
    for stage, start in zip(recipe.stages, recipe.starts):
        begins = {drop: "rate drops" for drop in stage.drops} | {stage.warmup_iterations: "warm-up ends", 0: "starts"}
        found |= {start + after: f"{stage.name} {what}" for after, what in sorted(begins.items()) if after < stage.iterations}
    return found
