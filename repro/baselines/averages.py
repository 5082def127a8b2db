"""Averages of weights along a run: SWA, and an exponential average. One model is tested, where an ensemble tests several.

Both train by `optim.SGD`, and average the weights after each step of a stage whose rate is constant (`power` 0). In any other
stage the average is the weights themselves, and each stage begins a new one.

Batch norm's statistics are computed again for the average, as for any rule whose `finished` is not `weights`. Three conventions
are in use: torch's `update_bn` weighs each batch alike, timgaripov/swa's `bn_update` each image. Ours is that of the training
itself: each worker's own mean and unbiased variance, averaged over workers and steps, of the next 8,000 images in the stage's
view (`evaluate.recompute_statistics`).
"""

import torch

from repro.optim import SGD
from repro.schedule import Now


class SWA(SGD):
    """a <- a + (w - a) / (n + 1) after each step: the mean of the stage's weights (Izmailov et al., 2018, arXiv 1803.05407).

    The formula is `moving_average` of timgaripov/swa, utils.py, and torch.optim.swa_utils.get_swa_avg_fn. There, weights are
    averaged once an epoch, and here at each step.
    """

    def __init__(self, network, recipe):
        super().__init__(network, recipe)
        self.vectors["average"] = torch.zeros_like(self.weights)

    @torch.no_grad()
    def step(self, gradient, now):
        super().step(gradient, now)
        constant = now.stage.power == 0 and now.iteration >= now.stage.warmup_iterations
        self.vectors["average"].lerp_(self.weights, self.share(now) if constant else 1.0)

    def share(self, now: Now) -> float:
        """The share of the newest weights in the average of a stage."""
        return 1 / (now.iteration - now.stage.warmup_iterations + 1)

    def finished(self):
        return self.vectors["average"]


class EMA(SWA):
    """e <- s e + (1 - s) w after each step, from e = w after the first one; s = 2^(-1 / half life).

    As torch.optim.swa_utils.get_ema_avg_fn. The half life is a share of the stage's steps, so that a recipe that is made small
    keeps it; mosaicml/composer, composer/algorithms/ema/ema.py, gives it in batches. That one averages buffers as well.
    """

    def __init__(self, network, recipe, half_life: float):
        super().__init__(network, recipe)
        self.half_life = half_life

    def share(self, now):
        steps = self.half_life * (now.stage.iterations - now.stage.warmup_iterations)
        return 1 - 0.5 ** (1 / steps) if now.iteration > now.stage.warmup_iterations else 1.0
