"""A training that was killed anywhere ends bit for bit as one that was not; 1 and 2 ranks.

Compared are hashes of weights, optimizer, BatchNorm buffers, step sizes, losses, the state of the
random generators and every batch of images, at fixed threads on a CPU.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from forked import POINTS, Kill, Phases, ends, train

if TYPE_CHECKING:
    from fault_ledger import Ledger

PHASES = (
    "pretrain", "limpq.indicators", "metamix.meta", "metamix.bit_selection", "weight_training",
)  # fmt: skip
# How often a point is passed in the small trainings: 6 to 15 updates, a save every second.
MOST = {"mid-step": 5, "before-save": 2, "mid-save": 3, "mid-write": 3, "before-rename": 2,
        "after-save": 2}  # fmt: skip


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Phases:
    return Phases(tmp_path_factory.mktemp("phases"))


@pytest.fixture(scope="module")
def undisturbed(phases: Phases, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The end of a phase that nobody disturbs, by phase, seed and ranks; each made once."""
    known: dict[tuple[str, int, int], dict[str, Any]] = {}

    def of(name: str, seed: int, ranks: int) -> dict[str, Any]:
        if (name, seed, ranks) not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            statuses = train(phases.spec(name, seed), folder, ranks=ranks, kill=None)
            assert statuses == [0] * ranks
            known[name, seed, ranks] = ends(folder, ranks)
        return known[name, seed, ranks]

    return of


def cases(count: int, ranks: int) -> list[Any]:
    """Phases and points in turn, moments and seeds drawn."""
    draw = random.Random(ranks)
    found = []
    for number in range(count):
        name, point = PHASES[number % len(PHASES)], POINTS[number % len(POINTS)]
        # Only rank 0 renames.
        rank = 0 if point == "before-rename" else number % ranks
        at = draw.randint(1, MOST[point] if rank == 0 else 2)
        mark = () if number < (6 if ranks == 1 else 2) else pytest.mark.slow
        found.append(
            pytest.param(
                name, Kill(point, at, rank), number % 2, ranks, marks=mark,
                id=f"{name}-{point}-{at}-rank{rank}of{ranks}-{number}",
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize(("name", "kill", "seed", "ranks"), cases(75, 1) + cases(30, 2))
def test_killed_and_gone_on_is_bit_identical(
    name: str, kill: Kill, seed: int, ranks: int, phases: Phases, undisturbed: Any,
    tmp_path: Path, ledger: Ledger,
) -> None:  # fmt: skip
    expected = undisturbed(name, seed, ranks)
    kind = f"SIGKILL of a rank at a named point, {ranks} rank{'s' if ranks > 1 else ''}"
    statuses = train(phases.spec(name, seed), tmp_path, ranks=ranks, kill=kill)
    assert statuses[kill.rank] == -signal.SIGKILL, "the point was not reached"
    ledger.inject(1, kind)
    assert train(phases.spec(name, seed), tmp_path, ranks=ranks, kill=None) == [0] * ranks
    assert ends(tmp_path, ranks) == expected
    ledger.survive(1, kind)


def test_the_comparison_sees_a_lost_momentum(
    phases: Phases, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a resume that forgets the optimizer must not look the same."""
    from torch.optim import SGD

    expected = undisturbed("pretrain", 0, 1)
    spec = phases.spec("pretrain", 0)
    assert train(spec, tmp_path, ranks=1, kill=Kill("after-save", 1)) == [-signal.SIGKILL]
    monkeypatch.setattr(SGD, "load_state_dict", lambda self, state: None)
    assert train(spec, tmp_path, ranks=1, kill=None) == [0]
    found = ends(tmp_path, 1)
    assert found["state 0"] != expected["state 0"]
    assert found["batches 0"] == expected["batches 0"]


def test_the_comparison_sees_another_order_of_images(
    phases: Phases, undisturbed: Any, tmp_path: Path
) -> None:
    """Negative control: another seed is another order, and other weights."""
    expected = undisturbed("pretrain", 0, 1)
    assert train(phases.spec("pretrain", 1), tmp_path, ranks=1, kill=None) == [0]
    found = ends(tmp_path, 1)
    assert found["batches 0"] != expected["batches 0"]
    assert found["weights.pt"] != expected["weights.pt"]
