"""What is asked about the methods of the paper's references (`recipes.baselines`), declared before the runs.

`docs/baselines.md` says for each where it comes from, what would count against it, and what this scale cannot say.
"""

from repro.paper import cycles
from repro.paper.answering import HALF_A_POINT, Question, Side
from repro.recipes.baselines import NORMS_AT
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

# --- Ablation: the release's switches, one at a time ------------------------------------------------------------------

_RELEASED, _CYCLES = Side("resnet50_448nodes", "collapse"), Side("resnet50_custom_lr", "collapse")

ABLATION = tuple(
    Question(claim, better, Side(f"ablation_{other}", stage), "ablation")
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

# --- All --------------------------------------------------------------------------------------------------------------

QUESTIONS: tuple[Question, ...] = (*TUNED, *LARS, *cycles.QUESTIONS, *ABLATION)
