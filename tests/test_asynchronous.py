"""Asynchronous SGD, by one copy of the weights that is exchanged at each step, against groups that each own one, in a queue."""

import heapq
from collections import Counter
from itertools import combinations, permutations

import pytest
import torch
from torch import nn

from repro.baselines.asynchronous import AdaptivelyCompensated, Asynchronous, DelayCompensated
from repro.model import Network
from repro.optim import SGD
from repro.schedule import Recipe, Stage, at

SCHEDULE = (
    Stage("warm", 9, 0.4, warmup_iterations=4, warmup_start_rate=0.1, weight_decay=0.05),
    Stage("again", 7, 0.3, weight_decay=0.01, starts_from="warm"),
    Stage("on", 6, 0.2, weight_decay=0.0, keep_momentum=True),
)
RECIPE = Recipe("r", SCHEDULE, 1, 1, momentum=0.8)


def problem():
    """A small network, and the gradient of a bowl at some weights, with noise of its own at each step."""
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    network.weights.normal_()
    steep, noise = torch.rand_like(network.weights), torch.randn(RECIPE.iterations, len(network.weights))
    return network, lambda weights, step: steep.to(weights) * weights + noise[step].to(weights)


def trained(rule, recipe=RECIPE, **numbers):
    """The weights that a rule tests after each step, of gradients where `network.weights` is; stages begin as in `train`."""
    network, gradient = problem()
    update, tested = rule(network, recipe, **numbers), []
    for now in (at(recipe, step) for step in range(recipe.iterations)):
        if now.iteration == 0:
            if now.step and not now.stage.keep_momentum:
                network.weights.copy_(update.finished())
            update.begin(now.stage)
        update.step(gradient(network.weights, now.step), now)
        tested.append(update.finished().clone())
    return torch.stack(tested)


def in_a_queue(groups, lam=0.0, recipe=RECIPE, adaptive=False):
    """Groups that each own a copy and a clock: whoever is done first gives the server its gradient, then reads the weights.

    The server's step is that of DCASGD in MXNet 1.x, with momentum, and weight decay outside the square, but with a backup for
    each group, as in Multiverso's DCASGDUpdater; adaptive, lam is divided as in torch_scala's DCASGDa.
    """
    network, gradient = problem()
    server, h, tested, queue = network.weights.tolist(), [], [], []
    for now in (at(recipe, step) for step in range(recipe.iterations)):
        if now.iteration == 0 and not now.stage.keep_momentum:
            h, square = [0.0] * len(server), [0.0] * len(server)
            queue = [(now.step + group, group, list(server)) for group in range(groups)]
        done, group, backup = heapq.heappop(queue)
        g = gradient(torch.tensor(backup, dtype=torch.float64), now.step).tolist()
        for i, w in enumerate(server):
            d = now.stage.weight_decay * w
            square[i] = 0.95 * square[i] + 0.05 * g[i] * g[i]
            strength = lam / (square[i] + 1e-7) ** 0.5 if adaptive else lam
            h[i] = recipe.momentum * h[i] - now.rate * (g[i] + d + strength * g[i] * g[i] * (w - backup[i]))
        server = [w + step for w, step in zip(server, h)]
        heapq.heappush(queue, (done + groups, group, list(server)))
        tested.append(server)
    return torch.tensor(tested, dtype=torch.float64)


@pytest.mark.parametrize("staleness", [0, 1, 2, 5, 12])
def test_asynchronous_groups_do_what_groups_in_a_queue_do(staleness):
    expected = in_a_queue(staleness + 1)
    assert (trained(Asynchronous, staleness=staleness) - expected).abs().max() < 1e-5
    others = [in_a_queue(groups) for groups in (1, 2, 3, 6, 13) if groups != staleness + 1]
    assert min((other - expected).abs().max() for other in others) > 0.1, "which is not what other numbers of groups do"


@pytest.mark.parametrize("rule", [DelayCompensated, AdaptivelyCompensated])
@pytest.mark.parametrize("staleness", [1, 5])
def test_delay_compensation_is_that_of_a_queue(staleness, rule):
    expected = in_a_queue(staleness + 1, lam=0.3, adaptive=rule is AdaptivelyCompensated)
    assert (trained(rule, staleness=staleness, lam=0.3) - expected).abs().max() < 1e-5
    others = in_a_queue(staleness + 1), in_a_queue(staleness + 1, lam=0.3, adaptive=rule is DelayCompensated)
    assert min((other - expected).abs().max() for other in others) > 0.1


def test_without_delay_both_are_sgd_and_without_lam_one_is_the_other():
    sgd, delayed = trained(SGD), trained(Asynchronous, staleness=3)
    assert torch.equal(trained(Asynchronous, staleness=0), sgd)
    for rule in (DelayCompensated, AdaptivelyCompensated):
        assert torch.equal(trained(rule, staleness=0, lam=0.3), sgd)
        assert torch.equal(trained(rule, staleness=3, lam=0.0), delayed) and not torch.equal(delayed, sgd)


# --- Backup workers -----------------------------------------------------------------------------------------------------


def steps_of(images, workers, steps):
    """Which images each step has, of workers that take one image each, one epoch's order after the other."""
    return tuple(frozenset(images[step * workers : (step + 1) * workers]) for step in range(steps))


def test_dropping_workers_at_random_is_training_by_fewer_workers():
    """Of 3 workers, any one is late in each of 2 steps: each order of 6 images, and each choice of who is late, is as likely.

    The images that 2 workers use are as likely as those of 2 workers that nobody backs up: accuracy cannot tell them apart.
    """
    backed, plain = Counter(), Counter()
    for order in permutations(range(6)):
        plain[steps_of(order, 2, 2)] += 9  # the choices below
        first, second = (set(order[step * 3 : step * 3 + 3]) for step in range(2))
        for used in combinations(first, 2):
            for then in combinations(second, 2):
                backed[frozenset(used), frozenset(then)] += 1
    assert backed == plain and len(plain) == 15 * 6
    slow_images = Counter()  # but not where an image makes its worker late
    for order in permutations(range(6)):
        slow_images[
            tuple(frozenset(order[step * 3 : step * 3 + 3]) - {max(order[step * 3 : step * 3 + 3])} for step in range(2))
        ] += 9
    assert slow_images != plain
