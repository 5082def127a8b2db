"""Asynchronous SGD, simulated exactly: gradients of weights that other groups have changed meanwhile; and delay compensation.

A group is all workers of a recipe, whose average is one gradient. `staleness` + 1 groups take turns, as on machines of one
speed: a group's gradient is applied to the server's weights, then the group reads these, and computes its next gradient
while the others' are applied. So each gradient is of weights that are `staleness` updates old, and of the first weights of a
stage while the groups have read nothing else. Delays that vary, as those of real machines do, are not simulated.
"""

import torch

from repro.model import Network
from repro.optim import SGD
from repro.schedule import Now, Recipe, Stage


class Asynchronous(SGD):
    """SGD with its momentum on a server, each step by the gradient of another group, at the group's own copy of the weights.

    network.weights   the copy of the group whose turn it is: its gradient is computed there
    vectors           momentum; the server's weights, which are tested; each group's copy. So with s = `staleness`, the rule
                      remembers s + 2 times the weights, besides momentum

    A stage starts from the server's weights at the end of an earlier one, which all groups have read: gradients on their way at
    the end are lost. With `keep_momentum` it goes on with all copies as they are. Staleness 0 is SGD.
    """

    def __init__(self, network: Network, recipe: Recipe, staleness: int):
        super().__init__(network, recipe)
        self.reading = network.weights
        copies = [f"group{number}" for number in range(int(staleness) + 1)]
        self.vectors |= {name: torch.zeros_like(self.reading) for name in ("server", *copies)}
        self.copies = [self.vectors[name] for name in copies]
        self.weights = self.vectors["server"]  # what SGD's step changes

    def begin(self, stage: Stage) -> None:
        super().begin(stage)
        if not stage.keep_momentum:
            for copy in (self.weights, *self.copies):
                copy.copy_(self.reading)

    def step(self, gradient: torch.Tensor, now: Now) -> None:
        super().step(gradient, now)
        this, following = (self.copies[step % len(self.copies)] for step in (now.step, now.step + 1))
        this.copy_(self.weights)
        self.reading.copy_(following)


class DelayCompensated(Asynchronous):
    """Asynchronous SGD that adds lam g² (w - what g was computed at) to a gradient g, an estimate of what g is at w by now.

    Zheng et al., arXiv 1609.08326, in the form of MXNet 1.x, which squares the gradient without weight decay (2.x squares it
    with, Multiverso takes its magnitude). What g was computed at is its own group's copy, as in Multiverso; MXNet's server has
    the weights of one update before, whoever sends the gradient.
    """

    def __init__(self, network: Network, recipe: Recipe, staleness: int, lam: float):
        super().__init__(network, recipe, staleness)
        self.lam = lam

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, now: Now) -> None:
        gradient.addcmul_(self.curvature(gradient), self.weights - self.reading, value=self.lam)
        super().step(gradient, now)

    def curvature(self, gradient: torch.Tensor) -> torch.Tensor:
        """The estimate of the gradient's own derivative (P,), but for a factor."""
        return gradient.square()


class AdaptivelyCompensated(DelayCompensated):
    """Delay compensation by g² over the root of its moving average, in the form of torch_scala's DCASGDa.

    So the compensation grows with the gradient as the gradient itself does, and not with its third power. The average begins at
    zero and has a memory of 20 updates.
    """

    remembers = "momentum", "square"  # type: ignore[assignment]

    def curvature(self, gradient: torch.Tensor) -> torch.Tensor:
        mean = self.vectors["square"].lerp_(gradient.square(), 0.05)
        return gradient.square() / (mean + 1e-7).sqrt()
