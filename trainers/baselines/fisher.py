"""How much does an error of each element matter, by the empirical Fisher information?

F_ii = mean over images of (d loss_n / d x_i)^2, the diagonal of the empirical Fisher matrix. It
stands for the diagonal of the Hessian, by which Choi et al., "Towards the limit of network
quantization" (ICLR 2017), weigh each weight's squared error, and takes one backward pass.

For an activation it is taken image by image: F_ii (Q_b(x_i) - x_i)^2 where the error is made.
For a weight the gradients of single images are needed, not the batch's: ``torch.func`` gives them,
a few images at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.baselines.calibration import Calibration, Key
from trainers.baselines.errors import ErrorSums
from trainers.baselines.input_leaves import input_leaves
from trainers.data import Batch
from trainers.quant.reduce import mean_over_ranks
from trainers.quant.tracing import evaluating

# Images whose weight gradients are held at a time: eight of ResNet-50's are 0.8 GB.
_CHUNK = 8


def fisher_errors(calibration: Calibration) -> dict[Key, float]:
    """Weighted squared errors of every key; two forward and two backward passes over the images."""
    sums = ErrorSums(calibration)
    layers = {name: calibration.network.layers[name] for name in calibration.searched}
    squares = {
        name: torch.zeros_like(layer.weight, dtype=torch.float64) for name, layer in layers.items()
    }
    with evaluating(calibration.network.model):
        for batch in calibration.batches():
            _add_acts(calibration, sums, batch)
            _add_weight_gradients(calibration, squares, batch)
    num_images = len(calibration.indices)
    for name, layer in layers.items():
        worth = mean_over_ranks(squares[name]) * calibration.context.world_size / num_images
        sums.add(name, "weight", layer.weight, worth)
    return sums.means()


def _add_acts(calibration: Calibration, sums: ErrorSums, batch: Batch) -> None:
    """Errors of every layer's input, each image's by its own gradient."""
    images, labels = batch
    layers = {name: calibration.network.layers[name] for name in calibration.searched}
    inputs: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: inputs.__setitem__(name, args[0].detach())
        )
        for name, layer in layers.items()
    ]
    try:
        with input_leaves(layers) as leaves:
            logits = calibration.network.model(images)
    finally:
        for handle in handles:
            handle.remove()
    calibration.meter.forward(len(labels))
    loss = F.cross_entropy(logits, labels, reduction="sum")
    gradients = torch.autograd.grad(loss, [leaves[name] for name in layers])
    calibration.meter.backward()
    for name, gradient in zip(layers, gradients, strict=True):
        sums.add(name, "act", inputs[name], gradient.double().square())


def _add_weight_gradients(
    calibration: Calibration, squares: dict[str, Tensor], batch: Batch
) -> None:
    """Add every image's squared weight gradients."""
    model = calibration.network.model
    weights = {f"{name}.weight": model.get_parameter(f"{name}.weight").detach() for name in squares}

    def loss_of(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (image[None],))
        return F.cross_entropy(logits, label[None])

    gradients_of = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))
    for images, labels in zip(*(part.split(_CHUNK) for part in batch), strict=True):
        for key, gradient in gradients_of(weights, images, labels).items():
            squares[key.removesuffix(".weight")] += gradient.double().square().sum(dim=0)
    calibration.meter.forward(len(batch[1]))
    calibration.meter.backward()
