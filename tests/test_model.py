"""Models against torchvision's, against what the net files say, and against plain autograd; and a user's own models."""

import copy
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet

from repro import ReproError
from repro.allreduce import Average
from repro.model import BatchNorm, Network, builder
from repro.optim import SGD
from repro.ranks.comm import World
from repro.resnet import build
from repro.run import checkpoint
from repro.schedule import Recipe, Stage, at


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def small_network(seed=0, **options):
    torch.manual_seed(seed)
    return Network(build("resnet11", classes=10, channels=1, zero_gamma="none", **options))


def batch(seed, images=6):
    torch.manual_seed(seed)
    return torch.randn(images, 1, 12, 12), torch.randint(10, (images,))


BASIC, BOTTLENECK = ("resnet18", "resnet34"), ("resnet50", "resnet101", "resnet152")


@pytest.mark.parametrize("name", BASIC + BOTTLENECK)
def test_parameter_counts_are_torchvisions_and_the_stems_bias(name):
    with torch.device("meta"):  # shapes alone
        theirs, plain, released = getattr(resnet, name)(), build(name, 1000, released_stem=False), build(name, 1000)
    assert [(key, value.shape) for key, value in plain.named_parameters()] == [
        (key, value.shape) for key, value in theirs.named_parameters()
    ]
    assert count(released) == count(theirs) + 64
    assert released.conv1.bias.shape == (64,)


def test_resnet50_has_the_released_number_of_parameters():
    assert count(build("resnet50", 1000)) == 25_557_096


def torchvisions(name, seed=0):
    """A torchvision model whose batch norms have seen something."""
    torch.manual_seed(seed)
    model = getattr(resnet, name)()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            for values in (module.running_var, module.weight):
                nn.init.uniform_(values, 0.5, 1.5)
    return model


def assert_close(found, expected, name="", rtol=1e-4):
    assert expected.isfinite().all()
    assert torch.allclose(found, expected, rtol=rtol, atol=1e-5 * float(expected.detach().abs().max())), name


def assert_same_outputs(ours, theirs, images, training=False):
    """Outputs, and the gradients of all parameters, for one state."""
    ours.load_state_dict(theirs.state_dict())
    outputs = []
    for model in (ours, theirs):
        model.zero_grad()
        outputs.append(model.train(training)(images))
        outputs[-1].square().mean().backward()
    assert outputs[1].std() > 0.1
    assert_close(*outputs)
    for (name, parameter), (other, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        assert_close(parameter.grad, expected.grad, name, rtol=1e-3)


@pytest.mark.parametrize("stride", ["v1", "v1.5"])
@pytest.mark.parametrize(
    "name", [*BASIC, "resnet50", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet101", "resnet152"))]
)
def test_torchvisions_weights_give_torchvisions_outputs_and_gradients(name, stride):
    ours, theirs = build(name, 1000, stride=stride, released_stem=False), torchvisions(name)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            BatchNorm.adopt(module)
    if stride == "v1" and name in BOTTLENECK:  # torchvision has v1.5 only
        for stage in (theirs.layer2, theirs.layer3, theirs.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    images = torch.randn(4, 3, 64, 64)
    for training in (False, True):
        assert_same_outputs(ours, theirs, images, training)


def test_images_may_have_any_size_and_one_channel_or_three():
    ours, theirs = build("resnet18", 1000, released_stem=False), torchvisions("resnet18")
    for size in ((64, 64), (160, 160), (225, 190)):
        assert_same_outputs(ours, theirs, torch.randn(2, 3, *size))
        for name in ("resnet18", "resnet11"):
            for channels in (1, 3):
                model = build(name, 7, channels).eval()
                assert model(torch.randn(2, channels, *size)).shape == (2, 7)
    grey = build("resnet18", 1000, 1, released_stem=False)
    assert count(grey) == count(theirs) - 2 * theirs.conv1.weight.numel() // 3, "one channel of the stem, not three"


def test_the_released_stem_pools_to_56_by_56_without_padding():
    model = build("resnet50", 10)
    x = torch.randn(1, 64, 112, 112)
    pooled = model.maxpool(x)
    assert pooled.shape == (1, 64, 56, 56)
    assert pooled[0, 0, 0, 0] == x[0, 0, :3, :3].max() and pooled[0, 0, -1, -1] == x[0, 0, -2:, -2:].max()
    assert model.conv1(torch.randn(1, 3, 224, 224)).shape == x.shape


BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3), "resnet11": (1, 1, 1)}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("stride", ["v1", "v1.5"])
def test_v1_strides_in_the_1x1_and_v15_in_the_3x3(name, stride):
    with torch.device("meta"):
        model = build(name, 10, stride=stride)
    for index, number in enumerate(BLOCKS[name]):
        stage = getattr(model, f"layer{index + 1}")
        strides = [(block.conv1.stride[0], block.conv2.stride[0], block.conv3.stride[0]) for block in stage]
        first = (1, 1, 1) if index == 0 else (2, 1, 1) if stride == "v1" else (1, 2, 1)
        assert strides == [first] + [(1, 1, 1)] * (number - 1)
        assert stage[0].conv1.kernel_size == (1, 1) and stage[0].conv2.kernel_size == (3, 3)


@pytest.mark.parametrize("name", ["resnet11", "resnet38"])
def test_a_wide_network_has_more_channels_everywhere_and_nothing_else(name):
    with torch.device("meta"):
        narrow, wide = (build(each, 10, 1).state_dict() for each in (name, f"{name}x4"))
    assert list(narrow) == list(wide)
    for key, one in narrow.items():
        fixed = {"conv1.weight": [1], "fc.weight": [0], "fc.bias": [0]}.get(key, [])  # images' channels, and classes
        grown = [side if axis in fixed or side in (1, 3) else 4 * side for axis, side in enumerate(one.shape)]
        assert list(wide[key].shape) == grown, key


def test_v1_and_v15_are_one_network_of_basic_blocks_and_two_of_bottlenecks():
    images = torch.randn(2, 3, 64, 64)
    for name in ("resnet18", "resnet50"):
        outputs = []
        for stride in ("v1", "v1.5"):
            torch.manual_seed(0)
            with torch.no_grad():
                outputs.append(build(name, 10, stride=stride, zero_gamma="none").eval()(images))
        assert torch.equal(*outputs) == (name == "resnet18")


@pytest.mark.parametrize(
    "name, last, blocks",
    [
        ("resnet18", "bn2", (2, 2, 2, 2)),
        ("resnet34", "bn2", (3, 4, 6, 3)),
        ("resnet50", "bn3", (3, 4, 6, 3)),
        ("resnet11", "bn3", (1, 1, 1)),
    ],
)
def test_zero_gamma_is_in_the_last_batch_norm_of_blocks(name, last, blocks):
    every = [f"layer{stage + 1}.{block}.{last}" for stage, number in enumerate(blocks) for block in range(number)]
    ends = [f"layer{stage + 1}.{number - 1}.{last}" for stage, number in enumerate(blocks)]
    for zero_gamma, expected in (("last_of_stage", ends), ("all_blocks", every), ("none", [])):
        model = build(name, 10, zero_gamma=zero_gamma)
        gammas = {key: module.weight for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert [key for key, gamma in gammas.items() if not gamma.any()] == expected
        assert all(gamma.eq(1).all() for key, gamma in gammas.items() if key not in expected)


def test_initialisation_is_the_net_files():
    torch.manual_seed(0)
    model = build("resnet50", 1000)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            outputs, inputs, height, width = module.weight.shape
            fan = (outputs if name == "conv1" else inputs) * height * width
            std, values = math.sqrt(2 / fan), module.weight
        elif isinstance(module, nn.Linear):
            std, values = 0.01, module.weight
            assert not module.bias.any()
        else:
            continue
        spread = 5 / math.sqrt(2 * values.numel())  # of a sample's standard deviation, five sigma
        assert float(values.detach().std()) == pytest.approx(std, rel=spread), name
        assert abs(float(values.detach().mean())) < 5 * std / math.sqrt(values.numel()), name
    assert not model.conv1.bias.any()


# Of the weights that ResNet-11 starts from, with the seed; every run on digits depends on them.
INITIAL = {
    0: "049a52dc99711da8f7fe66c6f61cc0ad0a1057d05b3fbfa49e0231fb90db30a7",
    1: "63f5efc38cfa27ae887132cc634a07e50c03b90b04ef4e06e677ed56435e0388",
    2: "b5f0f15da67cdcfd34079a4926b931c9e8ee2d385c2607a44650d06dad30c45c",
}
VECTORS = "AVX" in torch.backends.cpu.get_cpu_capability()


@pytest.mark.skipif(not VECTORS, reason="torch draws other normal numbers where it has no vector instructions of x86")
@pytest.mark.parametrize("stride", ["v1", "v1.5"])
@pytest.mark.parametrize("seed", INITIAL)
def test_resnet11_starts_from_the_same_bits_as_ever(seed, stride):
    for zero_gamma in ("last_of_stage", "all_blocks", "none"):
        torch.manual_seed(seed)
        state = build("resnet11", 10, 1, stride=stride, zero_gamma=zero_gamma).state_dict()
        zeroed = [f"layer{stage}.0.bn3.weight" for stage in (1, 2, 3)]
        assert all(bool(state[name].any()) == (zero_gamma == "none") for name in zeroed)
        state |= {name: torch.zeros_like(state[name]) for name in zeroed}
        assert checkpoint.digest(state) == INITIAL[seed]


def test_batch_norm_hands_out_mean_and_unbiased_variance():
    norm = BatchNorm.adopt(nn.BatchNorm2d(3)).train()
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for _ in range(2):  # the second call must not remember the first
        norm(torch.zeros_like(x) + 7 * torch.randn(1))
        output = norm(x)
        assert torch.allclose(norm.batch_mean, x.mean((0, 2, 3)), atol=1e-6)
        assert torch.allclose(norm.batch_var, x.var((0, 2, 3), unbiased=True), rtol=1e-5)
    assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all(), "the running statistics have moved"
    assert torch.allclose(output, F.batch_norm(x, None, None, training=True), atol=1e-6)


SHAPES = [
    (nn.BatchNorm2d, (12, 5, 4, 3)),
    (nn.BatchNorm2d, (12, 5, 1, 3)),
    (nn.BatchNorm1d, (24, 5)),
    (nn.BatchNorm1d, (12, 5, 7)),
]


def alike(found, expected, tolerance):
    """Whether two tensors differ by less than this, relative to the largest value."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max()) <= tolerance * float(expected.double().abs().max())


@pytest.mark.parametrize("workers", [2, 3, 6])
@pytest.mark.parametrize("kind, shape", SHAPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["", "channels last"])
def test_batch_norm_of_several_workers_equals_separate_batch_norms(kind, shape, workers, dtype, tolerance, memory):
    """torch's own, one after the other, in float64; the workers' images differ much in mean and deviation."""
    generator = torch.Generator().manual_seed(workers)
    each = shape[0] // workers
    number = torch.arange(shape[0]).div(each, rounding_mode="floor").view(-1, *[1] * (len(shape) - 1))
    x = (torch.randn(shape, generator=generator) * (1 + number) + 2 * number).to(dtype)
    gradient = torch.randn(shape, generator=generator).to(dtype)
    if len(shape) == 4:
        x, gradient = (values.to(memory_format=memory) for values in (x, gradient))
    norm = BatchNorm.adopt(kind(shape[1])).train()
    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator), nn.init.normal_(norm.bias, generator=generator)
    separate = kind(shape[1], momentum=1).double().train()
    separate.load_state_dict(norm.state_dict())
    norm.workers = workers
    for _ in range(2):  # the second call must not remember the first
        norm.zero_grad()
        x = x.detach().requires_grad_()
        output = norm(x)
        output.backward(gradient)
    outputs, gradients, mean, variance = [], [], 0, 0
    for part, of_part in zip(x.detach().double().split(each), gradient.double().split(each), strict=True):
        part.requires_grad_()
        outputs.append(separate(part))
        outputs[-1].backward(of_part)
        gradients.append(part.grad)
        mean, variance = mean + separate.running_mean, variance + separate.running_var
    assert alike(output, torch.cat(outputs).to(dtype), tolerance)
    assert alike(x.grad, torch.cat(gradients).to(dtype), tolerance)
    assert alike(norm.weight.grad, separate.weight.grad.float(), tolerance)
    assert alike(norm.bias.grad, separate.bias.grad.float(), tolerance)
    assert alike(norm.batch_mean, mean.float() / workers, 1e-6) and alike(norm.batch_var, variance.float() / workers, 1e-6)
    assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all(), "the running statistics have moved"
    separate.load_state_dict(norm.state_dict())  # in evaluation, workers make no difference
    assert alike(norm.eval()(x.detach().float()), separate.eval()(x.detach().double()).float(), 3e-6)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 5e-2)])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_several_workers_contribute_at_once_the_sum_of_what_each_does(workers, precision, tolerance, monkeypatch):
    # Where a unit is all but zero, rounding decides whether ReLU lets its gradient through: a smooth one does not.
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.softplus(x))
    one, together = small_network(), small_network()
    together = Network(together.model, images_per_worker=4)
    images, labels = batch(1, images=4 * workers)
    images *= torch.arange(1, workers + 1).repeat_interleave(4).view(-1, 1, 1, 1)  # each worker's have another contrast
    for _ in range(2):
        expected = sum(one.contribute(*part, precision).double() for part in zip(images.split(4), labels.split(4), strict=True))
        found = together.contribute(images, labels, precision)
    size, parts = len(one.weights), {}
    for name, start, stop in (("gradients", 0, size), ("statistics", size, -2), ("loss", -2, -1)):
        parts[name] = float((found - expected)[start:stop].norm() / expected[start:stop].norm())
    assert found[-1] == expected[-1] or precision == "bf16"
    assert all(part < tolerance for part in parts.values()), parts
    alone = small_network()
    whole = workers * alone.contribute(images, labels, precision)  # all normalised by the same statistics
    assert float((whole - expected)[:size].norm() / expected[:size].norm()) > 4 * tolerance


def _split(norm, x):
    """How one worker was normalised at first: a split into one part, whose gradient is a copy (`identity.SAME_BITS`)."""
    (part,) = x.split(len(x))
    assert norm.training
    return norm._normalise(part, norm.batch_mean, norm.batch_var, 1.0)


@pytest.mark.parametrize("after", ["as it comes", "the same for all pixels", "transposed"])
@pytest.mark.parametrize("kind, shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["", "channels last"])
def test_one_workers_norm_has_the_bits_of_a_split_into_one_part(kind, shape, dtype, memory, after):
    x = torch.randn(shape).to(dtype)
    x = (x.to(memory_format=memory) if len(shape) == 4 else x).requires_grad_()
    norm = BatchNorm.adopt(kind(shape[1])).train()
    factor = torch.randn(shape[1] if after == "the same for all pixels" else shape[::-1]).to(dtype)
    found = []
    for normalise in (norm, partial(_split, norm)):
        norm.zero_grad()
        x.grad = None
        out = normalise(x)
        if after == "as it comes":
            (out * out).sum().backward()
        elif after == "transposed":
            (out.permute(*range(len(shape))[::-1]) * factor).sum().backward()
        else:
            (out.flatten(2).mean(2) * factor if len(shape) > 2 else out * factor).sum().backward()
        found.append([out, x.grad, norm.weight.grad, norm.bias.grad, norm.batch_mean.clone(), norm.batch_var.clone()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name, size", [("resnet11", 24), ("resnet50", 64)])
def test_one_worker_a_pass_has_the_bits_of_a_split_into_one_part(name, size, precision, monkeypatch):
    images, labels = torch.randn(4, 3, size, size), torch.arange(4)
    network = Network(build(name, 10), "cpu", 4)
    found = network.contribute(images, labels, precision).clone()
    monkeypatch.setattr(BatchNorm, "forward", _split)
    assert torch.equal(found, network.contribute(images, labels, precision)) and bool(found.abs().sum() > 0)


def test_a_norm_that_sees_more_samples_than_images_still_keeps_workers_apart():
    class Patches(nn.Module):
        """Sees each image as its four quarters, and adds up their logits."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

        def forward(self, x):
            quarters = torch.stack([half for rows in x.chunk(2, 2) for half in rows.chunk(2, 3)], 1).flatten(0, 1)
            return self.fc(self.norm(self.conv(quarters)).square().mean((2, 3))).view(len(x), 4, 10).sum(1)

    torch.manual_seed(0)
    one = Network(Patches())
    together = Network(copy.deepcopy(one.model), images_per_worker=4)
    images, labels = batch(1, images=12)
    expected = sum(one.contribute(*part).double() for part in zip(images.split(4), labels.split(4), strict=True))
    assert torch.allclose(together.contribute(images, labels).double(), expected, rtol=1e-4, atol=1e-5)


def test_one_workers_images_in_a_pass_of_several_are_as_if_alone():
    """A last pass of fewer workers than the others, down to one."""
    network, alone = Network(small_network().model, images_per_worker=4), small_network()
    images, labels = batch(2, images=4)
    assert torch.equal(network.contribute(images, labels), alone.contribute(images, labels))


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_running_statistics_are_caffes_decayed_sum_by_its_decayed_count(steps):
    network, momentum = small_network(), 0.05
    batches = [torch.randn_like(network.statistics) for _ in range(steps)]
    total, count = torch.zeros_like(network.statistics, dtype=torch.float64), 0.0
    for statistics in batches:
        total, count = (1 - momentum) * total + statistics, (1 - momentum) * count + 1
        network.update_statistics(statistics, momentum)
    assert torch.allclose(network.statistics.double(), total / count, rtol=1e-5, atol=1e-6)
    assert all(int(norm.num_batches_tracked) == steps for norm in network.norms)


def test_weights_and_statistics_are_views_of_the_flat_vectors():
    network = small_network()
    images, labels = batch(1)
    plain = copy.deepcopy(network.model)  # an ordinary copy: its parameters are its own
    network.contribute(images, labels)
    first = network.model.eval()(images)
    network.weights.mul_(1.1)
    assert not torch.allclose(network.model(images), first)
    for parameter, other in zip(network.model.parameters(), plain.parameters()):
        assert torch.equal(parameter, other * 1.1)
        assert parameter.data_ptr() != other.data_ptr()
    second = network.model(images)
    network.statistics.mul_(2)
    assert not torch.allclose(network.model(images), second)
    assert count(network.model) == len(network.weights) - 2, "the classifier's 10 biases take the room of 12"


@pytest.mark.parametrize("stride", ["v1", "v1.5"])
def test_contributions_equal_plain_autograd(stride):
    network = small_network(stride=stride)
    plain = copy.deepcopy(network.model).train()
    for seed in (1, 2):  # the second contribution must not remember the first
        images, labels = batch(seed)
        plain.zero_grad()
        logits = plain(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        network.contribute(images, labels)
        for (name, parameter), other in zip(network.model.named_parameters(), plain.parameters()):
            assert torch.allclose(parameter.grad, other.grad, rtol=1e-3, atol=1e-6), name
        assert float(network.contribution[-2]) == pytest.approx(float(loss.detach()), rel=1e-5)
        assert float(network.contribution[-1]) == float((logits.argmax(1) == labels).sum())
        assert float(network.gradients.norm()) == pytest.approx(
            float(torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()), rel=1e-5
        )
        norms = [module for module in plain.modules() if isinstance(module, BatchNorm)]
        statistics = torch.cat([part for norm in norms for part in (norm.batch_mean, norm.batch_var)])
        assert torch.allclose(network.contribution[len(network.weights) : -2], statistics, rtol=1e-4, atol=1e-6)


def test_a_state_comes_back_as_it_was_and_shares_no_memory():
    network, other = small_network(0), small_network(1)
    images, labels = batch(3)
    network.update_statistics(network.contribute(images, labels)[len(network.weights) : -2], 0.05)
    state = network.state()
    weights = network.weights.clone()
    network.weights.zero_()
    other.load(state)
    assert torch.equal(other.weights, weights) and torch.equal(other.statistics, network.statistics)
    assert int(other.norms[0].num_batches_tracked) == 1
    with pytest.raises(RuntimeError, match="size mismatch"):
        Network(build("resnet11", classes=9, channels=1)).load(state)


# --- A user's own models ----------------------------------------------------------------------------------------------


class WithBatchNorm(nn.Module):
    """Batch norm of two kinds, a constant buffer, a parameter used twice, one never used, and one that is not trained."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.5))
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.1, momentum=0.3), nn.ReLU())
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.features(self.scale * x).mean((2, 3)) + self.frozen
        return self.head(self.second(self.norm(self.first(x))))


class WithoutBatchNorm(nn.Sequential):
    def __init__(self):
        convolution = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten())
        super().__init__(convolution, nn.Linear(100, 8), nn.LayerNorm(8), nn.Dropout(0), nn.Linear(8, 10))


@pytest.mark.parametrize("model, parameters, statistics", [(WithBatchNorm, 132, 16), (WithoutBatchNorm, 964, 0)])
def test_any_model_contributes_what_plain_autograd_gives(model, parameters, statistics, tmp_path):
    torch.manual_seed(0)
    network = Network(model := model())
    plain = copy.deepcopy(model).train()
    assert (len(network.weights), len(network.statistics)) == (parameters, statistics)
    assert network.undecayed == parameters - statistics, "gammas and betas alone are as many as running statistics"
    for seed in (1, 2):
        images, labels = batch(seed)
        plain.zero_grad()
        logits = plain(images)
        F.cross_entropy(logits, labels).backward()
        contribution = network.contribute(images, labels)
        assert contribution.shape == (parameters + statistics + 2,)
        for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            if parameter.requires_grad:
                assert_close(parameter.grad, torch.zeros_like(other) if other.grad is None else other.grad, name, rtol=1e-3)
        assert float(contribution[-1]) == float((logits.argmax(1) == labels).sum())

    recipe = Recipe("r", (Stage("s", 1, 0.1),), 1, 1, decay_bn=False)
    average, update = Average("exact", World(), 1, network), SGD(network, recipe)
    average.add(network.contribute(images, labels))
    mean = average.mean()
    before = network.weights.clone()
    update.step(mean.gradient, at(recipe, 0))
    network.update_statistics(mean.statistics, 0.05)
    assert not torch.equal(network.weights, before)
    checkpoint.save(tmp_path / "1", network.state(), {})
    torch.manual_seed(1)
    other = Network(type(model)())
    other.load(checkpoint.load(tmp_path / "1")[0])
    assert torch.equal(other.weights, network.weights) and torch.equal(other.statistics, network.statistics)
    assert torch.equal(other.model.eval()(images), model.eval()(images))
    if statistics:
        assert torch.equal(other.model.frozen, plain.frozen) and other.model.second.weight is other.model.first.weight


def test_batch_norms_of_a_users_model_become_ours_with_all_that_they_were():
    torch.manual_seed(0)
    model = WithBatchNorm()
    theirs = copy.deepcopy(model).train()
    for norm in (theirs.features[1], theirs.norm):
        norm.momentum = 1  # so that its running statistics are the batch's
    network = Network(model)
    assert [type(norm) for norm in network.norms] == [BatchNorm, BatchNorm] and model.features[1].eps == 0.1
    images, labels = batch(1)
    expected = theirs(images)
    contribution = network.contribute(images, labels)
    assert float(contribution[-2]) == pytest.approx(float(F.cross_entropy(expected, labels).detach()), rel=1e-5)
    network.update_statistics(contribution[132:-2].clone(), 0.05)
    for found, norm in zip(network.norms, (theirs.features[1], theirs.norm)):
        assert_close(found.running_mean, norm.running_mean)
        assert_close(found.running_var, norm.running_var)


class EvaluatesItsNorm(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[0].eval()
        return self


def shares_memory():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data.t()
    return model


class OtherNorm(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout2d(0.1)), r"1 \(Dropout2d\) draws random numbers .* ranks"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Linear(2, 2)), r"0 \(BatchNorm2d\) has no affine"),
        (lambda: nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), "no running statistics"),
        (lambda: nn.Sequential(OtherNorm(3)), r"0 \(OtherNorm\) is a batch norm, but none of torch"),
        (lambda: nn.Sequential(nn.SyncBatchNorm(3)), "is a batch norm, but none of torch"),
        (lambda: EvaluatesItsNorm(nn.BatchNorm2d(3)), r"0 \(BatchNorm2d\) stays in evaluation mode"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "parameter 0.weight has no shape yet"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "parameter 1.weight is torch.float64"),
        (lambda: nn.Flatten(), "no parameter that requires a gradient"),
        (shares_memory, "parameters 0.weight and 1.weight share memory"),
    ],
)
def test_models_that_flat_vectors_cannot_hold_are_refused(make, message):
    with pytest.raises(ReproError, match=message):
        Network(make())


class Forward(nn.Module):
    """Logits of one linear layer, then whatever the function makes of (model, logits)."""

    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(144, 10)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        return self.function(self, self.linear(x.flatten(1)))


def counts_calls(model, logits):
    model.calls += 1
    return logits


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda model, logits: F.dropout(logits, 0.1), "draws random numbers from torch's generator .* number of ranks"),
        (lambda model, logits: logits * random.choice([0.5, 1]), "from Python's generator .* number of ranks"),
        (lambda model, logits: logits + random.gauss(0, 1), "from Python's generator"),
        (lambda model, logits: logits * (0.5 if np.random.rand() < 0.5 else 1), "from NumPy's generator"),
        (counts_calls, "changes its buffer calls in its forward pass, .* number of ranks"),
        (lambda model, logits: (logits,), r"returned tuple for 6 images"),
        (lambda model, logits: logits[:, :, None], r"returned \[6, 10, 1\]"),
        (lambda model, logits: logits[:, :3], r"returned \[6, 3\]"),
        (lambda model, logits: logits[1:], r"returned \[5, 10\]"),
    ],
)
def test_what_only_a_forward_pass_shows_is_refused_by_the_first_contribution(function, message):
    network = Network(Forward(function))
    with pytest.raises(ReproError, match=message):
        network.contribute(*batch(1))


FORWARDS = """
import itertools, random
import numpy as np, torch
from torch import nn
from test_model import Forward

numpys, pythons, torchs, calls = np.random.default_rng(0), random.Random(0), torch.Generator().manual_seed(0), itertools.count()

def halves(draw):
    "Once in a while, half of the logits: a whole batch has them, or none."
    return lambda classes, channels: Forward(lambda model, logits: logits * (0.5 if draw() < 0.5 else 1))

numpys_own, pythons_own = halves(numpys.random), halves(pythons.random)
torchs_own = halves(lambda: float(torch.rand(1, generator=torchs)))
counts, numpys_all = halves(lambda: float(next(calls) % 3 == 0)), halves(np.random.rand)

def new_for_each(classes, channels):
    return halves(np.random.default_rng(0).random)(classes, channels)

def in_backward(classes, channels):
    def hooked(model, logits):
        logits.register_hook(lambda gradient: gradient * (0.5 + numpys.random()))
        return logits
    return Forward(hooked)

def weights_of_numpy(classes, channels):
    model = Forward(lambda model, logits: logits)
    model.linear.weight.data.copy_(torch.from_numpy(np.random.randn(10, 144)))
    return model

def picks_a_part(classes, channels):
    share = random.choice(range(1000))
    return Forward(lambda model, logits: logits * share)

def seeds_its_own(classes, channels):
    model = Forward(lambda model, logits: logits / 0)
    model.linear.weight.data.copy_(torch.from_numpy(np.random.default_rng(0).standard_normal((10, 144))))
    return model
"""


@pytest.fixture
def forwards(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    (tmp_path / "forwards.py").write_text(FORWARDS)
    return lambda name: builder(f"{tmp_path}/forwards.py:{name}", classes=10, channels=1, size=12)


IMAGES, SEED = "the same images give different results, .* number of ranks", "the same seed gives another network"


@pytest.mark.parametrize(
    "name, message",
    [
        ("numpys_own", IMAGES),
        ("pythons_own", IMAGES),
        ("torchs_own", IMAGES),
        ("counts", IMAGES),
        ("new_for_each", IMAGES),
        ("in_backward", IMAGES),
        ("numpys_all", "draws random numbers from NumPy's generator in its forward pass"),
        ("weights_of_numpy", SEED),
        ("picks_a_part", SEED),
    ],
)
def test_a_model_that_the_seed_does_not_determine_is_refused_before_it_trains(forwards, name, message):
    with pytest.raises(ReproError, match=message):
        forwards(name)


def test_a_model_whose_random_numbers_are_always_the_same_is_accepted(forwards):
    """Also one that gives no numbers: the same bits are the same."""
    build_own = forwards("seeds_its_own")
    assert not build_own()(torch.randn(2, 1, 12, 12)).isfinite().any()


def test_two_batch_norms_may_share_their_parameters():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(144, 10))
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    network = Network(model)
    assert len(network.weights) == 1460 and network.undecayed == 1452
    assert network.contribute(*batch(1)).isfinite().all()
