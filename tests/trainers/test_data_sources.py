"""Data sets by name: splits, Parquet files good and bad, and what a wrong name is told."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from trainers.data import input_shape, load_data, source_fingerprint
from trainers.errors import DataError, ModelError
from trainers.phases import DataSpec, ModelSpec, PhaseSpec
from trainers.setup import make_data

DIGITS = DataSpec(name="digits")


def png(array, mode=None, form="PNG"):
    image = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


def rgb(value, size=4):
    array = np.zeros((size, size, 3), np.uint8)
    array[0, 1] = (value, 100, 200)
    return array


def write(folder, train=None, test=None, **columns):
    """Twelve images of three classes, in ``train.parquet`` and ``test.parquet``."""
    folder.mkdir(exist_ok=True)
    good = {"image": [png(rgb(10 * i)) for i in range(12)], "label": [i % 3 for i in range(12)]}
    for part, given in (("train", train), ("test", test)):
        content = pa.table(given or good | columns)
        pq.write_table(content, folder / f"{part}.parquet")
    return DataSpec(name="parquet", path=str(folder))


def test_digits_are_split_evenly_and_the_test_split_never_moves():
    one, two = load_data(DIGITS, seed=0), load_data(DIGITS, seed=1)
    assert (len(one.train), len(one.test), one.holdout) == (1347, 450, None)
    assert (one.num_classes, one.input_shape) == (10, (1, 8, 8))
    assert torch.bincount(one.test.labels).min() >= 43
    assert one.test.fingerprint == two.test.fingerprint
    assert one.fingerprint == two.fingerprint


def test_a_holdout_comes_from_the_training_images_by_the_seed():
    plain = load_data(DIGITS, seed=0)
    one, again, other = (load_data(replace(DIGITS, holdout=0.2), seed) for seed in (0, 0, 1))
    assert len(one.train) + len(one.holdout) == len(plain.train)
    assert len(one.holdout) == pytest.approx(0.2 * len(plain.train), abs=5)
    assert one.test.fingerprint == plain.test.fingerprint
    assert one.fingerprint == again.fingerprint != other.fingerprint
    rows = {bytes(p.numpy()) for p in one.train.pixels} & {
        bytes(p.numpy()) for p in one.holdout.pixels
    }
    assert not rows, "the same image is in both"


def test_a_holdout_of_everything_is_refused():
    with pytest.raises(DataError, match="train split is empty"):
        load_data(replace(DIGITS, holdout=1.0), 0)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("digit", "digits"), ("parquets", "parquet"), ("torch-vision", "torchvision")],
)
def test_an_unknown_name_is_told_the_nearest(wrong, hint):
    with pytest.raises(DataError, match=f"unknown data set '{wrong}'; did you mean '{hint}'"):
        load_data(DataSpec(name=wrong), 0)
    with pytest.raises(DataError, match="imagefolder, imagenet_parquet, parquet, torch"):
        input_shape(DataSpec(name="zzz"))


def test_an_unknown_option_is_refused():
    with pytest.raises(DataError, match="'digits' has no option 'pads'"):
        load_data(replace(DIGITS, options={"pads": 1}), 0)
    with pytest.raises(DataError, match="pad is -1"):
        load_data(replace(DIGITS, options={"pad": -1}), 0)


def test_augmentation_options_reach_the_data():
    assert load_data(DIGITS, 0).augment.pad == 1
    augment = load_data(replace(DIGITS, options={"pad": 0, "flip": True}), 0).augment
    assert (augment.pad, augment.flip) == (0, True)


def test_parquet_gives_pixels_labels_and_shape(tmp_path):
    spec = write(tmp_path)
    data = load_data(spec, 0)
    assert (len(data.train), data.num_classes, data.input_shape) == (12, 3, (3, 4, 4))
    assert data.train.pixels[5, :, 0, 1].tolist() == [50, 100, 200]
    assert data.train.labels.tolist() == [0, 1, 2] * 4
    assert input_shape(spec) == (3, 4, 4)


def test_shards_are_read_in_name_order(tmp_path):
    spec = write(tmp_path)
    whole = load_data(spec, 0)
    table = pq.read_table(tmp_path / "train.parquet")
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train").mkdir()
    pq.write_table(table.slice(5), tmp_path / "train" / "b.parquet")
    pq.write_table(table.slice(0, 5), tmp_path / "train" / "a.parquet")
    assert load_data(spec, 0).train.fingerprint == whole.train.fingerprint
    assert input_shape(spec) == (3, 4, 4)


def test_a_palette_is_read_as_its_colours(tmp_path):
    images = [png(rgb(10 * i), mode="P") for i in range(12)]
    data = load_data(write(tmp_path, image=images), 0)
    assert data.input_shape == (3, 4, 4)
    assert data.train.pixels[0, :, 2, 2].tolist() == [0, 0, 0]
    assert data.train.pixels[5, 2, 0, 1] > 100


def test_grey_images_need_one_mean(tmp_path):
    spec = write(tmp_path, image=[png(rgb(0)[:, :, 0])] * 12)
    with pytest.raises(DataError, match="1 channels, the normalisation has 3"):
        load_data(spec, 0)
    grey = replace(spec, options={"mean": [0.5], "std": [0.5]})
    assert load_data(grey, 0).input_shape == (1, 4, 4)


GOOD = [png(rgb(i)) for i in range(3)]
GREY = png(rgb(0)[:, :, 0])
DEEP = png(np.zeros((4, 4), np.uint16))
BAD_FILES = {
    "broken image": ({"image": [GOOD[0], b"\x89PNG no"], "label": [0, 1]}, "row 1.*broken"),
    "cut image": ({"image": [GOOD[0], GOOD[1][:50]], "label": [0, 1]}, "row 1.*broken"),
    "no image": ({"image": [GOOD[0], None], "label": [0, 1]}, "row 1.*broken"),
    "no label column": ({"image": GOOD, "class": [0, 1, 2]}, "label"),
    "no image column": ({"img": GOOD, "label": [0, 1, 2]}, "image"),
    "negative label": ({"image": GOOD, "label": [0, -1, 2]}, "row 1: label is -1"),
    "missing label": ({"image": GOOD, "label": [0, None, 2]}, "row 1: label is None"),
    "label in words": ({"image": GOOD, "label": ["a", "b", "c"]}, "row 0: label is 'a'"),
    "fractional label": ({"image": GOOD, "label": [0.0, 1.5, 2.0]}, "row 0: label is 0.0"),
    "sizes": ({"image": [GOOD[0], png(rgb(0, 5))], "label": [0, 1]}, "row 1.*one size"),
    "channels": ({"image": [GOOD[0], GREY], "label": [0, 1]}, "row 1.*one size"),
    "16 bit": ({"image": [DEEP], "label": [0]}, "row 0.*uint16.*8 bits"),
    "no rows": (
        {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())},
        "hold no image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_refused_with_its_place(tmp_path, what, part):
    content, message = BAD_FILES[what]
    spec = write(tmp_path, **{part: content})
    with pytest.raises(DataError, match=message) as caught:
        load_data(spec, 0)
    assert part in str(caught.value)


def test_a_file_that_is_no_parquet_and_a_missing_one(tmp_path):
    spec = write(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"cannot read .*test\.parquet"):
        load_data(spec, 0)
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"test\.parquet"):
        load_data(spec, 0)
    with pytest.raises(DataError, match=r"needs data\.path"):
        load_data(DataSpec(name="parquet"), 0)


def test_a_label_beyond_the_classifier_is_refused(tmp_path):
    data = write(tmp_path, test={"image": [png(rgb(0))], "label": [7]})
    spec = PhaseSpec(
        phase="pretrain", model=ModelSpec(name="cifar_resnet8", num_classes=7), data=data,
        config=None, seed=0,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"has 8 classes .* built for 7; set model\.num_classes"):
        make_data(spec)
    wide = replace(spec, model=replace(spec.model, num_classes=8))
    assert make_data(wide).num_classes == 8


def test_a_changed_file_changes_the_fingerprints(tmp_path):
    spec = write(tmp_path)
    quick, read = source_fingerprint(spec), load_data(spec, 0).fingerprint
    assert quick == source_fingerprint(write(tmp_path))
    other = write(tmp_path, label=[(i + 1) % 3 for i in range(12)])
    assert source_fingerprint(other) != quick
    assert load_data(other, 0).fingerprint != read


def test_normalisation_must_be_one_positive_number_a_channel(tmp_path):
    spec = write(tmp_path)
    for options in ({"mean": [0.5]}, {"std": [0.0, 1.0, 1.0]}):
        with pytest.raises(DataError, match=r"mean .* and std"):
            load_data(replace(spec, options=options), 0)


def test_torchvision_names_are_checked_before_anything_is_read(tmp_path):
    spec = DataSpec(name="torchvision", path=str(tmp_path), options={"dataset": "CIFAR11"})
    with pytest.raises(DataError, match="allowed: CIFAR10, CIFAR100"):
        load_data(spec, 0)
    with pytest.raises(DataError, match="CIFAR11"):
        input_shape(spec)
    missing = replace(spec, options={"dataset": "CIFAR10"})
    with pytest.raises(DataError, match="cannot read CIFAR10"):
        load_data(missing, 0)
    assert input_shape(missing) == (3, 32, 32)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("wrong", [0.5, "0.5", [], ["a"], [True], [None], [float("nan")] * 3, {}])
def test_what_is_no_list_of_numbers_is_told(tmp_path, name, wrong):
    with pytest.raises(DataError, match=rf"data\.options\.{name} is .*list of numbers"):
        load_data(replace(write(tmp_path), options={name: wrong}), 0)
