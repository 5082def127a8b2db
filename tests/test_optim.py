"""Updates against Caffe's written out for one number at a time, and against torch.optim.SGD."""

import pytest
import torch

from repro import optim
from repro.model import Network
from repro.optim import SGD
from repro.resnet import build

MOMENTUM, DECAY = 0.9, 0.05
RATES = [0.1, 0.4, 0.4, 0.3, 0.05]


def problem(size=7):
    torch.manual_seed(0)
    return torch.randn(size), [torch.randn(size) for _ in RATES]


def by_hand(weight, gradients, rates, correct=lambda step: False, decay=DECAY):
    """h <- rate (g + decay w) + m h; w <- w - h; the correction multiplies m by the growth of the rate."""
    history = 0.0
    for step, (gradient, rate) in enumerate(zip(gradients, rates)):
        momentum = MOMENTUM * rate / rates[step - 1] if correct(step) else MOMENTUM
        history = rate * (gradient + decay * weight) + momentum * history
        weight = weight - history
    return weight


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    "correct",
    [lambda step: False, lambda step: step > 0, lambda step: 0 < step < 3],
    ids=["plain", "corrected", "corrected in warm-up"],
)
def test_steps_equal_caffes_by_hand(steps, correct):
    weights, gradients = problem()
    expected = [by_hand(float(w), [float(g[i]) for g in gradients[:steps]], RATES, correct) for i, w in enumerate(weights)]
    optimizer = SGD(weights, MOMENTUM)
    for step in range(steps):
        optimizer.step(gradients[step].clone(), RATES[step], DECAY, RATES[step - 1] if correct(step) else 0.0)
    assert weights.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_torch_equals_the_corrected_form_and_not_the_plain_one():
    weights, gradients = problem()
    theirs = torch.nn.Parameter(weights.clone())
    torchs = torch.optim.SGD([theirs], lr=1.0, momentum=MOMENTUM, weight_decay=DECAY)
    corrected, plain = weights.clone(), weights.clone()
    ours, others = SGD(corrected, MOMENTUM), SGD(plain, MOMENTUM)
    for step, gradient in enumerate(gradients):
        torchs.param_groups[0]["lr"] = RATES[step]
        theirs.grad = gradient.clone()
        torchs.step()
        ours.step(gradient.clone(), RATES[step], DECAY, RATES[step - 1] if step else 0.0)
        others.step(gradient.clone(), RATES[step], DECAY)
    assert torch.allclose(corrected, theirs.data, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain, theirs.data, rtol=1e-2)


@pytest.mark.parametrize("piece", [optim.PIECE, 1, 3])
def test_only_the_first_weights_decay_when_told_so(monkeypatch, piece):
    monkeypatch.setattr(optim, "PIECE", piece)
    weights, gradients = problem()
    before = weights.tolist()
    SGD(weights, MOMENTUM, decayed=4).step(gradients[0].clone(), 0.1, DECAY)
    expected = [by_hand(w, [float(gradients[0][i])], [0.1], decay=DECAY if i < 4 else 0) for i, w in enumerate(before)]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_undecayed_weights_are_those_of_batch_norm():
    network = Network(build("resnet11", classes=10, channels=1))
    network.weights.normal_()  # a beta of zero would show no decay
    network.gradients.zero_()
    before = {name: parameter.detach().clone() for name, parameter in network.model.named_parameters()}
    SGD(network.weights, MOMENTUM, decayed=network.undecayed).step(network.gradients, rate=1.0, weight_decay=0.5)
    for name, parameter in network.model.named_parameters():
        batch_norm = "bn" in name or "downsample.1" in name
        assert torch.equal(parameter, before[name] * (1 if batch_norm else 0.5)), name
