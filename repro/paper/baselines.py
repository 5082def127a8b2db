"""What is asked about the methods of the paper's references (`recipes.baselines`), declared before the runs."""

from repro.paper.answering import Question, Side

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
        ("Over three cycles, the rate as released is better than as designed", _CYCLES, "cycles_as_designed", "collapse"),
        ("Over three cycles, zero momentum at each stage is better than kept", _CYCLES, "cycles_kept_momentum", "collapse"),
    )
)

QUESTIONS: tuple[Question, ...] = (*ABLATION,)
