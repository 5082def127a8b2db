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

QUESTIONS: tuple[Question, ...] = (*TUNED, *LARS, *cycles.QUESTIONS, *ASYNCHRONOUS)
