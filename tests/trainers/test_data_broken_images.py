"""Sets decoded on demand: broken images, wrong layouts, packing that was killed."""

from __future__ import annotations

import errno
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from solvers.storage import save_costs
from solvers.tables import BitChoices
from tests.trainers.pictures import OPTIONS, SIDE, equal, images, plan
from trainers.baselines.config import HawqV2Config
from trainers.checkpoint import save_tensors
from trainers.costs import trace_costs
from trainers.data import load_data, source_fingerprint
from trainers.data.bad_samples import BadSamples, skipped_images
from trainers.data.pack import PackSettings, pack_folder
from trainers.data.views import decode
from trainers.errors import DataError
from trainers.models import build_model
from trainers.phases import Cost, DataSpec, ModelSpec, PhaseContext, PhaseResult, PhaseSpec
from trainers.registry import find_phase
from trainers.results import load_result, save_result


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


def test_the_cap_is_over_all_ranks_and_the_message_says_how_to_go_on(tmp_path):
    ranks = [BadSamples(2) for _ in range(3)]
    for rank, bad in enumerate(ranks):
        bad.write_to(tmp_path, rank)
    ranks[0].note("a.jpg", "truncated")
    ranks[1].note("a.jpg", "truncated")  # the same image counts once
    ranks[1].note("b.jpg", "truncated")
    with pytest.raises(DataError, match="3 of 2") as refused:
        ranks[2].note("c.jpg", "truncated")
    assert f"delete {tmp_path}/skipped-images-*.json" in str(refused.value)
    with pytest.raises(DataError, match=r"3 of 2.*start again"):
        BadSamples(2).write_to(tmp_path, 0)
    for path in tmp_path.glob("skipped-images-*.json"):
        path.unlink()
    BadSamples(2).write_to(tmp_path, 0)


@pytest.mark.parametrize("name", ["imagefolder", "imagenet_parquet"])
def test_a_file_server_that_does_not_answer_breaks_no_image(
    name, folder, packed, tmp_path, monkeypatch
):
    root = folder if name == "imagefolder" else packed
    spec = replace(images(name, root), on_bad_sample="skip", max_bad_samples=3)
    data = load_data(spec, 0)
    data.bad.write_to(tmp_path, 0)

    def stale(*args, **more):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as broken:
        broken.setattr("trainers.data.image_folder.open", stale, raising=False)
        broken.setattr("trainers.data.shards.os.pread", stale)
        with pytest.raises(DataError, match=r"cannot be read: Stale file handle.*start again"):
            data.train.batch(torch.tensor([5]), None)
    assert skipped_images(tmp_path) == []
    again = load_data(spec, 0)
    again.bad.write_to(tmp_path, 0)
    assert len(again.train.batch(torch.tensor([5]), None)[1]) == 1


def test_a_phase_that_only_measures_leaves_broken_images_out_and_lists_them(folder, tmp_path):
    root = copy(folder, tmp_path / "broken")
    paths = [break_image(root, i) for i in (5, 6)]
    model = ModelSpec(name="cifar_resnet8", options={"base_width": 4})
    network = build_model(model)
    save_tensors(tmp_path / "w.pt", network.state_dict())
    costs = trace_costs(network, name=model.name, input_shape=(3, SIDE, SIDE))
    save_costs(tmp_path / "costs.parquet", costs)
    spec = PhaseSpec(
        phase="baselines.hawq_v2", model=model, seed=0,
        data=replace(images("imagefolder", root), on_bad_sample="skip", max_bad_samples=3),
        config=HawqV2Config(images=30, batch_size=8, min_probes=2, max_probes=2),
        inputs={"weights": str(tmp_path / "w.pt"), "costs": str(tmp_path / "costs.parquet")},
        choices=BitChoices(weight_bits=(2, 4), act_bits=(2, 4)),
    )  # fmt: skip
    find_phase(spec.phase)(spec, PhaseContext.alone(tmp_path / "step"))
    listed = load_result(tmp_path / "step" / "result.json").facts["skipped_images"]
    assert [line.partition(": ")[0] for line in listed] == sorted(map(str, paths))


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


def test_every_result_names_the_images_that_its_step_skipped(tmp_path):
    step = tmp_path / "hawq"
    step.mkdir()
    (step / "skipped-images-0.json").write_text('{"a.jpg": "truncated"}')
    for folder in (step, step / "policy"):  # a batch of policies shares its step's images
        save_result(folder / "result.json", PhaseResult(phase="x", cost=Cost(), device="cpu"))
        found = load_result(folder / "result.json")
        assert found.facts["skipped_images"] == ["a.jpg: truncated"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate"),
        torch.OutOfMemoryError("out of memory"),
    ],
)
def test_a_machine_without_memory_breaks_no_image(folder, tmp_path, monkeypatch, error):
    spec = replace(images("imagefolder", folder), on_bad_sample="skip", max_bad_samples=3)
    data = load_data(spec, 0)
    data.bad.write_to(tmp_path, 0)

    def fail(*args, **more):
        raise error

    monkeypatch.setattr("torchvision.io.decode_image", fail)
    with pytest.raises(type(error)):
        data.train.batch(torch.tensor([5]), None)
    assert skipped_images(tmp_path) == []


def test_arrow_without_memory_breaks_no_image(packed, monkeypatch):
    import pyarrow as pa

    data = load_data(images("imagenet_parquet", packed), 0)

    def fail(*args, **more):
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr("trainers.data.shards.os.pread", fail)
    with pytest.raises(MemoryError):
        data.train.batch(torch.tensor([5]), None)
