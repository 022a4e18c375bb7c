"""What do five well-known networks cost, layer by layer? Tables written from their shapes alone.

Used by the solver benchmark and by tests of the solver room, which must not need torch. Layer
names and shapes follow torchvision; totals are asserted in tests/solvers/test_networks.py.
"""

from __future__ import annotations

from collections.abc import Callable

from solvers.tables import CostTable, LayerBits, LayerKind, LayerSpec, TensorLife

PIN = LayerBits(weight_bits=8, act_bits=8)


class Tracer:
    """Lays layers out one after another, keeping the side length of the current map."""

    def __init__(self, model: str, side: int = 224) -> None:
        self.model, self.side, self.layers = model, side, list[LayerSpec]()
        self.num_norm_params = 0

    def conv(
        self,
        name: str,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        side: int | None = None,
        bias: bool = False,
        norm: bool = True,
        pinned: LayerBits | None = None,
        group: str | None = None,
    ) -> int:
        """Add one convolution; returns the side of its output map."""
        side = self.side if side is None else side
        exact = (side + 2 * ((kernel - 1) // 2) - kernel) / stride + 1
        weights = inputs * outputs * kernel * kernel // groups
        kind: LayerKind = "depthwise" if groups == inputs > 1 else "conv"
        self.layers.append(
            LayerSpec(
                name=name,
                kind=kind,
                num_macs=weights * int(exact) ** 2,
                num_macs_unfloored=weights * int(exact**2),
                num_weights=weights,
                num_biases=outputs if bias else 0,
                num_inputs=inputs * side**2,
                num_outputs=outputs * int(exact) ** 2,
                pinned=pinned,
                group=group,
            )
        )
        self.num_norm_params += 2 * outputs if norm else 0
        return int(exact)

    def linear(self, name: str, inputs: int, outputs: int, pinned: LayerBits | None = None) -> None:
        """Add one fully connected layer with a bias."""
        self.layers.append(
            LayerSpec(
                name=name,
                kind="linear",
                num_macs=inputs * outputs,
                num_macs_unfloored=inputs * outputs,
                num_weights=inputs * outputs,
                num_biases=outputs,
                num_inputs=inputs,
                num_outputs=outputs,
                pinned=pinned,
            )
        )

    def table(self, tensors: tuple[TensorLife, ...] = ()) -> CostTable:
        """The finished cost table."""
        return CostTable(
            model=self.model,
            input_shape=(3, 224, 224),
            layers=tuple(self.layers),
            num_other_params=self.num_norm_params,
            tensors=tensors,
        )


def resnet18() -> CostTable:
    """Basic blocks 2-2-2-2."""
    net = Tracer("resnet18")
    net.conv("conv1", 3, 64, 7, 2, pinned=PIN)
    net.side, inputs = 56, 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            stride = 2 if stage > 1 and block == 0 else 1
            at = f"layer{stage}.{block}"
            side = net.conv(f"{at}.conv1", inputs, width, 3, stride)
            net.conv(f"{at}.conv2", width, width, 3, side=side)
            if stride == 2:
                net.conv(f"{at}.downsample.0", inputs, width, 1, stride)
            net.side, inputs = side, width
    net.linear("fc", 512, 1000, PIN)
    return net.table()


def resnet50() -> CostTable:
    """Bottleneck blocks 3-4-6-3, the stride on the 3x3 convolution."""
    net = Tracer("resnet50")
    net.conv("conv1", 3, 64, 7, 2, pinned=PIN)
    net.side, inputs = 56, 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            at = f"layer{stage}.{block}"
            net.conv(f"{at}.conv1", inputs, width, 1)
            side = net.conv(f"{at}.conv2", width, width, 3, stride)
            net.conv(f"{at}.conv3", width, 4 * width, 1, side=side)
            if block == 0:
                net.conv(f"{at}.downsample.0", inputs, 4 * width, 1, stride)
            net.side, inputs = side, 4 * width
    net.linear("fc", 2048, 1000, PIN)
    return net.table()


def mobilenet_v1() -> CostTable:
    """Depth-wise separable convolutions, width 1."""
    net = Tracer("mobilenet_v1")
    net.side = net.conv("conv1", 3, 32, 3, 2, pinned=PIN)
    inputs = 32
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
    for i, (outputs, stride) in enumerate([*plan, (1024, 2), (1024, 1)]):
        net.side = net.conv(f"blocks.{i}.dw", inputs, inputs, 3, stride, groups=inputs)
        net.conv(f"blocks.{i}.pw", inputs, outputs, 1)
        inputs = outputs
    net.linear("fc", 1024, 1000, PIN)
    return net.table()


def mobilenet_v2() -> CostTable:
    """Inverted residuals, width 1."""
    net = Tracer("mobilenet_v2")
    net.side = net.conv("features.0.0", 3, 32, 3, 2, pinned=PIN)
    inputs, index = 32, 1
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
    for expand, outputs, repeats, first_stride in plan:
        for repeat in range(repeats):
            at, hidden = f"features.{index}.conv", inputs * expand
            if expand != 1:
                net.conv(f"{at}.0.0", inputs, hidden, 1)
            stride = first_stride if repeat == 0 else 1
            depth = 0 if expand == 1 else 1
            net.side = net.conv(f"{at}.{depth}.0", hidden, hidden, 3, stride, groups=hidden)
            net.conv(f"{at}.{depth + 1}", hidden, outputs, 1)
            inputs, index = outputs, index + 1
    net.conv("features.18.0", inputs, 1280, 1)
    net.linear("classifier.1", 1280, 1000, PIN)
    return net.table()


def mobilenet_v3_large() -> CostTable:
    """Inverted residuals with squeeze-and-excitation."""
    net = Tracer("mobilenet_v3_large")
    net.side = net.conv("features.0.0", 3, 16, 3, 2, pinned=PIN)
    inputs = 16
    plan = (  # kernel, expanded, outputs, squeeze-and-excitation, stride
        (3, 16, 16, False, 1), (3, 64, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2),
        (5, 120, 40, True, 1), (5, 120, 40, True, 1), (3, 240, 80, False, 2),
        (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1),
        (3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2),
        (5, 960, 160, True, 1), (5, 960, 160, True, 1),
    )  # fmt: skip
    for index, (kernel, hidden, outputs, squeezed, stride) in enumerate(plan, 1):
        at, part = f"features.{index}.block", 0
        if hidden != inputs:
            net.conv(f"{at}.{part}.0", inputs, hidden, 1)
            part += 1
        net.side = net.conv(f"{at}.{part}.0", hidden, hidden, kernel, stride, groups=hidden)
        part += 1
        if squeezed:
            narrow = max(8, int(hidden / 4 + 4) // 8 * 8)
            narrow += 8 if narrow < 0.9 * hidden / 4 else 0
            net.conv(f"{at}.{part}.fc1", hidden, narrow, 1, side=1, bias=True, norm=False)
            net.conv(f"{at}.{part}.fc2", narrow, hidden, 1, side=1, bias=True, norm=False)
            part += 1
        net.conv(f"{at}.{part}.0", hidden, outputs, 1)
        inputs = outputs
    net.conv("features.16.0", inputs, 960, 1)
    net.linear("classifier.0", 960, 1280)
    net.linear("classifier.3", 1280, 1000, PIN)
    return net.table()


NETWORKS: dict[str, Callable[[], CostTable]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3_large,
}
