"""The ResNets of small images: 3 stages of 16, 32 and 64 channels, 6n + 2 layers.

Shortcuts have no parameters (option A of He et al. 2016): every second pixel, new channels zero.
Parameter names are those of the widespread CIFAR implementation, so its weights load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        # A module, and only here: a quantizer of conv2's input can do its work (merge_relu).
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return x


class CifarResNet(nn.Module):
    """A ResNet for images of about 8 to 64 pixels.

    Args:
        depth: 6n + 2: 8, 14, 20, 32, 44, 56 ...
        num_classes: width of the classifier.
        in_channels: 3 for colour, 1 for grey images.
        base_width: channels of the first stage; 16 in the paper.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, base_width: int = 16
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is {depth}; it must be 6n + 2 with n >= 1")
        num_blocks = (depth - 2) // 6
        widths = (base_width, 2 * base_width, 4 * base_width)
        self.conv1 = nn.Conv2d(in_channels, base_width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        self.layer1 = _stage(base_width, widths[0], num_blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], num_blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], num_blocks, stride=2)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *rest)
