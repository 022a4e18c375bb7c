"""In what is the work of a phase counted? Images through a network, whatever machine does it."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.recipes import OptimizerConfig

# Of a forward and backward pass: a forward pass alone, a Hessian-vector product.
FORWARD_SHARE = 1 / 3
HESSIAN_SHARE = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Images through a network.

    Attributes:
        trained: forward and backward, once a pass.
        forward: forward only.
        hessian: through a Hessian-vector product.
    """

    trained: int = 0
    forward: int = 0
    hessian: int = 0

    @property
    def units(self) -> float:
        """In forward and backward passes of one image."""
        return self.trained + FORWARD_SHARE * self.forward + HESSIAN_SHARE * self.hessian


def trained_images(
    recipe: OptimizerConfig,
    num_train: int,
    *,
    epochs: int | None = None,
    steps: int | None = None,
) -> int:
    """Images of one training of a recipe, one pass a batch.

    Args:
        recipe: batch and share of the images; also the length, unless given.
        num_train: training images of the set.
        epochs: a length of its own.
        steps: the same in updates; wins over epochs.
    """
    if epochs is None:
        epochs, steps = recipe.epochs, recipe.steps
    if steps is not None:
        return steps * recipe.batch_size
    return epochs * round(recipe.fraction * num_train)
