"""Batches: the same global ones for every number of ranks, resumed or not."""

from __future__ import annotations

import pytest
import torch

from trainers.data import BatchPlan, InMemoryImages, Normalisation
from trainers.data.augment import Augmentation, AugmentSpec
from trainers.data.batches import balanced_fraction, evaluation_batches
from trainers.errors import DataError

AUGMENT = AugmentSpec(pad=2, flip=True)


def images(num: int = 103, num_classes: int = 10) -> InMemoryImages:
    rng = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (num, 2, 6, 5), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, num_classes, (num,), generator=rng)
    return InMemoryImages(pixels, labels, Normalisation(mean=(0.4, 0.5), std=(0.2, 0.3)))


def plan(rank: int = 0, world_size: int = 1, **changes: object) -> BatchPlan:
    settings = {
        "images": images(), "batch_size": 12, "seed": 0, "stream": "s", "augment": AUGMENT,
        "rank": rank, "world_size": world_size,
    } | changes  # fmt: skip
    return BatchPlan(**settings)  # type: ignore[arg-type]


def joined(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("world_size", [2, 3, 4, 12])
def test_global_batches_and_their_augmentation_do_not_depend_on_the_ranks(world_size):
    alone = list(plan().epoch(1))
    shares = [list(plan(rank, world_size).epoch(1)) for rank in range(world_size)]
    assert len(alone) == 8
    for k, (x, y) in enumerate(alone):
        together_x, together_y = joined([share[k] for share in shares])
        assert torch.equal(together_x, x)
        assert torch.equal(together_y, y)


def test_a_resume_in_mid_epoch_is_the_undisturbed_epoch():
    undisturbed = list(plan(1, 2).epoch(4))
    torch.manual_seed(99)
    resumed = list(plan(1, 2).epoch(4, first=5))
    assert len(resumed) == 3
    for (x, y), (again_x, again_y) in zip(undisturbed[5:], resumed, strict=True):
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)


def test_an_epoch_shows_every_image_at_most_once_and_epochs_differ():
    unchanged = images()
    unchanged.labels = torch.arange(len(unchanged))  # now a label says which image it is
    seen = [
        joined(list(plan(images=unchanged, augment=None).epoch(e)))[1].tolist() for e in range(2)
    ]
    assert [len(set(order)) for order in seen] == [96, 96]
    assert seen[0] != seen[1]
    other_stream = plan(images=unchanged, augment=None, stream="t").epoch(0)
    other_seed = plan(images=unchanged, augment=None, seed=1).epoch(0)
    assert joined(list(other_stream))[1].tolist() != seen[0]
    assert joined(list(other_seed))[1].tolist() != seen[0]


def test_augmentation_differs_from_batch_to_batch():
    repeated = images().subset(torch.zeros(24, dtype=torch.long))
    first, second = [x for x, _ in plan(images=repeated).epoch(0)]
    assert not torch.equal(first, second)
    assert len({x.numpy().tobytes() for x in first}) > 3


def test_augmentation_is_a_crop_of_the_padded_image_then_a_flip():
    x = images().batch(torch.arange(5), None)[0]
    drawn = Augmentation.draw(AUGMENT, 5, torch.Generator().manual_seed(1))
    assert 0 < int(drawn.flips.sum()) < 5
    changed = drawn.apply(x)
    for i in range(5):
        padded = torch.zeros(2, 6 + 4, 5 + 4)
        padded[:, 2:8, 2:7] = x[i]
        row, column = drawn.offsets[i].tolist()
        expected = padded[:, row : row + 6, column : column + 5]
        expected = expected.flip(-1) if drawn.flips[i] else expected
        assert torch.equal(changed[i], expected)


def test_nothing_is_changed_unless_asked():
    x = images().batch(torch.arange(5), None)[0]
    drawn = Augmentation.draw(AugmentSpec(), 5, torch.Generator().manual_seed(1))
    assert torch.equal(drawn.apply(x), x)
    assert not drawn.flips.any()


def test_pixels_are_normalised_by_channel():
    data = images()
    x = data.batch(torch.tensor([4]), None)[0].double()
    pixels = data.pixels[4].double() / 255
    assert torch.allclose(x[0, 0], (pixels[0] - 0.4) / 0.2, atol=1e-6)
    assert torch.allclose(x[0, 1], (pixels[1] - 0.5) / 0.3, atol=1e-6)


@pytest.mark.parametrize("world_size", [5, 7, 24])
def test_a_batch_that_cannot_be_shared_is_refused(world_size):
    with pytest.raises(DataError, match=f"12 cannot be shared equally by {world_size}"):
        plan(0, world_size)


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(DataError, match="103 training images do not fill one batch of 104"):
        plan(batch_size=104)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_sees_every_image_once_however_many_ranks(world_size):
    data = images(5)
    data.labels = torch.arange(5)
    seen = [
        y for rank in range(world_size) for _, y in evaluation_batches(data, 2, rank, world_size)
    ]
    assert sorted(torch.cat(seen).tolist()) == list(range(5))
    assert all(0 < len(y) <= 2 for y in seen)


def test_a_fraction_takes_the_same_share_of_every_class():
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 10 + [3])
    kept = balanced_fraction(labels, 0.5, seed=0)
    assert torch.bincount(labels[kept]).tolist() == [50, 20, 5, 1]
    assert kept.tolist() == sorted(set(kept.tolist()))


def test_a_fraction_is_drawn_by_the_seed():
    labels = torch.arange(200) % 4
    kept = balanced_fraction(labels, 0.3, seed=5)
    assert torch.equal(kept, balanced_fraction(labels, 0.3, seed=5))
    assert not torch.equal(kept, balanced_fraction(labels, 0.3, seed=6))
    assert torch.equal(balanced_fraction(labels, 1.0, seed=5), torch.arange(200))


def test_order_of_images_in_a_class_does_not_decide_who_is_kept():
    # The first half of every class would be a biased sample of a sorted set.
    kept = balanced_fraction(torch.zeros(1000, dtype=torch.long), 0.5, seed=0)
    assert 200 < int((kept < 500).sum()) < 300
