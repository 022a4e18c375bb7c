"""Which policies have been judged, with what verdict, shared by the ranks and safe from a kill?

Rank r judges every W-th policy of a chunk whole, and one exchange gives all ranks all verdicts: the
same numbers whatever W is. The Parquet file is output and checkpoint at once: a resume proposes the
same policies again and finds their verdicts there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from solvers.accounting import total_bitops
from solvers.parquet import read_table, write_table
from solvers.policy import policy_id_of
from solvers.problem import Problem
from solvers.tables import LayerBits
from trainers.distributed import check_same, sum_over_ranks
from trainers.errors import DivergedError, InterruptedPhaseError
from trainers.meters import Meter
from trainers.oneshot.evolution import Picks, Proposal
from trainers.oneshot.measure import Measured
from trainers.phases import Cost, PhaseContext

SCHEMA: Final = "judged-policies/1"
COLUMNS: Final = (
    "policy_id", "generation", "origin", "weight_bits", "act_bits", "bitops", "loss", "top1",
)  # fmt: skip
TABLE = "judged.parquet"

_SAVE_EVERY_S = 20.0
Verdict = Callable[[Mapping[str, LayerBits]], Measured]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One judged policy."""

    policy_id: str
    generation: int
    origin: str
    picks: Picks
    bitops: int
    measured: Measured


class Ledger:
    """Judged policies in the order they were proposed.

    Args:
        problem: the units, limits and accounting; only its units must be the same in a resume.
        judge: verdict on one policy, by this rank alone.
        passes: forward passes that one verdict takes.
        meter: of the phase.
        context: this rank.

    Raises:
        FormatError: the file of an earlier attempt cannot be read.
    """

    def __init__(
        self, problem: Problem, judge: Verdict, passes: int, meter: Meter, context: PhaseContext
    ) -> None:
        self.problem, self.judge, self.passes = problem, judge, passes
        self.meter, self.context = meter, context
        self.entries: dict[Picks, Entry] = {}
        self._stored = self._read()
        self._saved_at = time.monotonic()

    @property
    def path(self) -> Path:
        """The table."""
        return self.context.step_dir / TABLE

    def judge_all(self, proposals: Sequence[Proposal], generation: int) -> None:
        """Give every proposal a verdict and enter it.

        Raises:
            DivergedError: a loss is not finite.
            InterruptedPhaseError: a rank was asked to stop; what was judged is kept.
        """
        verdicts = {
            proposal.picks: self._stored[policy_id]
            for proposal in proposals
            if (policy_id := self._id_of(proposal.picks)) in self._stored
        }
        waiting = [proposal for proposal in proposals if proposal.picks not in verdicts]
        ranks, rank = self.context.world_size, self.context.rank
        for start in range(0, len(waiting), ranks):
            chunk = waiting[start : start + ranks]
            words = [0.0] * (2 * ranks + 2)
            if rank < len(chunk):
                try:
                    mine = self.judge(self.problem.bits_by_name(chunk[rank].picks))
                except DivergedError:
                    # Told to all ranks first: one that leaves alone would block the others.
                    mine = Measured(loss=float("nan"), top1=0.0)
                words[2 * rank : 2 * rank + 2] = [mine.loss, mine.top1]
            self.meter.forward_passes += self.passes * len(chunk)
            words[-2] = float(self.context.should_stop())
            late = rank == 0 and time.monotonic() - self._saved_at > _SAVE_EVERY_S
            words[-1] = float(late)
            *found, num_stopping, is_late = sum_over_ranks(words, self.context.device)
            for i, proposal in enumerate(chunk):
                loss, top1 = found[2 * i : 2 * i + 2]
                if not loss < float("inf"):
                    policy = self.problem.bits_by_name(proposal.picks)
                    raise DivergedError(
                        f"the loss of policy {policy} is {loss}: weights or step sizes of the "
                        "joint training are broken; lower its learning rate"
                    )
                verdicts[proposal.picks] = Measured(loss=loss, top1=top1)
            done = len(self.entries) + len(verdicts)
            self.context.progress({"policies": done, "loss": found[0]})
            if num_stopping or is_late:
                self.save(self._made(proposals, generation, verdicts))
            if num_stopping:
                raise InterruptedPhaseError(
                    f"stopped after {done} policies; the same command goes on from there"
                )
        for entry in self._made(proposals, generation, verdicts):
            self.entries[entry.picks] = entry

    def _made(
        self,
        proposals: Sequence[Proposal],
        generation: int,
        verdicts: Mapping[Picks, Measured],
    ) -> list[Entry]:
        """Entries of the proposals that have a verdict."""
        return [
            Entry(
                policy_id=self._id_of(proposal.picks),
                generation=generation,
                origin=proposal.origin,
                picks=proposal.picks,
                bitops=total_bitops(
                    self.problem.costs,
                    self.problem.bits_by_name(proposal.picks),
                    self.problem.accounting,
                ),
                measured=verdicts[proposal.picks],
            )
            for proposal in proposals
            if proposal.picks in verdicts
        ]

    def _id_of(self, picks: Picks) -> str:
        return policy_id_of(self.problem.costs.fingerprint, self.problem.bits_by_name(picks))

    def save(self, more: Sequence[Entry] = ()) -> None:
        """Write the table; every rank must call it.

        Args:
            more: entries of a generation that is not whole yet.
        """
        entries = [*self.entries.values(), *more]
        cost = self.meter.total()
        self._saved_at = time.monotonic()
        if self.context.rank != 0:
            return
        costs = self.problem.costs
        facts = {
            "model": costs.model,
            "fingerprint": costs.fingerprint,
            "layers": list(costs.names),
            "limits": [c.limit.text for c in self.problem.ceilings],
            "accounting": self.problem.accounting.name,
            "cost": asdict(cost),
        }
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for entry in entries:
            bits = self.problem.bits_by_name(entry.picks).values()
            row = (
                entry.policy_id, entry.generation, entry.origin,
                [b.weight_bits for b in bits], [b.act_bits for b in bits],
                entry.bitops, entry.measured.loss, entry.measured.top1,
            )  # fmt: skip
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
        arrays = {name: pa.array(values) for name, values in columns.items()}
        write_table(self.path, SCHEMA, facts, arrays)

    def _read(self) -> dict[str, Measured]:
        """Verdicts of an earlier attempt by policy."""
        stored: dict[str, Measured] = {}
        if self.path.is_file():
            facts, rows = read_table(self.path, SCHEMA, COLUMNS)
            for policy_id, loss, top1 in zip(
                rows["policy_id"], rows["loss"], rows["top1"], strict=True
            ):
                stored[policy_id] = Measured(loss=loss, top1=top1)
            self.meter.before = Cost(**facts["cost"])
        check_same("the number of judged policies to go on from", len(stored), self.context.device)
        return stored
