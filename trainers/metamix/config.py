"""Every setting of MetaMix's bit selection, with the source of each default.

The paper's main text leaves the optimizers, learning rates, lambda_r, the start of alpha, the
BatchNorm mode of the search step and weight mixed precision open. Each such point is a field here.

Sources: "paper" = the MetaMix paper; "NIPQ", "PROFIT", "EdMIPS" = the released code of those
methods, which share authors or task with MetaMix; "ours" = chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from trainers.recipes import (
    CLOSED,
    BelowOne,
    Count,
    DistillationConfig,
    QuantTrainingConfig,
    Rate,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaConfig(QuantTrainingConfig):
    """Bit-meta training: the weights and activation step sizes (equation 1).

    The same optimizer and one schedule run through the meta-only epochs and the alternating ones.

    Attributes:
        epochs: of meta-only training before the search. Paper: 1 (Table 1).
        steps: updates of it; when given, ``epochs`` is not read. Ours, for small data.
        batch_size: NIPQ: 256.
        lr: NIPQ: 0.04 for MobileNet-V2.
        weight_decay: NIPQ: 1e-5.
        augment: training augmentation; as in the data set.
        step_clamp: a floor in the forward pass, so that no update can turn a step negative; the
            upper end only has to be out of reach. Ours.
        batchnorm: ``shared`` = one BatchNorm for all bit-widths (paper: its stability is the
            point); ``switchable`` = one copy per bit-width, as LIMPQ's published code.
        quantizer_lr_factor: learning rate of step sizes in units of ``lr``. LSQ: 1, its gradient
            scale being on; PROFIT, whose quantizer has no such scale: 0.01.
        distillation: null = cross entropy alone (the paper names no teacher).
    """

    __pydantic_config__ = CLOSED

    epochs: Count = 1
    batch_size: Count = 256
    lr: Rate = 0.04
    weight_decay: Annotated[float, Ge(0.0), Le(1.0)] = 1e-5
    step_clamp: tuple[Annotated[float, Gt(0.0)], Annotated[float, Gt(0.0)]] | None = (1e-5, 1e4)
    batchnorm: Literal["shared", "switchable"] = "shared"
    quantizer_lr_factor: Annotated[float, Ge(0.0), Le(100.0)] = 1.0
    distillation: DistillationConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Bit-search training: the architecture parameters alpha (equations 2 to 5).

    Attributes:
        epochs: in which one meta and one search update alternate on each batch. Paper: 1.
        steps: batches of it; when given, ``epochs`` is not read. Ours, for small data.
        optimizer: of alpha. ``adam`` is ours, because one epoch is short; EdMIPS: ``sgd``.
        lr: of alpha at the start. Ours, for Adam; EdMIPS: 0.01 for SGD.
        min_lr: where its cosine ends; equal to ``lr`` keeps it constant. Ours: near 0, so that
            the selection settles although the penalty's sign flips at the target.
        betas: of Adam. Ours, as usual for architecture parameters.
        momentum: of SGD. EdMIPS: 0.9.
        weight_decay: on alpha. Ours: 0, decay would pull towards equal bits.
        alpha_init: start of every alpha; only differences matter. EdMIPS: 0.01.
        lambda_r: factor of the penalty. Ours, for a penalty in units of the target: it drew the
            argmax of MobileNet-V2 to within 1 % of it, where 0.3 left 14 % (docs/metamix.md). On
            small networks with a small loss 0.1 to 0.3 leaves the task more to say.
        penalty: ``relative`` divides r(alpha) by the target; ``absolute`` is equation 4 as
            printed, whose lambda_r belongs to one network and one unit. Ours.
        batchnorm: statistics of the search pass. ``batch`` normalises with the batch and leaves
            the running statistics alone, so that the meta-state is fixed and its passes look
            like those it was trained in; ``running`` uses the running ones. Ours.
        fixed_meta_state: weights, step sizes and BatchNorm do not move in search steps. Paper:
            true; false is the ablation of Figure 7 (a), where they take the search loss too.
        repair: what to do when the argmax misses the target. ``probable`` takes the policy of
            the largest probability under the learned alphas with a cost in the band, ``none``
            keeps the argmax as it is. Ours; the paper reports argmax only.
        band: smallest share of the target that a policy should use.
        history_every: updates between two records of alpha; null = 200 records in all.
    """

    __pydantic_config__ = CLOSED

    epochs: Count = 1
    steps: Count | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Rate = 0.02
    min_lr: Annotated[float, Ge(0.0), Le(100.0)] = 1e-4
    betas: tuple[BelowOne, BelowOne] = (0.5, 0.999)
    momentum: BelowOne = 0.9
    weight_decay: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    alpha_init: Annotated[float, Ge(-10.0), Le(10.0)] = 0.01
    lambda_r: Annotated[float, Ge(0.0), Le(1e6)] = 1.0
    penalty: Literal["relative", "absolute"] = "relative"
    batchnorm: Literal["batch", "running"] = "batch"
    fixed_meta_state: bool = True
    repair: Literal["probable", "none"] = "probable"
    band: Annotated[float, Gt(0.0), Le(1.0)] = 0.99
    history_every: Count | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaMixConfig:
    """The bit selection phase: section ``metamix`` of an experiment.

    Attributes:
        meta: bit-meta training.
        search: bit-search training.
        inherit: what weight training takes over from it. Paper: ``weights_and_steps``;
            ``weights`` starts the step sizes anew, ``nothing`` goes back to the full-precision
            network (the fast-retraining claim, Table 5, is the difference).
        start: weights that the meta-state starts from. Paper: ``full_precision``; ``limpq`` = the
            jointly trained weights of LIMPQ's indicators, their BatchNorm copies merged and
            re-estimated (both methods train at every width, so one may serve the other). Ours.
    """

    __pydantic_config__ = CLOSED

    meta: MetaConfig = field(default_factory=MetaConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    inherit: Literal["weights_and_steps", "weights", "nothing"] = "weights_and_steps"
    start: Literal["full_precision", "limpq"] = "full_precision"


@dataclass(frozen=True, kw_only=True, slots=True)
class BitSelectionConfig:
    """One bit selection: the recipe, and the cost to reach. Made by the plan, not by a file.

    Attributes:
        metamix: the recipe.
        target: a limit as the solver's room writes it: ``bitops=5.28G``, ``bitops_level=4x4``,
            ``mean_act_bits=4`` or ``mean_act_bits=4@layer4.*``.
        accounting: how BitOps are counted.
    """

    metamix: MetaMixConfig
    target: str
    accounting: str = "standard"
