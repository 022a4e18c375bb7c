"""LIMPQ's joint training of a small network, on one rank or on one of several."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from solvers.tables import BitChoices
from trainers.data import BatchPlan, load_data
from trainers.data.augment import AugmentSpec
from trainers.limpq.config import IndicatorConfig
from trainers.limpq.indicators import JointStep
from trainers.loop import Move, Training
from trainers.meters import Meter
from trainers.models import build_model
from trainers.optim import make_sgd
from trainers.phases import DataSpec, ModelSpec, PhaseContext
from trainers.quant.handle import QuantNetwork
from trainers.quant.wrap import quantize_network

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
CHOICES = BitChoices(weight_bits=(2, 4), act_bits=(2, 4))
RECIPE = IndicatorConfig(lr=0.02, batch_size=32, step_clamp=None)
DIGITS = load_data(DataSpec(name="digits"), 0)
UPDATES = 5  # 3 batches an epoch


class FrozenNorms(nn.Module):
    """A network whose BatchNorm uses running statistics: what ranks share does not differ."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def train(self, mode: bool = True) -> FrozenNorms:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


def quantized(ranks: int) -> QuantNetwork:
    torch.manual_seed(0)
    model = build_model(MODEL).double()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            # Sums of quantized products are often exactly 0; left there, ReLU's kink would decide
            # gradients by the rounding of a convolution, which depends on the batch's size.
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
    sample = DIGITS.train.batch(torch.arange(16), None)[0].double()
    network = quantize_network(model, choices=CHOICES, sample=sample)
    network.model.double()
    network.set_world_size(ranks)
    return network


class Joint:
    """LIMPQ's joint training of a small network, on one rank or on one of several."""

    def __init__(self, folder: Path, rank: int, ranks: int, *, frozen: bool, stop_at: int = 0):
        self.network = quantized(ranks)
        self.model = FrozenNorms(self.network.model) if frozen else self.network.model
        self.meter = Meter()
        self.step = JointStep(self.network, CHOICES, RECIPE, 0, self.meter)
        self.first_steps: dict[str, Tensor] = {}
        self.first_gradients: dict[str, Tensor] = {}
        self.asked = 0
        self.poison_at = -1

        def should_stop() -> bool:
            self.asked += 1
            return self.asked == stop_at

        self.training = Training(
            model=self.model,
            plan=BatchPlan(
                images=DIGITS.train.subset(torch.arange(100)), batch_size=32, seed=0, stream="s",
                augment=AugmentSpec(pad=1), rank=rank, world_size=ranks,
            ),
            total_updates=UPDATES,
            moves=lambda update: (self.move,),
            context=PhaseContext(
                step_dir=folder, rank=rank, world_size=ranks, should_stop=should_stop
            ),
            stream="s",
            seed=0,
            meter=self.meter,
            folder=folder / "checkpoints",
        )  # fmt: skip
        optimizer = make_sgd(self.model.parameters(), RECIPE)
        optimizer.register_step_pre_hook(self._note_gradients)
        self.move = Move(name="joint", optimizer=optimizer, accumulate=self.accumulate)

    def accumulate(self, batch: tuple[Tensor, Tensor], update: int) -> Tensor:
        loss = self.step.accumulate((batch[0].double(), batch[1]), update)
        if update == 0:
            self.first_steps = self._steps()
        return loss * math.nan if update == self.poison_at else loss

    def _steps(self) -> dict[str, Tensor]:
        return {f"{n} {t}": b.steps.detach().clone() for n, t, b in self.network.banks()}

    def _note_gradients(self, *_: object) -> None:
        if not self.first_gradients:
            self.first_gradients = {
                name: p.grad.clone()
                for name, p in self.network.model.named_parameters()
                if p.grad is not None
            }

    def run(self) -> dict[str, object]:
        metrics = self.training.run()
        return {
            "metrics": metrics,
            "steps": self.first_steps,
            "gradients": self.first_gradients,
            "state": {k: v.clone() for k, v in self.network.model.state_dict().items()},
            "cost": {"images": self.meter.total().images, "passes": self.meter.forward_passes},
        }
