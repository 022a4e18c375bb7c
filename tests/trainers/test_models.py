"""The registry, the own networks, and weights that fit or are refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from trainers.errors import ModelError
from trainers.models import build_model, check_weights, model_names, weights_file, weights_hash
from trainers.models.cifar_resnet import CifarResNet
from trainers.models.published import published_file
from trainers.phases import ModelSpec


def shared_file(name: str) -> Path:
    root = Path(os.environ.get("MPQ_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    path = root / "data" / "models" / name
    if not path.is_file():
        pytest.skip(f"needs the pretrained {name} (set MPQ_SHARED to the folder that has it)")
    return path


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    # He et al. 2016, Table 6: 0.27, 0.46 and 0.85 M.
    [("cifar_resnet20", 269_722), ("cifar_resnet32", 464_154), ("cifar_resnet56", 853_018)],
)
def test_sizes_of_the_cifar_networks(name: str, parameters: int) -> None:
    assert count(build_model(ModelSpec(name=name))) == parameters


@pytest.mark.parametrize("depth", [8, 14])
def test_small_grey_images(depth: int) -> None:
    model = build_model(
        ModelSpec(name=f"cifar_resnet{depth}", options={"in_channels": 1, "base_width": 8})
    )
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_shortcut_drops_pixels_and_adds_empty_channels() -> None:
    block = CifarResNet(8, base_width=4).layer2[0]
    x = torch.rand(1, 4, 6, 6)
    y = block._shortcut(x)
    assert y.shape == (1, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_mobilenet_v1_has_the_published_size() -> None:
    model = build_model(ModelSpec(name="mobilenet_v1", num_classes=1000))
    assert count(model) == 4_231_976
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def test_names() -> None:
    own = model_names(torchvision=False)
    assert "cifar_resnet20" in own
    assert "resnet18" not in own
    names = model_names()
    assert {"resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", *own} <= set(names)
    assert "fasterrcnn_resnet50_fpn" not in names


def test_a_name_that_is_nearly_right_gets_a_hint() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'cifar_resnet21'.*cifar_resnet20"):
        build_model(ModelSpec(name="cifar_resnet21"))


def test_a_factory_of_the_users_own() -> None:
    spec = ModelSpec(
        name="trainers.models.cifar_resnet:CifarResNet", num_classes=3, options={"depth": 14}
    )
    assert build_model(spec)(torch.rand(1, 3, 8, 8)).shape == (1, 3)
    for name, message in (
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("trainers.models.cifar_resnet:nothing", "no factory 'nothing'"),
        ("builtins:dict", "returned dict"),
    ):
        with pytest.raises(ModelError, match=message):
            build_model(ModelSpec(name=name))


@pytest.mark.parametrize(
    ("name", "options"),
    [("cifar_resnet20", {"colour": 3}), ("resnet18", {"colour": 3}),
     ("trainers.models.cifar_resnet:CifarResNet", {"depth": 9})],
)  # fmt: skip
def test_options_the_network_does_not_take(name: str, options: dict[str, int]) -> None:
    with pytest.raises(ModelError, match=name):
        build_model(ModelSpec(name=name, options=options))


def test_pretrained_cifar_weights_load_and_every_value_arrives() -> None:
    path = shared_file("cifar_resnet20.pt")
    model = build_model(ModelSpec(name="cifar_resnet20", weights=str(path)))
    state = model.state_dict()
    for key, value in torch.load(path, weights_only=True).items():
        assert torch.equal(state[key], value), key
    assert weights_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_pretrained_mobilenet_weights_load() -> None:
    path = shared_file("mobilenet_v2_imagenet.pt")
    build_model(ModelSpec(name="mobilenet_v2", num_classes=1000, weights=str(path)))
    with pytest.raises(ModelError, match=r"classifier\.1\.weight is \(1000, 1280\).*\(10, 1280\)"):
        build_model(ModelSpec(name="mobilenet_v2", num_classes=10, weights=str(path)))


def save(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


def test_a_state_dict_comes_back_from_any_common_wrapping(tmp_path: Path) -> None:
    source = CifarResNet(8, base_width=4)
    state = source.state_dict()
    spec = {"name": "cifar_resnet8", "options": {"base_width": 4}}
    for content in (
        state,
        {"state_dict": state, "epoch": 3},
        {f"module.{key}": value for key, value in state.items()},
        {key: value for key, value in state.items() if "num_batches" not in key},
    ):
        path = save(tmp_path / "w.pt", content)
        model = build_model(ModelSpec(**spec, weights=path))
        assert torch.equal(model.layer3[0].conv2.weight, source.layer3[0].conv2.weight)


def test_weights_of_another_network_name_the_first_difference(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", CifarResNet(8, base_width=4).state_dict())
    for options, message in (
        ({"base_width": 8}, r"conv1\.weight is \(4, 3, 3, 3\) in the file, \(8, 3, 3, 3\)"),
        ({"base_width": 4, "in_channels": 1}, r"conv1\.weight is \(4, 3, 3, 3\)"),
    ):
        with pytest.raises(ModelError, match=message):
            build_model(ModelSpec(name="cifar_resnet8", options=options, weights=path))
    with pytest.raises(ModelError, match=r"layer1\.1\.conv1\.weight .* is missing"):
        build_model(ModelSpec(name="cifar_resnet14", options={"base_width": 4}, weights=path))
    deeper = save(tmp_path / "d.pt", CifarResNet(14, base_width=4).state_dict())
    with pytest.raises(ModelError, match=r"layer1\.1\.conv1\.weight .* in the file but not"):
        build_model(ModelSpec(name="cifar_resnet8", options={"base_width": 4}, weights=deeper))


class Payload:
    """Pickled by reference: loading it would run code of the file's choosing."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("should-not-exist",))


def test_files_that_are_no_state_dict_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = (tmp_path / "good.pt").resolve()
    torch.save(CifarResNet(8).state_dict(), good)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(good.read_bytes()[:5000])
    text = tmp_path / "text.pt"
    text.write_text("not weights")
    empty = tmp_path / "empty.pt"
    empty.touch()
    for path, message in (
        (str(tmp_path / "gone.pt"), "no such file"),
        (str(cut), "not a readable state dict"),
        (str(text), "not a readable state dict"),
        (str(empty), "not a readable state dict"),
        (save(tmp_path / "code.pt", Payload()), "not a readable state dict"),
        (save(tmp_path / "list.pt", [1, 2]), "no state dict"),
        (str(tmp_path), "no such file"),
    ):
        with pytest.raises(ModelError, match=message):
            build_model(ModelSpec(name="cifar_resnet8", weights=path))
    assert not (tmp_path / "should-not-exist").exists()
    with pytest.raises(ModelError, match="No such file"):
        weights_hash(tmp_path / "gone.pt")


def test_safetensors_without_the_package_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match="pip install safetensors"):
        build_model(ModelSpec(name="cifar_resnet8", weights=str(path)))


def test_networks_without_published_weights_say_so() -> None:
    for name in ("cifar_resnet20", "mobilenet_v1"):
        with pytest.raises(ModelError, match="publishes no weights"):
            build_model(ModelSpec(name=name, weights="torchvision"))


def test_published_weights_of_other_classes_are_refused_before_anything_is_fetched(
    hub: Path,
) -> None:
    spec = ModelSpec(name="squeezenet1_1", num_classes=10, weights="torchvision")
    for refuse in (check_weights, build_model):
        with pytest.raises(ModelError, match="know 1000 classes and num_classes is 10"):
            refuse(spec)
    with pytest.raises(ModelError, match="without a classifier"):
        check_weights(ModelSpec(name="vgg16", num_classes=1000,
                                weights="torchvision:IMAGENET1K_FEATURES"))  # fmt: skip
    check_weights(ModelSpec(name="squeezenet1_1", num_classes=1000, weights="torchvision"))
    assert list(hub.iterdir()) == []


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's folder of downloads, empty, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offline(*args: object, **more: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


SQUEEZE = ModelSpec(name="squeezenet1_1", num_classes=1000, weights="torchvision")


def publish(path: Path, content: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let torchvision publish a file, named by its hash."""
    torch.save(content, path)
    named = path.with_name(f"squeezenet1_1-{weights_hash(path)[:8]}.pth")
    path.rename(named)
    entry = type("Entry", (), {"url": f"https://host/models/{named.name}"})()
    monkeypatch.setattr("trainers.models.published.published_weights", lambda *_: entry)
    return named


def test_published_weights_are_read_from_the_verified_file(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = build_model(ModelSpec(name="squeezenet1_1", num_classes=1000)).state_dict()
    path = publish(hub / "w", state, monkeypatch)
    loaded = build_model(SQUEEZE).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert weights_file(SQUEEZE) == path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"{path}: the sha256 is .*Delete it"):
        build_model(SQUEEZE)
    path.unlink()
    with pytest.raises(ModelError, match=r"cannot be fetched \(no network\)"):
        build_model(SQUEEZE)


@pytest.mark.parametrize("content", [[1, 2], "code"])
def test_published_files_that_hold_more_than_tensors_run_no_code(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    monkeypatch.chdir(tmp_path)
    path = publish(hub / "w", Payload() if content == "code" else content, monkeypatch)
    with pytest.raises(ModelError, match=rf"Delete {path}"):
        build_model(SQUEEZE)
    assert not (tmp_path / "should-not-exist").exists()


def test_what_is_downloaded_is_compared_with_the_hash_in_its_name(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, to: str, prefix: str, progress: bool) -> None:
        asked.append((url.rpartition("/")[2], prefix))
        Path(to).write_bytes(b"another file")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    path = published_file("resnet18", "IMAGENET1K_V1")
    assert path.parent == hub
    with pytest.raises(ModelError, match=r"not f37072fd\.\.\. as in the file's name"):
        build_model(
            ModelSpec(name="resnet18", num_classes=1000, weights="torchvision:IMAGENET1K_V1")
        )
    assert asked == [("resnet18-f37072fd.pth", "f37072fd")]


@pytest.mark.parametrize(("name", "side"), [("googlenet", 32), ("inception_v3", 75)])
def test_networks_with_auxiliary_classifiers_have_one_output_in_training(
    name: str, side: int, tmp_path: Path
) -> None:
    from torchvision import models

    spec = ModelSpec(name=name, num_classes=3)
    model = build_model(spec)
    assert model.training
    assert model(torch.rand(2, 3, side, side)).shape == (2, 3)
    # Files of the whole network and of what is left of it both fit.
    whole = models.get_model(name, num_classes=3).state_dict()
    assert len(whole) > len(model.state_dict())
    for state in (whole, model.state_dict()):
        path = save(tmp_path / "w.pt", state)
        given = build_model(ModelSpec(name=name, num_classes=3, weights=path)).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in given.items())
    with pytest.raises(ModelError, match=r"model\.options\.transform_input"):
        build_model(ModelSpec(name=name, num_classes=1000, weights="torchvision"))
