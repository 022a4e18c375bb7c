"""Keys that experiments at the papers' scale need."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import load_config
from orchestrator.drift import differences, refuse_drift
from orchestrator.errors import ConfigError
from orchestrator.store import RunStore
from trainers.errors import ModelError
from trainers.models.published import published_file, published_weights

QUICKSTART = Path(__file__).parents[2] / "configs" / "experiments" / "quickstart.yaml"


def test_full_precision_is_a_candidate_alone() -> None:
    assert load_config(QUICKSTART, ("bits.act=[32]",)).config.bits.act == (32,)
    for wrong in ("[8, 32]", "[20]", "[1]", "[33]"):
        with pytest.raises(ConfigError, match=r"bits\.act"):
            load_config(QUICKSTART, (f"bits.act={wrong}",))


def test_what_is_reported_and_how_fast_workers_are_is_no_drift(tmp_path: Path) -> None:
    plain = load_config(QUICKSTART, (f"runs_dir={tmp_path}",)).config
    store = RunStore(plain.runs_dir, plain.name)
    refuse_drift(store, plain)
    told = ("reports=[limpq-t3-ours]", "cluster.images_per_second=5", f"runs_dir={tmp_path}")
    assert differences(store, load_config(QUICKSTART, told).config) == ()
    few = load_config(QUICKSTART, ("data.max_images=5", f"runs_dir={tmp_path}")).config
    assert differences(store, few) == ("data.max_images: null -> 5",)


def test_published_weights_are_named() -> None:
    newest = published_weights("mobilenet_v2")
    assert newest.name == "IMAGENET1K_V2"
    first = published_file("mobilenet_v2", "IMAGENET1K_V1")
    assert first.name.startswith("mobilenet_v2-")
    assert first != published_file("mobilenet_v2")
    with pytest.raises(ModelError, match="IMAGENET1K_V1, IMAGENET1K_V2"):
        published_weights("mobilenet_v2", "V3")
    with pytest.raises(ModelError, match="publishes no weights"):
        published_weights("mobilenet_v1")
