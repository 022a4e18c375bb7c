"""What may stand in an experiment file: one frozen dataclass per section.

To add a section, add a dataclass here and a field to ``ExperimentConfig``; validation, error
messages, near-name suggestions, ``--set`` and the resolved dump follow from the types. The
sections ``pretrain``, ``indicators``, ``metamix``, ``sources``, ``evidence``, ``train`` and
``evaluate`` belong to the trainers room and are only referred to.

Sources: "paper" = the LIMPQ paper, "published code" = its released code, "ours" = chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from orchestrator.cluster_config import ClusterConfig
from orchestrator.config_types import (
    AccountingName,
    Alpha,
    Candidates,
    LimitSet,
    Name,
    PinBits,
    PolicyFile,
    ReadablePath,
    Regex,
    Unique,
    WeightsSource,
    from_here,
    is_published,
    known,
)
from trainers.limpq.config import IndicatorConfig
from trainers.metamix.config import MetaMixConfig
from trainers.metamix.evidence_config import EvidenceConfig
from trainers.phases import DataSpec, ModelSpec
from trainers.recipes import CLOSED, EvaluateConfig, PretrainConfig, TrainConfig
from trainers.source_config import SourcesConfig
from trainers.sources import SOURCES, Source

SCHEMA = "experiment/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which network.

    Attributes:
        name: a network that ``mpq doctor --names`` lists, or ``module:factory``.
        num_classes: width of the classifier; with ``weights``, the number of the data's classes.
        options: keyword arguments of the network's factory.
        weights: null = train it first (section ``pretrain``), ``torchvision`` = its newest
            published ImageNet weights, ``torchvision:IMAGENET1K_V1`` = those of that name, else a
            file with a state dict.
    """

    __pydantic_config__ = CLOSED

    name: Annotated[str, MinLen(1), known("models")]
    num_classes: Annotated[int, Ge(2), Le(1_000_000)] = 10
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: WeightsSource = None

    def spec(self) -> ModelSpec:
        """What the trainers room is told."""
        return ModelSpec(
            name=self.name,
            num_classes=self.num_classes,
            options=dict(self.options),
            weights=self.weights if is_published(self.weights) else from_here(self.weights),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images.

    Attributes:
        name: a data set that ``mpq doctor --names`` lists.
        path: file or folder of file-based sets, on a file system that every node has mounted.
        options: what the set takes besides, listed in docs/training.md.
        holdout: share of the training images set aside, class by class, for ``images_from:
            holdout`` of ``sources.one_shot`` and ``sources.fitted``, their only reader; 0 = none.
            Nothing trains on them; accuracy is always measured on the test split. Ours.
        max_images: use at most so many images of each split, drawn once; null = all. What
            ``mpq run --rehearse`` sets.
        on_bad_sample: an image that cannot be decoded ``stop``s the run with its file and row, or
            is ``skip``ped and listed in the record (sets that are decoded on demand). Ours.
        max_bad_samples: how many images a step may skip, over all workers, before it stops after
            all.
    """

    __pydantic_config__ = CLOSED

    name: Annotated[str, MinLen(1), known("datasets")]
    path: ReadablePath = None
    options: Mapping[str, Any] = field(default_factory=dict)
    holdout: Annotated[float, Ge(0.0), Lt(1.0)] = 0.0
    max_images: Annotated[int, Ge(1)] | None = None
    on_bad_sample: Literal["stop", "skip"] = "stop"
    max_bad_samples: Annotated[int, Ge(0)] = 0

    def spec(self) -> DataSpec:
        """What the trainers room is told."""
        return DataSpec(
            name=self.name,
            path=from_here(self.path),
            options=dict(self.options),
            holdout=self.holdout,
            max_images=self.max_images,
            on_bad_sample=self.on_bad_sample,
            max_bad_samples=self.max_bad_samples,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BitsConfig:
    """The candidate bit-widths of searched layers.

    Attributes:
        weight: for weights. Paper and published code: 2 to 6. [32] = full precision.
        act: for activations. Paper and published code: 2 to 6. [32] = full precision, a
            weights-only search.
        tied: a layer's weight and activation get the same bits. Paper: false.
    """

    __pydantic_config__ = CLOSED

    weight: Candidates = (2, 3, 4, 5, 6)
    act: Candidates = (2, 3, 4, 5, 6)
    tied: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PinConfig:
    """Layers that no search may change.

    The first and the last layer are pinned to 8/8 without being named (paper); a pin that matches
    one of them wins over that.

    Attributes:
        match: regular expression that the whole layer name must match.
        weight_bits: fixed bits of the weight, 2 or more; 0 leaves it in full precision.
        act_bits: fixed bits of the input, 2 or more; 0 leaves it in full precision.
    """

    __pydantic_config__ = CLOSED

    match: Regex
    weight_bits: PinBits = 8
    act_bits: PinBits = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """Layers that must get the same bits, as fused kernels demand. Ours.

    Attributes:
        name: what to call the group.
        match: regular expression that the whole layer name must match.
    """

    __pydantic_config__ = CLOSED

    name: Name
    match: Regex


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """The sweep: every alpha at every limit set is one cell.

    Attributes:
        alphas: weight of the WEIGHT term of equation 4. Published code: 2.0, the only value known
            to reproduce the paper's ResNet-50 policy.
        limits: each entry is a set of limits that hold together, kind to value:
            ``{bitops: 23.07G}``, ``{bitops_level: 3x4}`` = as much as that uniform network,
            ``{weight_mib: 8, bitops_level: 4x4}``.
        repair: indicators that do not fall with more bits: ``isotonic`` regression (ours),
            ``keep``, or ``erase`` them by 1e8 (published code).
        solver: ``auto`` = HiGHS for one limit, CBC for several.
        time_limit_s: of one solve. Published code: none.
        solves_per_task: solves that one Ray task does.
        limits_per_trial: limit sets that one Ray Tune trial takes.
        train_alphas: alphas whose policies are trained; null = all.
        train_limits: limit sets whose policies are trained, by index from 0; null = all.
    """

    __pydantic_config__ = CLOSED

    alphas: Annotated[tuple[Alpha, ...], MinLen(1), Unique] = (2.0,)
    limits: Annotated[tuple[LimitSet, ...], MinLen(1)] = field(
        default_factory=lambda: ({"bitops_level": "3x3"}, {"bitops_level": "4x4"})
    )
    repair: Literal["isotonic", "keep", "erase"] = "isotonic"
    solver: Literal["auto", "highs", "cbc"] = "auto"
    time_limit_s: Annotated[float, Gt(0.0), Le(86_400.0)] = 60.0
    solves_per_task: Annotated[int, Ge(25), Le(100)] = 50
    limits_per_trial: Annotated[int, Ge(1)] = 8
    train_alphas: Annotated[tuple[Alpha, ...], Unique] | None = None
    train_limits: Annotated[tuple[Annotated[int, Ge(0)], ...], Unique] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """The MLflow mirror. Never part of what a result is.

    Attributes:
        uri: tracking server or database; null = SQLite file ``mlflow.db`` in ``runs_dir``.
        experiment: MLflow experiment; null = the run's name.
        enabled: false keeps the journal only.
    """

    __pydantic_config__ = CLOSED

    uri: str | None = None
    experiment: str | None = None
    enabled: bool = True


Control = Literal[
    "uniform", "uniform_all", "uniform_pact", "random", "reversed", "initial", "metamix_ilp",
    "limpq", "limpq_raw", "limpq_relative", "limpq_log", "limpq_by_scale", "limpq_by_input",
    "limpq_by_gradient", "limpq_by_elements", "limpq_by_macs",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceConfig:
    """How learned indicators are read by the solver, for the rows ``limpq`` and ``reversed``.

    Attributes:
        transform: ``raw`` = the learned step sizes (paper and published code). All others are
            ours: ``relative`` = over their mean over bit-widths; ``log`` = their logarithm;
            ``by_scale`` = over the range of the widest candidate; ``by_input`` = over the spread
            of the tensor that is quantized; ``by_gradient`` = times the loss's gradient by the
            step; ``by_elements`` = times the tensor's elements; ``by_macs`` = times the layer's
            MACs.
    """

    __pydantic_config__ = CLOSED

    transform: Literal[
        "raw", "relative", "log", "by_scale", "by_input", "by_gradient", "by_elements", "by_macs"
    ] = "raw"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentConfig:
    """One experiment file, checked.

    Attributes:
        name: of the run; its folder is ``runs_dir/name``.
        seed: feeds every random stream of the run by name.
        runs_dir: where run folders are made.
        method: ``limpq``, ``metamix``, or ``uniform`` = no search, uniform bits only.
        model: the network.
        data: the images.
        bits: candidate bit-widths.
        pins: fixed layers besides the first and the last.
        groups: layers that share their bits.
        accounting: how costs are counted: ``standard``, or switches of ``solvers.accounting``.
        cluster: processes and resources.
        pretrain: training of the full-precision network; null when ``model.weights`` names one.
        indicators: LIMPQ's joint indicator training.
        importance: how the solver reads the learned indicators.
        metamix: MetaMix's bit selection.
        sources: other ways to a policy within the limits that are trained, whatever the method.
        search: alphas, limits and the solver.
        train: weight training of each distinct policy.
        controls: policies trained on the same limits for comparison: ``uniform`` bits (the one
            pair of most BitOps that fits), ``uniform_all`` (every pair that fits and that no
            other fitting pair exceeds in weights or activations without falling short in the
            other; rows ``uniform_w2a3`` ...), ``uniform_pact`` (the bits of ``uniform`` trained
            with PACT's quantizers), ``random`` policies, ``reversed`` importance (paper, Ours-R),
            ``initial`` indicators. Beside another method also ``limpq``
            (indicators learned on the same candidates; ``reversed`` and ``initial`` are made
            where they are learned), ``limpq_relative`` and the like (the same indicators read
            by another transform of section ``importance``, at the first alpha that is trained),
            and for MetaMix ``metamix_ilp`` (the solver over the meta-state's activation step
            sizes).
        random_draws: how many policies the control ``random`` draws; rows ``random``,
            ``random-2`` ... Ours.
        policies: policies of your own, name -> file as ``mpq solve`` writes it; each is trained
            beside the others, at the limits that are trained and that it meets, as a row of that
            name. Ours.
        evidence: observations of both papers to repeat beside the search.
        evaluate: how networks are measured.
        tracking: the MLflow mirror.
        reports: rows of ``configs/literature`` that this experiment repeats, by id; shown beside
            its results, never part of what they are.
        rehearsal: made by ``mpq run --rehearse``: its figures mean nothing.
    """

    __pydantic_config__ = CLOSED

    name: Name
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    runs_dir: Annotated[str, MinLen(1)] = "runs"
    method: Literal["limpq", "metamix", "uniform"] = "limpq"
    model: ModelConfig
    data: DataConfig
    bits: BitsConfig = field(default_factory=BitsConfig)
    pins: tuple[PinConfig, ...] = ()
    groups: tuple[GroupConfig, ...] = ()
    accounting: AccountingName = "standard"
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    pretrain: PretrainConfig | None = field(default_factory=PretrainConfig)
    indicators: IndicatorConfig = field(default_factory=IndicatorConfig)
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    metamix: MetaMixConfig = field(default_factory=MetaMixConfig)
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    controls: Annotated[tuple[Control, ...], Unique] = (
        "uniform",
        "random",
        "reversed",
        "initial",
    )
    random_draws: Annotated[int, Ge(1), Le(1000)] = 1
    policies: Mapping[Name, PolicyFile] = field(default_factory=dict)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    reports: Annotated[tuple[str, ...], Unique] = ()
    rehearsal: bool = False

    @property
    def asked_sources(self) -> tuple[tuple[Source, Any], ...]:
        """The sources to run, each with its own configuration."""
        found = ((source, getattr(self.sources, source.name)) for source in SOURCES)
        return tuple((source, recipe) for source, recipe in found if recipe is not None)

    @property
    def learns_indicators(self) -> bool:
        """Whether LIMPQ's joint training is part of the run: its method, or what asks for it."""
        return (
            self.method == "limpq"
            or any(control.startswith("limpq") for control in self.controls)
            or (self.method == "metamix" and self.metamix.start == "limpq")
            or any(source.needs_indicators for source, _ in self.asked_sources)
        )
