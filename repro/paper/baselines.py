"""What is asked about the methods of the paper's references (`recipes.baselines`), declared before the runs.

`docs/baselines.md` says for each where it comes from, what would count against it, and what this scale cannot say.
"""

from repro.paper import cycles
from repro.paper.answering import HALF_A_POINT, Question, Side
from repro.recipes.baselines import GHOSTS, NORMS_AT, PARTS
from repro.recipes.controls import BATCHES

# --- SGD and LARS over the batch --------------------------------------------------------------------------------------

SMALLEST, *LARGER = BATCHES
LARGE = 16384, 32768  # at which the linear rule's rate loses


def _end(recipe: str) -> Side:
    return Side(recipe, "main")


TUNED = (
    *(
        Question(
            f"At its own best rate, batch {batch} loses at most half a point against {SMALLEST} at its own",
            _end(f"sgd_{batch}"),
            _end(f"sgd_{SMALLEST}"),
            "tuned",
            not_worse_by=HALF_A_POINT,
        )
        for batch in LARGER
    ),
    *(
        Question(
            f"At batch {batch}, its own best rate is better than the linear rule's",
            _end(f"sgd_{batch}"),
            _end(f"batch_{batch}"),
            "tuned",
        )
        for batch in LARGE
    ),
)

LARS = (
    *(
        Question(
            f"At batch {batch}, LARS loses at most half a point against SGD, each at its own best rate",
            _end(f"lars_{batch}"),
            _end(f"sgd_{batch}"),
            "lars",
            not_worse_by=HALF_A_POINT,
        )
        for batch in BATCHES
        if batch not in LARGE
    ),
    *(
        Question(
            f"At batch {batch}, LARS is better than SGD, each at its own best rate",
            _end(f"lars_{batch}"),
            _end(f"sgd_{batch}"),
            "lars",
        )
        for batch in LARGE
    ),
    *(
        Question(
            f"LARS at batch {batch} loses at most half a point against SGD at {SMALLEST}, each at its own best rate",
            _end(f"lars_{batch}"),
            _end(f"sgd_{SMALLEST}"),
            "lars",
            not_worse_by=HALF_A_POINT,
        )
        for batch in LARGE
    ),
    *(
        Question(
            f"At batch {batch}, LARS is better if it leaves batch norm and biases alone",
            _end(f"lars_{batch}_without_norms"),
            _end(f"lars_{batch}"),
            "lars",
        )
        for batch in NORMS_AT
    ),
    *(
        Question(
            f"At batch {batch}, SGD is better without weight decay on batch norm",
            _end(f"sgd_{batch}_norms_not_decayed"),
            _end(f"sgd_{batch}"),
            "lars",
        )
        for batch in NORMS_AT
    ),
    *(
        Question(
            f"At batch 32768, LARS as released loses at most half a point against LARS {what}",
            _end("lars_32768"),
            _end(f"lars_32768_{name}"),
            "lars",
            not_worse_by=HALF_A_POINT,
        )
        for name, what in (
            ("rate_outside", "with the rate outside the momentum buffer"),
            ("both_outside", "with rate and trust ratio outside it"),
            ("unfused", "by the norm of the decayed gradient"),
        )
    ),
)

# --- Batches that grow, ghost batch norm, fewer images ------------------------------------------------------------------

GROWS, FALLS, NEITHER = (Side(name, "third") for name in ("batch_grows", "rate_falls", "neither_changes"))
GROWING = (
    Question(
        "A batch that grows loses at most half a point against the rate's fall that it replaces",
        GROWS,
        FALLS,
        "growing",
        not_worse_by=HALF_A_POINT,
    ),
    Question("The rate's fall is better than neither", FALLS, NEITHER, "growing"),  # or there is nothing to replace
    Question("A batch that grows is better than neither", GROWS, NEITHER, "growing"),
)

WHOLE = max(GHOSTS)
GHOST = tuple(
    Question(
        f"At batch 16384, batch norm over {images} images is better than over {WHOLE}",
        _end("sgd_16384" if images == 16 else f"ghost_{images}"),
        _end(f"ghost_{WHOLE}"),
        "ghost",
    )
    for images in sorted({16, *GHOSTS} - {WHOLE})
)

# On small images "auto" is float32.
PRECISION = tuple(
    Question(
        f"bf16 loses at most half a point against float32, {where}",
        side._replace(precision="bf16"),
        side,
        "precision",
        not_worse_by=HALF_A_POINT,
    )
    for where, side in (
        ("in the released recipe", Side("resnet50_448nodes", "collapse")),
        ("at batch 2048", _end("batch_2048")),
        ("at batch 16384", _end("batch_16384")),
    )
)

OF_ALL = {1: "all images", 2: "half of the images", 4: "a quarter", 8: "an eighth"}


def _images(part: int, equal: str) -> Side:
    return _end("batch_2048" if part == 1 else f"images_1_{part}_equal_{equal}")


DATA = (
    *(
        Question(
            f"For as many {equal}, {OF_ALL[more]} {'is' if more > 2 else 'are'} better than {OF_ALL[fewer]}",
            _images(more, equal),
            _images(fewer, equal),
            "data",
        )
        for equal in ("epochs", "steps")
        for more, fewer in zip((1, *PARTS), PARTS)
    ),
    *(
        Question(
            f"With {OF_ALL[part]}, as many steps as with all are better than as many epochs",
            _images(part, "steps"),
            _images(part, "epochs"),
            "data",
        )
        for part in PARTS
    ),
)

# --- Ablation: the release's switches, one at a time ------------------------------------------------------------------

_RELEASED, _CYCLES = Side("resnet50_448nodes", "collapse"), Side("resnet50_custom_lr", "collapse")

ABLATION = tuple(
    Question(claim, better, Side(f"ablation_{other}", stage), "ablation", same_weights=other == "bn_momentum")
    for claim, better, other, stage in (
        (
            "The rate that steps down after warm-up, as released, is better than as designed",
            _RELEASED,
            "as_designed",
            "collapse",
        ),
        ("Momentum as released is better than corrected in warm-up", _RELEASED, "corrected", "collapse"),
        ("Weight decay on batch norm, as executed, is better than none", _RELEASED, "norms_not_decayed", "collapse"),
        ("Blocks that begin as the identity are better than others", _RELEASED, "no_zero_gamma", "collapse"),
        ("The authors' averages of batch norm are better than Intel's faster ones", _RELEASED, "bn_momentum", "collapse"),
        ("A stride in the 3x3 convolution is better than in the 1x1", _RELEASED, "stride_v1", "collapse"),
        (
            "A collapse that begins with zero momentum is better than one that keeps it",
            Side("ablation_kept_momentum", "collapse"),
            "kept_momentum",
            "kept",
        ),
        ("The release is better without LARS", _RELEASED, "lars", "collapse"),
        (
            "With LARS, the norm of the plain gradient is better than that of the decayed one",
            Side("ablation_lars", "collapse"),
            "lars_unfused",
            "collapse",
        ),
        ("Over three cycles, the rate as released is better than as designed", _CYCLES, "cycles_as_designed", "collapse"),
        ("Over three cycles, zero momentum at each stage is better than kept", _CYCLES, "cycles_kept_momentum", "collapse"),
    )
)

# --- Asynchronous: Chen et al. (arXiv 1604.00981) and Zheng et al. (arXiv 1609.08326), as their abstracts claim ---------

ASYNCHRONOUS = (
    Question(
        "Of 8 groups, synchronous SGD is better than asynchronous",
        _end("synchronous_8_groups"),
        _end("asynchronous_8_groups"),
        "asynchronous",
    ),
    *(
        Question(
            f"Of 8 groups, {form}delay compensation is better than asynchronous SGD without",
            _end(f"{form.replace(' ', '_')}delay_compensation_8_groups"),
            _end("asynchronous_8_groups"),
            "asynchronous",
        )
        for form in ("", "adaptive ")
    ),
    Question(
        "Of 8 groups, adaptive delay compensation is better than synchronous SGD",
        _end("adaptive_delay_compensation_8_groups"),
        _end("synchronous_8_groups"),
        "asynchronous",
    ),
    Question(
        "Adaptive delay compensation of 8 groups loses at most half a point against sequential SGD",
        _end("adaptive_delay_compensation_8_groups"),
        _end("sequential"),
        "asynchronous",
        not_worse_by=HALF_A_POINT,
    ),
    Question(
        "Of 8 groups, asynchronous SGD is better without momentum",
        _end("asynchronous_8_groups_without_momentum"),
        _end("asynchronous_8_groups"),
        "asynchronous",
    ),
    Question(
        "Of 8 groups, synchronous SGD is better than asynchronous without momentum",
        _end("synchronous_8_groups"),
        _end("asynchronous_8_groups_without_momentum"),
        "asynchronous",
    ),
    *(
        Question(
            f"Asynchronous SGD of {more} groups loses against {what}",
            _end(fewer),
            _end(f"asynchronous_{more}_groups"),
            "asynchronous",
        )
        for more, what, fewer in (
            (2, "sequential SGD", "sequential"),
            (4, "2", "asynchronous_2_groups"),
            (8, "4", "asynchronous_4_groups"),
        )
    ),
)

# --- All --------------------------------------------------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (
    *TUNED,
    *LARS,
    *cycles.QUESTIONS,
    *ABLATION,
    *GROWING,
    *GHOST,
    *PRECISION,
    *DATA,
    *ASYNCHRONOUS,
)
