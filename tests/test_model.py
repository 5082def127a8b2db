"""Models against torchvision's, against what the net files say, and against plain autograd."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import resnet

from repro.model import BatchNorm, Network, build


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
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            for values in (module.running_var, module.weight):
                torch.nn.init.uniform_(values, 0.5, 1.5)
    return model


def assert_same_outputs(ours, theirs, images, training=False):
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        expected, found = theirs.train(training)(images), ours.train(training)(images)
    assert expected.std() > 0.1 and expected.isfinite().all()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", BASIC + BOTTLENECK)
def test_torchvisions_weights_give_torchvisions_outputs(name):
    ours, theirs = build(name, 1000, released_stem=False), torchvisions(name)
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
        gammas = {key: module.weight for key, module in model.named_modules() if isinstance(module, BatchNorm)}
        assert [key for key, gamma in gammas.items() if not gamma.any()] == expected
        assert all(gamma.eq(1).all() for key, gamma in gammas.items() if key not in expected)


def test_initialisation_is_the_net_files():
    torch.manual_seed(0)
    model = build("resnet50", 1000)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            outputs, inputs, height, width = module.weight.shape
            fan = (outputs if name == "conv1" else inputs) * height * width
            std, values = math.sqrt(2 / fan), module.weight
        elif isinstance(module, torch.nn.Linear):
            std, values = 0.01, module.weight
            assert not module.bias.any()
        else:
            continue
        spread = 5 / math.sqrt(2 * values.numel())  # of a sample's standard deviation, five sigma
        assert float(values.detach().std()) == pytest.approx(std, rel=spread), name
        assert abs(float(values.detach().mean())) < 5 * std / math.sqrt(values.numel()), name
    assert not model.conv1.bias.any()


def test_batch_norm_hands_out_mean_and_unbiased_variance():
    norm = BatchNorm(3).train()
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for _ in range(2):  # the second call must not remember the first
        norm(torch.zeros_like(x) + 7 * torch.randn(1))
        output = norm(x)
        assert torch.allclose(norm.batch_mean, x.mean((0, 2, 3)), atol=1e-6)
        assert torch.allclose(norm.batch_var, x.var((0, 2, 3), unbiased=True), rtol=1e-5)
    assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all(), "the running statistics have moved"
    assert torch.allclose(output, F.batch_norm(x, None, None, training=True), atol=1e-6)


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
    assert count(network.model) == len(network.weights)


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
