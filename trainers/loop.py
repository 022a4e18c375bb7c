"""The one loop that every phase trains with.

A phase hands over *moves*. A move is one optimizer update: ``accumulate`` runs whatever passes it
wants on the batch and leaves gradients behind; the loop averages them over ranks in a single
collective, checks that they are finite, clips, steps and schedules. LIMPQ's joint step is one move
of n + 1 passes; MetaMix's second epoch is two moves on the same batch; plain training is one move
of one pass.

The loop owns position, checkpoints, reports and stopping, so that they are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.checkpoint import Checkpoints, buffers_of
from trainers.data.batches import Batch, BatchPlan
from trainers.distributed import average_norm_statistics, reduce_gradients
from trainers.errors import DivergedError, InterruptedPhaseError
from trainers.meters import Meter
from trainers.optim import set_learning_rate
from trainers.phases import Cost, PhaseContext
from trainers.seeds import derive


@dataclass(frozen=True, kw_only=True)
class Move:
    """One optimizer update on a batch.

    Attributes:
        name: prefix of its logged loss.
        optimizer: its parameters are the ones that may change.
        accumulate: (batch, update number) -> mean loss; leaves gradients in the parameters.
        learning_rate: update number -> rate; None leaves the optimizer's own.
        clip_grad_value: bound on every gradient entry, applied after the ranks are averaged.
        drop_zero_grads: give a parameter whose gradient is all zero no momentum and no decay.
        after: called after the step (moving averages).
    """

    name: str
    optimizer: torch.optim.Optimizer
    accumulate: Callable[[Batch, int], Tensor]
    learning_rate: Callable[[int], float] | None = None
    clip_grad_value: float | None = None
    drop_zero_grads: bool = False
    after: Callable[[int], None] | None = None

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the optimizer."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@dataclass(kw_only=True)
class Training:
    """A whole training: what moves, over which batches, for how long, kept where.

    Attributes:
        model: the network; its state and the optimizers' make the checkpoint.
        plan: the batches.
        total_updates: batches to train on; it may end inside an epoch.
        moves: update number -> the moves on that batch.
        context: rank, folder, reports.
        stream: name of the phase's random stream.
        seed: of the run.
        meter: counts passes and images.
        extra: more state to save, by name (moving averages, architecture parameters).
        checkpoint_every: epochs between checkpoints.
        after_epoch: extra metrics at the end of an epoch.
    """

    model: nn.Module
    plan: BatchPlan
    total_updates: int
    moves: Callable[[int], Sequence[Move]]
    context: PhaseContext
    stream: str
    seed: int
    meter: Meter
    folder: Path
    extra: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_every: int = 1
    after_epoch: Callable[[int], Mapping[str, float]] | None = None

    def run(self) -> dict[str, float]:
        """Train to the end, from the newest checkpoint if there is one.

        Returns:
            The metrics of the last epoch.

        Raises:
            DivergedError: a loss or gradient stopped being finite; the checkpoint before stands.
            InterruptedPhaseError: the driver asked to stop; a checkpoint is written.
        """
        checkpoints = Checkpoints(self.folder, self.context.rank)
        update = self._restore(checkpoints)
        per_epoch = self.plan.num_batches
        metrics: dict[str, float] = {}
        self.model.train()
        while update < self.total_updates:
            epoch, first = divmod(update, per_epoch)
            losses: dict[str, float] = {}
            for batch in self.plan.epoch(epoch, first):
                stop = self._update(batch, update, losses)
                update += 1
                if stop:
                    self._save(checkpoints, update)
                    raise InterruptedPhaseError(
                        f"stopped after update {update} of {self.total_updates}; "
                        "the same command goes on from there"
                    )
                if update == self.total_updates:
                    break
            if update % per_epoch == 0:
                average_norm_statistics(self.model)
            done = update - (epoch * per_epoch + first)
            metrics = {name: value / done for name, value in losses.items()}
            if self.after_epoch is not None:
                metrics.update(self.after_epoch(epoch))
                self.model.train()
            last = update == self.total_updates
            if last or (epoch + 1) % self.checkpoint_every == 0:
                self._save(checkpoints, update)
            self.context.report(
                {"epoch": epoch + 1, "update": update, "updates": self.total_updates, **metrics}
            )
        return metrics

    def _update(self, batch: Batch, update: int, losses: dict[str, float]) -> bool:
        """All moves on one batch; true when a rank asked to stop."""
        # Networks with dropout draw from torch's own stream: the same at a resume.
        torch.manual_seed(derive(self.seed, self.stream, "step", update, self.context.rank))
        device = self.context.device
        if device != "cpu":
            batch = (
                batch[0].to(device, non_blocking=True),
                batch[1].to(device, non_blocking=True),
            )
        wants_to_stop = False
        for move in self.moves(update):
            move.optimizer.zero_grad(set_to_none=True)
            loss = move.accumulate(batch, update)
            parameters = move.parameters()
            mean_loss, num_stopping = reduce_gradients(parameters, loss, self.context.should_stop())
            self._refuse_divergence(move, mean_loss, parameters, update)
            if move.clip_grad_value is not None:
                nn.utils.clip_grad_value_(parameters, move.clip_grad_value)
            if move.drop_zero_grads:
                _drop_zero_grads(parameters)
            if move.learning_rate is not None:
                set_learning_rate(move.optimizer, move.learning_rate(update))
            move.optimizer.step()
            if move.after is not None:
                move.after(update)
            losses[f"{move.name}_loss"] = losses.get(f"{move.name}_loss", 0.0) + mean_loss
            wants_to_stop = wants_to_stop or num_stopping > 0
        return wants_to_stop

    def _refuse_divergence(
        self, move: Move, loss: float, parameters: Sequence[nn.Parameter], update: int
    ) -> None:
        """Stop before the step: after it, a NaN would be in the weights too.

        The decision is taken on values already averaged over ranks, so all ranks take it alike.
        """
        norms = [p.grad.abs().max() for p in parameters if p.grad is not None and p.grad.numel()]
        largest = float(torch.stack(norms).max()) if norms else 0.0
        if not math.isfinite(loss) or not math.isfinite(largest):
            raise DivergedError(
                f"{move.name}: loss {loss} and largest gradient {largest} at update {update}; "
                f"the last checkpoint in {self.folder} is from before. Lower the learning rate "
                "or clip gradients"
            )

    def _save(self, checkpoints: Checkpoints, update: int) -> None:
        optimizers = {m.name: m.optimizer for m in self._all_moves()}
        cost = self.meter.total()
        shared = {
            "model": self.model.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in optimizers.items()},
            "extra": {name: value.state_dict() for name, value in self.extra.items()},
            "cost": {f: getattr(cost, f) for f in Cost.__dataclass_fields__},
        }
        checkpoints.save(update, shared, {"buffers": buffers_of(self.model)})

    def _restore(self, checkpoints: Checkpoints) -> int:
        found = checkpoints.newest(self.context.device)
        if found is None:
            return 0
        update, shared, own = found
        self.model.load_state_dict(shared["model"])
        for name, buffer in self.model.named_buffers():
            buffer.data.copy_(own["buffers"][name])
        for move in self._all_moves():
            move.optimizer.load_state_dict(shared["optimizers"][move.name])
        for name, value in self.extra.items():
            value.load_state_dict(shared["extra"][name])
        self.meter.before = Cost(**shared["cost"])
        return update

    def _all_moves(self) -> Sequence[Move]:
        """Every move there is: the last update has all of them."""
        return self.moves(self.total_updates - 1)


def _drop_zero_grads(parameters: Sequence[nn.Parameter]) -> None:
    for p in parameters:
        if p.grad is not None and not p.grad.any():
            p.grad = None
