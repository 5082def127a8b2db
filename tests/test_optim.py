"""Each rule by which weights change against an obvious loop in float64; and what is asked of a rule."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from repro import ReproError, optim
from repro.model import Network
from repro.optim import SGD, Update
from repro.resnet import build
from repro.schedule import Now, Place, Recipe, Stage, at

MOMENTUM, DECAY = 0.9, 0.05
RATES = [0.1, 0.4, 0.4, 0.3, 0.05]


class Nesterov(Update):
    """As on the page about rules of one's own."""

    remembers = ("momentum",)

    def __init__(self, network, recipe, momentum=0.9):
        super().__init__(network, recipe)
        self.momentum = momentum

    def step(self, gradient, now):
        h = self.vectors["momentum"]
        gradient.add_(self.weights, alpha=now.stage.weight_decay)
        h.mul_(self.momentum).add_(gradient)
        self.weights.sub_(gradient.add_(h, alpha=self.momentum), alpha=now.rate)


class Averaged(SGD):
    """As on that page, too."""

    remembers = ("momentum", "average")

    def begin(self, stage):
        super().begin(stage)
        self.vectors["average"].copy_(self.weights)

    def step(self, gradient, now):
        super().step(gradient, now)
        self.vectors["average"].lerp_(self.weights, 0.1)

    def finished(self):
        return self.vectors["average"]


# --- Each rule beside an obvious loop ---------------------------------------------------------------------------------


def sgd_by_hand(weights, gradients, steps, recipe, undecayed):
    """h <- rate (g + decay w) + m h; w <- w - h; the correction multiplies m by the growth of the rate."""
    h = [0.0] * len(weights)
    for gradient, now in zip(gradients, steps):
        if now.iteration == 0 and not now.stage.keep_momentum:
            h = [0.0] * len(weights)
        m = recipe.momentum * now.rate / now.previous_rate if now.previous_rate else recipe.momentum
        for i, w in enumerate(weights):
            decay = now.stage.weight_decay if recipe.decay_bn or i < undecayed else 0.0
            h[i] = now.rate * (gradient[i] + decay * w) + m * h[i]
            weights[i] = w - h[i]
    return weights, weights


def nesterov_by_hand(weights, gradients, steps, recipe, undecayed):
    """b <- m b + g;  w <- w - rate (g + m b), with the decay in g (torch.optim.SGD's documentation)."""
    b = [0.0] * len(weights)
    for gradient, now in zip(gradients, steps):
        if now.iteration == 0 and not now.stage.keep_momentum:
            b = [0.0] * len(weights)
        for i, w in enumerate(weights):
            g = gradient[i] + now.stage.weight_decay * w
            b[i] = 0.8 * b[i] + g
            weights[i] = w - now.rate * (g + 0.8 * b[i])
    return weights, weights


def averaged_by_hand(weights, gradients, steps, recipe, undecayed):
    average, done = [], 0
    for count, now in enumerate(steps, start=1):
        if now.iteration == 0:
            average = list(sgd_by_hand(list(weights), gradients[:done], steps[:done], recipe, undecayed)[0])
        current, _ = sgd_by_hand(list(weights), gradients[:count], steps[:count], recipe, undecayed)
        average = [0.9 * a + 0.1 * w for a, w in zip(average, current)]
        done = count
    return current, average


SCHEDULE = (
    Stage("warm", 6, 0.4, warmup_iterations=4, warmup_start_rate=0.1, weight_decay=0.05),
    Stage("again", 4, 0.3, weight_decay=0.01),
    Stage("on", 3, 0.2, weight_decay=0.0, keep_momentum=True),
)
TABLE = {  # a rule: its class, its own numbers, the obvious loop, the largest error of a weight
    "sgd": (SGD, {}, {}, sgd_by_hand, 1e-6),
    "sgd, batch norm not decayed": (SGD, {}, {"decay_bn": False}, sgd_by_hand, 1e-6),
    "sgd, momentum corrected": (SGD, {}, {"momentum_correction": "warmup"}, sgd_by_hand, 1e-6),
    "a user's own": (Nesterov, {"momentum": 0.8}, {}, nesterov_by_hand, 1e-6),
    "a user's own that averages weights": (Averaged, {}, {}, averaged_by_hand, 1e-6),
}


@pytest.mark.parametrize("piece", [optim.PIECE, 3])
@pytest.mark.parametrize("name", TABLE)
def test_a_rule_equals_an_obvious_loop(name, piece, monkeypatch):
    monkeypatch.setattr(optim, "PIECE", piece)
    rule, numbers, fields, by_hand, tolerance = TABLE[name]
    recipe = Recipe("r", SCHEDULE, 1, 1, momentum=0.8, **fields)
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    network.weights.normal_()
    before, steps = network.weights.tolist(), [at(recipe, step) for step in range(recipe.iterations)]
    gradients = [torch.randn_like(network.weights) for _ in steps]
    update = rule(network, recipe, **numbers)
    for now, gradient in zip(steps, gradients):
        if now.iteration == 0:
            update.begin(now.stage)
        update.step(gradient.clone(), now)
    expected = by_hand(before, [gradient.tolist() for gradient in gradients], steps, recipe, network.undecayed)
    for found, wanted in zip((network.weights, update.finished()), expected):
        assert max(abs(found.double() - torch.tensor(wanted, dtype=torch.float64))) < tolerance


def problem(size=7):
    torch.manual_seed(0)
    return torch.randn(size), [torch.randn(size) for _ in RATES]


def now(rate, previous_rate=0.0, decay=DECAY):
    return Now(0, Stage("s", 9, 0.1, weight_decay=decay), 0, rate, previous_rate, 1, Place(0, 0))


def test_torchs_sgd_is_the_corrected_form_and_not_the_plain_one():
    weights, gradients = problem()
    theirs = torch.nn.Parameter(weights.clone())
    torchs = torch.optim.SGD([theirs], lr=1.0, momentum=MOMENTUM, weight_decay=DECAY)
    recipe = Recipe("r", (Stage("s", 9, 0.1),), 1, 1, momentum=MOMENTUM)
    corrected, plain = weights.clone(), weights.clone()
    ours, others = (SGD(SimpleNamespace(weights=copy), recipe) for copy in (corrected, plain))
    for step, gradient in enumerate(gradients):
        torchs.param_groups[0]["lr"] = RATES[step]
        theirs.grad = gradient.clone()
        torchs.step()
        ours.step(gradient.clone(), now(RATES[step], RATES[step - 1] if step else 0.0))
        others.step(gradient.clone(), now(RATES[step]))
    assert torch.allclose(corrected, theirs.data, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain, theirs.data, rtol=1e-2)


def test_the_undecayed_weights_are_those_of_batch_norm():
    network = Network(build("resnet11", classes=10, channels=1))
    network.weights.normal_()  # a beta of zero would show no decay
    network.gradients.zero_()
    before = {name: parameter.detach().clone() for name, parameter in network.model.named_parameters()}
    recipe = Recipe("r", (Stage("s", 9, 0.1),), 1, 1, decay_bn=False)
    SGD(network, recipe).step(network.gradients, now(1.0, decay=0.5))
    for name, parameter in network.model.named_parameters():
        batch_norm = "bn" in name or "downsample.1" in name
        assert torch.equal(parameter, before[name] * (1 if batch_norm else 0.5)), name


# --- A rule that cannot keep what is promised ---------------------------------------------------------------------------

RULES = """
import random
import numpy as np
import torch
from repro.optim import SGD, Update

class Forgetful(SGD):
    "Its count of steps is not in `vectors`, and shows at every tenth step only."
    count = 0
    def step(self, gradient, now):
        self.count += 1
        super().step(gradient * (self.count % 10 == 0), now)

class Random(SGD):
    def step(self, gradient, now):
        super().step(gradient + 0 * torch.randn_like(gradient), now)

class Pythons(SGD):
    def step(self, gradient, now):
        super().step(gradient * (1 + 0 * random.random()), now)

class Numpys(SGD):
    def step(self, gradient, now):
        super().step(gradient * (1 + 0 * np.random.rand()), now)

class Own(SGD):
    drawn = np.random.default_rng(0)
    def step(self, gradient, now):
        super().step(gradient * self.drawn.random(), now)

class Failing(SGD):
    def step(self, gradient, now):
        super().step(gradient[:-1], now)
        self.weights.add_(gradient[:-1])

class Doubles(SGD):
    def __init__(self, network, recipe):
        super().__init__(network, recipe)
        self.vectors["count"] = torch.zeros(1, dtype=torch.float64)

class Elsewhere(SGD):
    def finished(self):
        return self.weights[:3]

class Numbers(SGD):
    def __init__(self, network, recipe, trust):
        super().__init__(network, recipe)

class Whole(SGD):
    "Keeps a count as a vector of one element."
    def __init__(self, network, recipe, trust=0.1):
        super().__init__(network, recipe)
        self.vectors["count"] = torch.zeros(1)
    def step(self, gradient, now):
        self.vectors["count"] += 1
        super().step(gradient / self.vectors["count"], now)

def function(network, recipe):
    return SGD(network, recipe)
"""


@pytest.fixture
def rule(tmp_path):
    (tmp_path / "mine.py").write_text(RULES)

    def make(name, numbers=()):
        name = name and (f"{tmp_path}/mine.py:{name}" if name != "sgd" else name)
        return optim.rule(Recipe("r", (Stage("s", 90, 0.1),), 1, 1, update=name, update_numbers=numbers))

    return make


@pytest.mark.parametrize(
    "name, numbers, words",
    [
        ("Forgetful", (), "it remembers something that is not in `vectors`, so a run that was killed would end with other"),
        ("Random", (), "it draws random numbers from torch's generator, so the weights would depend on the number of ranks"),
        ("Pythons", (), "it draws random numbers from Python's generator, so the weights would"),
        ("Numpys", (), "it draws random numbers from NumPy's generator, so the weights would"),
        ("Own", (), "it remembers something that is not in `vectors`"),
        ("Failing", (), "fails when it is tried \\(RuntimeError: "),
        ("Doubles", (), "vectors\\['count'\\] must be a float32 tensor"),
        ("Elsewhere", (), "`finished` must return weights, a float32 tensor \\(28,\\)"),
        ("Numbers", (), "fails when it is tried \\(TypeError: .*missing 1 required positional argument: 'trust'"),
        ("Whole", (("trusts", 1.0),), "unexpected keyword argument 'trusts'"),
        ("function", (), "is no subclass of repro.optim.Update"),
        ("Whol", (), "Did you mean Whole?"),
        ("sgd", (), "sgd is no rule: name one as mine.py:MyRule, or none for SGD"),
        ("", (("trust", 1.0),), "but SGD takes its numbers from the recipe"),
    ],
)
def test_a_rule_that_cannot_be_used_is_told_why(rule, name, numbers, words):
    with pytest.raises(ReproError, match=words):
        rule(name, numbers)


def test_a_rule_that_keeps_all_in_its_vectors_is_accepted_and_gets_its_numbers(rule):
    network = Network(nn.Linear(2, 2))
    assert sorted(rule("Whole", (("trust", 1.0),))(network).vectors) == ["count", "momentum"]
    assert type(rule("")(network)) is SGD
