"""The page of a run: whole, escaped, the same bytes, and drawn by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.journal import read_journal
from orchestrator.literature import LiteratureRow
from orchestrator.records import RunRecord, State
from orchestrator.report.escape import anchor, bullets, esc, facts_list, html_table
from orchestrator.report.literature import paired_row, paper_cells, reported_for
from orchestrator.report.page import Section, page
from orchestrator.report.style import COLOURS, in_light, style_sheet
from orchestrator.report.write import PAGE, write_report
from orchestrator.results import ResultRow
from orchestrator.store import RunStore
from tests.orchestrator.run_folders import POLICIES, write_run

HOSTILE = "<script>alert(1)</script>\"' onload=x & \x00"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class _Checker(HTMLParser):
    """Elements, attributes and what is not closed."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


def _parsed(text: str) -> _Checker:
    checker = _Checker()
    checker.feed(text)
    return checker


def _page(store: RunStore) -> str:
    write_report(store, read_journal(store.journal_path))
    return (store.root / PAGE).read_text()


def _faults(text: str) -> list[str]:
    """Everything that would run, load or not close."""
    checker = _parsed(text)
    found = [f"unclosed {t}" for t in checker.open] + [f"closes {t}" for t in checker.faults]
    for tag, attrs in checker.elements:
        if tag in ("script", "iframe", "object", "embed", "link", "img", "base", "form"):
            found.append(tag)
        for name, value in attrs.items():
            if name.startswith("on") or (
                name in ("href", "src", "xlink:href")
                and not (value or "").startswith(("#", "data:text/csv", "data:image/svg+xml"))
            ):
                found.append(f"{tag} {name}={value}")
    return found


def test_a_page_runs_nothing_loads_nothing_and_closes_everything(tmp_path: Path) -> None:
    hostile = RunRecord(
        run="r", step="evidence-x", key="e", phase="evidence", method="any", state=State.FAILED,
        message=HOSTILE,
    )  # fmt: skip
    text = _page(write_run(tmp_path, "r", extra=[hostile], config={"accounting": HOSTILE[:-1]}))
    assert _faults(text) == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_markup_that_slips_through_would_be_noticed() -> None:
    """Negative control of the test above."""
    assert _faults("<p><script>x</script></p>")
    assert _faults('<p onclick="x">a</p>')
    assert _faults('<a href="https://x">a</a>')
    assert _faults("<p><b>a</p>")


def test_the_page_has_every_part_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    text = _page(write_run(tmp_path, "r"))
    titles = re.findall(r"<h2>([^<]*)</h2>", text)
    assert titles == [
        "Results", "Accuracy", "Bits", "Search cost", "Indicators", "Alphas and budgets",
        "Proxy validity", "Time", "Not run", "Provenance",
    ]  # fmt: skip
    ids = {attrs.get("id") for _, attrs in _parsed(text).elements}
    for target in re.findall(r'href="#([^"]*)"', text):
        assert target in ids
    for stem in ("accuracy", "accuracy_size", "bits", "search_cost", "amortised", "indicators",
                 "alpha_map", "proxy_tau"):  # fmt: skip
        assert (tmp_path / "r" / "figures" / f"{stem}.svg").is_file(), stem
        assert (tmp_path / "r" / "figures" / f"{stem}.csv").is_file(), stem
    assert "paid once" in text
    assert "cores 2" in text


def test_ids_are_not_used_twice(tmp_path: Path) -> None:
    found = [a["id"] for _, a in _parsed(_page(write_run(tmp_path, "r"))).elements if "id" in a]
    assert len(found) == len(set(found))


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    store = write_run(tmp_path, "r")
    pages = []
    for _ in range(2):
        _page(store)
        every = sorted((store.root / "figures").iterdir())
        pages.append([p.read_bytes() for p in (store.root / PAGE, *every)])
    assert pages[0] == pages[1]


def test_missing_and_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    store = write_run(tmp_path, "r")
    (store.root / "steps/indicators/initial.parquet").unlink()
    (store.root / "steps/indicators/importance.parquet").write_bytes(b"rubbish")
    (store.root / f"policies/{POLICIES['uniform', '1G'].policy_id}.json").write_text("{}")
    text = _page(store)
    assert "not shown, because steps/indicators/initial.parquet is missing" in text
    assert "importance.parquet cannot be read" in text
    assert f"{POLICIES['uniform', '1G'].policy_id}.json cannot be read" in text
    assert "<h2>Bits</h2>" in text
    assert "<h2>Indicators</h2>" not in text


def test_a_policy_under_the_name_of_another_is_not_shown(tmp_path: Path) -> None:
    store = write_run(tmp_path, "r")
    first, second = (f"policies/{POLICIES[key].policy_id}.json"
                     for key in (("limpq", "1G"), ("uniform", "1G")))  # fmt: skip
    shutil.copy(store.root / first, store.root / second)
    assert f"{second} holds policy" in _page(store)


def test_failed_rows_and_unfinished_runs_stand_out(tmp_path: Path) -> None:
    top1 = {key: 90.0 for key in POLICIES if key != ("random", "1G")}
    text = _page(write_run(tmp_path, "r", top1=top1, finished=False))
    assert "This run has not finished" in text
    assert "random at bitops=1G: DIVERGED. loss is nan &lt;at&gt; step 3" in text
    assert '<tr class="bad' in text


def test_a_run_without_anything_has_a_page(tmp_path: Path) -> None:
    text = _page(write_run(tmp_path, "r", policies={}, files=False))
    assert _faults(text) == []
    assert "Everything" in text or "not shown" in text


def _result(method: str, bitops_g: float | None, top1: float | None) -> ResultRow:
    return ResultRow(method=method, alpha=None, limits={}, policy_id="p", status="DONE",
                     bitops_g=bitops_g, top1=top1)  # fmt: skip


def test_a_paper_row_stands_beside_the_row_of_its_method_and_cost() -> None:
    rows = [
        LiteratureRow(id=f"r{i}", method=m, own=True, top1=t, top1_fp=t + d, drop=d, bitops_g=b)
        for i, (m, t, d, b) in enumerate(
            [("LIMPQ", 69.0, 0.6, 23.07), ("LIMPQ", 68.7, 0.9, 19.81), ("MetaMix", 71.0, 0.5, 23.0)]
        )
    ]
    assert paired_row(_result("limpq", 23.0, 68.5), rows) is rows[0]
    assert paper_cells(_result("limpq", 19.9, 68.5), rows) == ("68.70", "+0.90", "-0.20")
    assert paired_row(_result("limpq", 30.0, 68.5), rows) is None
    assert paired_row(_result("uniform", 23.07, 68.5), rows) is None
    assert paper_cells(_result("uniform", 23.07, 68.5), rows) == ("", "", "")


def test_reported_rows_of_the_network_are_shown_apart_and_never_as_measured(tmp_path: Path) -> None:
    config = {"model": {"name": "resnet18", "num_classes": 1000}, "data": {"name": "parquet"},
              "reports": ["limpq-t2-ours-23.07g"]}  # fmt: skip
    text = _page(write_run(tmp_path, "r", config=config))
    assert "<h2>Reported by the papers</h2>" in text
    assert text.count('<tr class="lit">') == len(reported_for(config).every) > 20
    assert "HAWQv2" not in text.partition("<h2>Reported")[0].partition("<h2>Accuracy")[0]
    unknown = reported_for({**config, "reports": ["limpq-t2-our-23.07g"]})
    assert "did you mean" in unknown.problem


def test_escaping() -> None:
    assert esc(HOSTILE) == (
        "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39; onload=x &amp; \ufffd"
    )
    assert anchor("A <b> c!") == "a-b-c"
    for text in (html_table(["<x>"], [["<y>"]], row_kinds=['"><z>']), bullets(["<x>"]),
                 facts_list({"<k>": "<v>"})):  # fmt: skip
        assert not re.search(r"<[xyzkv]>", text)


def test_every_colour_is_there_in_light_and_dark_and_can_be_read() -> None:
    assert "prefers-color-scheme:dark" in style_sheet()
    for name in ("ink", "muted", "accent", "red"):
        for scheme in (0, 1):
            assert _contrast(COLOURS[name][scheme], COLOURS["paper"][scheme]) >= 4.5 - 0.35
    with pytest.raises(KeyError):
        in_light("var(--nothing)")


def _contrast(first: str, second: str) -> float:
    """Ratio of luminances as the web's accessibility guidelines define it."""
    bright = []
    for colour in (first, second):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        bright.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(bright) + 0.05) / (min(bright) + 0.05)


def test_sections_without_a_body_are_left_out() -> None:
    text = page("t", "l", "", [Section(title="A", body="x"), Section(title="B", body="")], "f")
    assert "<h2>A</h2>" in text
    assert "<h2>B</h2>" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here: install chromium to draw the page")
@pytest.mark.parametrize(
    ("width", "dark"), [(1200, False), (1200, True), (400, False), (400, True)]
)
def test_a_real_browser_draws_the_page(tmp_path: Path, width: int, dark: bool) -> None:
    from PIL import Image

    _page(write_run(tmp_path, "r"))
    picture = tmp_path / "page.png"
    assert CHROMIUM is not None
    scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}", *scheme,
        f"--window-size={width},1600", f"--screenshot={picture}",
        f"file://{tmp_path / 'r' / PAGE}",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
        assert pixels.size[0] >= width
        corner = pixels.getpixel((2, 2))
        colours = {colour for _, colour in pixels.getcolors(1 << 24)}
    paper = COLOURS["paper"][dark].removeprefix("#")
    assert corner == tuple(int(paper[i : i + 2], 16) for i in (0, 2, 4))
    # Text and frames alone have some dozens of shades; the marks of figures are there too.
    ink = COLOURS["blue" if width > 1000 else "accent"][dark].removeprefix("#")
    assert tuple(int(ink[i : i + 2], 16) for i in (0, 2, 4)) in colours
    assert len(colours) > 50
