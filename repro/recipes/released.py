"""The released recipes, as literals: every number is transcribed from the solver files and tested against them.

They are from the authors' public repository (sara-nl/caffe, commit 610a2fa9 of 2018-04-02, folder
models/intel_optimized_models/multinode). Accuracies are on ImageNet-1K, top-1 / top-5 in per cent.
"""

from dataclasses import replace
from typing import Any

from repro.schedule import Recipe, Stage

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

RELEASED = (
    resnet50_448nodes,
    resnet50_448nodes_uncollapsed,
    resnet50_custom_lr,
    default_resnet50_8nodes,
    default_resnet50_16nodes,
    default_resnet50_64nodes,
    resnet_50_256_nodes_8k_batch,
)
