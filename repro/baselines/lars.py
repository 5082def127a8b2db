"""LARS (You, Gitman and Ginsburg, arXiv 1708.03888): each tensor's step is in proportion to the tensor's own norm.

The release has it, as `local_lr_auto` and `local_gw_ratio` of its solver (sara-nl/caffe, src/caffe/solvers/sgd_solver.cpp),
and none of the ResNet-50 recipes uses it. `LARS` is that code. What other public code calls LARS differs from it in the
place of rate and trust ratio (`RateOutside`, `BothOutside`) and in the tensors that it leaves alone (`WithoutNorms`).
"""

import torch

from repro.model import Network
from repro.optim import Update
from repro.schedule import Now, Recipe


class LARS(Update):
    """h <- m h + rate trust (g + decay w);  w <- w - h, with rate and trust ratio inside the momentum buffer, as released.

    trust = ratio |w| / (|g| + decay |w|) of each tensor, with its Euclidean norms, and 1 where a norm is 0. As in the release,
    biases and batch norm are tensors like others, and the decay in it is the stage's, also for a tensor that is not decayed.
    |g| is the norm before the decay is added, as on the fused path that icc and g++ >= 4.9 build (see also `Unfused`).
    """

    remembers = ("momentum",)

    def __init__(self, network: Network, recipe: Recipe, ratio: float = 0.001):
        """ratio: `local_gw_ratio`, by which a rate of 1 changes each tensor in a step, relative to its norm."""
        super().__init__(network, recipe)
        self.ratio, self.momentum = ratio, recipe.momentum
        self.rooms = [end - start for start, end in zip([0, *network.ends], network.ends)]
        self.lengths = torch.tensor(self.rooms, device=self.weights.device)
        self.decayed = [recipe.decay_bn or end <= network.undecayed for end in network.ends]

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, now: Now) -> None:
        momentum = self.momentum * now.rate / now.previous_rate if now.previous_rate else self.momentum
        trust = self.adapt(gradient, now)
        self.vectors["momentum"].mul_(momentum).add_(gradient.mul_(trust), alpha=now.rate)
        self.weights.sub_(self.vectors["momentum"])

    def adapt(self, gradient: torch.Tensor, now: Now) -> torch.Tensor:
        """Adds the weight decay to the gradient; returns the trust ratio of each weight's tensor (P,)."""
        norm = self.norms(gradient)
        self.add_decay(gradient, now)
        return self.trust(norm, now)

    def add_decay(self, gradient: torch.Tensor, now: Now) -> None:
        for g, w, decayed in zip(gradient.split(self.rooms), self.weights.split(self.rooms), self.decayed):
            if decayed:
                g.add_(w, alpha=now.stage.weight_decay)

    def trust(self, norm: torch.Tensor, now: Now) -> torch.Tensor:
        """The trust ratio of each weight's tensor (P,), by the norms of the tensors' gradients."""
        weights = self.norms(self.weights)
        ratios = self.ratio * weights / (norm + now.stage.weight_decay * weights)
        ratios = torch.where((weights > 0) & (norm > 0), ratios, 1.0)
        return ratios.repeat_interleave(self.lengths, output_size=len(self.weights))

    def norms(self, vector: torch.Tensor) -> torch.Tensor:
        """The Euclidean norm of each tensor in a vector (P,); what lies between tensors is zero."""
        return torch.stack([torch.linalg.vector_norm(part) for part in vector.split(self.rooms)])


class Unfused(LARS):
    """By the norm of the decayed gradient, as on the release's other path, which regularizes before it asks for the rate."""

    def adapt(self, gradient: torch.Tensor, now: Now) -> torch.Tensor:
        self.add_decay(gradient, now)
        return self.trust(self.norms(gradient), now)


class WithoutNorms(LARS):
    """Batch norm and biases take the plain rate and no decay (mlcommons/training, tensorflow2/lars_optimizer.py at 615ad0a)."""

    def __init__(self, network: Network, recipe: Recipe, ratio: float = 0.001):
        super().__init__(network, recipe, ratio)
        self.decayed = [end <= network.undecayed and each.dim() > 1 for end, each in zip(network.ends, network.parameters)]
        self.adapted = torch.tensor(self.decayed, device=self.weights.device).repeat_interleave(self.lengths)

    def trust(self, norm: torch.Tensor, now: Now) -> torch.Tensor:
        return torch.where(self.adapted, super().trust(norm, now), 1.0)


class RateOutside(LARS):
    """h <- m h + trust (g + decay w);  w <- w - rate h: `LARS` if the rate is constant (timm; apex's LARC without its clip)."""

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, now: Now) -> None:
        trust = self.adapt(gradient, now)
        self.vectors["momentum"].mul_(self.momentum).add_(gradient.mul_(trust))
        self.weights.sub_(self.vectors["momentum"], alpha=now.rate)


class BothOutside(LARS):
    """h <- m h + (g + decay w);  w <- w - rate trust h (NUS-HPC-AI-Lab/LARS-ImageNet-PyTorch, lars.py at a8222c6).

    Without the clamps that are there on the trust ratio (0 to 50) and on the decayed gradient (-10 to 10).
    """

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, now: Now) -> None:
        trust = self.adapt(gradient, now)
        self.vectors["momentum"].mul_(self.momentum).add_(gradient)
        self.weights.sub_(trust.mul_(self.vectors["momentum"]), alpha=now.rate)
