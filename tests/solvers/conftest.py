"""Small networks and random instances for the tests of the solver room."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest

from solvers.accounting import Accounting
from solvers.latency import LatencyTable
from solvers.limits import Limit
from solvers.problem import Problem, build_problem
from solvers.tables import (
    BitChoices,
    CostTable,
    Importance,
    ImportanceTable,
    LayerBits,
    LayerSpec,
    TensorLife,
)
from solvers.units import units_of


def layer_of(name: str, macs: int, weights: int, **more: object) -> LayerSpec:
    values: dict[str, object] = {
        "kind": "conv",
        "num_macs_unfloored": macs + macs // 7,
        "num_biases": 3,
        "num_inputs": weights // 2 + 1,
        "num_outputs": weights // 3 + 1,
    }
    return LayerSpec(name=name, num_macs=macs, num_weights=weights, **{**values, **more})  # type: ignore[arg-type]


def indicators_of(
    costs: CostTable, choices: BitChoices, draw: Callable[[], float]
) -> ImportanceTable:
    rows = []
    for layer in costs.searched:
        options = choices.of(layer)
        for tensor, widths in (
            ("weight", {o.weight_bits for o in options}),
            ("act", {o.act_bits for o in options}),
        ):
            rows += [
                Importance(layer=layer.name, tensor=tensor, bits=b, value=draw() / b)  # type: ignore[arg-type]
                for b in sorted(widths)
            ]
    return ImportanceTable(
        model=costs.model,
        fingerprint=costs.fingerprint,
        method="test",
        seed=0,
        data_fingerprint="",
        rows=tuple(rows),
    )


@dataclass(frozen=True)
class Instance:
    """A random question small enough to look at every policy."""

    costs: CostTable
    choices: BitChoices
    importance: ImportanceTable
    limits: tuple[Limit, ...]
    alpha: float
    accounting: Accounting
    repair: str

    def problem(self) -> Problem:
        return build_problem(
            self.costs,
            self.choices,
            self.limits,
            importance=self.importance,
            alpha=self.alpha,
            accounting=self.accounting,
            repair=self.repair,
        )


def make_random_instance(
    seed: int, *, num_limits: int | None = None, largest: int = 400
) -> Instance:
    """Groups, pins, overrides, ties in size, all kinds of limits; at most ``largest`` policies."""
    rng = random.Random(seed)
    while True:
        costs, choices = _network(rng)
        product = 1
        for unit in units_of(costs, choices):
            product *= len(unit.options)
        if product <= largest and costs.searched:
            break
    importance = indicators_of(costs, choices, lambda: rng.choice([rng.lognormvariate(0, 1), 1.0]))
    accounting = Accounting(
        spatial=rng.choice(["exact", "unfloored"]),
        first_act_bits=rng.choice([None, None, 8, 32]),
        count_fp32_rest=rng.random() < 0.3,
    )
    kinds = [
        "bitops", "weight_bytes", "mean_weight_bits", "mean_act_bits", "compression_rate",
        "peak_activation_bytes", "latency_us",
    ]  # fmt: skip
    num = num_limits if num_limits is not None else rng.choice([1, 1, 2, 3])
    limits = tuple(_limit(rng, kind, costs, choices, accounting) for kind in rng.sample(kinds, num))
    return Instance(
        costs=costs,
        choices=choices,
        importance=importance,
        limits=limits,
        alpha=rng.choice([0.0, 0.5, 1.0, 2.0]),
        accounting=accounting,
        repair=rng.choice(["isotonic", "keep", "erase"]),
    )


def _network(rng: random.Random) -> tuple[CostTable, BitChoices]:
    num = rng.randint(1, 5)
    groups = [rng.choice([None, None, None, "g0", "g1"]) for _ in range(num)]
    layers = tuple(
        layer_of(
            f"layer{i}",
            rng.choice([100, 200, 300, rng.randint(1, 10**7)]),
            rng.choice([10, 20, rng.randint(1, 10**6)]),
            pinned=LayerBits(weight_bits=8, act_bits=8)
            if groups[i] is None and rng.random() < 0.2
            else None,
            group=groups[i],
        )
        for i in range(num)
    )
    names = [layer.name for layer in layers]
    tensors = []
    for step in range(num):
        readers = tuple(sorted(set(rng.sample(names, rng.randint(0, min(2, num))))))
        tensors.append(
            TensorLife(
                num_elements=rng.randint(1, 5000),
                first_step=step,
                last_step=step + rng.randint(0, 2),
                layers=readers,
            )
        )
    widths = sorted(rng.sample(range(2, 9), rng.randint(1, 3)))
    acts = sorted(rng.sample(range(2, 9), rng.randint(1, 3)))
    overrides = ()
    if groups[0] is None and rng.random() < 0.3:
        overrides = ((names[0], (3, 7), (2, 5)),)
    return (
        CostTable(model="tiny", input_shape=(3, 8, 8), layers=layers, tensors=tuple(tensors),
                  num_other_params=rng.randint(0, 50)),
        BitChoices(weight_bits=tuple(widths), act_bits=tuple(acts), overrides=overrides),
    )  # fmt: skip


def _limit(
    rng: random.Random,
    kind: str,
    costs: CostTable,
    choices: BitChoices,
    accounting: Accounting,
) -> Limit:
    """A limit somewhere between out of reach and out of the way."""
    from solvers.reach import reachable

    latency = None
    if kind == "latency_us":
        rows = tuple(
            (layer.name, w, a, rng.randint(1, 10**6) + 1000 * w * a)
            for layer in costs
            for w in range(1, 9)
            for a in range(1, 9)
        )
        latency = LatencyTable(name="random", rows=rows)
    low, high = reachable(costs, choices, kind, accounting, latency=latency)  # type: ignore[arg-type]
    at = rng.uniform(-0.1, 1.1)
    amount = Fraction(low + at * (high - low)).limit_denominator(10**6)
    if rng.random() < 0.2:
        amount = Fraction(low)
    return Limit(kind=kind, limit=max(amount, Fraction(1, 10**6)), latency=latency)  # type: ignore[arg-type]


@pytest.fixture
def tiny() -> CostTable:
    """Four layers: pinned ends, a searched pair in between."""
    pin = LayerBits(weight_bits=8, act_bits=8)
    return CostTable(
        model="tiny",
        input_shape=(3, 8, 8),
        layers=(
            layer_of("stem", 1000, 100, pinned=pin),
            layer_of("a", 5000, 400),
            layer_of("b", 3000, 900),
            layer_of("head", 200, 200, pinned=pin),
        ),
        num_other_params=16,
        tensors=(
            TensorLife(num_elements=192, first_step=0, last_step=0, layers=("stem",)),
            TensorLife(num_elements=512, first_step=0, last_step=2, layers=("a", "b")),
            TensorLife(num_elements=256, first_step=1, last_step=3, layers=("head",)),
            TensorLife(num_elements=64, first_step=2, last_step=3, layers=()),
        ),
    )


@pytest.fixture
def pairs() -> BitChoices:
    return BitChoices(weight_bits=(2, 4, 8), act_bits=(2, 4, 8))


@pytest.fixture
def tiny_importance(tiny: CostTable, pairs: BitChoices) -> ImportanceTable:
    rng = random.Random(7)
    return indicators_of(tiny, pairs, lambda: rng.uniform(0.5, 1.5))


@pytest.fixture(scope="session")
def random_instance() -> Callable[..., Instance]:
    return make_random_instance
