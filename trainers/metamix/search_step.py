"""How do the architecture parameters learn on a fixed meta-state?

Equation 3: L(alpha) = L(w, alpha) + lambda_r * r(alpha), with every searched tensor at the mixture
of equation 2. The step leaves the network bit for bit as it found it: no parameter takes a
gradient, and BatchNorm normalises with the batch without touching its running statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.data import Batch
from trainers.distillation import TeacherLoss
from trainers.metamix.architecture import Architecture
from trainers.metamix.config import SearchConfig
from trainers.metamix.meta_step import meta_passes
from trainers.metamix.mix import Mixture, NormMixture
from trainers.metamix.target import Target
from trainers.meters import Meter
from trainers.precision import backward
from trainers.quant.bank import StepBank
from trainers.quant.handle import QuantNetwork


class SearchStep:
    """One bit-search pass.

    Args:
        network: the quantized network, every candidate's step size trained.
        architecture: the alphas; all that the pass gives gradients to.
        target: the cost to reach.
        config: lambda_r, BatchNorm mode, and whether the meta-state is fixed.
        loss: task loss, with a teacher or without.
        meter: counts passes.
    """

    def __init__(
        self,
        network: QuantNetwork,
        architecture: Architecture,
        target: Target,
        config: SearchConfig,
        loss: TeacherLoss,
        meter: Meter,
    ) -> None:
        self.network, self.architecture, self.target = network, architecture, target
        self.config, self.loss, self.meter = config, loss, meter
        self._widest = meta_passes(network)[0]
        self._stashed: list[Tensor | None] = []
        self._loss = torch.zeros(())

    def accumulate(self, batch: Batch, update: int) -> Tensor:
        """Leave the gradient of equation 3 in the alphas; returns the loss."""
        images, labels = batch
        with self._searching():
            soft = self.loss.targets(images)
            if soft is not None:
                self.meter.forward(len(labels))
            loss = self.loss(self.network.model(images), labels, soft)
            self.meter.forward(len(labels))
            penalty = self.target.penalty(
                self.architecture, relative=self.config.penalty == "relative"
            )
            total = loss + (self.config.lambda_r * penalty).to(loss.dtype)
            backward(self.network.model, total)
            self.meter.backward()
        return total.detach()

    def accumulate_for_weights(self, batch: Batch, update: int) -> Tensor:
        """The same pass, leaving gradients in weights and step sizes too (Figure 7, a).

        Those of the alphas are kept aside for ``hand_over``: both updates are taken at the same
        point, from one pass.
        """
        self.architecture.zero_grad(set_to_none=True)
        loss = self.accumulate(batch, update)
        self._stashed = [alpha.grad for alpha in self.architecture.alphas]
        self._loss = loss
        return loss

    def hand_over(self, batch: Batch, update: int) -> Tensor:
        """Leave the alphas' part of the pass before; returns its loss."""
        for alpha, gradient in zip(self.architecture.alphas, self._stashed, strict=True):
            alpha.grad = gradient
        return self._loss

    @contextmanager
    def _searching(self) -> Iterator[None]:
        """Mixtures in place, everything but the alphas fixed; all of it undone at the end."""
        fixed = self.config.fixed_meta_state
        network = self.network
        before = network.bits()
        network.restore_bits(self._widest)
        mixtures: dict[StepBank, Mixture] = {}
        for name, tensor, bank in network.banks():
            alpha = self.architecture.alpha_of(name, "weight" if tensor == "weight" else "act")
            if alpha is not None:
                bank.mix = mixtures[bank] = Mixture(alpha, fixed=fixed)
        norms = [(norm, mixtures[b]) for norm, b in network.switchable() if b in mixtures]
        for norm, mixture in norms:
            norm.mix = NormMixture(mixture.alpha)
        trained = [p for p in network.model.parameters() if p.requires_grad] if fixed else []
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            with norms_at(network.model, self.config.batchnorm if fixed else "train"):
                yield
        finally:
            for bank in mixtures:
                bank.mix = None
            for norm, _ in norms:
                norm.mix = None
            for parameter in trained:
                parameter.requires_grad_(True)
            network.restore_bits(before)


@contextmanager
def norms_at(model: nn.Module, how: str) -> Iterator[None]:
    """Normalise by the batch (``batch``) or the running statistics (``running``), move neither."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        if how == "batch":
            # torch then hands no running statistics to the kernel, and counts no batch.
            norm.track_running_stats = False
        elif how == "running":
            norm.training = False
    try:
        yield
    finally:
        for norm, (training, tracks) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracks


def make_optimizer(architecture: Architecture, config: SearchConfig) -> torch.optim.Optimizer:
    """The optimizer of the alphas."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            architecture.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.Adam(
        architecture.parameters(),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
