"""The released recipes and the baselines, as literals; `shrink` makes a small version of any of them.

Every number of a released recipe is transcribed from the solver files of the authors' public repository
(sara-nl/caffe, commit 610a2fa9 of 2018-04-02, folder models/intel_optimized_models/multinode) and tested against
them. Accuracies are on ImageNet-1K, top-1 / top-5 in per cent.
"""

from dataclasses import dataclass, replace
from typing import Any

from repro import ReproError, choose, own
from repro.schedule import IMAGENET_IMAGES, SWITCHES, Recipe, Stage

RELEASE = "sara-nl/caffe@610a2fa9, models/intel_optimized_models/multinode/"
SKX = "nodes of 2 x Xeon Platinum 8160, Omni-Path, 2 processes per node (Stampede2)"

# --- The 448-node run -------------------------------------------------------------------------------------------------

WARMUP_448: dict[str, Any] = dict(warmup_iterations=446, warmup_start_rate=0.1)
COLLAPSE_448 = Stage("collapse", 402, base_rate=0.254, power=2, weight_decay=1e-4, augmentation="none", member=True)

resnet50_448nodes = Recipe(
    name="resnet50_448nodes",
    stages=(Stage("main", 7638, base_rate=4.8, horizon=8040, **WARMUP_448), COLLAPSE_448),
    workers=896,
    images_per_worker=16,
    summary="Global batch 14336 with warm-up; its last 402 iterations are replaced by the collapse",
    source=RELEASE + "resnet50_448nodes/solver.prototxt and solver_collapse.prototxt",
    hardware=f"448 {SKX}",
    cost="about 65 minutes",
    reported="76.152 / 93.176 (75.6 / 92.7 without the collapse)",
)

resnet50_448nodes_uncollapsed = replace(
    resnet50_448nodes,
    name="resnet50_448nodes_uncollapsed",
    stages=(Stage("main", 8040, base_rate=4.8, **WARMUP_448, member=True),),
    summary="The same run to the end of its linear decay, without the collapse",
    source=RELEASE + "resnet50_448nodes/solver.prototxt",
    cost="about 60 minutes",
    reported="75.6 / 92.7",
)

resnet50_448nodes_no_warmup = replace(
    resnet50_448nodes,
    name="resnet50_448nodes_no_warmup",
    stages=(Stage("main", 7638, base_rate=4.8, horizon=8040), COLLAPSE_448),
    summary="Ablation: the 448-node run, started at its full rate",
    source="this project: resnet50_448nodes with warmup_iterations = 0; not a released configuration",
    cost="not known; the same number of iterations as resnet50_448nodes",
    reported="",
)

# --- Cycles and collapses ---------------------------------------------------------------------------------------------

INIT = Stage("init", 7800, base_rate=1.6, warmup_iterations=1560, warmup_start_rate=0.1, horizon=18720)
CYCLE_1 = Stage("cyc1", 3750, base_rate=1.02, power=2, horizon=7500)
CYCLE_2 = Stage(
    "cyc2", 4750, base_rate=0.764, warmup_iterations=1000, warmup_start_rate=0.255, power=2, horizon=7500, designed_horizon=7500
)
CYCLE_3 = Stage(
    "cyc3", 4750, base_rate=0.572, warmup_iterations=1000, warmup_start_rate=0.19, power=2, horizon=7500, designed_horizon=7500
)
COLLAPSE = Stage("collapse", 1560, base_rate=0.143, power=2, weight_decay=2e-4, augmentation="none", member=True)

resnet50_custom_lr = Recipe(
    name="resnet50_custom_lr",
    stages=(INIT, CYCLE_1, CYCLE_2, CYCLE_3, COLLAPSE),
    workers=128,
    images_per_worker=32,
    summary="Global batch 4096, three cycles of a falling rate with re-warm-up between them, one collapse at the end",
    source=RELEASE + "resnet50_custom_lr/solver_init, _cyc1, _cyc2, _cyc3 and _collapse.prototxt",
    hardware=f"64 {SKX}",
    cost="about 240 minutes at 6303 images/s",
    reported="76.278 / 93.186",
)

collapsed_ensemble = replace(
    resnet50_custom_lr,
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

one_model = replace(
    resnet50_custom_lr,
    name="one_model",
    stages=(
        # The shape of resnet50_448nodes (warm-up, linear decay, a collapse in place of the decay's end) with the ensemble's
        # budget of 25730 iterations: 1.6 (25730 - 24170) / (25730 - 1560) = 0.1033.
        Stage("main", 24170, base_rate=1.6, warmup_iterations=1560, warmup_start_rate=0.1, horizon=25730),
        replace(COLLAPSE, base_rate=0.1033),
    ),
    summary="Control: one collapsed model that sees as many images as all of collapsed_ensemble",
    source="this project; not a released configuration",
    cost="not known; the same number of iterations as collapsed_ensemble",
    reported="",
)

# --- Intel's defaults, which the authors started from -----------------------------------------------------------------


def _intel(nodes: int, batch: int, iterations: int, rate: float, drops: tuple[int, ...], warmup: int) -> Recipe:
    # A process of 128 images with batch-norm statistics over 32 (`bn_stats_batch_size`) is four workers of 32.
    start: dict[str, Any] = dict(warmup_iterations=warmup, warmup_start_rate=0.1) if warmup else {}
    return Recipe(
        name=f"default_resnet50_{nodes}nodes",
        stages=(Stage("main", iterations, base_rate=rate, drops=drops, weight_decay=1e-4, member=True, **start),),
        workers=batch // 32,
        images_per_worker=32,
        stride="v1",
        bn_momentum=0.1,
        summary=f"Intel's default for {nodes} nodes: batch {batch}, the rate divided by ten three times",
        source=RELEASE + f"default_resnet50_{nodes}nodes/solver.prototxt (Intel, not the paper's authors)",
        hardware=f"{nodes} nodes",
        cost="not stated",
    )


default_resnet50_8nodes = _intel(8, 1024, 112600, 0.4, (37440, 74880, 99840), warmup=0)
default_resnet50_16nodes = _intel(16, 2048, 56300, 0.8, (18750, 37500, 50000), warmup=3125)
default_resnet50_64nodes = _intel(64, 8192, 14075, 3.2, (4680, 9360, 12480), warmup=780)

resnet_50_256_nodes_8k_batch = Recipe(
    name="resnet_50_256_nodes_8k_batch",
    stages=(
        Stage(
            "main",
            14075,
            base_rate=3.2,
            warmup_iterations=780,
            warmup_start_rate=0.1,
            drops=(4680, 9360, 12480),
            weight_decay=1e-4,
            augmentation="scale",
            member=True,
        ),
    ),
    workers=256,
    images_per_worker=32,
    bn_momentum=0.1,
    summary="Intel's former 256-node default: batch 8192, scale augmentation only",
    source="sara-nl/caffe, added by Intel in 3a99259f (2017-07-27), deleted in 5fbc80f6",
    hardware="256 nodes",
    cost="not stated",
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        resnet50_448nodes,
        resnet50_448nodes_uncollapsed,
        resnet50_448nodes_no_warmup,
        resnet50_custom_lr,
        collapsed_ensemble,
        one_model,
        default_resnet50_8nodes,
        default_resnet50_16nodes,
        default_resnet50_64nodes,
        resnet_50_256_nodes_8k_batch,
    )
}


def find(recipe: str | Recipe, **switches) -> Recipe:
    """Returns the recipe of that name, with any of `schedule.SWITCHES` set; the error for an unknown one suggests the closest.

    A user's own recipe is passed as a `Recipe` or as `mine.py:my_recipe`. Raises ReproError if it has a released one's name.
    """
    found = own.load(recipe) if own.is_own(recipe) else recipe
    if isinstance(found, str):
        found = RECIPES[choose("recipe", found, RECIPES)]
    if not isinstance(found, Recipe):
        raise ReproError(f"{recipe} is of type {type(found).__name__}: it must be a repro.schedule.Recipe")
    for switch, value in switches.items():
        choose(f"value of {choose('switch', switch, SWITCHES)}", value, SWITCHES[switch])
    if found.name in RECIPES and replace(found, **switches_of(RECIPES[found.name])) != RECIPES[found.name]:
        raise ReproError(f"{found.name} is the name of another recipe, with other numbers: give yours another name")
    return replace(found, **switches)


def switches_of(recipe: Recipe) -> dict:
    """The values of `schedule.SWITCHES` that a recipe has."""
    return {switch: getattr(recipe, switch) for switch in SWITCHES}


# --- Small versions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shrink:
    """How a recipe is made small: its divisors, and other values that a small model on few images needs.

    Ratios are kept: between the stages, between the recipes' batches, and between a rate and its batch (the linear rule).
    """

    name: str
    images: int  # training images used, at the most
    divide_batch: int
    images_per_worker: int
    epochs: float  # factor on the epochs of every stage
    rate: float  # factor on every rate, beyond the linear rule: a small model tolerates a higher rate per image
    bn_momentum: float  # factor: stages of tens of steps, not hundreds, need averages that adapt faster
    evaluations: int  # approximate number during a whole run; each stage's end has one too
    model: str = "resnet11"  # "": the recipe's own
    summary: str = ""


_LAPTOP = Shrink(
    "laptop",
    images=450,
    divide_batch=56,
    images_per_worker=32,
    epochs=2,
    rate=16,
    bn_momentum=4,
    evaluations=6,
    summary="450 images, each seen twice as often as in the recipe; a fifty-sixth of the batch",
)

SHRINKS = {
    profile.name: profile
    for profile in (
        _LAPTOP,
        replace(
            _LAPTOP,
            name="laptop-edge",
            rate=48,
            summary="laptop at three times its rates: about the most that the large batch tolerates",
        ),
        replace(
            _LAPTOP,
            name="laptop-few",
            images=300,
            epochs=3,
            summary="laptop with 300 images, each seen three times as often as in the recipe",
        ),
        replace(
            _LAPTOP,
            name="smoke",
            images=300,
            divide_batch=128,
            images_per_worker=8,
            epochs=0.1,
            evaluations=2,
            summary="seconds, not accuracy: 300 images, a tenth of the epochs",
        ),
        Shrink(
            "rehearsal",
            images=200,
            divide_batch=128,
            images_per_worker=16,
            epochs=0.03,
            rate=1,
            bn_momentum=4,
            evaluations=1,
            model="",
            summary="every stage in a few steps with the recipe's own model: the whole path on large images, not accuracy",
        ),
    )
}


def shrink_for(recipe: Recipe, asked: str = "") -> str:
    """Returns the requested shrink; by default laptop for one of our recipes, and none for a user's own."""
    return asked or ("laptop" if recipe.name in RECIPES else "none")


def shrink(recipe: Recipe, profile: str, images: int = IMAGENET_IMAGES) -> Recipe:
    """A small version of `recipe` for a data set of at most `images` training images; its name includes the shrink.

    "none" keeps batch, rates and iterations unchanged, whatever the data set's size.
    """
    if choose("shrink", profile, ["none", *SHRINKS]) == "none":
        return recipe
    small = SHRINKS[profile]
    images = min(images, small.images)
    workers = max(1, round(recipe.global_batch / small.divide_batch / small.images_per_worker))
    batch = workers * small.images_per_worker
    if batch > images:
        raise ReproError(
            f"{recipe.name} shrunk to {profile} takes {batch} images a step, but the data set has only "
            f"{images}: choose a smaller shrink or a larger data set"
        )
    time = small.epochs * (images / recipe.epoch_images) * (recipe.global_batch / batch)  # iterations, small per large
    rate = small.rate * batch / recipe.global_batch

    def scaled(iterations: int) -> int:
        return max(1, round(iterations * time)) if iterations else 0

    return replace(
        recipe,
        name=f"{recipe.name}-{profile}",
        workers=workers,
        images_per_worker=small.images_per_worker,
        epoch_images=images,
        model=small.model or recipe.model,
        bn_momentum=recipe.bn_momentum * small.bn_momentum,
        record_every=max(1.0, small.epochs),
        evaluate_every=recipe.epochs() * small.epochs / small.evaluations,
        stages=tuple(
            replace(
                stage,
                iterations=scaled(stage.iterations),
                base_rate=stage.base_rate * rate,
                warmup_iterations=scaled(stage.warmup_iterations),
                warmup_start_rate=stage.warmup_start_rate * rate,
                horizon=scaled(stage.horizon),
                designed_horizon=scaled(stage.designed_horizon),
                drops=tuple(scaled(drop) for drop in stage.drops),
            )
            for stage in recipe.stages
        ),
    )
