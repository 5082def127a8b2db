"""What the small test bed is asked: each question with its two sides, declared before the runs.

`docs/digits.md` says for each what would count against it, when it was declared, and which other explanations were tried.
Questions about what the paper's references would have done with the same images are in `baselines`.
"""

from collections.abc import Iterable

from repro import choose
from repro.paper import baselines
from repro.paper.answering import HALF_A_POINT, Question, Side
from repro.recipes.controls import BATCHES, LENGTHS


def _mean(recipe: str, members: list[str], average: str = "softmax") -> Side:
    return Side(recipe, " + ".join(members), average)


MEMBERS = ["collapse1", "collapse2", "collapse3"]
ENSEMBLE = _mean("five_members", MEMBERS)
ONE_MODEL = Side("one_model", "collapse_long")
SMALLEST, *LARGER = BATCHES

BATCH = tuple(
    Question(
        f"Batch {batch} loses at most half a point against {SMALLEST}",
        Side(f"batch_{batch}", "main"),
        Side(f"batch_{SMALLEST}", "main"),
        "batch",
        not_worse_by=HALF_A_POINT,
    )
    for batch in LARGER
)

WARMUP = tuple(
    Question(
        f"Batch {batch} needs warm-up",
        Side(f"batch_{batch}", "main"),
        Side(f"batch_{batch}_no_warmup", "main"),
        "warm-up",
        by_ranks=True,
        control=batch == SMALLEST,
    )
    for batch in BATCHES
)

COLLAPSE = tuple(
    Question(claim, Side("collapse_parts", better), Side("collapse_parts", other), "collapse")
    for claim, better, other in (
        ("The released collapse is better than the plain end of the linear decay", "zero-crop-x2", "plain"),
        ("In the main view, the rate's fall helps", "zero-main-x1", "keep-main-x1"),
        ("At a falling rate, the collapse's view helps", "zero-crop-x1", "zero-main-x1"),
        ("In the collapse's view, the doubled weight decay helps", "zero-crop-x2", "zero-crop-x1"),
        ("A quadratic end of the decay is better than the linear one", "zero-main-x1", "plain"),
        ("New batch-norm statistics alone, with the weights unchanged, help", "statistics", "zero-main-x1"),
    )
)

OTHERS = {
    "one model of equal images with the released collapse": Side("one_model", "collapse"),
    "one model of equal images and equal exposure to the collapse's view": ONE_MODEL,
    "an untuned snapshot ensemble (Huang et al.)": _mean("snapshot_ensemble", ["cyc1", "cyc2", "cyc3"]),
    "an untuned snapshot ensemble with as many images in the collapse's view": _mean(
        "snapshot_ensemble_crop", ["end1", "end2", "end3"]
    ),
    "three models of a third of the images each": _mean("three_models", MEMBERS),
}
ENSEMBLES = (
    *(Question(f"The Collapsed Ensemble beats {what}", ENSEMBLE, other, "ensemble") for what, other in OTHERS.items()),
    Question("The Collapsed Ensemble beats its last member", ENSEMBLE, Side("five_members", "collapse3"), "ensemble"),
    Question(
        "The mean of softmax beats the mean of logits",
        ENSEMBLE,
        _mean("five_members", MEMBERS, "logit"),
        "ensemble",
        control=True,
    ),
)

# Each has about the ensemble's cost of inference. Of equal images, the deep network trains with three times the arithmetic.
COST = tuple(
    Question(
        f"The Collapsed Ensemble loses at most half a point against a deeper model of equal {budget}",
        ENSEMBLE,
        Side(recipe, "collapse_long"),
        "cost",
        not_worse_by=HALF_A_POINT,
    )
    for budget, recipe in (
        ("training arithmetic", "one_deep_model_third"),
        ("images and three times the training arithmetic", "one_deep_model"),
    )
)

LENGTH = (
    *(
        Question(
            f"At batch {batch}, {longer} epochs are better than {shorter}",
            Side(f"epochs_{longer}_batch_{batch}", "collapse"),
            Side(f"epochs_{shorter}_batch_{batch}", "collapse"),
            "length",
        )
        for batch in (4096, 14336)
        for shorter, longer in zip(LENGTHS, LENGTHS[1:])
    ),
    *(
        Question(
            f"Over {epochs} epochs, batch 14336 loses at most half a point against 4096",
            Side(f"epochs_{epochs}_batch_14336", "collapse"),
            Side(f"epochs_{epochs}_batch_4096", "collapse"),
            "length",
            not_worse_by=HALF_A_POINT,
        )
        for epochs in LENGTHS
    ),
)

QUESTIONS = (*BATCH, *WARMUP, *COLLAPSE, *ENSEMBLES, *COST, *LENGTH, *baselines.QUESTIONS)
TOPICS = tuple(dict.fromkeys(question.topic for question in QUESTIONS))
# Drawn over the budget: the first two members of the ensemble, the first four, all five.
GROWING = tuple(_mean("five_members", [f"collapse{member}" for member in range(1, last + 1)]) for last in (2, 4, 5))


def of(topics: Iterable[str]) -> list[Question]:
    """The questions of these topics."""
    chosen = [choose("topic", topic, TOPICS) for topic in topics]
    return [question for question in QUESTIONS if question.topic in chosen]


def read() -> set[tuple[str, str]]:
    """What the answers read of each run's stored predictions: (recipe, name of the file)."""
    return {(side.recipe, side.file) for question in QUESTIONS for side in (question.better, question.other)}
