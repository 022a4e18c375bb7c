"""Sets decoded on demand: the right pixels, the same batches whoever decodes, broken images."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from trainers.data import BatchPlan, evaluation_batches, input_shape, load_data, source_fingerprint
from trainers.data.augment import crop_box
from trainers.data.bad_samples import skipped_images
from trainers.data.large_sets import known_classes
from trainers.data.pack import PackSettings, pack_folder
from trainers.data.views import decode
from trainers.errors import DataError
from trainers.phases import DataSpec

SIDE = 16
OPTIONS = {"resolution": SIDE, "decode_workers": 0}


def picture(seed: int, height: int = 40, width: int = 52) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Thirty training and nine test JPEGs of three classes, of different sizes."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 30), ("val", 9)):
        for i in range(count):
            place = root / split / f"class{i % 3}"
            place.mkdir(parents=True, exist_ok=True)
            picture(100 * len(split) + i, 30 + i % 5, 40).save(place / f"{i:02d}.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack_folder(str(folder), out, PackSettings(images_per_shard=8))
    return out


def images(name: str, root: Path, **options: object) -> DataSpec:
    return DataSpec(name=name, path=str(root), options=OPTIONS | options)


def plan(data, rank=0, world_size=1) -> BatchPlan:
    return BatchPlan(
        images=data.train, batch_size=6, seed=3, stream="s", augment=data.augment,
        rank=rank, world_size=world_size,
    )  # fmt: skip


def equal(one, other) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


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


def break_image(root: Path, index: int) -> Path:
    path = sorted((root / "train").rglob("*.jpg"))[index]
    path.write_bytes(path.read_bytes()[:200])
    return path


def copy(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*.jpg"):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_image_stops_the_epoch_with_its_file(folder, tmp_path, threads):
    root = copy(folder, tmp_path / "broken")
    path = break_image(root, 5)
    data = load_data(images("imagefolder", root, decode_workers=threads), 0)
    with pytest.raises(DataError, match=f"{path.name}: broken image: .*truncated"):
        list(plan(data).epoch(0))
    with pytest.raises(DataError, match="on_bad_sample to skip"):
        data.train.batch(torch.tensor([5]), None)


def test_skipped_images_are_replaced_alike_listed_and_capped(folder, tmp_path):
    root = copy(folder, tmp_path / "broken")
    paths = [break_image(root, i) for i in (5, 6, 20)]
    spec = replace(images("imagefolder", root), on_bad_sample="skip", max_bad_samples=3)
    data = load_data(spec, 0)
    data.bad.write_to(tmp_path / "step", 0)
    alone = list(plan(data).epoch(0))
    assert all(len(y) == 6 for _, y in alone)
    assert sorted(data.bad.found) == sorted(map(str, paths))
    listed = skipped_images(tmp_path / "step")
    assert len(listed) == 3
    assert "truncated" in listed[0]
    threaded = load_data(replace(spec, options=OPTIONS | {"decode_workers": 3}), 0)
    assert equal(plan(threaded).epoch(0), alone)
    measured, _ = data.train.batch(torch.arange(4, 8), None)
    assert len(measured) == 2, "an evaluation leaves broken images out"
    # A later attempt takes up the list, and the cap counts all of it.
    again = load_data(replace(spec, max_bad_samples=2), 0)
    with pytest.raises(DataError, match="more broken images than allowed, 3 of 2"):
        again.bad.write_to(tmp_path / "step", 0)
    with pytest.raises(DataError, match="3 of 2"):
        list(plan(load_data(replace(spec, max_bad_samples=2), 0)).epoch(0))


def test_sets_in_memory_refuse_to_skip():
    with pytest.raises(DataError, match="'digits' is read whole"):
        load_data(DataSpec(name="digits", on_bad_sample="skip"), 0)


def test_a_cut_or_changed_shard_is_noticed(folder, packed, tmp_path):
    root = tmp_path / "shards"
    for path in packed.rglob("*.*"):
        target = root / path.relative_to(packed)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    shard = sorted((root / "train").iterdir())[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"cannot read .*{shard.name}"):
        load_data(images("imagenet_parquet", root), 0)
    # The same footer over other bytes: lengths are no longer where it says.
    shard.write_bytes(bytes(2000) + whole[2000:])
    data = load_data(images("imagenet_parquet", root), 0)
    with pytest.raises(DataError, match=f"{shard.name}, row 0: broken image"):
        data.train.batch(torch.tensor([8]), None)


def remove_classes(root: Path) -> None:
    for path in (root / "train").iterdir():
        path.rename(root / path.name)


LAYOUTS = {
    "no train": (lambda root: (root / "train").rename(root / "training"), "no folder .*train"),
    "no val": (lambda root: (root / "val").rename(root / "check"), "no folder val or test"),
    "no classes": (remove_classes, "no class folders"),
    "two splits": (lambda root: (root / "test").mkdir(), "both val and test.*eval_split"),
    "empty class": (lambda root: (root / "train" / "zero").mkdir(), "zero holds no image"),
    "other classes": (
        lambda root: (root / "val" / "class1").rename(root / "val" / "klass"),
        "class 'klass'.*has not",
    ),
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_a_wrong_layout_is_told(folder, tmp_path, what):
    change, message = LAYOUTS[what]
    root = copy(folder, tmp_path / "images")
    change(root)
    with pytest.raises(DataError, match=message):
        load_data(images("imagefolder", root), 0)


def test_an_empty_split_is_refused(folder, tmp_path):
    root = copy(folder, tmp_path / "images")
    for path in (root / "val").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="the val split is empty"):
        load_data(images("imagefolder", root), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 0}, "resolution is 0"),
        ({"eval_resize": SIDE - 1}, "eval_resize is 15"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"crop_scale": [0.5]}, "crop_scale"),
        ({"crop_scale": [0.5, 1.2]}, "at most 1"),
        ({"crop_ratio": [2, 1]}, "crop_ratio"),
        ({"decode_workers": -1}, "decode_workers is -1"),
        ({"flip": "yes"}, "flip is 'yes'"),
        ({"mean": [0.5, 0.5], "std": [1, 1]}, "2 channels"),
        ({"pad": 4}, "no option 'pad'"),
        ({"eval_split": "exam"}, "eval_split is 'exam'"),
    ],
)
def test_options_of_another_kind_are_refused(folder, options, message):
    with pytest.raises(DataError, match=message):
        load_data(images("imagefolder", folder, **options), 0)


def test_fingerprints_notice_another_file(folder, packed, tmp_path):
    root = copy(folder, tmp_path / "images")
    spec = images("imagefolder", root)
    quick, read = source_fingerprint(spec), load_data(spec, 0).fingerprint
    assert quick == source_fingerprint(spec)
    assert read == load_data(images("imagefolder", root, decode_workers=2), 1).fingerprint
    path = sorted((root / "val").rglob("*.jpg"))[0]
    path.write_bytes(path.read_bytes() + b"\0")
    assert source_fingerprint(spec) != quick
    assert load_data(spec, 0).fingerprint != read
    assert load_data(replace(spec, holdout=0.2), 0).fingerprint != load_data(spec, 0).fingerprint


def test_a_class_balanced_fraction_of_a_large_set_reads_no_image(folder):
    from trainers.data import balanced_fraction

    data = load_data(images("imagefolder", folder), 0)
    half = data.train.subset(balanced_fraction(data.train.labels, 0.5, 7))
    assert torch.bincount(half.labels).tolist() == [5, 5, 5]
    again = data.train.subset(balanced_fraction(data.train.labels, 0.5, 7))
    assert half.fingerprint == again.fingerprint != data.train.fingerprint
    assert torch.equal(half.labels, data.train.labels[half.indices])


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_pack_goes_on_and_ends_like_an_undisturbed_one(
    folder, packed, tmp_path, monkeypatch, after
):
    out = tmp_path / "shards"
    settings = PackSettings(images_per_shard=8)
    written = []

    def tell(split: str, done: int, total: int) -> None:
        written.append(done)
        if len(written) == after:
            raise Killed

    with pytest.raises(Killed):
        pack_folder(str(folder), out, settings, tell=tell)
    (out / "train" / ".tmp-1-ab-x.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match="packing is not finished"):
        load_data(images("imagenet_parquet", out), 0)
    result = pack_folder(str(folder), out, settings, num_threads=2)
    assert result.num_kept == after
    assert result.num_images == {"train": 30, "val": 9}
    files = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(packed): p.read_bytes() for p in packed.rglob("*") if p.is_file()
    }


def test_a_damaged_shard_of_an_earlier_attempt_is_not_kept(folder, tmp_path):
    out = tmp_path / "shards"
    pack_folder(str(folder), out, PackSettings())
    shard = next((out / "train").iterdir())
    content = bytearray(shard.read_bytes())
    content[500] ^= 1  # inside the first image
    shard.write_bytes(content)
    with pytest.raises(DataError, match="does not hold what its footer says"):
        pack_folder(str(folder), out, PackSettings())


def test_a_pack_of_another_source_or_into_a_used_folder_is_refused(folder, packed, tmp_path):
    with pytest.raises(DataError, match="pack of other settings"):
        pack_folder(str(folder), packed, PackSettings(seed=1, images_per_shard=8))
    root = copy(folder, tmp_path / "images")
    sorted((root / "val").rglob("*.jpg"))[0].write_bytes(b"other")
    with pytest.raises(DataError, match="other source_fingerprints"):
        pack_folder(str(root), packed, PackSettings(images_per_shard=8))
    with pytest.raises(DataError, match=r"not empty and holds no pack\.json"):
        pack_folder(str(folder), root, PackSettings())


def test_packing_stops_at_a_broken_image_or_lists_it(folder, tmp_path):
    root = copy(folder, tmp_path / "images")
    path = break_image(root, 7)
    with pytest.raises(DataError, match=f"1 of 0: .*{path.name}: .*truncated"):
        pack_folder(str(root), tmp_path / "out", PackSettings())
    settings = PackSettings(max_bad_samples=1)
    result = pack_folder(str(root), tmp_path / "less", settings)
    assert result.num_images == {"train": 29, "val": 9}
    assert [path.name in line for line in result.skipped] == [True]
    manifest = json.loads((tmp_path / "less" / "pack.json").read_text())
    assert manifest["skipped"] == list(result.skipped)
    assert len(load_data(images("imagenet_parquet", tmp_path / "less"), 0).train) == 29


def test_sixteen_bits_and_no_image_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(buffer, "PNG")
    for content, message in ((buffer.getvalue(), "8 bits"), (b"x", "cannot identify")):
        with pytest.raises(ValueError, match=message):
            decode(content, 3)


def test_the_number_of_classes_is_known_before_anything_is_read(folder, packed):
    assert known_classes(images("imagefolder", folder)) == 3
    assert known_classes(images("imagenet_parquet", packed)) == 3
    assert known_classes(DataSpec(name="digits")) is None
    assert known_classes(DataSpec(name="imagefolder")) is None
