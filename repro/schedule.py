"""`Stage`, `Recipe`, and the learning rate as a pure function of (recipe, step). No torch, no MPI.

A recipe is a tuple of stages. Warm-up, decay, re-warm-up and collapse are the same type with different numbers. A stage
starts from the weights and batch-norm statistics at the end of an earlier one, with zero momentum.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

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
MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet11", "resnet38")  # `resnet` builds them
DECAYS = ("polynomial", "cosine")
AUGMENTATIONS = ("scale_aspect", "scale", "none")
NEW_WEIGHTS = "new weights"  # a stage that starts from these begins another model


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
    designed_horizon: int = 0  # the same from the end of warm-up for `as_designed`; 0: horizon - warm-up
    drops: tuple[int, ...] = ()  # multistep instead of polynomial: the rate falls tenfold at each of these iterations
    weight_decay: float = 5e-5
    augmentation: str = "scale_aspect"  # or "scale" (short side 256 to 480), or "none": random crop and mirror only
    starts_from: str = ""  # an earlier stage's end; "": the stage before; `NEW_WEIGHTS`: another set of random weights
    member: bool = False  # its end point is a member of the ensemble


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
    record_every: float = 1.0  # epochs between two metric rows; each stage's end has one too
    evaluate_every: float = 1.0  # epochs between two evaluations; each stage's end has one too
    summary: str = ""
    source: str = ""
    hardware: str = ""
    cost: str = ""
    reported: str = ""

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ReproError(f"recipe {self.name}: two stages share a name ({', '.join(names)}): rename one")
        for index, stage in enumerate(self.stages):
            if stage.starts_from not in ("", NEW_WEIGHTS, *names[:index]):
                raise ReproError(
                    f"recipe {self.name}: stage {stage.name} starts from {stage.starts_from}, "
                    f"which is not one of the stages before it"
                )
            self._check_stage(stage)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ReproError(
                f"a recipe's name is {self.name!r}: use only letters, digits, and _ . -, since folders are named after it"
            )
        for name, least in (("workers", 1), ("images_per_worker", 1), ("workers_per_pass", 1), ("epoch_images", 1)):
            whole_number(f"recipe {self.name}: {name}", getattr(self, name), least)
        for name, value, most in (("momentum", self.momentum, 0.9999), ("bn_momentum", self.bn_momentum, 1.0)):
            if not 0 <= value <= most:
                raise ReproError(f"recipe {self.name}: {name} is {value!r}: it must be from 0 to {most:g}")
        for name in ("record_every", "evaluate_every"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ReproError(
                    f"recipe {self.name}: {name} is {getattr(self, name)!r}: it must be a positive number of epochs"
                )
        choose("stride", self.stride, STRIDES)
        for switch in ("lr_formula", "momentum_correction", "decay_bn", "zero_gamma"):
            choose(f"value of {switch}", getattr(self, switch), SWITCHES[switch])

    def _check_stage(self, stage: Stage) -> None:
        where = f"recipe {self.name}: stage {stage.name}"
        for name, least in (("iterations", 1), ("warmup_iterations", 0), ("horizon", 0), ("designed_horizon", 0)):
            whole_number(f"{where}: {name}", getattr(stage, name), least)
        if stage.warmup_iterations > stage.iterations:
            raise ReproError(f"{where} has {stage.iterations} iterations, fewer than its {stage.warmup_iterations} of warm-up")
        for name in ("base_rate", "warmup_start_rate", "weight_decay", "power"):
            value = getattr(stage, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ReproError(f"{where}: {name} is {value!r}: it must be a number, at least 0")
        choose("decay", stage.decay, DECAYS)
        choose("augmentation", stage.augmentation, AUGMENTATIONS)

    @property
    def global_batch(self) -> int:
        """Images per step, over all workers."""
        return self.workers * self.images_per_worker

    @property
    def passes(self) -> int:
        """Forward and backward passes per step, over all workers: the most ranks that can share a step."""
        return -(-self.workers // self.workers_per_pass)

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

    def epochs(self, iterations: float | None = None) -> float:
        """Epochs (passes over the training images) in this many steps; without an argument, in the whole recipe."""
        return (self.iterations if iterations is None else iterations) * self.global_batch / self.epoch_images

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """Returns the stage of this step, and the iteration within the stage."""
        if not 0 <= step < self.iterations:
            raise ReproError(f"step {step} is outside recipe {self.name}, which has steps 0 to {self.iterations - 1}")
        index = sum(step >= start for start in self.starts) - 1
        return self.stages[index], step - self.starts[index]

    def sample_step(self, step: int) -> int:
        """The place of this step in the stream of training images (`data.Stream`).

        A stage that starts from an earlier one's end goes on in the stream where that one ended. So all stages that start
        there see the same images, which makes a comparison between their ends sharper, and the images of any model are those
        of uninterrupted epochs. New weights see new images.
        """
        index = self.stages.index(self.stage_at(step)[0])
        return self._sample_starts[index] + step - self.starts[index]

    @cached_property
    def _sample_starts(self) -> list[int]:
        places: list[int] = []
        for stage, start in zip(self.stages, self.starts):
            origin = self.origin(stage)
            before = self.stages.index(origin) if origin else None
            places.append(start if before is None else places[before] + self.stages[before].iterations)
        return places

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


def learning_rate(recipe: Recipe, step: int, formula: str = "") -> float:
    """The rate at `step`, counted from the start of the recipe over all its stages, by the recipe's own formula or `formula`.

    The released solvers divide the iteration within the stage by the horizon and ignore that warm-up has passed, so
    the rate drops where warm-up ends (4.80 to 4.534 in the 448-node run). `as_designed` counts the decay from the end
    of warm-up, which agrees with the rates that the authors set by hand between stages (0.254, 1.02, 0.191, 0.143).
    """
    formula = choose("learning-rate formula", formula or recipe.lr_formula, LR_FORMULAS)
    stage, iteration = recipe.stage_at(step)
    if iteration < stage.warmup_iterations:
        climb = (stage.base_rate - stage.warmup_start_rate) * iteration / stage.warmup_iterations
        return stage.warmup_start_rate + climb
    if stage.drops:
        return stage.base_rate * 0.1 ** sum(iteration >= drop for drop in stage.drops)
    horizon = stage.horizon or stage.iterations
    if formula == "as_designed":
        iteration -= stage.warmup_iterations
        horizon = stage.designed_horizon or horizon - stage.warmup_iterations
    if stage.decay == "cosine":  # Loshchilov and Hutter, arXiv 1608.03983
        return stage.base_rate * (1 + math.cos(math.pi * iteration / horizon)) / 2
    return stage.base_rate * (1 - iteration / horizon) ** stage.power


def corrected_from(recipe: Recipe, step: int) -> float:
    """The previous step's rate, if momentum is corrected for its change (in warm-up, by a switch); otherwise 0.0."""
    stage, iteration = recipe.stage_at(step)
    corrected = recipe.momentum_correction == "warmup" and 0 < iteration < stage.warmup_iterations
    return learning_rate(recipe, step - 1) if corrected else 0.0
