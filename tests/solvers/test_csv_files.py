"""No cell of a CSV file is lost in silence, for devices and for latency tables alike."""

from __future__ import annotations

import pytest

from solvers.devices import load_devices_csv
from solvers.errors import FormatError
from solvers.latency_files import load_latency

LATENCY = "layer,weight_bits,act_bits,latency_us\n"
READERS = {
    "devices": (load_devices_csv, "name,bitops\n", "a,1G\n"),
    "latency": (load_latency, LATENCY, "a,2,2,10\n"),
}


@pytest.mark.parametrize("reader", READERS)
def test_surplus_cells_are_refused_by_line(tmp_path, reader):
    load, head, row = READERS[reader]
    path = tmp_path / "t.csv"
    path.write_text(head + row + "\n" + row.replace("a,", "b,", 1).replace("\n", ",9\n"))
    with pytest.raises(FormatError, match=r"t\.csv: line 4: too many cells; a decimal comma"):
        load(path)


@pytest.mark.parametrize("reader", READERS)
def test_a_column_that_stands_twice_is_refused(tmp_path, reader):
    load, head, row = READERS[reader]
    path = tmp_path / "t.csv"
    last = head.strip().rpartition(",")[2]
    path.write_text(head.replace("\n", f",{last}\n") + row.replace("\n", ",3\n"))
    with pytest.raises(FormatError, match=f"column '{last}' stands 2 times"):
        load(path)


@pytest.mark.parametrize("reader", READERS)
def test_the_mark_that_excel_writes_is_no_part_of_a_name(tmp_path, reader):
    load, head, row = READERS[reader]
    plain, marked = tmp_path / "plain" / "t.csv", tmp_path / "marked" / "t.csv"
    for path, start in ((plain, b""), (marked, b"\xef\xbb\xbf")):
        path.parent.mkdir()
        path.write_bytes(start + (head + row).encode())
    read, again = load(marked), load(plain)
    assert read == again or read.rows == again.rows  # a latency table is named after its file


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_column_is_named(tmp_path, reader):
    load, head, row = READERS[reader]
    path = tmp_path / "t.csv"
    first = head.partition(",")[0]
    path.write_text(head.replace(first, "other") + row)
    with pytest.raises(FormatError, match=f"column '{first}' is missing"):
        load(path)
