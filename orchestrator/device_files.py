"""Which devices does a file name? YAML (one, a list, or ranges) or CSV, with latency tables."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import ConfigError
from solvers.devices import Device, devices_from_mapping, load_devices_csv


def load_devices(path: str) -> tuple[Device, ...]:
    """Read a device file; a latency table is looked for beside it.

    Raises:
        ConfigError: the YAML is damaged.
        LimitError: an unknown limit, unit or key.
        FormatError: a value of the wrong kind, or no such file.
        TableError: the latency table is impossible.
    """
    if path.endswith(".csv"):
        return load_devices_csv(path)
    from orchestrator.yaml_source import read_yaml
    from solvers.latency_files import load_latency

    source = read_yaml(path)
    if source.problems:
        raise ConfigError(source.problems)
    folder = Path(path).parent
    return devices_from_mapping(source.tree, path, lambda named: load_latency(folder / named))
