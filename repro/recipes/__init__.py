"""All recipes by name, and `shrink`, which makes a small version of any of them."""

from dataclasses import dataclass, replace

from repro import ReproError, choose
from repro.recipes.baselines import BASELINES
from repro.recipes.controls import CONTROLS
from repro.recipes.released import RELEASED
from repro.run import own
from repro.schedule import IMAGENET_IMAGES, SWITCHES, Recipe, scaled

RECIPES = {recipe.name: recipe for recipe in (*RELEASED, *CONTROLS, *BASELINES)}


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

    Ratios are kept: between the stages, between the recipes' batches, between a rate and its batch (the linear rule), and, with
    `scale_decay`, the product of rate and weight decay, summed over the run. `ratios` has those that are not.
    """

    name: str
    images: int  # training images used, at the most
    divide_batch: int
    images_per_worker: int = 0  # at the most; 0: the recipe's
    pass_images: int = 0  # images that share a forward and backward pass, at the most; 0: one worker's
    epochs: float = 1  # factor on the epochs of every stage
    rate: float = 1  # factor on every rate, beyond the linear rule: a small model tolerates a higher rate per image
    scale_decay: bool = True  # weight decay is divided by what rates and iterations are multiplied by (not `Recipe.keep_decay`)
    bn_momentum: float = 1  # factor: stages of tens of steps, not hundreds, need averages that adapt faster
    evaluations: int = 1  # approximate number during a whole run; each stage's end has one too
    small_model: bool = True  # `SMALL_MODELS` instead of the recipe's own
    widen: int = 1  # what the channels of the small model are multiplied by
    summary: str = ""


# The second pair costs 2.8 and 3.0 times the first, in operations.
SMALL_MODELS = {"resnet50": "resnet11", "resnet152": "resnet38"}

LAPTOP = Shrink(
    "laptop",
    images=20_000,
    divide_batch=64,
    pass_images=128,
    epochs=2 / 15,
    rate=24,
    bn_momentum=2,
    evaluations=4,
    summary="a sixty-fourth of the images and of the batch; two fifteenths of the epochs",
)

SHRINKS = {
    size.name: size
    for size in (
        LAPTOP,
        replace(
            LAPTOP,
            name="photographs",
            rate=24,  # these two by `bench.regime --data fashion_mnist`; here they are the digits'
            widen=1,
            summary="as laptop, for photographs of clothes or things",
        ),
        Shrink(
            "smoke",
            images=300,
            divide_batch=128,
            images_per_worker=8,
            pass_images=16,
            epochs=0.1,
            rate=16,
            scale_decay=False,
            bn_momentum=4,
            evaluations=2,
            summary="seconds, not accuracy: 300 images, a tenth of the epochs",
        ),
        Shrink(
            "rehearsal",
            images=200,
            divide_batch=128,
            images_per_worker=16,
            epochs=0.03,
            scale_decay=False,
            bn_momentum=4,
            small_model=False,
            summary="every stage in a few steps with the recipe's own model: the whole path on large images, not accuracy",
        ),
    )
}


def shrink_for(recipe: Recipe, asked: str = "") -> str:
    """Returns the requested shrink; by default laptop for one of our recipes, and none for a user's own."""
    return asked or ("laptop" if recipe.name in RECIPES else "none")


def shrink(recipe: Recipe, size: str | Shrink, images: int = IMAGENET_IMAGES) -> Recipe:
    """A small version of `recipe` for a data set of at most `images` training images; its name includes the shrink's.

    `size` is a name in `SHRINKS` or a `Shrink`; "none" keeps batch, rates and iterations unchanged, whatever the data
    set's size. Of our recipes, one for a part of ImageNet's images takes the same part of any data set's.
    """
    if size == "none":
        return recipe
    small = size if isinstance(size, Shrink) else SHRINKS[choose("shrink", size, ["none", *SHRINKS])]
    images = min(images, small.images)
    if recipe.name in RECIPES:  # a user's own has the number of images that its author has
        images = round(images * recipe.epoch_images / IMAGENET_IMAGES)
    per_worker = min(small.images_per_worker or recipe.images_per_worker, recipe.images_per_worker)
    workers = max(1, round(recipe.global_batch / small.divide_batch / per_worker))
    batch = workers * per_worker
    if batch > images:
        raise ReproError(
            f"{recipe.name} shrunk to {small.name} takes {batch} images a step, but the data set has only "
            f"{images}: choose a smaller shrink or a larger data set"
        )
    time = small.epochs * (images / recipe.epoch_images) * (recipe.global_batch / batch)  # iterations, small per large
    rate = small.rate * batch / recipe.global_batch
    passes = -(-batch // small.pass_images) if small.pass_images else workers
    scale_decay = small.scale_decay and not recipe.keep_decay
    return replace(
        recipe,
        name=f"{recipe.name}-{small.name}",
        workers=workers,
        images_per_worker=per_worker,
        workers_per_pass=-(-workers // passes),
        epoch_images=images,
        model=_small_model(recipe.model, small.widen) if small.small_model else recipe.model,
        bn_momentum=recipe.bn_momentum * small.bn_momentum,
        record_every=max(1.0, small.epochs),
        evaluate_every=recipe.epochs() * small.epochs / small.evaluations,
        stages=scaled(recipe.stages, time, rate, workers / recipe.workers, divide_decay=rate * time if scale_decay else 1),
    )


def _small_model(model: str, widen: int) -> str:
    name = SMALL_MODELS.get(model, model)
    return f"{name}x{widen}" if widen > 1 and name in SMALL_MODELS.values() else name


def check_ranks(recipe: Recipe, ranks: int) -> None:
    """Raises ReproError if this many ranks cannot share a step of the recipe."""
    if ranks > recipe.passes:
        raise ReproError(f"{too_many(recipe, ranks)}: start at most {_counted(recipe.passes, 'rank', 'ranks')}")


def too_many(recipe: Recipe, ranks: int) -> str:
    """Says that this many ranks cannot share a step of the recipe."""
    workers = _counted(recipe.workers, "worker", "workers")
    passes = f"{_counted(recipe.passes, 'pass', 'passes')} of {recipe.workers_per_pass} workers"
    return f"{recipe.name} has {workers if recipe.workers_per_pass == 1 else passes}, which {ranks} ranks cannot share"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
