"""MobileNet-V1 (Howard et al. 2017), which torchvision lacks.

13 pairs of a depth-wise 3x3 and a point-wise convolution; 4,231,976 parameters and 568,740,352
MACs at 224 pixels and 1000 classes.
"""

from __future__ import annotations

from torch import Tensor, nn

# (output channels, stride) of each pair.
_PAIRS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class MobileNetV1(nn.Module):
    """MobileNet-V1 for images of 32 pixels or more.

    Args:
        num_classes: width of the classifier.
        in_channels: channels of the image.
        width: multiplier of all channel counts.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        channels = max(8, int(32 * width))
        blocks = [_block(in_channels, channels, kernel=3, stride=2)]
        for base, stride in _PAIRS:
            out = max(8, int(base * width))
            blocks.append(_block(channels, channels, kernel=3, stride=stride, groups=channels))
            blocks.append(_block(channels, out, kernel=1))
            channels = out
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, classes)."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


def _block(
    in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
