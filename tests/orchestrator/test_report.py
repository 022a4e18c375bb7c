from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator import events
from orchestrator.journal import JournalView, read_journal
from orchestrator.records import RunRecord, State
from orchestrator.report.cells_text import (
    escaped,
    markdown_table,
    result_cells,
    terminal_table,
)
from orchestrator.report.write import write_report
from orchestrator.results import NOT_TRAINED, bitops_text, out_of_reach, results_of
from orchestrator.runs import newest_records, run_status
from orchestrator.store import RunStore
from orchestrator.yaml_source import dump_yaml


def _record(phase: str, key: str, **values: Any) -> RunRecord:
    base: dict[str, Any] = {
        "run": "run", "step": f"{phase}/{key}", "key": key, "phase": phase, "method": "any",
        "state": State.DONE,
    }  # fmt: skip
    return RunRecord(**{**base, **values})


def _solve(key: str, method: str, policy: str | None, limit: str, **values: Any) -> RunRecord:
    if method == "limpq":
        values["facts"] = {"search_steps": ["indicators/i"], "solver": "highs",
                           **values.get("facts", {})}  # fmt: skip
    return _record(
        "solve", key, method=method, policy_id=policy, limits={"bitops": limit},
        **{"metrics": {"cost/bitops_g": 2.0, "cost/weight_mib": 1.0, "solve/wall_s": 0.01,
                       "cost/mean_weight_bits": 3.0, "cost/mean_act_bits": 4.0}, **values},
    )  # fmt: skip


RECORDS = (
    _record("costs", "c", facts={"fingerprint": "net-1", "pinned": ["a"]}),
    _record("pretrain", "p", method="fp", metrics={"eval/top1": 99.0},
            facts={"data_fingerprint": "data-1"}),
    _record("indicators", "i", method="limpq", metrics={"search/device_s": 30.0}, device="2 x cpu"),
    _solve("s1", "limpq", "pol-1", "2G", alpha=1.0),
    _solve("s2", "limpq", "pol-1", "2G", alpha=2.0),
    _solve("s3", "limpq", "pol-2", "3G", alpha=1.0),
    _solve("s4", "limpq", None, "1M", alpha=1.0, state=State.INFEASIBLE, metrics={},
           facts={"bounds": {"bitops": 1_000_000}, "smallest": {"bitops": 7_000_000},
                  "resources": {"bitops": "bitops"}}),
    _solve("s5", "uniform", "pol-3", "2G"),
    _solve("s6", "random", "pol-4", "2G"),
    _record("train", "t1", policy_id="pol-1", metrics={"eval/top1": 97.5}),
    _record("train", "t3", policy_id="pol-3", metrics={"eval/top1": 96.0}),
    _record("train", "t4", policy_id="pol-4", state=State.DIVERGED, message="loss is nan"),
)  # fmt: skip


def _run(folder: Path, name: str = "run", seed: int = 0, records: Any = RECORDS) -> RunStore:
    store = RunStore(folder, name)
    with store.opened() as journal:
        started = {"command": "mpq run x.yaml", "machine": {"cores": 2}, "versions": {"torch": "2"}}
        journal.event(events.RUN_STARTED, started)
        not_run = [{"what": "bitops=1M", "reason": "<smallest> is 7 M"}]
        steps = [{"name": "costs"}, {"name": "train"}, {"name": "later"}]
        journal.event(events.PLANNED, {"steps": steps, "not_run": not_run})
        journal.append_all(records)
        spent = {"train": 60.0, "solve": 1.0, "Ray start and stop": 39.0}
        journal.event(events.RUN_FINISHED, {"exit_code": 3, "wall_s": 100.0, "spent": spent})
    data = {"name": "d", "path": "s3://me:hunter2@b/x"}
    config = {"name": name, "method": "limpq", "seed": seed, "model": {"name": "net"}, "data": data}
    store.config_path.write_text(dump_yaml(config))
    return store


def _view(store: RunStore) -> JournalView:
    return read_journal(store.journal_path)


def test_rows_join_proposals_with_their_shared_training() -> None:
    results = results_of("run", RECORDS)
    rows = {(r.method, r.alpha, r.limits["bitops"]): r for r in results.rows}
    first, second = rows["limpq", 1.0, "2G"], rows["limpq", 2.0, "2G"]
    assert (first.top1, second.top1, first.drop) == (97.5, 97.5, 1.5)
    assert first.trained is second.trained
    assert first.search_device_s == 30.0
    assert rows["uniform", None, "2G"].search_device_s == 0.0
    assert rows["limpq", 1.0, "3G"].status == NOT_TRAINED
    assert rows["random", None, "2G"].status == "DIVERGED"
    infeasible = rows["limpq", 1.0, "1M"]
    assert infeasible.status == "INFEASIBLE"
    assert infeasible.reason == "bitops: asked 1 M, smallest reachable 7 M"


def test_the_table_shows_all_but_untrained_rows_side_by_side_at_each_limit() -> None:
    shown = results_of("run", RECORDS).shown
    assert [(r.method, r.limits["bitops"]) for r in shown] == [
        ("limpq", "2G"), ("limpq", "2G"), ("uniform", "2G"), ("random", "2G"), ("limpq", "1M"),
    ]  # fmt: skip


def test_a_search_cost_that_nobody_wrote_down_is_not_recorded_and_no_zero() -> None:
    old = [replace(r, facts={}) if r.method == "limpq" else r for r in RECORDS]
    told = replace(old[3], key="s9", limits={"bitops": "9G"},
                   metrics={**old[3].metrics, "search/device_s": 7.0})  # fmt: skip
    results = results_of("run", [*old, told])
    cells = {(c[0], c[2]): c[9] for c in result_cells(results, results.shown)}
    assert cells["limpq", "bitops=2G"] == "not recorded + 10 ms"
    assert cells["limpq", "bitops=9G"] == "7.0 s + 10 ms"
    assert cells["limpq", "bitops=1M"] == "not recorded"
    assert cells["uniform", "bitops=2G"] == "10 ms"


def test_limits_that_another_method_met_are_within_reach() -> None:
    assert out_of_reach(RECORDS, "bitops") == (1_000_000,)
    assert out_of_reach(RECORDS, "size_bits") == ()
    met = _solve("s6b", "uniform", "pol-5", "1M")
    assert out_of_reach([*RECORDS, met], "bitops") == ()
    facts = {"bounds": {"bitops": 9, "weight_bytes": 80}, "smallest": {"bitops": 5},
             "resources": {"bitops": "bitops", "weight_bytes": "size_bits"}}  # fmt: skip
    both = _record("solve", "b", method="limpq", state=State.INFEASIBLE, facts=facts,
                   limits={"bitops": "9", "weight_bytes": "10"})  # fmt: skip
    # Either can be met alone: both together are what nothing meets.
    assert (out_of_reach([both], "bitops"), out_of_reach([both], "size_bits")) == ((9,), (80,))
    facts = {**facts, "smallest": {"bitops": 5, "weight_bytes": 90}}
    assert out_of_reach([replace(both, facts=facts)], "bitops") == ()


def test_images_that_were_left_out_are_counted_once_and_named(tmp_path: Path) -> None:
    bad = [f"x/{n}.jpg: <b>truncated" for n in range(7)]
    records = [replace(r, facts={**r.facts, "skipped_images": bad[:n]})
               for r, n in zip(RECORDS, (0, 7, 3, *[0] * 9), strict=True)]  # fmt: skip
    store = _run(tmp_path, records=records)
    write_report(store, _view(store))
    told = "7 images could not be read and another stood in (data.on_bad_sample: skip): x/0.jpg: "
    assert told + "&lt;b&gt;truncated; " in (store.root / "report.html").read_text()
    assert "x/4.jpg: &lt;b&gt;truncated and 2 more." in (store.root / "report.html").read_text()
    assert "7 images could not be read" in store.report_path.read_text()


def test_the_newest_failure_counts_until_there_is_a_final_record(tmp_path: Path) -> None:
    failures = tuple(
        _record("indicators", "i", state=State.FAILED, attempt=n, message=f"no {n}") for n in (1, 2)
    )
    store = _run(tmp_path, records=failures)
    (record,) = newest_records(_view(store))
    assert record.message == "no 2"
    store = _run(tmp_path, "other", records=(*failures, RECORDS[2]))
    (record,) = newest_records(_view(store))
    assert record.state is State.DONE


def test_a_step_that_was_done_again_with_other_images_counts_once(tmp_path: Path) -> None:
    """Two generations in one journal: the rows and the drop are those of the newer."""

    def generation(images: str, full: float, top1: float) -> tuple[RunRecord, ...]:
        said: dict[str, Any] = {"policy_id": "abc", "facts": {"training": "abc"}}
        limit: dict[str, Any] = {"alpha": 2.0, "limits": {"bitops_level": "3x3"}}
        return (
            _record("pretrain", f"p{images}", step="pretrain", method="fp",
                    metrics={"eval/top1": full}),
            _record("solve", f"s{images}", step="sweep/a", method="limpq", **limit, **said),
            _record("train", f"t{images}", step="train/abc", metrics={"eval/top1": top1}, **said),
        )  # fmt: skip

    records = (
        *generation("A", 90.0, 85.0),
        _record("indicators", "iA", step="indicators", state=State.FAILED, message="broken image"),
        *generation("B", 70.0, 65.0),
        _record("indicators", "iB", step="indicators"),
    )
    store = _run(tmp_path, records=records)
    found = results_of("r", newest_records(_view(store)))
    assert [(row.top1, row.drop) for row in found.rows] == [(65.0, 5.0)]
    assert found.failures == ()
    # The first images again: what was recorded for them holds once more, and is not written twice.
    with store.opened() as journal:
        before = len(journal.records())
        assert journal.append_all(generation("A", 90.0, 85.0)) == 0
        assert journal.append_all(generation("A", 90.0, 85.0)) == 0
        assert len(journal.records()) == before
        kinds = [entry.kind for entry in journal.view.entries]
    assert kinds.count("record_again") == 3
    found = results_of("r", newest_records(_view(store)))
    assert [(row.top1, row.drop) for row in found.rows] == [(85.0, 5.0)]


def test_the_report_holds_every_figure_of_the_table_and_what_was_not_run(tmp_path: Path) -> None:
    store = _run(tmp_path)
    write_report(store, _view(store))
    text = store.report_path.read_text()
    for part in (
        "| full precision |", "| 97.50 | +1.50 | 30.0 s + 10 ms | pol-1 | DONE |",
        "**INFEASIBLE**. bitops: asked 1 M, smallest reachable 7 M",
        "**DIVERGED**. loss is nan", "39.0 % is not training, evaluating or solving",
        "| Ray start and stop | 39.0 s | 39.0 % |", "bitops=1M: &lt;smallest&gt; is 7 M",
        "1 proposals were solved but not trained", "| command | mpq run x.yaml |", "net-1",
        "data-1", "torch 2", "| bitops=2G | pol-1 | pol-1 |", "figures/accuracy.svg",
    ):  # fmt: skip
        assert part in text, part
    assert "hunter2" not in text
    linked = re.findall(r"\]\((figures/[^)]*)\)", text)
    assert linked
    assert all((store.root / path).is_file() for path in linked)


def test_the_same_journal_gives_the_same_bytes(tmp_path: Path) -> None:
    store = _run(tmp_path)
    files = []
    for _ in range(2):
        write_report(store, _view(store))
        every = [
            p for p in store.root.rglob("*") if p.suffix in (".md", ".svg", ".png", ".parquet")
        ]
        files.append({p.name: p.read_bytes() for p in every})
    assert files[0] == files[1]
    assert len(files[0]) >= 6


def test_a_run_without_results_has_a_report_that_says_so(tmp_path: Path) -> None:
    store = _run(tmp_path, records=(RECORDS[6],))
    write_report(store, _view(store))
    text = store.report_path.read_text()
    assert "None: nothing was trained." in text
    assert "INFEASIBLE" in text


def test_a_printed_table_is_what_richs_own_would_be(tmp_path: Path) -> None:
    columns = ("method", "size", "layers")
    rows = [("[b]limpq[/b]", "1.23", "a, b"), ("", "12,345", "\u65e5\u672c  x"), ("x", "-", "")]
    title = "a title that is longer than its table is wide, so it takes lines of its own"
    printed = []
    for own in (True, False):
        text = io.StringIO()
        console = Console(file=text, width=20)
        if own:
            terminal_table(title, columns, rows, console)
        else:
            table = Table(title=title, box=SIMPLE, title_justify="left", pad_edge=False)
            for name in columns:
                side: Any = "right" if name == "size" else "left"
                table.add_column(name, justify=side, no_wrap=True)
            for cells in rows:
                table.add_row(*map(Text, cells))
            console.width = 200
            console.print(table)
        printed.append(text.getvalue())
    assert printed[0] == printed[1]
    text = io.StringIO()
    terminal_table("t", ("method",), [("two\nlines \x1b[31m",)], Console(file=text))
    assert " two lines  [31m " in text.getvalue()


def test_text_from_outside_stays_text_in_markdown() -> None:
    assert escaped("a|b\n<script>`x`") == "a\\|b &lt;script&gt;\\`x\\`"
    assert markdown_table(("method", "top-1 %"), [("a|b", "1")]).splitlines() == [
        "| method | top-1 % |", "| --- | ---: |", "| a\\|b | 1 |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bitops_g", "text"), [(23.07, "23.07 G"), (0.0107, "10.7 M"), (1500.0, "1.5 T"), (5e-9, "5")]
)
def test_bitops_are_written_with_a_fitting_unit(bitops_g: float, text: str) -> None:
    assert bitops_text(bitops_g) == text


def test_status_of_a_finished_run(tmp_path: Path) -> None:
    status = run_status(_run(tmp_path))
    assert status.state == "incomplete"
    assert status.counts["train"] == {"DONE": 2, "DIVERGED": 1}
    assert status.best == {"method": "any", "policy_id": "pol-1", "top1": 97.5}
    assert status.last_message == "loss is nan"
    assert status.resume == "mpq run x.yaml"
    assert status.pending == ()


def test_status_of_a_run_that_was_killed(tmp_path: Path) -> None:
    store = _run(tmp_path)
    lines = store.journal_path.read_bytes().splitlines(keepends=True)
    store.journal_path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    status = run_status(store)
    assert status.state == "interrupted"
    assert status.pending == ("later",)
    assert status.torn_bytes == 20


def test_status_of_a_run_that_is_going_on(tmp_path: Path) -> None:
    store = _run(tmp_path)
    with store.opened():
        assert run_status(store).state == "running"
        assert "process" in run_status(store).owner
