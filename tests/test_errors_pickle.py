"""Does every exception survive the way from a worker process to the driver?"""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, ConfigProblem

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("orchestrator", "trainers", "solvers")

PROBLEM = ConfigProblem(file="x.yaml", line=3, key="a.b", found="1", allowed="2", suggestion="?")


def error_classes() -> list[type[Exception]]:
    """Every class of the rooms that is raised, found by name so that no file is left out."""
    found: list[type[Exception]] = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            names = [
                node.name
                for node in ast.parse(path.read_text()).body
                if isinstance(node, ast.ClassDef)
                and any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
            ]
            if names:
                module = importlib.import_module(
                    ".".join(path.relative_to(ROOT).with_suffix("").parts)
                )
                found += [getattr(module, name) for name in names]
    return found


def example(kind: type[Exception]) -> Exception:
    if kind is ConfigError:
        return ConfigError((PROBLEM, PROBLEM))
    constructor = next(base for base in kind.__mro__ if "__init__" in vars(base))
    if constructor.__module__ == "builtins":
        return kind("what, where and what to do")
    parameters = inspect.signature(kind).parameters.values()
    return kind(*(f"{p.name} of it" for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD))


CLASSES = error_classes()


def test_the_search_finds_the_errors_of_every_room() -> None:
    rooms = {kind.__module__.split(".")[0] for kind in CLASSES}
    assert rooms == set(ROOMS)
    assert len(CLASSES) >= 20


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_round_trip_keeps_everything(kind: type[Exception]) -> None:
    before = example(kind)
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is kind
    assert after.args == before.args
    assert str(after) == str(before)
    assert vars(after) == vars(before)


def test_an_error_that_loses_its_arguments_would_be_caught() -> None:
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(_LossyError("file", 3)))


class _LossyError(Exception):
    """What the rule forbids: arguments that Exception never gets to see."""

    def __init__(self, file: str, line: int) -> None:
        super().__init__(f"{file}:{line}")
