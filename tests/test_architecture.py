"""Do files keep to the house rules, and do the documents say what is there?"""

from __future__ import annotations

import importlib.util
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("orchestrator", "trainers", "solvers")
MOST_LINES = 400
MEDIAN_LINES = 150
# A file is named after what it is about; these say only that something had no home.
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers", "shared"}

SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PYTHON = sorted(
    [*SOURCES, *(p for d in ("tests", "benchmarks", "docs") for p in (ROOT / d).rglob("*.py"))]
)

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "configs/README.md"])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_file_is_long() -> None:
    long = {relative(path): num_lines(path) for path in PYTHON if num_lines(path) > MOST_LINES}
    assert long == {}
    assert statistics.median(num_lines(path) for path in SOURCES) <= MEDIAN_LINES


def test_no_name_is_vague() -> None:
    parts = {part for path in PYTHON for part in Path(relative(path)).with_suffix("").parts}
    words = {word for part in parts for word in part.split("_")}
    assert words & VAGUE == set()


def test_every_module_says_which_question_it_answers(generator: ModuleType) -> None:
    files = [path for room in ROOMS for path in generator.modules(room)]
    assert [str(path) for path in files if not generator.purpose(path)] == []


def test_code_is_ascii_outside_formulas() -> None:
    allowed = re.compile(r"[\x00-\x7f]")
    odd = {relative(p): set(allowed.sub("", p.read_text())) for p in SOURCES}
    assert {name: chars for name, chars in odd.items() if chars} == {}


def test_architecture_lists_exactly_the_files_there_are() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    listed = set(re.findall(r"^\| `([a-z_]+/[\w/]+\.py)` \|", text, flags=re.MULTILINE))
    inits = {p for p in SOURCES if p.name == "__init__.py" and p.parent.parent != ROOT}
    assert listed == {relative(path) for path in SOURCES if path not in inits}


def test_catalogue_lists_exactly_the_experiments_there_are() -> None:
    text = (ROOT / "configs" / "README.md").read_text()
    listed = set(re.findall(r"^\| `(experiments/[^`]+)` \|", text, flags=re.MULTILINE))
    files = (ROOT / "configs" / "experiments").glob("*.yaml")
    assert listed == {f"experiments/{path.name}" for path in files}


def test_every_key_is_explained(generator: ModuleType) -> None:
    from key_tables import all_keys  # the generator puts docs/ on the path

    text = (ROOT / "docs" / "configuration.md").read_text()
    missing = []
    for key in all_keys():
        section, _, name = key.rpartition(".")
        heading = f"\n{'#' * (2 + section.count('.'))} {section or 'Top level'}"
        _, _, rest = text.partition(heading)
        table = re.split(r"\n##+ ", rest)[0]
        row = re.search(rf"^\| `{name}` \|.*\| (.+) \|$", table, flags=re.MULTILINE)
        if row is None or len(row[1]) < 8:
            missing.append(key)
    assert missing == []


def test_every_key_and_method_of_a_study_is_explained() -> None:
    from orchestrator.study.config import KEYS, known_methods

    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs/studies.md").read_text(), flags=re.MULTILINE)
    named = {word for cell in rows for word in re.findall(r"`(\w+)`", cell)}
    assert {*KEYS, *known_methods()} - named == set()


@pytest.mark.parametrize("document", ["docs/solvers.md", "docs/configuration.md"])
def test_every_kind_of_limit_is_in_the_tables(document: str) -> None:
    from solvers.limits import KINDS_WRITTEN

    rows = re.findall(r"^\| (`.+?) \|", (ROOT / document).read_text(), flags=re.MULTILINE)
    named = {word for cell in rows for word in re.findall(r"`(\w+)`", cell)}
    assert set(KINDS_WRITTEN) - named == set()


def test_every_column_of_results_is_explained() -> None:
    from solvers.result_files import COLUMNS

    text = (ROOT / "docs/solvers.md").read_text()
    rows = re.findall(r"^\| (`.+?) \|", text, flags=re.MULTILINE)
    named = {word for cell in rows for word in re.findall(r"`(\w+)`", cell)}
    assert set(COLUMNS) - named == set()


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_part_is_noticed(
    generator: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = {"configs/README.md": {"catalogue": lambda: "| another table |"}}
    monkeypatch.setattr(generator, "PARTS", stale)
    assert generator.main(["--check"]) == 1
    assert "configs/README.md is out of date" in capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_command_line_is_documented() -> None:
    from orchestrator.cli import VERBS

    readme = (ROOT / "README.md").read_text()
    installed = [v for v in VERBS if (ROOT / "orchestrator/commands" / f"{v}.py").is_file()]
    assert [verb for verb in installed if f"`mpq {verb}" not in readme] == []


def test_exit_codes_are_documented() -> None:
    from orchestrator.errors import ExitCode

    readme = (ROOT / "README.md").read_text()
    assert [int(code) for code in ExitCode if f"| {int(code)} |" not in readme] == []
