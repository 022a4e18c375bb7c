"""Columns made from buffers hold what pyarrow's own constructor would, and pandas stays away."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from solvers.columns import lists, numbers, texts


@pytest.mark.parametrize("values", [[], ["a"], ["", None, "\u00e9", "x" * 5000], [None] * 9])
def test_texts(values):
    assert texts(values).equals(pa.array(values, pa.string()))


@pytest.mark.parametrize("values", [[], [1], [1, None, -3], [None] * 17, list(range(100))])
def test_numbers(values):
    for kind in (pa.int64(), pa.float64()):
        assert numbers(values, kind).equals(pa.array(values, kind))
        assert numbers(values, kind).null_count == values.count(None)


@pytest.mark.parametrize("values", [[], [()], [(), (1, 2), (), (3,)], [(2**40,)] * 5])
def test_lists(values):
    assert lists(values, pa.int64()).equals(pa.array(values, pa.list_(pa.int64())))


def test_writing_results_does_not_load_pandas(tmp_path):
    code = (
        "import sys\n"
        "from benchmarks.networks import resnet18\n"
        "from benchmarks.instances import indicators\n"
        "from solvers.storage import Results, save_costs, save_importance, save_results\n"
        "costs = resnet18()\n"
        "save_costs(sys.argv[1] + '/c', costs)\n"
        "save_importance(sys.argv[1] + '/i', indicators(costs, 0))\n"
        "save_results(sys.argv[1] + '/r', Results(model='m', fingerprint='f',"
        " accounting='standard', layers=costs.names, rows=()))\n"
        "sys.exit('pandas' in sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == 0
