"""Which other ways to a policy are there, what does each need and what does it yield?

A *source* is a phase that looks at a network and says which bits its layers should get, within the
same limits and by the same meters as LIMPQ and MetaMix. It yields one of two things:

* ``importance``: a table of one value per layer, tensor and bit-width, which the solver sums as it
  sums LIMPQ's indicators. One step serves every set of limits. ``spec.config`` is the source's own
  configuration; the output is ``{"importance": "importance.parquet"}``, in any positive unit.
* ``policy``: bits for one set of limits, one step each. ``spec.config`` is a ``PolicySearch``
  (``source_config.py``): the source's configuration, the limits as text (``Limit.text``) and the
  accounting. The output is ``{"policy": "policy.json"}`` with ``metrics`` ``reached_share`` (use
  over limit, the largest of the limits) and ``facts["in_band"]`` (no limit exceeded, and the
  tightest used up as far as the source promises). A search that finds nothing within its limits
  has no output ``policy``; ``facts["reason"]`` says why.

Both count what they did in ``metrics`` (``evaluations``, where a network was measured as a
candidate) and in ``cost``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainers.errors import TrainersError


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One way to a policy.

    Attributes:
        name: key in section ``sources``, method name of its rows, name of its step.
        phase: a name in ``trainers.registry``.
        yields: an importance table for the solver, or a policy for one set of limits.
        needs: input roles besides ``costs``: ``weights`` (full precision), ``joint`` (weights and
            step sizes of ``limpq.indicators``), ``importance`` (the learned indicators).
        about: one clause for ``mpq plan``.
        takes_one_limit: it can aim at a single limit only, as MetaMix's bit selection does.
        alpha: weight of the weights' values that its table is made for; None = any, so it is
            solved at the first alpha whose policies are trained.
        version: raised when it would compute something else from the same configuration.
    """

    name: str
    phase: str
    yields: Literal["importance", "policy"]
    needs: tuple[str, ...]
    about: str
    takes_one_limit: bool = False
    alpha: float | None = None
    version: int = 1

    @property
    def needs_indicators(self) -> bool:
        """Whether it starts from LIMPQ's joint training."""
        return bool({"joint", "importance"} & set(self.needs))


_BASELINES = (
    Source(
        name="quantization_error",
        phase="baselines.quantization_error",
        yields="importance",
        needs=("weights",),
        about="squared quantization error of the full-precision network",
        alpha=1.0,
    ),
    Source(
        name="one_layer_loss",
        phase="baselines.one_layer_loss",
        yields="importance",
        needs=("weights",),
        about="loss with one tensor quantized at a time",
        alpha=1.0,
    ),
    Source(
        name="hawq",
        phase="baselines.hawq",
        yields="policy",
        needs=("weights",),
        about="layers in the order of their Hessian's largest eigenvalue",
    ),
    Source(
        name="hawq_v2",
        phase="baselines.hawq_v2",
        yields="importance",
        needs=("weights",),
        about="Hessian traces times squared quantization errors",
        alpha=1.0,
    ),
    Source(
        name="hawq_v3",
        phase="baselines.hawq_v3",
        yields="policy",
        needs=("weights",),
        about="HAWQ-V3's integer program over 4 and 8 bits",
    ),
    Source(
        name="edmips",
        phase="baselines.edmips",
        yields="policy",
        needs=("weights",),
        about="bits learned by gradient together with shared weights",
        takes_one_limit=True,
        version=2,
    ),
    Source(
        name="random_search",
        phase="baselines.random_search",
        yields="policy",
        needs=("weights",),
        about="the best of random policies, each evaluated without training",
    ),
)

_ONE_SHOT = (
    Source(
        name="one_shot",
        phase="oneshot.search",
        yields="policy",
        needs=("weights", "joint"),
        about="evolution over whole policies judged by the jointly trained weights",
    ),
    Source(
        name="fitted",
        phase="oneshot.fit",
        yields="importance",
        needs=("weights", "joint"),
        about="an additive table fitted to verdicts of the jointly trained weights",
        alpha=1.0,
    ),
)

# One tuple per package, in the order of the fields of ``SourcesConfig``.
SOURCES: tuple[Source, ...] = (*_BASELINES, *_ONE_SHOT)


def source_named(name: str) -> Source:
    """The source of that name.

    Raises:
        TrainersError: there is none.
    """
    for source in SOURCES:
        if source.name == name:
            return source
    known = ", ".join(source.name for source in SOURCES)
    raise TrainersError(f"unknown source {name!r} (there are: {known})")
