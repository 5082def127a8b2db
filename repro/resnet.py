"""Residual networks (He, Zhang, Ren and Sun, CVPR 2016) with the release's initial weights.

Parameters have torchvision's names, so that weights fit both.
"""

import math

from torch import nn
from torch.nn import functional as F

from repro import choose
from repro.schedule import DEPTHS, MODELS, STRIDES


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (the paper's figure 5, left)."""

    expansion = 1  # output channels of the block, per channel inside it

    def __init__(self, inputs: int, width: int, strides: tuple[int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, strides[0], padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, strides[1], padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, max(strides))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1, and a shortcut (figure 5, right)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, strides: tuple[int, int]):
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, strides[1], padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, max(strides))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        return F.relu(y, inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity if shapes match, otherwise a 1x1 convolution (the paper's option B)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


BLOCKS: tuple[tuple[type[BasicBlock | Bottleneck], tuple[int, ...]], ...]
BLOCKS = (  # of `DEPTHS`: the block, and the number of blocks in each group (the paper's table 1, and two for small images)
    (BasicBlock, (2, 2, 2, 2)),
    (BasicBlock, (3, 4, 6, 3)),
    (Bottleneck, (3, 4, 6, 3)),
    (Bottleneck, (3, 4, 23, 3)),
    (Bottleneck, (3, 8, 36, 3)),
    (Bottleneck, (1, 1, 1)),
    (Bottleneck, (4, 4, 4)),
)


class ResNet(nn.Module):
    """One of `MODELS`: images (N, channels, H, W) of any size to logits (N, classes).

    `stride` is where a bottleneck that halves its input does so: in the first 1x1 convolution ("v1", the paper) or in the
    3x3 ("v1.5"). `released_stem` selects the stem of the authors' Caffe release, otherwise torchvision's. ResNet-11 and -38
    have a 3x3 convolution of stride 2 without pooling instead, three groups, and an eighth of the others' channels; with
    x2 or x4 in the name, twice or four times as many.
    """

    def __init__(self, name: str, classes: int, channels: int = 3, stride: str = "v1.5", released_stem: bool = True):
        super().__init__()
        depth, _, times = name.partition("x")
        block, numbers = dict(zip(DEPTHS, BLOCKS, strict=True))[depth]
        if len(numbers) == 3:
            width = 8 * int(times or 1)
            self.conv1 = nn.Conv2d(channels, width, 3, 2, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            width = 64
            self.conv1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=released_stem)
            self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True) if released_stem else nn.MaxPool2d(3, 2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        halving = (2, 1) if block is BasicBlock or stride == "v1" else (1, 2)
        inputs = width
        for index, number in enumerate(numbers):
            blocks = []
            for strides in [halving if index else (1, 1)] + [(1, 1)] * (number - 1):
                blocks.append(block(inputs, width << index, strides))
                inputs = block.expansion * (width << index)
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    @property
    def groups(self) -> list[nn.Sequential]:
        """Groups of blocks of the same resolution: `layer1` and so on."""
        return [module for module in self.children() if isinstance(module, nn.Sequential)]

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for group in self.groups:
            x = group(x)
        return self.fc(x.mean((2, 3)))


def build(
    name: str,
    classes: int,
    channels: int = 3,
    stride: str = "v1.5",
    zero_gamma: str = "last_of_stage",
    released_stem: bool = True,
) -> nn.Module:
    """The model, for images of any size, initialised from torch's global generator as in the net files.

    MSRA: convolutions by fan-in, the stem by fan-out; classifier normal with standard deviation 0.01; gamma 1, but 0
    in the last batch norm of each group's last block (`last_of_stage`: 4 of 16 in ResNet-50), or of every block.
    The released stem has a bias and pools without padding, in Caffe's ceiling mode; `released_stem=False` is torchvision's
    (both turn 224 x 224 into 56 x 56), with whose networks the tests compare. `stride` is the position of a bottleneck's
    stride: the first 1x1 (v1) or the 3x3 convolution (v1.5). The basic blocks of ResNet-18 and -34
    have only one position for it, so both are the same there.
    """
    choose("model", name, MODELS)
    choose("stride", stride, STRIDES)
    model = ResNet(name, classes, channels, stride, released_stem)
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
    zeroed: dict[str, list] = {
        "last_of_stage": [group[-1] for group in model.groups],
        "all_blocks": [block for group in model.groups for block in group],
        "none": [],
    }
    for block in zeroed[choose("zero_gamma", zero_gamma, zeroed)]:
        nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)
    return model
