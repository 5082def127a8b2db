"""What is asked of averages of weights, of collapses from other trunks, and of restarts, declared before the runs.

Both sides of a question have equal images and equal exposure to the collapse's view, except the mean of three members' weights
against the last member. `docs/baselines.md` says what would count against each claim.
"""

from repro.paper.answering import HALF_A_POINT, Question, Side

MEMBERS = "collapse1 + collapse2 + collapse3"
ENSEMBLE = Side("tuned_ensemble", MEMBERS, "softmax")
HIGH = Side("tuned_ensemble", "high1 + high2 + high3", "softmax")
LAST = Side("tuned_ensemble", "collapse3")
SOUP = Side("tuned_ensemble", MEMBERS, "weights")
ONE_MODEL = Side("tuned_one_model", "collapse_long")
PLAIN = Side("tuned_one_model", "plain")


AVERAGES = (
    Question("The Collapsed Ensemble beats the mean of its members' weights", ENSEMBLE, SOUP, "averages"),
    Question(
        "The mean of the members' weights loses at most half a point against the last member",
        SOUP,
        LAST,
        "averages",
        not_worse_by=HALF_A_POINT,
    ),
    *(
        Question(f"The Collapsed Ensemble beats one model by {what}", ENSEMBLE, Side(recipe, "average"), "averages")
        for recipe, what in (("swa", "SWA"), ("ema", "an exponential average of weights"))
    ),
    *(
        Question(
            f"In {view} view, SWA at a constant rate loses at most half a point against a falling rate",
            Side("swa", end),
            other,
            "averages",
            not_worse_by=HALF_A_POINT,
        )
        for view, end, other in (("the collapse's", "average", ONE_MODEL), ("the main", "average_main", PLAIN))
    ),
)

COOLDOWN = (
    *(
        Question(
            f"Three collapses from the released cycles beat three from {what}",
            ENSEMBLE,
            Side(recipe, MEMBERS, "softmax"),
            "cooldown",
        )
        for recipe, what in (("constant_ensemble", "a constant rate"), ("falling_ensemble", "one linear decay"))
    ),
    # A collapse that starts at a higher rate also learns more in its view: at one rate, only the trunks differ.
    Question(
        "Three collapses from the released cycles beat three from a constant rate, all of them starting at that rate",
        HIGH,
        Side("constant_ensemble", MEMBERS, "softmax"),
        "cooldown",
    ),
    Question(
        "From the released cycles, collapses that start at a constant trunk's rate beat those from each cycle's end",
        HIGH,
        ENSEMBLE,
        "cooldown",
    ),
    Question(
        "The last collapse from a constant rate loses at most half a point against the last from the cycles at that rate",
        Side("constant_ensemble", "collapse3"),
        Side("tuned_ensemble", "high3"),
        "cooldown",
        not_worse_by=HALF_A_POINT,
    ),
    Question(
        "One long collapse from a constant rate loses at most half a point against one from the linear decay",
        Side("constant_ensemble", "collapse_long"),
        ONE_MODEL,
        "cooldown",
        not_worse_by=HALF_A_POINT,
    ),
    *(
        Question(
            f"A collapse at {tenths} tenths of a constant rate loses at most half a point against a run planned to end there",
            Side("constant_trunk", f"collapse{tenths}"),
            planned,
            "cooldown",
            not_worse_by=HALF_A_POINT,
        )
        for tenths, planned in (
            (3, Side("planned_3_tenths", "collapse")),
            (7, Side("planned_7_tenths", "collapse")),
            (10, Side("tuned_one_model", "collapse")),
        )
    ),
    *(
        Question(
            f"In {view} view, schedule-free SGD loses at most half a point against one linear decay",
            Side(recipe, end),
            other,
            "cooldown",
            not_worse_by=HALF_A_POINT,
        )
        for view, recipe, end, other in (
            ("the main", "schedule_free", "main", PLAIN),
            ("the collapse's", "schedule_free_crop", "end", ONE_MODEL),
        )
    ),
)

RESTARTS = (
    *(
        Question(f"In {view} view, {what} beat{s} one linear decay", Side(recipe, end), other, "restarts")
        for what, s, sides in (
            ("warm restarts", "", (("warm_restarts", "cyc3"), ("warm_restarts_crop", "end"))),
            ("one cycle", "s", (("one_cycle", "plain"), ("one_cycle", "end"))),
        )
        for view, (recipe, end), other in zip(("the main", "the collapse's"), sides, (PLAIN, ONE_MODEL))
    ),
    Question(
        "The Collapsed Ensemble beats a snapshot ensemble of equal exposure with a restart rate of its own",
        ENSEMBLE,
        Side("snapshot_ensemble_restarts", "end1 + end2 + end3", "softmax"),
        "restarts",
    ),
    Question(
        "Three collapses from the released cycles beat three from triangles",
        ENSEMBLE,
        Side("triangular_ensemble", MEMBERS, "softmax"),
        "restarts",
    ),
)

QUESTIONS: tuple[Question, ...] = (*AVERAGES, *COOLDOWN, *RESTARTS)
