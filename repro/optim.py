"""The update: how weights change at each step. `SGD` is the paper's, in Caffe's form, on flat vectors."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from repro import ReproError
from repro.model import RANDOM, Network, generators
from repro.run import own
from repro.schedule import Now, Recipe, Stage, at

PIECE = 1 << 17  # elements updated at a time on a CPU, so that they stay in the cache for all four operations
TRIED = 24  # first steps of a recipe at which a user's own rule is tried


class Update(ABC):
    """A rule by which weights change. A rule of your own is a subclass with `step` and the names of its vectors.

    weights   (P,) the network's, which `step` changes in place; workers compute their gradients there
    vectors   what the rule remembers, by name: float32 tensors, on the weights' device, zero at first. They are saved with each
              checkpoint and restored from it, and must be all that the next step depends on besides gradient and schedule: then
              runs that were killed, or have another number of ranks, end with the same bits
    """

    remembers: tuple[str, ...] = ()  # vectors as long as the weights

    def __init__(self, network: Network, recipe: Recipe):
        """A subclass may take numbers of its own after these two, from `Recipe.update_numbers`."""
        self.weights = network.weights
        self.vectors = {name: torch.zeros_like(self.weights) for name in self.remembers}

    def begin(self, stage: Stage) -> None:
        """Called when a stage begins, with its first weights in place: forgets the past, unless the stage keeps it."""
        if not stage.keep_momentum:
            for vector in self.vectors.values():
                vector.zero_()

    @abstractmethod
    def step(self, gradient: torch.Tensor, now: Now) -> None:
        """Changes the weights by the gradient (P,), averaged over all workers; may overwrite the gradient."""

    def finished(self) -> torch.Tensor:
        """The weights (P,) that are tested, and kept at a stage's end.

        If they are not `weights` but, for example, an average, batch norm's statistics are computed again for them.
        """
        return self.weights


class SGD(Update):
    """h <- rate (g + decay w) + m h;  w <- w - h, with the rate inside the momentum buffer h, as in Caffe.

    Momentum correction multiplies m by rate / previous rate; Caffe does so in warm-up only, and the released code skips
    it on the fused path that icc and g++ >= 4.9 build (the authors' compiler is not recorded). Applied at every step, it
    is equivalent to torch.optim.SGD, where the rate is outside the buffer.
    """

    remembers = ("momentum",)

    def __init__(self, network: Network, recipe: Recipe):
        super().__init__(network, recipe)
        self.momentum, self.decayed = recipe.momentum, len(self.weights) if recipe.decay_bn else network.undecayed
        self.piece = len(self.weights) if self.weights.is_cuda else PIECE

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, now: Now) -> None:
        momentum = self.momentum * now.rate / now.previous_rate if now.previous_rate else self.momentum
        vectors = gradient, self.weights, self.vectors["momentum"]
        for start in range(0, len(gradient), self.piece):
            g, w, h = (vector[start : start + self.piece] for vector in vectors)
            g[: max(0, self.decayed - start)].add_(w[: max(0, self.decayed - start)], alpha=now.stage.weight_decay)
            h.mul_(momentum).add_(g, alpha=now.rate)
            w.sub_(h)


def rule(recipe: Recipe) -> Callable[[Network], Update]:
    """Returns a function that makes the recipe's rule for a network: `SGD`, or a user's own, such as mine.py:MyRule.

    A user's own rule is tried on a network of one layer, at the first steps and the first of each stage. Raises ReproError if
    it fails there, or remembers anything that is not in `vectors`.
    """
    numbers = dict(recipe.update_numbers)
    if not recipe.update:
        if numbers:
            raise ReproError(f"recipe {recipe.name}: update_numbers is {numbers}, but SGD takes its numbers from the recipe")
        return partial(SGD, recipe=recipe)
    if not own.is_own(recipe.update):
        raise ReproError(f"{recipe.update} is no rule: name one as mine.py:MyRule, or none for SGD")
    found = own.load(recipe.update)
    if not (isinstance(found, type) and issubclass(found, Update)):
        raise ReproError(f"{recipe.update} is no subclass of repro.optim.Update: write a `class MyRule(Update)` with `step`")
    make: Callable[[Network], Update] = partial(found, recipe=recipe, **numbers)  # type: ignore[arg-type]
    try:
        with torch.random.fork_rng(devices=[]):
            _try(make, recipe)
    except ReproError as error:
        raise ReproError(f"{recipe.update}: {error}") from error
    except Exception as error:
        raise ReproError(f"{recipe.update} fails when it is tried ({type(error).__name__}: {error}): fix it") from error
    return make


def _try(make: Callable[[Network], Update], recipe: Recipe) -> None:
    """Takes some steps, and the later half of them again by a new rule that is given only weights and vectors."""
    torch.manual_seed(0)
    network = Network(nn.Linear(6, 4))
    begins = {start + after for start in recipe.starts for after in (0, 1)}
    steps = [at(recipe, step) for step in range(recipe.iterations) if step < TRIED or step in begins]
    gradients = torch.randn(len(steps), len(network.weights))
    drawn = generators()
    earlier, later = (list(zip(steps, gradients))[part] for part in (slice(len(steps) // 2), slice(len(steps) // 2, None)))
    update = make(network)
    _go(update, network, earlier)
    weights, vectors = network.weights.clone(), {name: vector.clone() for name, vector in update.vectors.items()}
    expected = _go(update, network, later)
    again = make(network)
    network.weights.copy_(weights)
    for name, vector in vectors.items():
        again.vectors[name].copy_(vector)
    if not torch.equal(_go(again, network, later), expected):
        raise ReproError(
            "it remembers something that is not in `vectors`, so a run that was killed would end with other weights: keep all "
            "of it there"
        )
    for whose, state in generators().items():
        if state != drawn[whose]:
            raise ReproError(f"it {RANDOM.format(whose).replace(' in its forward pass', '')}")


def _go(update: Update, network: Network, steps: list[tuple[Now, torch.Tensor]]) -> torch.Tensor:
    """Takes these steps, each with its gradient; returns the finished weights and those in training."""
    for now, gradient in steps:
        if now.iteration == 0:
            update.begin(now.stage)
        update.step(gradient.clone(), now)
    for name, vector in update.vectors.items():
        if not isinstance(vector, torch.Tensor) or vector.dtype != torch.float32:
            raise ReproError(f"vectors[{name!r}] must be a float32 tensor")
    finished = update.finished()
    if not isinstance(finished, torch.Tensor) or finished.shape != network.weights.shape or finished.dtype != torch.float32:
        raise ReproError(f"`finished` must return weights, a float32 tensor {tuple(network.weights.shape)}")
    return torch.cat([finished, network.weights])
