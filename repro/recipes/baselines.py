"""Recipes of the methods that the paper's references would have used with the same images: the rivals of its own.

Units are ImageNet's, as in `released` and `controls`. A rule other than SGD is named, and its class is in `repro.baselines`.
"""

from dataclasses import replace
from typing import Any

from repro.recipes.released import resnet50_448nodes, resnet50_custom_lr
from repro.schedule import Recipe

# --- Ablation: the release's switches, one at a time ------------------------------------------------------------------


def _ablation(of: Recipe, name: str, summary: str, **changes: Any) -> Recipe:
    texts: dict[str, Any] = dict(source="this project; not a released configuration", hardware="", cost="", reported="")
    return replace(of, name=f"ablation_{name}", summary=f"{of.name}, but {summary}", **texts, **changes)


_MAIN, _COLLAPSE = resnet50_448nodes.stages
_FIRST, *_OTHERS = resnet50_custom_lr.stages

ABLATION = (
    _ablation(resnet50_448nodes, "as_designed", "with the designed formula of the rate", lr_formula="as_designed"),
    _ablation(resnet50_448nodes, "corrected", "with momentum corrected in warm-up", momentum_correction="warmup"),
    _ablation(resnet50_448nodes, "norms_not_decayed", "without weight decay on batch norm", decay_bn=False),
    _ablation(resnet50_448nodes, "no_zero_gamma", "with every gamma at one in the beginning", zero_gamma="none"),
    _ablation(resnet50_448nodes, "bn_momentum", "with Intel's faster averages of batch norm", bn_momentum=0.1),
    _ablation(resnet50_448nodes, "stride_v1", "with the stride in the 1x1 convolution, as in Intel's nets", stride="v1"),
    _ablation(
        resnet50_448nodes,
        "kept_momentum",
        "collapsed twice: with the momentum kept, and with zero momentum as released",
        stages=(
            _MAIN,
            replace(_COLLAPSE, name="kept", keep_momentum=True, member=False),
            replace(_COLLAPSE, starts_from=_MAIN.name),
        ),
    ),
    _ablation(resnet50_custom_lr, "cycles_as_designed", "with the designed formula of the rate", lr_formula="as_designed"),
    _ablation(
        resnet50_custom_lr,
        "cycles_kept_momentum",
        "with the momentum kept from stage to stage",
        stages=(_FIRST, *(replace(stage, keep_momentum=True) for stage in _OTHERS)),
    ),
)

# --- All --------------------------------------------------------------------------------------------------------------

BASELINES: tuple[Recipe, ...] = (*ABLATION,)
