"""How good is a whole policy by the jointly trained weights, without training it?

The network of joint training is set to the policy's bits, its BatchNorm statistics are taken anew
on a few hundred training images, and its loss on others is the verdict (the one-shot evaluation
of SPOS, Guo et al., ECCV 2020). What training recovers is in it, because these weights were
trained at every width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from solvers.tables import LayerBits
from trainers.data import ImageData
from trainers.errors import DataError, ModelError
from trainers.limpq.joint import load_joint
from trainers.meters import Meter
from trainers.oneshot.config import JudgeConfig
from trainers.oneshot.measure import Measured, decoded, measure, num_images, refresh_norms
from trainers.phases import PhaseContext, PhaseSpec
from trainers.quant.handle import QuantNetwork
from trainers.seeds import generator
from trainers.setup import make_data

STREAM = "one-shot"


class Judge:
    """Judges policies; every rank holds one and answers for whole policies.

    Args:
        network: jointly trained, in this process alone.
        data: where images come from.
        config: which and how many.
        seed: of the run; the images are the same on every rank and in every step of the run.
        context: this rank.
        meter: counts this rank's images; passes are counted by whoever shares policies out.
    """

    def __init__(
        self,
        network: QuantNetwork,
        data: ImageData,
        config: JudgeConfig,
        seed: int,
        context: PhaseContext,
        meter: Meter,
    ) -> None:
        self.network, self.meter, self.alive = network, meter, context.alive
        network.set_bits(network.pinned)
        held = data.train if config.images_from == "train" else data.holdout
        if held is None:
            raise DataError("images_from: holdout needs data.holdout above 0")
        # 1.2 to 1.4 times as fast on a CPU (ResNet-20, 32 to 128 images a batch).
        network.model.to(memory_format=torch.channels_last)
        # Both samples from one draw, so that no image is in both.
        order = torch.randperm(len(data.train), generator=generator(seed, STREAM, "train"))
        norm_at = order[: config.bn_images]
        at = order[config.bn_images : config.bn_images + config.images]
        if config.images_from == "holdout":
            at = torch.randperm(len(held), generator=generator(seed, STREAM, "holdout"))
            at = at[: config.images]
        if len(at) < config.images or len(norm_at) < config.bn_images:
            raise DataError(
                f"{config.images} images to judge on and {config.bn_images} for BatchNorm were "
                f"asked for; there are {len(data.train)} training images"
                + (f" and {len(held)} held out" if config.images_from == "holdout" else "")
            )
        self.batches = decoded(held, at, config.batch, context)
        self.norm_batches = decoded(data.train, norm_at, config.batch, context)

    @property
    def passes(self) -> int:
        """Forward passes that one verdict takes."""
        return len(self.batches) + len(self.norm_batches)

    def __call__(self, bits: Mapping[str, LayerBits]) -> Measured:
        """The verdict on the searched layers' bits; the network keeps no trace of earlier ones."""
        self.network.set_bits(
            {name: (b.weight_bits, b.act_bits) for name, b in bits.items()
             if name not in self.network.pinned}
        )  # fmt: skip
        if self.norm_batches:
            refresh_norms(self.network.model, self.norm_batches, self.alive)
        self.meter.images += num_images(self.norm_batches) + num_images(self.batches)
        return measure(self.network.model, self.batches, self.alive)


def make_judge(
    spec: PhaseSpec, context: PhaseContext, config: JudgeConfig, meter: Meter
) -> tuple[Judge, ImageData]:
    """The judge of a phase, from its inputs ``weights`` and ``joint``, and the images.

    Raises:
        DataError: not enough images.
        CheckpointError: ``joint`` is not what phase ``limpq.indicators`` writes under that role.
    """
    if spec.choices is None:
        raise ModelError("judging policies needs candidate bit-widths")
    data = make_data(spec, context)
    network = load_joint(Path(spec.inputs["joint"]), data, spec.choices, spec, context)
    if config.norms == "mean":
        network.merge_batchnorm("mean")
    return Judge(network, data, config, spec.seed, context, meter), data
