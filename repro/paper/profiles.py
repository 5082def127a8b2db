"""The profiles of `make reproduce`: what each trains. Loads nothing, for the command line's help."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """What one reproduction trains: the runs that the questions of some topics need, on a small data set."""

    data: str
    shrink: str
    seeds: dict[str, int]  # topic of `questions`: number of seeds
    scaling: dict  # parameters of 11-scaling
    about: str  # for people


FEW = {"collapse": 3, "ensemble": 3}
# By a pilot (docs/digits.md): so many seeds put most differences of the first topics into an interval of +-0.3 points. The
# others differ by more between seeds, and would take hundreds; what they ask about is larger.
FULL = {
    "collapse": 16,
    "ensemble": 16,
    "cost": 16,
    "batch": 6,
    "warm-up": 6,
    "length": 6,
    "tuned": 6,
    "lars": 6,
    "averages": 6,
    "cooldown": 6,
    "restarts": 6,
    "growing": 6,
    "ghost": 6,
    "precision": 6,
    "data": 6,
    "ablation": 6,
    "asynchronous": 6,
}
# What fits into about ten hours of one core (docs/photographs.md); the runs of "tuned" are needed for "lars" anyway.
PHOTOGRAPHS = {
    "collapse": 12,
    "ensemble": 12,
    "cost": 6,
    "batch": 6,
    "warm-up": 6,
    "length": 6,
    "tuned": 6,
    "lars": 6,
    "averages": 6,
    "cooldown": 6,
    "restarts": 6,
}
PROFILES = {
    "laptop": Profile("digits", "laptop", FEW, {}, "the questions with the largest effects"),
    "full": Profile("digits", "laptop", FULL, {}, "all questions"),
    "letters": Profile("letters", "laptop", FULL, {}, "all questions, on the second data set"),
    "photographs": Profile("fashion_mnist", "photographs", PHOTOGRAPHS, {}, "most questions, on Fashion-MNIST; hours"),
    "cifar10": Profile("cifar10", "photographs", FEW, {}, "not run by us; see `make plan`"),
    "smoke": Profile(
        "digits",
        "smoke",
        dict.fromkeys(FEW, 1),
        {"model": "resnet18", "size": 32, "seconds": 4.0},
        "everything once, small: no accuracy",
    ),
}


def shrink_of(data: str) -> str:
    """The shrink of a data set's profiles; laptop for one that has none."""
    return next((profile.shrink for profile in PROFILES.values() if profile.data == data), "laptop")


# The notebooks that ask the questions, each with its topics, in the order in which `make reproduce` runs them.
NOTEBOOKS = {
    "12-questions": ("collapse", "ensemble", "cost", "batch", "warm-up", "length"),
    "13-large-batches": ("tuned", "lars", "growing", "ghost", "precision", "data"),
    "14-averages-and-cycles": ("averages", "cooldown", "restarts"),
    "15-ablation": ("ablation",),
    "16-asynchronous": ("asynchronous",),
}
DISTRIBUTED = "resnet50_448nodes"  # the recipe that all ranks train together, as on a cluster
