"""torchvision's ResNets as released: initialisation, stem, strides, batch statistics as values, flat vectors.

`Network` keeps parameters and running statistics as views of two flat vectors, and what one worker adds to the average
(gradients, batch statistics, loss, correct count) as views of a third. The optimizer and the averaging then work on
whole vectors and know nothing of layers.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet

from repro import ReproError, choose, own

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over one worker's images, which hands out their mean and variance instead of folding them in.

    In training, `batch_mean` and `batch_var` (unbiased) are written; the running statistics move only through
    `Network.update_statistics`, after the averages over all workers are known.
    """

    def __init__(self, features: int):
        super().__init__(features)
        self.register_buffer("batch_mean", torch.zeros(features), persistent=False)
        self.register_buffer("batch_var", torch.ones(features), persistent=False)

    def forward(self, x):
        if self.training:  # momentum 1: "running" means this batch's alone
            return F.batch_norm(x, self.batch_mean, self.batch_var, self.weight, self.bias, True, 1.0, self.eps)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class ResNet11(nn.Module):
    """Three of torchvision's bottleneck blocks (widths 8, 16, 32) for small images of any size and 1 or 3 channels."""

    def __init__(self, classes: int, channels: int, width: int = 8):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(width)
        blocks, inputs = [], width
        for planes, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            outputs = planes * resnet.Bottleneck.expansion
            shortcut = nn.Sequential(resnet.conv1x1(inputs, outputs, stride), BatchNorm(outputs))
            blocks.append(nn.Sequential(resnet.Bottleneck(inputs, planes, stride, shortcut, norm_layer=BatchNorm)))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = blocks
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet11")


def build(
    name: str,
    classes: int,
    channels: int = 3,
    stride: str = "v1.5",
    zero_gamma: str = "last_of_stage",
    released_stem: bool = True,
) -> nn.Module:
    """The model, for images of any size, initialised from torch's global generator as the net files say.

    MSRA: convolutions by fan-in, the stem by fan-out; classifier normal with standard deviation 0.01; gamma 1, but 0
    in the last batch norm of each stage's last block (`last_of_stage`: 4 of 16 in ResNet-50), or of every block.
    The released stem has a bias and pools without padding, in Caffe's ceiling mode (both give 56 x 56 of 224 x 224);
    `released_stem=False` is torchvision's. `stride` says where a bottleneck has it: in the first 1x1 (v1) or the 3x3
    (v1.5). The basic blocks of ResNet-18 and -34 have only one place for it, so there both are the same network.
    """
    if choose("model", name, MODELS) == "resnet11":
        model = ResNet11(classes, channels)
    else:
        model = getattr(resnet, name)(num_classes=classes, norm_layer=BatchNorm)
        if released_stem or channels != 3:
            model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=released_stem)
        if released_stem:
            model.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    stages = [layer for layer_name, layer in model.named_children() if layer_name.startswith("layer")]
    bottleneck = isinstance(stages[0][0], resnet.Bottleneck)
    if choose("stride", stride, ("v1.5", "v1")) == "v1" and bottleneck:
        for stage in stages:
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.weight[0].numel()
            if module is model.conv1:
                fan = module.weight[:, 0].numel()
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.fc.weight, std=0.01)
    nn.init.zeros_(model.fc.bias)
    zeroed = {
        "last_of_stage": [stage[-1] for stage in stages],
        "all_blocks": [b for stage in stages for b in stage],
        "none": [],
    }
    for block in zeroed[choose("zero_gamma", zero_gamma, zeroed)]:
        nn.init.zeros_((block.bn3 if bottleneck else block.bn2).weight)
    return model


def builder(
    name: str, classes: int, channels: int, size: int, stride: str = "v1.5", zero_gamma: str = "last_of_stage"
) -> Callable[[], nn.Module]:
    """What builds a model: one of ours, or the user's `mine.py:my_net`, called as my_net(classes=..., channels=...).

    A model of the user's own is tried once, on two random images of `size` pixels: raises ReproError if it cannot be trained.
    """
    if not own.is_own(name):
        choose("model", name, MODELS)
        return partial(build, name, classes, channels, stride, zero_gamma)
    function = own.load(name)
    if not callable(function):
        raise ReproError(f"{name} is no function: write `def my_net(classes, channels)` that returns a torch.nn.Module")
    build_own = partial(function, classes=classes, channels=channels)
    with torch.random.fork_rng(devices=[]):
        _try(name, build_own, torch.randn(2, channels, size, size), classes)
    return build_own


def _try(name: str, build_own: Callable, images: torch.Tensor, classes: int) -> None:
    """Builds a user's model and computes one contribution; raises ReproError, naming what failed."""
    doing, sizes = "is built", f"{tuple(images.shape)} images"
    try:
        model = build_own()
        if not isinstance(model, nn.Module):
            raise ReproError(f"{name} returned {type(model).__name__}: it must return a torch.nn.Module")
        doing = f"sees {sizes}"
        logits = model(images)
        if not isinstance(logits, torch.Tensor) or logits.shape != (len(images), classes):
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ReproError(f"{name} makes {found} of {sizes}: it must return logits of shape {(len(images), classes)}")
        doing = "is trained"
        Network(model).contribute(images, torch.arange(len(images)) % classes)
    except ReproError:
        raise
    except Exception as error:
        raise ReproError(f"{name} fails when it {doing} ({type(error).__name__}: {error}): fix it") from error


def find_device(name: str, node_rank: int = 0) -> str:
    """The device of that name; "auto" is a GPU where torch sees one, else the CPU.

    "cuda" is from then on the GPU of this rank: the ranks of a node take its GPUs in turns.
    """
    if choose("device", name, DEVICES) == "cpu" or name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if not torch.cuda.is_available():
        raise ReproError("device cuda was asked for, but this torch sees no GPU: use --device cpu")
    torch.cuda.set_device(node_rank % torch.cuda.device_count())
    return "cuda"


def find_precision(name: str, device: str, small: bool) -> str:
    """The precision of that name; "auto" is bf16 where the device multiplies it natively and images are not small."""
    if choose("precision", name, PRECISIONS) != "auto":
        return name
    if small:  # a small network's time goes to starting operations, of which bf16 needs more
        return "fp32"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


class Network:
    """A model whose parameters, statistics and gradients lie in flat vectors.

    weights       (P,) parameters, in the order in which backward yields their gradients; those of batch norm last, from
                  `undecayed` on
    statistics    (S,) running means and variances
    contribution  (P + S + 2,) what one worker adds to the average: gradients, batch means and variances, then the
                  mean loss of its images and their number of correct predictions
    """

    def __init__(self, model: nn.Module, device="cpu"):
        self.model = model.to(device)
        norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
        gammas_betas = [parameter for norm in reversed(norms) for parameter in (norm.weight, norm.bias)]
        last = {id(parameter) for parameter in gammas_betas}
        parameters = [p for p in reversed(list(model.parameters())) if id(p) not in last] + gammas_betas
        self.undecayed = sum(p.numel() for p in parameters if id(p) not in last)
        size = sum(p.numel() for p in parameters)
        self.weights = torch.empty(size, device=device)
        running = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        batch = [buffer for norm in norms for buffer in (norm.batch_mean, norm.batch_var)]
        self.statistics = torch.empty(sum(buffer.numel() for buffer in running), device=device)
        self.contribution = torch.zeros(size + len(self.statistics) + 2, device=device)
        self.gradients = self.contribution[:size]
        self.loss, self.correct = self.contribution[-2], self.contribution[-1]
        _adopt(parameters, self.weights)
        _adopt(running, self.statistics)
        _adopt(batch, self.contribution[size:-2])
        for parameter, gradient in zip(parameters, _views(parameters, self.gradients)):
            parameter.grad = gradient
        self.norms, self.parameters = norms, parameters

    def contribute(self, images: torch.Tensor, labels: torch.Tensor, precision: str = "fp32") -> torch.Tensor:
        """Forward and backward of one worker's images (N, C, H, W) and labels (N,); returns `contribution`."""
        images, labels = images.to(self.weights.device), labels.to(self.weights.device)
        self.model.train()
        self.gradients.zero_()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        self.loss.copy_(loss.detach())
        self.correct.copy_((logits.detach().argmax(1) == labels).sum())
        return self.contribution

    @torch.no_grad()
    def update_statistics(self, batch_statistics: torch.Tensor, momentum: float) -> None:
        """Moves the running statistics by the averaged ones of this step: a bias-corrected moving average.

        Caffe keeps a decayed sum and a decayed count apart and divides them; the same average has a momentum of
        m / (1 - (1 - m)**t) at its t-th step, which is 1 at the first.
        """
        self.norms[0].num_batches_tracked += 1
        for norm in self.norms[1:]:
            norm.num_batches_tracked.copy_(self.norms[0].num_batches_tracked)
        steps = int(self.norms[0].num_batches_tracked)
        self.statistics.lerp_(batch_statistics, momentum / (1 - (1 - momentum) ** steps))

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of parameters and statistics under torchvision's names."""
        return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Takes the values of `state`; raises RuntimeError if names or shapes differ."""
        self.model.load_state_dict(state)


def _views(tensors, flat):
    """Views of `flat` in the tensors' shapes; convolution weights lie channels-last, which oneDNN runs faster."""
    for part, tensor in zip(flat.split([tensor.numel() for tensor in tensors]), tensors):
        if tensor.dim() == 4:
            outputs, inputs, height, width = tensor.shape
            yield part.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
        else:
            yield part.view(tensor.shape)


@torch.no_grad()
def _adopt(tensors, flat):
    """Moves the tensors' values into `flat` and makes them views of it."""
    for tensor, view in zip(tensors, _views(tensors, flat)):
        view.copy_(tensor)
        tensor.data = view
