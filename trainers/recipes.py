"""How long and how fast to train: the plain settings that every training phase shares.

These are values, not behaviour: ``optim.py`` turns them into an optimizer and a schedule,
``loop.py`` follows them. They are stdlib dataclasses with their allowed ranges in the annotation,
so that the orchestrator can check a YAML file against them and this room needs no validation
library.

Batch sizes are global: one optimizer step sees ``batch_size`` images whatever the number of
workers, and ``lr`` belongs to that batch. No learning rate is scaled behind the reader's back.

Sources named below: "paper" = the LIMPQ paper; "published code" = the released LIMPQ code, whose
ResNet-50 recipe is the only one released; "ours" = chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

# Read by the orchestrator's validator: an unknown key is an error, and so is NaN or infinity.
CLOSED = {"extra": "forbid", "allow_inf_nan": False}

WeightInit = Literal["lsq_plus", "lsq", "constant"]
ActInit = Literal["lsq", "constant"]
NegativeInputs = Literal["signed", "refuse"]

Count = Annotated[int, Ge(1)]
CountFromZero = Annotated[int, Ge(0)]
Rate = Annotated[float, Gt(0.0), Le(100.0)]
Share = Annotated[float, Gt(0.0), Le(1.0)]
BelowOne = Annotated[float, Ge(0.0), Lt(1.0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """SGD with momentum, linear warm-up and cosine decay, as both stages of LIMPQ use it.

    Attributes:
        epochs: passes over the (fraction of the) training images. Ours.
        steps: optimizer steps; when given, training ends after them and ``epochs`` is not read.
            Ours, for small data.
        batch_size: images per optimizer step over all workers. Published code states it per
            process; ours is global, so that results do not depend on the number of workers.
        lr: learning rate at that batch size, after warm-up.
        momentum: of SGD. Published code: 0.9.
        nesterov: Nesterov momentum. Published code: true (timm's ``sgd``).
        weight_decay: on weights of two and more dimensions. Published code: 2.5e-5.
        decay_vectors: also decay biases, BatchNorm and step sizes. Published code: false (timm
            exempts one-dimensional parameters).
        min_lr: where the cosine ends. Published code: 1e-5.
        warmup_epochs: epochs of linear warm-up, may be a fraction; counted in ``epochs``.
        warmup_lr: where the warm-up starts. Published code: 1e-5.
        label_smoothing: of the cross entropy. Published code: 0.1.
        clip_grad_value: every gradient entry is clipped to plus or minus this; null = never.
        augment: use the data set's training augmentation. Published code: true.
        fraction: share of the training images used, the same ones in every epoch.
        precision: number format of training passes, by autocast: ``fp32``; ``bf16``; ``fp16``
            with a loss scale. Weights, step sizes, the quantizer and every evaluation stay in
            float32. Published code: fp32.
        channels_last: memory layout of images and weights. Same result up to rounding; faster
            on CPUs (x1.3 for ResNet-20, x1.6 for MobileNet-V2 in full precision) and on GPUs with
            16-bit passes. Ours.
        accumulate: equal parts that a worker's share of a batch is passed through in, for GPUs
            that cannot hold it; one update for all of them. Same result where BatchNorm is
            frozen, else its statistics are those of a part. Ours.
        deterministic: only algorithms that give the same bits twice. CPUs always do; on a GPU it
            costs speed. Ours.
    """

    __pydantic_config__ = CLOSED

    epochs: Count = 30
    steps: Count | None = None
    batch_size: Count = 128
    lr: Rate = 0.1
    momentum: BelowOne = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Ge(0.0), Le(1.0)] = 5e-4
    decay_vectors: bool = False
    min_lr: Annotated[float, Ge(0.0), Le(100.0)] = 1e-5
    warmup_epochs: Annotated[float, Ge(0.0)] = 0.0
    warmup_lr: Annotated[float, Ge(0.0), Le(100.0)] = 1e-5
    label_smoothing: BelowOne = 0.0
    clip_grad_value: Annotated[float, Gt(0.0)] | None = None
    augment: bool = True
    fraction: Share = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    accumulate: Count = 1
    deterministic: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(OptimizerConfig):
    """Training the full-precision network that everything else starts from.

    The papers start from published ImageNet weights; this recipe is ours, for the networks and
    data sets that come without any. Its defaults are those of ``OptimizerConfig``.
    """

    __pydantic_config__ = CLOSED


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """A teacher and how much it counts.

    Attributes:
        weight: of the soft cross entropy beside the hard one. PROFIT and NIPQ: 1.
        temperature: divides both logits. PROFIT and NIPQ: 1.
        model: name of the teacher network; null = the network itself in full precision.
        weights: its weights, ``torchvision``, ``torchvision:NAME`` or a file; null with ``model``
            null, and only then.
        options: keyword arguments of its factory; none with ``model`` null.
        hard_weight: of the cross entropy with the labels. PROFIT and NIPQ: 1; BASQ: 0.
    """

    __pydantic_config__ = CLOSED

    weight: Annotated[float, Gt(0.0), Le(1e3)] = 1.0
    temperature: Annotated[float, Gt(0.0), Le(100.0)] = 1.0
    model: str | None = None
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    hard_weight: Annotated[float, Ge(0.0), Le(1e3)] = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FreezingConfig:
    """PROFIT's freezing at the end of training: layers that unsettle their outputs stop first.

    MetaMix's authors tried it on top and gained nothing (their section 5).

    Attributes:
        stages: equal parts of the last ``share`` of training; at the start of each the next
            part of the layers, most unsteady first, stops learning. PROFIT: 3.
        share: of all updates that the stages take. PROFIT trains them as extra epochs; ours.
    """

    __pydantic_config__ = CLOSED

    stages: Count = 3
    share: Share = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantTrainingConfig(OptimizerConfig):
    """What training with quantizers needs besides: how step sizes start and are kept.

    Attributes:
        weight_init: start of weight step sizes at b bit. ``lsq_plus``: max(|mean - 3 std|,
            |mean + 3 std|) / 2^(b-1), published code; ``lsq``: 2 mean|w| / sqrt(Qp);
            ``constant``: 0.1 / b, the "same initialisation" experiment of the paper.
        act_init: start of activation step sizes. ``lsq``: 2 mean|x| / sqrt(Qp) on the first
            images, averaged over ranks, published code; ``constant``: 0.1 / b.
        init_batches: batches that start the activations' step sizes. 1 = the first training pass
            at each width, published code; more = their mean over full-precision passes, ours.
        grad_scale: multiply step-size gradients by 1 / sqrt(Qp * number of elements), the
            elements of an activation counted over the global batch. Published code: true.
        step_clamp: [lowest, highest] step size in the forward pass; null = none.
        max_step_change: largest relative change of a step size in one update; null = no bound.
            Published code: none, where steps of small layers can cross zero and kill the network
            (``quant/guard.py``). Ours: 0.1.
        negative_inputs: layers whose input can be negative get a ``signed`` range, or the phase
            ``refuse``s the network. Published code clips them to zero silently; ours does not.
        compile_quantizer: run the quantizer through ``torch.compile`` (needs a C++ compiler, or
            a GPU); the network itself stays eager. Ours.
        merge_relu: quantizers take over the ReLU before them where they alone read it
            (MobileNets, CIFAR ResNets); the same values with fewer passes over memory. Ours.
    """

    __pydantic_config__ = CLOSED

    weight_init: WeightInit = "lsq_plus"
    act_init: ActInit = "lsq"
    init_batches: Count = 1
    grad_scale: bool = True
    step_clamp: tuple[Annotated[float, Gt(0.0)], Annotated[float, Gt(0.0)]] | None = None
    max_step_change: Annotated[float, Gt(0.0)] | None = 0.1
    negative_inputs: NegativeInputs = "signed"
    compile_quantizer: bool = False
    merge_relu: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PactConfig:
    """PACT's learned clipping levels (Choi et al., 2018), where they take LSQ's place.

    Attributes:
        clip_start: clipping level of every activation at the start; null = the largest value of
            the first batch. Paper: a constant that is large enough. Ours: null.
        clip_decay: weight decay of the clipping levels, so that they come down. Paper: as large
            as the weights' own, 2e-4 on CIFAR-10.
    """

    __pydantic_config__ = CLOSED

    clip_start: Annotated[float, Gt(0.0), Le(1e4)] | None = None
    clip_decay: Annotated[float, Ge(0.0), Le(1.0)] = 2e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(QuantTrainingConfig):
    """Weight training at fixed bits, from the full-precision weights or from a meta-state.

    Defaults are the published ResNet-50 recipe: 90 epochs, lr 0.04 with 5 epochs of warm-up, no
    clamp on step sizes.

    Attributes:
        epochs: passes over the training images. Published recipe of ResNet-50: 90.
        bn_reestimate_images: training images that re-estimate BatchNorm statistics before every
            evaluation; 0 = keep the running statistics. Published code: about 6000. Here they
            never leak back into training, as they do there.
        evaluate_every: epochs between evaluations; 0 = only after the last. Published code: 25.
        quantizer_lr_factor: learning rate of step sizes in units of ``lr``. LSQ: 1; PROFIT: 0.01.
        distillation: a teacher; null = none, as in both papers' main texts.
        ema_decay: measure a moving average of the weights with this decay an update; null = the
            weights themselves. PROFIT: 0.9997.
        freezing: null = none.
        quantizer: of every policy. ``lsq`` = learned step sizes, both papers; ``pact`` = learned
            clipping levels and DoReFa weights. The control ``uniform_pact`` takes PACT's anyway.
        pact: settings of PACT, wherever it is used.
    """

    __pydantic_config__ = CLOSED

    epochs: Count = 90
    lr: Rate = 0.04
    weight_decay: Annotated[float, Ge(0.0), Le(1.0)] = 2.5e-5
    warmup_epochs: Annotated[float, Ge(0.0)] = 5.0
    label_smoothing: BelowOne = 0.1
    bn_reestimate_images: CountFromZero = 6000
    evaluate_every: CountFromZero = 0
    quantizer_lr_factor: Annotated[float, Ge(0.0), Le(100.0)] = 1.0
    distillation: DistillationConfig | None = None
    ema_decay: BelowOne | None = None
    freezing: FreezingConfig | None = None
    quantizer: Literal["lsq", "pact"] = "lsq"
    pact: PactConfig = field(default_factory=PactConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How a trained network is measured.

    Attributes:
        batch_size: images per forward pass over all workers; does not change the result.
    """

    __pydantic_config__ = CLOSED

    batch_size: Count = 256
