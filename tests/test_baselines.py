"""Each rule of the paper's references against an obvious loop in float64, and what is promised of all their recipes.

A rule has a row in TABLE, by a section for each method, and its loop is transcribed from the source that the loop names.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from repro import evaluate, journal, recipes, train
from repro.baselines import asynchronous, averages, lars, schedule_free
from repro.model import Network
from repro.optim import SGD
from repro.recipes import RECIPES, shrink
from repro.recipes.baselines import BASELINES, GHOSTS, PARTS
from repro.run import records
from repro.schedule import IMAGENET_IMAGES, Now, Place, Recipe, Stage, at

from conftest import mpiexec

SCHEDULE = (
    Stage("warm", 40, 0.4, warmup_iterations=25, warmup_start_rate=0.1, weight_decay=0.05),
    Stage("again", 40, 0.3, weight_decay=0.01),
    Stage("on", 20, 0.2, weight_decay=0.0, keep_momentum=True),
    Stage("constant", 20, 0.1, power=0, weight_decay=0.05),  # in which weights are averaged
)


# --- LARS -------------------------------------------------------------------------------------------------------------


def lars_by_hand(form, decayed_norm=False, skip=False):
    """The forms of sara-nl/caffe's sgd_solver.cpp (1), timm's lars.py (2) and NUS-HPC-AI-Lab's lars.py (3), a tensor at a time.

    skip: mlcommons/training's lars_optimizer.py, which leaves batch norm and biases at a ratio of 1, without decay.
    """

    def by_hand(weights, gradients, steps, recipe, ratio=0.001):
        h = {}
        for gradient, now in zip(gradients, steps):
            if now.iteration == 0 and not now.stage.keep_momentum:
                h = {name: torch.zeros_like(w) for name, w in weights.items()}
            m, d = recipe.momentum, now.stage.weight_decay
            if form == 1 and now.previous_rate:
                m *= now.rate / now.previous_rate
            for name, w in weights.items():
                norm_or_bias = name.startswith("norm") or name.endswith("bias")
                decays = not norm_or_bias if skip else recipe.decay_bn or not name.startswith("norm")
                g = gradient[name] + (d * w if decays else 0)
                seen = float((g if decayed_norm else gradient[name]).pow(2).sum().sqrt())
                size = float(w.pow(2).sum().sqrt())
                trust = ratio * size / (seen + d * size) if size and seen and not (skip and norm_or_bias) else 1.0
                if form == 1:
                    h[name] = m * h[name] + now.rate * trust * g
                    weights[name] = w - h[name]
                elif form == 2:
                    h[name] = m * h[name] + trust * g
                    weights[name] = w - now.rate * h[name]
                else:
                    h[name] = m * h[name] + g
                    weights[name] = w - now.rate * trust * h[name]
        return weights, weights

    return by_hand


LARS = {
    "LARS, as released": (lars.LARS, {}, {}, lars_by_hand(1), 1e-12),
    "LARS, another ratio": (lars.LARS, {"ratio": 0.02}, {}, lars_by_hand(1), 1e-12),
    "LARS, momentum corrected": (lars.LARS, {"ratio": 0.02}, {"momentum_correction": "warmup"}, lars_by_hand(1), 1e-12),
    "LARS, batch norm not decayed": (lars.LARS, {"ratio": 0.02}, {"decay_bn": False}, lars_by_hand(1), 1e-12),
    "LARS, norm of the decayed gradient": (lars.Unfused, {"ratio": 0.02}, {}, lars_by_hand(1, decayed_norm=True), 1e-12),
    "LARS, without norms and biases": (lars.WithoutNorms, {"ratio": 0.02}, {}, lars_by_hand(1, skip=True), 1e-12),
    "LARS, rate outside the buffer": (lars.RateOutside, {"ratio": 0.02}, {}, lars_by_hand(2), 1e-12),
    "LARS, rate and ratio outside": (lars.BothOutside, {"ratio": 0.02}, {}, lars_by_hand(3), 1e-12),
}


# --- Averages of weights ----------------------------------------------------------------------------------------------


def averaged_by_hand(average):
    """SGD, and what `average` makes of the weights after each step of the last stage, the only one of constant rate."""

    def by_hand(weights, gradients, steps, recipe, **numbers):
        h, seen = {}, []
        for gradient, now in zip(gradients, steps):
            if now.iteration == 0 and not now.stage.keep_momentum:
                h = {name: torch.zeros_like(w) for name, w in weights.items()}
            for name, w in weights.items():
                h[name] = recipe.momentum * h[name] + now.rate * (gradient[name] + now.stage.weight_decay * w)
                weights[name] = w - h[name]
            if now.stage.name == "constant":
                seen.append(dict(weights))
        return weights, {name: average([each[name] for each in seen], **numbers) for name in weights}

    return by_hand


def mean(weights):
    return sum(weights) / len(weights)


def exponential(weights, half_life):
    """`compute_ema` of mosaicml/composer, algorithms/ema/ema.py (012538e), for a half life that is a share of all steps."""
    smoothing, found = 2 ** (-1 / (half_life * len(weights))), weights[0]
    for each in weights[1:]:
        found = found * smoothing + (1 - smoothing) * each
    return found


AVERAGES = {
    "SWA": (averages.SWA, {}, {}, averaged_by_hand(mean), 1e-12),
    "exponential average": (averages.EMA, {"half_life": 0.2}, {}, averaged_by_hand(exponential), 1e-12),
}


# --- Asynchronous SGD (tests/test_asynchronous.py has gradients that depend on the weights) ------------------------------


def groups_by_hand(compensation=lambda g, mean: 0.0):
    """Groups that take turns, each with its copy, by which MXNet 1.x's DCASGD and torch_scala's DCASGDa compensate."""

    def by_hand(weights, gradients, steps, recipe, staleness, lam=0.0):
        read = weights  # by the group whose turn it is
        for gradient, now in zip(gradients, steps):
            if now.iteration == 0 and not now.stage.keep_momentum:
                h, square = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
                weights, copies = read, [read] * (staleness + 1)
            for name, w in weights.items():
                g, decayed = gradient[name], recipe.decay_bn or not name.startswith("norm")
                square[name] = 0.95 * square[name] + 0.05 * g**2
                change = g + lam * compensation(g, square[name]) * (w - read[name])
                h[name] = recipe.momentum * h[name] + now.rate * (change + (now.stage.weight_decay * w if decayed else 0))
            weights = {name: w - h[name] for name, w in weights.items()}
            copies[now.step % len(copies)] = weights
            read = copies[(now.step + 1) % len(copies)]
        return read, weights

    return by_hand


_DELAYED, _COMPENSATED = {"staleness": 2}, {"staleness": 2, "lam": 0.1}
ASYNCHRONOUS = {
    "asynchronous": (asynchronous.Asynchronous, _DELAYED, {}, groups_by_hand(), 1e-12),
    "delay compensation": (asynchronous.DelayCompensated, _COMPENSATED, {}, groups_by_hand(lambda g, mean: g**2), 1e-12),
    "delay compensation, adaptive": (
        asynchronous.AdaptivelyCompensated,
        _COMPENSATED,
        {"decay_bn": False},
        groups_by_hand(lambda g, mean: g**2 / (mean + 1e-7) ** 0.5),
        1e-12,
    ),
}


# --- Schedule-free ------------------------------------------------------------------------------------------------------


def schedule_free_by_hand(weights, gradients, steps, recipe):
    """`sgd_schedulefree_reference.py` of facebookresearch/schedule_free (59ed9b6), by its defaults."""
    for gradient, now in zip(gradients, steps):
        if now.iteration == 0 and not now.stage.keep_momentum:
            x, z, largest, total = dict(weights), dict(weights), 0.0, 0.0
        largest = max(largest, now.rate)
        total += largest**2
        c = largest**2 / total
        for name, y in weights.items():
            z[name] = z[name] - now.rate * (gradient[name] + now.stage.weight_decay * y)
            x[name] = (1 - c) * x[name] + c * z[name]
            weights[name] = recipe.momentum * x[name] + (1 - recipe.momentum) * z[name]
    return weights, x


FREE = {"schedule-free": (schedule_free.ScheduleFree, {}, {}, schedule_free_by_hand, 1e-12)}


# --- Each rule beside its loop ----------------------------------------------------------------------------------------

# A rule: its class, its own numbers, fields of the recipe, the obvious loop, and the largest error, relative to the largest
# weight. Rules are tried in float64; a row whose rule cannot says why its tolerance is that of float32.
TABLE = {**LARS, **AVERAGES, **ASYNCHRONOUS, **FREE}


class Net(nn.Module):
    """Tensors of each kind and of several sizes, two of them zero in their first step."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)


def named(network, vector):
    """The tensors in a flat vector, by their names."""
    names = {id(parameter): name for name, parameter in network.model.named_parameters()}
    starts = [0, *network.ends]
    return {names[id(each)]: vector[start : start + each.numel()] for start, each in zip(starts, network.parameters)}


def flat(network, tensors):
    """The vector that holds these tensors."""
    vector = torch.zeros_like(network.weights)
    for name, place in named(network, vector).items():
        place.copy_(tensors[name])
    return vector


def double():
    """A network whose weights are in float64, and random."""
    torch.manual_seed(0)
    network = Network(Net())
    network.weights = network.weights.double()
    drawn = {name: torch.randn_like(place) for name, place in named(network, network.weights).items()}
    network.weights.copy_(flat(network, drawn | {"norm.bias": torch.zeros(5, dtype=torch.float64)}))
    return network


def taken(update, network, steps, gradients):
    """The weights in training and those that are finished, after these steps."""
    for now, gradient in zip(steps, gradients):
        if now.iteration == 0:
            update.begin(now.stage)
        update.step(gradient.clone(), now)
    return network.weights, update.finished()


@pytest.mark.parametrize("name", TABLE)
def test_a_rule_equals_its_loop(name):
    rule, numbers, fields, by_hand, tolerance = TABLE[name]
    network, recipe = double(), Recipe("r", SCHEDULE, 4, 1, momentum=0.8, **fields)
    steps = [at(recipe, step) for step in range(recipe.iterations)]
    gradients = [
        flat(network, {name: torch.randn(len(w)) for name, w in named(network, network.weights).items()}) for _ in steps
    ]
    gradients[0][: network.ends[0]] = 0
    before = {name: w.clone() for name, w in named(network, network.weights).items()}
    expected = by_hand(before, [named(network, gradient) for gradient in gradients], steps, recipe, **numbers)
    for found, wanted in zip(taken(rule(network, recipe, **numbers), network, steps, gradients), expected):
        wanted = flat(network, wanted)
        assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


# --- What is known of LARS without a loop -----------------------------------------------------------------------------

RULES = [lars.LARS, lars.Unfused, lars.WithoutNorms, lars.RateOutside, lars.BothOutside]


def now(rate, decay=0.0):
    return Now(0, Stage("s", 9, 0.1, weight_decay=decay), 0, rate, 0.0, 1, Place(0, 0))


def one_step(rule, gradient_scale=1.0, decay=0.0):
    """The weights' tensors before a step at rate 0.5, their gradients, and their changes, by name."""
    network = double()
    gradient = flat(network, {name: torch.randn(len(w)) for name, w in named(network, network.weights).items()})
    before = network.weights.clone()
    rule(network, Recipe("r", SCHEDULE, 1, 1, momentum=0.0), 0.01).step(gradient_scale * gradient, now(0.5, decay))
    return [named(network, vector) for vector in (before, gradient, before - network.weights)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_without_decay_and_momentum_each_tensors_step_is_rate_times_ratio_of_it_whatever_the_gradients_scale(rule, scale):
    weights, _, changes = one_step(rule, scale)
    left = [name for name in weights if "norm" in name or "bias" in name] if rule is lars.WithoutNorms else ["norm.bias"]
    for name in set(weights) - set(left):
        assert float(changes[name].norm() / weights[name].norm()) == pytest.approx(0.5 * 0.01, rel=1e-12), name


@pytest.mark.parametrize("rule", RULES)
def test_a_tensor_that_is_zero_takes_the_plain_step(rule):
    weights, gradients, changes = one_step(rule, decay=0.1)
    assert not weights["norm.bias"].any() and torch.equal(changes["norm.bias"], 0.5 * gradients["norm.bias"])


def test_a_trust_ratio_of_one_is_sgd_to_the_bit(monkeypatch):
    """In float32, on a vector that is longer than a piece of SGD's, with decay and a rate that changes."""
    monkeypatch.setattr(lars.LARS, "trust", lambda self, norm, now: torch.ones_like(self.weights))
    recipe, ends = Recipe("r", SCHEDULE, 1, 1, momentum=0.8), []
    steps = [at(recipe, step) for step in range(recipe.iterations)]
    for rule in (SGD, lars.LARS):
        torch.manual_seed(0)
        network = Network(nn.Sequential(nn.Linear(399, 401), nn.BatchNorm1d(401)))
        gradients = torch.randn(10, len(network.weights)).repeat(10, 1)
        ends.append(taken(rule(network, recipe), network, steps, gradients)[0].clone())
    assert torch.equal(*ends)


@pytest.mark.parametrize("decay_of_the_rate, same", [(False, True), (True, False)])
def test_the_rates_place_makes_no_difference_if_and_only_if_it_is_constant(decay_of_the_rate, same):
    stage = Stage("s", 50, 0.4, weight_decay=0.05, power=float(decay_of_the_rate))
    recipe, ends = Recipe("r", (stage,), 1, 1, momentum=0.8), []
    for rule in (lars.LARS, lars.RateOutside):
        network = double()
        gradients = torch.randn(50, len(network.weights), dtype=torch.float64)
        steps = [at(recipe, step) for step in range(50)]
        ends.append(taken(rule(network, recipe, ratio=0.02), network, steps, gradients)[0])
    assert torch.allclose(*ends, rtol=1e-12) == same and not torch.equal(*ends)


# --- Batches that grow, ghost batch norm, fewer images ----------------------------------------------------------------


def test_a_growing_batch_has_the_falling_rates_images_and_rate_over_batch():
    """In ImageNet's units, and small: what the two recipes share is all but the place of the factor."""
    for size, off in (("none", 1e-3), ("laptop", 0.01)):
        grows, falls, neither = (shrink(RECIPES[name], size) for name in ("batch_grows", "rate_falls", "neither_changes"))
        assert grows.images() == pytest.approx(falls.images(), rel=off) and falls.images() == neither.images()
        assert falls.images() == pytest.approx(shrink(RECIPES["batch_2048"], size).images(), rel=off)
        assert grows.result == falls.result == neither.result == ["third"]
        for number, (growing, falling) in enumerate(zip(grows.stages, falls.stages)):
            step = grows.starts[number + 1] - 1, falls.starts[number + 1] - 1
            large, small = (at(recipe, each) for recipe, each in zip((grows, falls), step))
            assert large.rate == at(neither, step[1]).rate and large.workers == 4**number * small.workers
            assert large.rate / large.workers == pytest.approx(small.rate / small.workers)
            assert growing.keep_momentum == falling.keep_momentum == (number > 0)


def test_ghosts_share_one_batch_and_one_schedule():
    whole = shrink(RECIPES["sgd_16384"], "laptop")
    for images in GHOSTS:
        ghost = shrink(RECIPES[f"ghost_{images}"], "laptop")
        assert ghost.images_per_worker == images and ghost.global_batch == whole.global_batch == 256
        assert ghost.stages == whole.stages


@pytest.mark.parametrize("size, all_images", [("none", IMAGENET_IMAGES), ("laptop", 20_000)])
def test_a_part_of_the_images_is_seen_as_often_or_for_as_many_steps(size, all_images):
    whole = shrink(RECIPES["batch_2048"], size)
    for part in PARTS:
        epochs, steps = (shrink(RECIPES[f"images_1_{part}_equal_{equal}"], size) for equal in ("epochs", "steps"))
        assert epochs.epoch_images == steps.epoch_images == all_images // part
        assert epochs.epochs() == pytest.approx(whole.epochs(), rel=1e-3) and steps.iterations == whole.iterations
        assert at(steps, 5000).rate == at(whole, 5000).rate
        assert steps.stages[0].weight_decay == pytest.approx(whole.stages[0].weight_decay, rel=1e-5)
        assert steps.global_batch == epochs.global_batch == whole.global_batch
    mine = replace(RECIPES["batch_2048"], name="mine", epoch_images=5000)
    assert shrink(mine, "laptop").epoch_images == 20_000, "a user's number of images is that of the user's own data"


# --- The same bits on any ranks and after a kill ----------------------------------------------------------------------

# Of each rule the recipe of the smallest batch, small and cut to a few steps of each stage.
WITH_A_RULE = {each.update: each for each in sorted(BASELINES, key=lambda each: -each.global_batch) if each.update}


def shortened(recipe):
    small = recipes.shrink(recipe, "smoke", 300)
    stages = [replace(each, iterations=min(each.iterations, 4), warmup_iterations=0, workers=0) for each in small.stages]
    workers = 3 * small.workers_per_pass  # three ranks share a step
    return replace(
        small, name=f"{recipe.name}-short", stages=tuple(stages), workers=workers, record_every=0.01, evaluate_every=9
    )


ON_RANKS = """
import logging
from repro import evaluate, train
from repro.schedule import Recipe, Stage
logging.basicConfig(level=logging.INFO)
evaluate.VIEWS, evaluate.STATISTICS_IMAGES = dict.fromkeys(evaluate.VIEWS, 50), 48
"""


class Killed(BaseException):
    """Ends a run between two steps, and none of its clean-up knows of it."""


@pytest.fixture(scope="module")
def bits(digits, tmp_path_factory):
    """The digests of each rule's weights: of one rank, of three, and of two that go on where one was killed."""
    out = tmp_path_factory.mktemp("rules")
    tasks = [
        dict(recipe=shortened(each), data=digits, shrink="none", seed=3, split="val", device="cpu")
        for each in WITH_A_RULE.values()
    ]
    real = train.step

    def killed(replica, batches, now):
        if now.step == dying.iterations - 3:  # in the last stage, which has begun
            raise Killed
        return real(replica, batches, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "VIEWS", dict.fromkeys(evaluate.VIEWS, 50))
        patch.setattr(evaluate, "STATISTICS_IMAGES", 48)  # of weights that are averages
        for task in tasks:
            train.train(**task, out=str(out / "1"))
        patch.setattr(journal, "CHECKPOINT_SECONDS", 0)
        patch.setattr(train, "step", killed)
        for task in tasks:
            dying = task["recipe"]
            with pytest.raises(Killed):
                train.train(**task, out=str(out / "killed"))
    for ranks, folder in ((2, "killed"), (3, "3")):
        every = [task | {"out": str(out / folder)} for task in tasks]
        done = mpiexec(ranks, "-c", f"{ON_RANKS}for task in {every!r}: train.train(**task)", timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("continuing after step") == (ranks * len(tasks) if folder == "killed" else 0)
    return {
        where: {
            records.read(run)["recipe"]["update"]: records.read(run)["weights_sha256"]
            for run in records.complete_runs(out / where)
        }
        for where in ("1", "killed", "3")
    }


@pytest.mark.parametrize("rule", WITH_A_RULE)
@pytest.mark.parametrize("where", ["killed", "3"])
def test_a_rule_gives_the_same_bits_on_any_ranks_and_after_a_kill(bits, rule, where):
    assert bits[where][rule] == bits["1"][rule] and len(set(bits["1"].values())) == len(WITH_A_RULE)
