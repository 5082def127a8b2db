"""Schedule-free SGD: an average of weights instead of a rate that falls, so that a run may end at any step."""

import torch

from repro.model import Network
from repro.optim import Update
from repro.schedule import Now, Recipe, Stage, at


class ScheduleFree(Update):
    """z <- z - rate (g + decay y);  x <- (1 - c) x + c z;  y <- beta x + (1 - beta) z, with gradients g at y; x is tested.

    Defazio et al., 2024, arXiv 2405.15682, as facebookresearch/schedule_free, sgd_schedulefree_reference.py, with its defaults.
    beta is the recipe's momentum; c is the share of a step's weight in those of all steps so far, and its weight the square of
    the largest rate until then.
    """

    remembers = ("x", "z")

    def __init__(self, network: Network, recipe: Recipe):
        super().__init__(network, recipe)
        self.beta, self.decayed = recipe.momentum, len(self.weights) if recipe.decay_bn else network.undecayed
        self.shares = _shares(recipe)

    def begin(self, stage: Stage) -> None:
        if not stage.keep_momentum:
            for vector in self.vectors.values():
                vector.copy_(self.weights)

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, now: Now) -> None:
        x, y, z = self.vectors["x"], self.weights, self.vectors["z"]
        gradient[: self.decayed].add_(y[: self.decayed], alpha=now.stage.weight_decay)
        z.sub_(gradient, alpha=now.rate)
        x.lerp_(z, self.shares[now.step])
        torch.lerp(z, x, self.beta, out=y)

    def finished(self) -> torch.Tensor:
        return self.vectors["x"]


def _shares(recipe: Recipe) -> list[float]:
    """c at each step of the recipe: known before the run, so that no sum has to be remembered."""
    shares: list[float] = []
    largest = total = 0.0
    for now in (at(recipe, step) for step in range(recipe.iterations)):
        if now.iteration == 0 and not now.stage.keep_momentum:
            largest = total = 0.0
        largest = max(largest, now.rate)
        total += largest**2
        shares.append(largest**2 / total if total else 0.0)
    return shares
