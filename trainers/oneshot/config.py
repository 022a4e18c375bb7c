"""What does judging policies by the jointly trained weights need to be told?

Sections ``sources.one_shot`` and ``sources.fitted``. "SPOS" = Guo et al., ECCV 2020, whose search
over a supernet this follows; "pilot" = measured beforehand on CIFAR-10 with ResNet-20.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from trainers.recipes import CLOSED, BelowOne, Count, CountFromZero

Level = Annotated[float, Gt(0.0), Le(32.0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """How one policy is judged: forward passes only, on images that no gradient saw in the search.

    Attributes:
        images: images that the loss is a mean over, the same seeded sample for every policy. SPOS:
            40 batches; pilot: 1500.
        bn_images: training images that BatchNorm statistics are re-estimated on for every policy,
            none of them among ``images``; 0 keeps the statistics of joint training. Pilot: 384.
        images_from: ``train`` = training images (the joint training may have seen them);
            ``holdout`` = those set aside by ``data.holdout``. Test images are never used.
        norms: what to do with BatchNorm copies of the joint training. ``mean`` makes one
            BatchNorm of their mean (pilot); ``copies`` uses the copy of each layer's bits, as in
            joint training.
        batch: images per forward pass. Small ones stay in a CPU's caches; larger ones suit a GPU.
            Also the batch that BatchNorm is re-estimated with. Ours.
    """

    __pydantic_config__ = CLOSED

    images: Count = 1500
    bn_images: CountFromZero = 384
    images_from: Literal["train", "holdout"] = "train"
    norms: Literal["mean", "copies"] = "mean"
    batch: Count = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class OneShotConfig(JudgeConfig):
    """Evolutionary search for the policy of least loss within one set of limits.

    Attributes:
        evaluations: policies judged in all. Pilot: 351; SPOS: 1000.
        population: policies of one generation. SPOS: 50; ours: smaller, for more generations.
        parents: best policies so far that the next generation comes from. SPOS: 10.
        crossover: share of a generation that mixes two parents; the rest mutates one. SPOS: 0.5.
        mutation: chance of each layer to change in a mutation. SPOS: 0.1.
        metric: what is minimised: ``loss``, or ``error`` = 100 - top-1 with the loss among equals.
        min_use: share of the tightest limit that a policy should use; repairs are drawn again a
            few times to reach it. Ours.
    """

    __pydantic_config__ = CLOSED

    evaluations: Count = 350
    population: Annotated[int, Ge(2)] = 25
    parents: Count = 10
    crossover: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    mutation: Annotated[float, Gt(0.0), Le(1.0)] = 0.1
    metric: Literal["loss", "error"] = "loss"
    min_use: BelowOne = 0.98


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedConfig(JudgeConfig):
    """An additive importance table fitted to the losses of sampled policies.

    Attributes:
        policies: policies judged, uniform ones included. Ours.
        levels: [lowest, highest] BitOps level of the sample, in bits as ``bitops_level`` counts
            them (2.5 = weights and activations at 2.5 bits); null = all that the candidates
            reach, so that one table serves every budget. Ours.
        fit: what is additive: the ``loss`` or its logarithm, ``log_loss``. Ours.
        folds: of the cross-validation that chooses the strength of the ridge. Ours.
    """

    __pydantic_config__ = CLOSED

    policies: Annotated[int, Ge(20)] = 400
    levels: tuple[Level, Level] | None = None
    fit: Literal["loss", "log_loss"] = "log_loss"
    folds: Annotated[int, Ge(2), Le(20)] = 5
