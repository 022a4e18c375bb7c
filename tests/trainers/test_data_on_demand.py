"""Sets decoded on demand: the right pixels, the same batches whoever decodes, broken images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from tests.trainers.pictures import SIDE, equal, images, picture, plan
from trainers.data import evaluation_batches, input_shape, known_classes, load_data
from trainers.data.augment import crop_box
from trainers.data.pack import PackSettings, pack_folder
from trainers.data.views import decode
from trainers.phases import DataSpec


def test_a_folder_has_its_classes_in_the_order_of_their_names(folder):
    data = load_data(images("imagefolder", folder), 0)
    assert (len(data.train), len(data.test), data.num_classes) == (30, 9, 3)
    assert torch.bincount(data.train.labels).tolist() == [10, 10, 10]
    assert input_shape(images("imagefolder", folder)) == data.input_shape == (3, SIDE, SIDE)


def test_evaluation_sees_what_torchvision_s_recipe_shows(folder):
    data = load_data(images("imagefolder", folder), 0)
    seen, labels = data.test.batch(torch.tensor([4]), None)
    path = sorted((folder / "val" / "class1").iterdir())[1]
    recipe = transforms.Compose(
        [
            transforms.Resize(round(SIDE * 256 / 224)),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    expected = recipe(Image.open(path))
    # One grey level apart, for Pillow rounds its two passes otherwise.
    assert (seen[0] - expected).abs().max() <= 1 / 255 / 0.224 + 1e-5
    assert (seen[0] - expected).abs().mean() < 0.1 / 255 / 0.224
    assert labels.tolist() == [1]


def test_training_sees_the_crop_that_was_drawn_resized_and_mirrored(folder):
    data = load_data(images("imagefolder", folder), 0)
    batches = list(plan(data).epoch(0))
    assert [len(y) for _, y in batches] == [6] * 5
    request = next(iter(plan(data)._requests(0, 0)))
    flipped = request.augmentation.flips.tolist()
    assert 0 < sum(flipped) < 6
    for row, index in enumerate(request.indices.tolist()):
        image = decode(Path(data.train.reader.place(index)).read_bytes(), 3)
        draws = request.augmentation.crops[row].tolist()
        box = crop_box(draws, image.shape[1], image.shape[2], (0.08, 1.0), (3 / 4, 4 / 3))
        crop = functional.resized_crop(image, *box, [SIDE, SIDE], antialias=True)
        crop = crop.flip(-1) if flipped[row] else crop
        expected = data.train.view.normalisation.apply(crop[None])[0]
        # One grey level: this function of torchvision resizes in floating point and rounds.
        apart = (batches[0][0][row] - expected).abs()
        assert apart.max() <= 1 / 255 / 0.224 + 1e-5
        assert apart.mean() < 0.3 / 255 / 0.224


@pytest.mark.parametrize(
    ("height", "width"), [(300, 500), (500, 300), (10, 400), (400, 10), (1, 1)]
)
def test_crops_fit_and_have_the_area_and_aspect_asked_for(height, width):
    rng = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(300):
        draws = torch.rand(10, 4, generator=rng).tolist()
        top, left, h, w = crop_box(draws, height, width, (0.08, 1.0), (3 / 4, 4 / 3))
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        assert h > 0
        assert w > 0
        areas.append(h * w / height / width)
        if min(height, width) >= 300:
            assert 3 / 4 - 0.02 <= w / h <= 4 / 3 + 0.02
            assert 0.07 <= areas[-1] <= 1.0
    if (height, width) == (300, 500):
        assert np.quantile(areas, 0.1) < 0.2
        assert np.quantile(areas, 0.9) > 0.5


def test_an_image_that_no_try_fits_gets_the_central_crop():
    draws = [[1.0, 0.5, 0.0, 0.0]] * 10
    assert crop_box(draws, 10, 400, (1.0, 1.0), (3 / 4, 4 / 3)) == (0, 193, 10, 13)
    assert crop_box(draws, 400, 10, (1.0, 1.0), (3 / 4, 4 / 3)) == (193, 0, 13, 10)


@pytest.mark.parametrize("name", ["imagefolder", "imagenet_parquet"])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_ranks_change_nothing_and_a_resume_is_the_same_epoch(
    folder, packed, name, threads
):
    root = folder if name == "imagefolder" else packed
    alone = list(plan(load_data(images(name, root), 0)).epoch(2))
    several = images(name, root, decode_workers=threads, prefetch=3)
    data = load_data(several, 0)
    assert equal(plan(data).epoch(2), alone)
    assert equal(plan(data).epoch(2, first=3), alone[3:])
    shares = [list(plan(data, rank, 2).epoch(2)) for rank in range(2)]
    for k, (x, y) in enumerate(alone):
        assert torch.equal(torch.cat([shares[0][k][0], shares[1][k][0]]), x)
        assert torch.equal(torch.cat([shares[0][k][1], shares[1][k][1]]), y)
    measured = list(evaluation_batches(data.test, 4))
    assert equal(measured, evaluation_batches(load_data(images(name, root), 0).test, 4))
    assert sum(len(y) for _, y in measured) == 9


def test_an_epoch_left_early_leaves_the_threads_usable(folder):
    data = load_data(images("imagefolder", folder, decode_workers=2), 0)
    epoch = plan(data).epoch(0)
    next(epoch)
    epoch.close()
    assert len(list(plan(data).epoch(0))) == 5
    assert torch.get_num_threads() == 1


def test_shards_hold_the_folder_s_images(folder, packed):
    from_files, from_shards = (
        load_data(images(name, root), 0)
        for name, root in (("imagefolder", folder), ("imagenet_parquet", packed))
    )
    reader = from_shards.train.reader
    assert all(shard.starts is not None for shard in reader.shards)
    files = {bytes(name).decode(): i for i, name in enumerate(from_files.train.reader.names)}
    rows = [(s, row) for s in reader.shards for row in range(len(s.labels))]
    assert len(rows) == 30
    for index, (shard, row) in enumerate(rows):
        name = pq.read_table(shard.path, columns=["file"]).column("file")[row].as_py()
        other = files.pop(name)
        assert reader.read(index) == from_files.train.reader.read(other)
        assert reader.labels[index] == from_files.train.labels[other]
    assert not files
    first = [len(set(shard.labels.tolist())) for shard in reader.shards]
    assert max(first) > 1, "the shards are not shuffled"


def test_row_groups_of_many_pages_and_foreign_files_are_read_too(folder, packed, tmp_path):
    expected = list(plan(load_data(images("imagenet_parquet", packed), 0)).epoch(0))
    for kind in ("compressed", "nullable", "struct"):
        root = tmp_path / kind
        for split in ("train", "val"):
            (root / split).mkdir(parents=True)
            for path in (packed / split).iterdir():
                table = pq.read_table(path).select(["image", "label"])
                if kind == "struct":
                    column = [{"bytes": b, "path": "x"} for b in table.column("image").to_pylist()]
                    table = table.set_column(0, "image", pa.array(column))
                plain = kind == "nullable"
                pq.write_table(
                    table.cast(pa.schema([pa.field(f.name, f.type) for f in table.schema])),
                    root / split / path.name,
                    row_group_size=3,
                    compression="NONE" if plain else "ZSTD",
                )
        data = load_data(images("imagenet_parquet", root), 0)
        assert data.train.reader.shards[0].starts is None
        assert equal(plan(data).epoch(0), expected)


def test_many_row_groups_in_a_shard_are_addressed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.data.pack.ROWS_PER_GROUP", 4)
    pack_folder(str(folder), tmp_path / "small", PackSettings())
    reader = load_data(images("imagenet_parquet", tmp_path / "small"), 0).train.reader
    assert len(reader.shards[0].group_ends) == 8
    whole = pq.read_table(reader.shards[0].path).column("image").to_pylist()
    assert [reader.read(i) for i in range(30)] == whole


def test_grey_and_palette_and_transparent_images_become_colour(tmp_path):
    colour = picture(1)
    for i, mode in enumerate(("L", "P", "RGBA", "CMYK")):
        for split in ("train", "val"):
            (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
            form = "jpg" if mode in ("L", "CMYK") else "png"
            colour.convert(mode).save(tmp_path / split / "a" / f"{i}.{form}")
    x, _ = load_data(images("imagefolder", tmp_path), 0).train.batch(torch.arange(4), None)
    assert x.shape == (4, 3, SIDE, SIDE)
    assert not torch.equal(x[1], x[0])
    grey = images("imagefolder", tmp_path, mean=[0.5], std=[0.5])
    assert load_data(grey, 0).train.batch(torch.arange(4), None)[0].shape == (4, 1, SIDE, SIDE)


def test_a_class_balanced_fraction_of_a_large_set_reads_no_image(folder):
    from trainers.data import balanced_fraction

    data = load_data(images("imagefolder", folder), 0)
    half = data.train.subset(balanced_fraction(data.train.labels, 0.5, 7))
    assert torch.bincount(half.labels).tolist() == [5, 5, 5]
    again = data.train.subset(balanced_fraction(data.train.labels, 0.5, 7))
    assert half.fingerprint == again.fingerprint != data.train.fingerprint
    assert torch.equal(half.labels, data.train.labels[half.indices])


def test_the_number_of_classes_is_known_before_anything_is_read(folder, packed):
    assert known_classes(images("imagefolder", folder)) == 3
    assert known_classes(images("imagenet_parquet", packed)) == 3
    assert known_classes(DataSpec(name="digits")) == 10
    for dataset, classes in (("CIFAR10", 10), ("CIFAR100", 100)):
        assert known_classes(DataSpec(name="torchvision", options={"dataset": dataset})) == classes
    assert known_classes(DataSpec(name="parquet")) is None
    assert known_classes(DataSpec(name="imagefolder")) is None
