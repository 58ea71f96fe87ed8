"""Stored results: what a file holds is what a chapter reads, and a damaged one is refused."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import results


def a_table():
    """Two rows, three seeds; a number and a list of two."""
    cells = [
        {
            "row": row,
            "seed": seed,
            "seconds": 60.0,
            "cpu_seconds": 30.0,
            "values": {"score": base + seed, "curve": [base, base * seed]},
        }
        for seed in (0, 1, 5)
        for row, base in (("plain", 1.0), ("other", 10.0))
    ]
    return {
        "name": "toy",
        "about": "Two rows.",
        "command": "python tools/results.py run toy",
        "scale": "laptop",
        "machine": {"device": "Some CPU", "cores": 2, "threads": 1, "torch": "2.13.0", "python": "3.11.7"},
        "code": {"toy.py": "abc"},
        "settings": {"images": 7},
        "rows": ["plain", "other"],
        "seeds": [0, 1, 5],
        "cells": cells,
    }


@pytest.fixture
def content():
    return a_table()


@pytest.fixture
def stored(tmp_path, content):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(content))
    return results.read(path)


def test_what_was_stored_is_read(stored):
    assert stored.rows == ("plain", "other")
    assert stored.seeds == (0, 1, 5)
    assert stored.settings == {"images": 7}
    assert stored.cells["other", 5] == {"score": 15.0, "curve": [10.0, 50.0]}
    assert stored.seconds["other", 5] == 60.0
    assert stored.cpu_seconds["other", 5] == 30.0


def test_values_come_seed_by_seed(stored):
    assert torch.equal(stored.values("plain", "score"), torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    assert stored.values("other", "curve").tolist() == [[10.0, 0.0], [10.0, 10.0], [10.0, 50.0]]


def test_spread_is_over_the_seeds(stored):
    """Of 1, 2, 6 the mean is 3 and the unbiased variance (4 + 1 + 9) / 2."""
    spread = stored.spread("plain", "score")
    assert (spread.n, float(spread.mean), float(spread.low), float(spread.high)) == (3, 3.0, 1.0, 6.0)
    assert float(spread.std) == pytest.approx(7**0.5)
    assert stored.spread("other", "curve").mean.tolist() == [10.0, 20.0]


def test_one_seed_has_no_spread(tmp_path, content):
    content["seeds"] = [1]
    path = tmp_path / "one.json"
    path.write_text(json.dumps(content))
    spread = results.read(path).spread("plain", "curve")
    assert spread.n == 1
    assert spread.std.isnan().all()
    assert spread.std.shape == (2,)


def test_the_table_has_a_line_a_row(stored):
    assert stored.table({"score": ".1f"}).splitlines() == [
        "            score",
        "plain   3.0 ± 2.6",
        "other  12.0 ± 2.6",
    ]


def test_provenance_in_a_line(stored):
    assert stored.made == (
        "python tools/results.py run toy: 2 rows, seeds 0, 1, 5, scale laptop; "
        "6 minutes, 3 of them the processor's, on Some CPU, 1 thread of 2 cores, torch 2.13.0"
    )


@pytest.mark.parametrize(
    ("row", "measure", "known"), [("plane", "score", "plain, other"), ("plain", "x", "score, curve")]
)
def test_an_unknown_row_or_measure_is_refused(stored, row, measure, known):
    with pytest.raises(ValueError, match=f"is not in toy; there are {known}"):
        stored.values(row, measure)
    with pytest.raises(ValueError, match=f"is not in toy; there are {known}"):
        stored.spread(row, measure)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"make it by: python tools/results\.py run toy"):
        results.read(tmp_path / "toy.json")


def test_a_half_file_is_refused(tmp_path, content):
    text = json.dumps(content)
    path = tmp_path / "toy.json"
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"toy\.json' is not a whole stored result"):
        results.read(path)


@pytest.mark.parametrize("key", ["rows", "cells", "machine", "settings"])
def test_a_file_without_a_part_is_refused(tmp_path, content, key):
    del content[key]
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"not a whole stored result .*{key}"):
        results.read(path)


def test_a_missing_cell_is_refused(tmp_path, content):
    del content["cells"][3]
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"1 of 6 cells are missing, the first \('other', 1\)"):
        results.read(path)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@given(key=st.sampled_from(["rows", "cells"]), value=JSON.filter(bool))
def test_whatever_else_stands_in_a_table_is_refused(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("json") / "toy.json"
    path.write_text(json.dumps(a_table() | {key: value}))
    with pytest.raises(ValueError, match="not a whole stored result"):
        results.read(path)
