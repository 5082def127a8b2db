"""One run with checked parameters, and what all ranks must agree on before it starts."""

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import nn

from repro import ReproError, choose, recipes, whole_number
from repro.images.data import Images
from repro.images.packed import compare_labels, pack_embedded
from repro.model import Network, builder, find_device, find_precision, kernels
from repro.optim import Update, rule
from repro.paths import RUNS
from repro.ranks import comm
from repro.run import identity, own, records
from repro.run.settings import MOST_THREADS, Settings, non_default
from repro.schedule import SWITCHES, Recipe

log = logging.getLogger("repro")

PARAMETERS = ("recipe", "data", "shrink", "model", "update", "out", "decoders", "steps", "patience")  # of `prepare`
SHARED_SECONDS = 10.0  # within which a shared file system shows a file of one node to another


@dataclass(frozen=True)
class Task:
    """One run, with checked parameters."""

    recipe: Recipe
    build: Callable[[], nn.Module]  # a model with its initial weights, from torch's generator
    make_update: Callable[[Network], Update]  # the rule by which its weights change
    train_images: Images
    test_images: Images
    settings: Settings
    decoders: int  # threads that decode images ahead of the step
    steps: int  # steps to stop after, counted from this call's start; 0: train to the recipe's end
    patience: int  # seconds that a rank may be without a sign of life
    run: records.Run


def prepare(recipe: str | Recipe, data: str = "digits", *, world: comm.World | None = None, **parameters) -> Task:
    """Checks every parameter and opens the data; raises ReproError, with a suggestion, before anything runs.

    `recipe` is a released one's name, a `Recipe`, or `mine.py:my_recipe`; `data` a data set's name or its folder: an embedded
    one is packed if it is not there. The other parameters are `shrink`, by default laptop for our recipes and none for the
    user's; `model`, a ResNet's name or `mine.py:my_net`, and `update`, a rule such as `mine.py:MyRule`, by default the
    recipe's; `out`, `decoders`, `steps`, `patience`; and the fields of `Settings` and of `schedule.SWITCHES`. Collective over
    `world`, by default all ranks.
    """
    world = world or comm.world()
    with world.together():
        if world.rank == 0:
            pack_embedded(data)
    with world.together():
        return _prepare(recipe, data, **parameters)


def _prepare(
    recipe: str | Recipe,
    data: str,
    shrink: str = "",
    model: str = "",
    update: str = "",
    out: str = str(RUNS),
    decoders: int = 2,
    steps: int = 0,
    patience: int = 600,
    **options,
) -> Task:
    known = [field.name for field in fields(Settings)]
    for name in options:
        choose("parameter", name, [*PARAMETERS, *known, *SWITCHES])
    original = recipes.find(recipe, **{name: value for name, value in options.items() if name in SWITCHES})
    ours = original.name in recipes.RECIPES
    shrink = recipes.shrink_for(original, shrink)
    asked = Settings(**{name: value for name, value in options.items() if name in known})
    whole_number("decoders", decoders, 0, MOST_THREADS)
    whole_number("steps", steps)
    whole_number("patience", patience, 1)
    splits = "train", asked.split
    train, test = (Images(data, split, normalization=asked.normalization, size=asked.size) for split in splits)
    if difference := compare_labels(train.classes, test.classes):
        raise ReproError(f"the label map of {test.packed.path} is not that of {train.packed.path}: {difference}")
    if test.preprocessing != train.preprocessing:
        raise ReproError(
            f"{test.packed.path} was packed with other options than {train.packed.path}: pack both again with the same ones"
        )
    small = recipes.shrink(original, shrink, len(train))
    if model and model != small.model:
        small = replace(small, model=model, name=f"{small.name}-{model.rpartition(':')[2]}")
    if update and update != small.update:
        small = replace(small, update=update, name=f"{small.name}-{update.rpartition(':')[2]}")
    if not ours:  # its author need not know how many images the data set has
        small = replace(small, epoch_images=min(small.epoch_images, len(train)))
    train = train.first(small.epoch_images)
    device = find_device(asked.device, comm.world().node_rank)
    settings = replace(asked, device=device, precision=find_precision(asked.precision, device, train.small))
    seen = train.preprocessing
    build = builder(small.model, len(train.classes), train.channels, seen.size, small.stride, small.zero_gamma)
    facts = {"name": train.name, "train": train.digest, "test": test.digest, "preprocessing": non_default(seen)}
    facts["originals"] = test.originals
    origin = {"base": original.name, "shrink": shrink, "variant": _variant(original, asked, update)}
    origin["model_source"] = own.source_digest(small.model) if own.is_own(small.model) else ""
    origin["update_source"] = own.source_digest(small.update) if small.update else ""
    run = records.Run(out, small, settings, facts, **origin)
    return Task(small, build, rule(small), train, test, settings, decoders, steps, patience, run)


def _variant(recipe: Recipe, asked: Settings, update: str) -> str:
    """What a run differs by from its recipe's plain run, besides the model, such as "lr_formula=as_designed"; "" if nothing."""
    plain = recipes.RECIPES.get(recipe.name, recipe)
    switched = {name: value for name, value in recipes.switches_of(recipe).items() if value != getattr(plain, name)}
    switched |= {name: value for name, value in non_default(asked).items() if name != "seed"}
    switched |= {"update": own.short(update)} if update and update != recipe.update else {}
    return ", ".join(f"{name}={value}" for name, value in switched.items())


def describe(recipe: str | Recipe, data: str = "digits", **parameters) -> dict:
    """What `train` would do, as plain values: the run's folder, how much of it is done, its recipe and images. Collective."""
    task = prepare(recipe, data, **parameters)
    small = task.recipe
    complete = task.run.complete
    done = small.iterations if complete else task.run.newest_step
    return {
        "folder": str(task.run.folder),
        "complete": complete,
        "step": done,
        "epoch": small.epochs(done),
        "recipe": small.name,
        "workers": small.workers,
        "global_batch": small.global_batch,
        "iterations": small.iterations,
        "epochs": small.epochs(),
        "images": small.images(),
        "kernels": kernels(task.settings.device),
    }


def describe_all(tasks: list[dict]) -> list[dict]:
    """`describe` of each of these tasks. Collective."""
    return [describe(**task) for task in tasks]


def check_shared(world, task: Task) -> None:
    """Raises on every rank if one does not see the run's folder as rank 0 has written it.

    A rank without the checkpoints would begin at step 0 while the others continue, and all would wait for each other.
    """
    written = world.broadcast(task.run.told() if world.rank == 0 else "")
    deadline = time.monotonic() + SHARED_SECONDS
    with world.together():
        while task.run.told() != written:
            if time.monotonic() > deadline:
                raise ReproError(
                    f"rank {world.rank} on {socket.gethostname()} does not see {task.run.folder} as rank 0 has written it: "
                    "--out must be on a file system that all nodes share"
                )
            time.sleep(0.1)


def check_agreement(world, task: Task) -> None:
    """Raises on every rank if one was started with a run that is not rank 0's, or has other code, data or packages.

    Warns if they compute with other kernels: then it matters which rank has which worker.
    """
    mine = task.run.record | {"out": str(task.run.folder.parent), "packages": identity.package_versions()}
    first = world.broadcast(mine)
    with world.together():
        if difference := identity.first_difference(mine, first):
            raise ReproError(f"rank {world.rank} does not agree with rank 0, so nothing was started: {difference}")
    computing = sorted(set(world.gather(f"{identity.processor()} ({kernels(task.settings.device)})")))
    if world.rank == 0 and computing[1:]:
        log.warning(
            "ranks compute on different processors, %s: on other ranks, the weights may have other bits",
            " and ".join(computing),
        )
