"""Single values of an experiment file that are refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import submit
from orchestrator.config import load_config
from orchestrator.errors import ConfigError, UserError


@pytest.mark.parametrize("key", ["data.path", "model.weights"])
def test_nothing_is_read_by_uri(key: str, tmp_path: Path) -> None:
    """Neither images nor weights: refused with the configuration, at home and before a job."""
    path = tmp_path / "x.yaml"
    path.write_text(
        "schema: experiment/1\nname: x\nruns_dir: /shared\nmodel: {name: cifar_resnet8}\n"
        "data: {name: parquet, path: /shared}\npretrain: null\n"
    )
    uri = f"{key}=s3://me:hunter22@bucket/x"
    with pytest.raises(ConfigError) as caught:
        load_config(path, ("data.path=/", "model.weights=torchvision", uri))
    (problem,) = caught.value.problems
    assert (problem.key, problem.file) == (key, "--set")
    assert "mounted file system" in problem.allowed
    assert "hunter22" not in str(caught.value)
    with pytest.raises(UserError, match=f"{key} is a URI"):
        submit._refuse_local(
            submit.overridden({"runs_dir": "/shared", "data": {"path": "/shared"}}, (uri,))
        )
