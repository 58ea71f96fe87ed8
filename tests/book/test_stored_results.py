"""The book's stored results: complete, fresh, and what today's code gives; and every way to spoil that is noticed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import results

from edmnotes.results import read

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = ROOT / "tools" / "results.py"

TOY = '''"""Two rows of a toy.

More about it.
"""

from pathlib import Path

from edmnotes import rule

ROWS = ("plain", "squared")
SEEDS = (0, 1, 2)
TOLERANCE = 1e-6
LOG = Path(__file__).parent / "log"


def settings(at):
    return {"factor": at.pick(smoke=1, laptop=10, gpu=100), "levels": (1, 2)}


def measure(row, seed, settings):
    with LOG.open("a") as file:
        file.write(f"{row} {seed} {settings['factor']}\\n")
    value = settings["factor"] * (rule.rule(seed + 1) if row == "plain" else rule.rule(seed + 1) ** 2)
    return {"value": value, "list": [value * level for level in settings["levels"]]}
'''
RULE = '"""A rule."""\n\n\ndef rule(x):\n    return 3.0 * x\n'


class Toy:
    """An experiment in folders of its own, and a package whose module ``rule`` it reaches."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.definition, self.rule = (
            folder,
            folder / "experiments" / "toy.py",
            folder / "edmnotes" / "rule.py",
        )
        for path, text in [(self.definition, TOY), (self.rule, RULE), (folder / "edmnotes" / "__init__.py", "")]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    @property
    def stored(self) -> Path:
        return self.folder / "results" / "toy.json"

    @property
    def unfinished(self) -> Path:
        return self.folder / "build" / "laptop" / "toy.json"

    def arguments(self) -> list[str]:
        folders = {"experiments": "experiments", "results": "results", "build": "build", "package": "edmnotes"}
        return [word for option, name in folders.items() for word in (f"--{option}", str(self.folder / name))]

    def call(self, *words: str) -> int:
        return results.main([*words, *self.arguments()])

    def measured(self) -> list[str]:
        """What was measured since the last call of this method."""
        log = self.folder / "experiments" / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy's module takes a room's place, read from its file at every use, as a fresh process would."""
    toy = Toy(tmp_path)
    monkeypatch.delenv("EDMNOTES_SCALE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    import edmnotes

    class Rule:
        @staticmethod
        def rule(x):
            space = {}
            exec(toy.rule.read_text(), space)
            return space["rule"](x)

    monkeypatch.setattr(edmnotes, "rule", Rule, raising=False)
    return toy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- the book's own -------------------------------------------------------------------------------------------------


def test_every_stored_result_is_complete_and_fresh_and_one_row_comes_out_as_stored():
    """In a process of its own: what the tests before left behind in torch does not matter."""
    found = subprocess.run([sys.executable, str(TOOL), "check"], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr


def test_what_is_stored_can_be_read_and_names_no_machine():
    for path in sorted((ROOT / "book" / "results").glob("*.json")):
        if ".confirmed" not in path.suffixes:
            assert read(path).cells
        assert not any(word in path.read_text() for word in ("/home", "/work", "/root", "/tmp", os.uname().nodename))


# --- run ------------------------------------------------------------------------------------------------------------


def test_a_run_measures_twins_and_cells_and_says_how(toy, capsys):
    assert toy.call("run", "toy") == 0
    assert toy.measured() == [
        *["plain 0 1", "squared 0 1"],
        *["plain 0 10", "squared 0 10", "plain 1 10", "squared 1 10", "plain 2 10", "squared 2 10"],
    ]
    stored = read(toy.stored)
    assert stored.values("squared", "list").tolist() == [[90.0, 180.0], [360.0, 720.0], [810.0, 1620.0]]
    assert stored.about == "Two rows of a toy."
    assert stored.settings == {"factor": 10, "levels": [1, 2]}
    assert stored.provenance["command"] == "python tools/results.py run toy"
    assert stored.provenance["scale"] == "laptop"
    assert set(stored.provenance["code"]) == {"toy.py", "edmnotes.rule"}
    assert {"device", "cores", "threads", "torch"} <= set(stored.provenance["machine"])
    assert not toy.unfinished.exists()
    assert re.search(r"squared, seed 2 in \d+\.\d s; 6 of 6 cells", capsys.readouterr().out)
    assert toy.call("check") == 0


def test_a_complete_and_fresh_result_is_not_measured_again_unless_forced(toy, capsys):
    toy.call("run", "toy")
    toy.measured()
    assert toy.call("run", "toy") == 0
    assert toy.measured() == []
    assert "complete and fresh" in capsys.readouterr().out
    assert toy.call("run", "--force", "toy") == 0
    assert len(toy.measured()) == 8


def test_another_scale_is_stored_aside(toy):
    assert toy.call("run", "--scale", "smoke", "toy") == 0
    assert not toy.stored.exists()
    stored = read(toy.folder / "build" / "smoke" / "toy.json")
    assert stored.values("plain", "value").tolist() == [3.0, 6.0, 9.0]
    assert stored.provenance["command"] == "python tools/results.py run toy --scale smoke"


def test_an_interrupted_run_goes_on_where_it_was(toy, capsys):
    edit(
        toy.definition,
        "    value = ",
        "    if seed == 1 and STOP.exists():\n        raise KeyboardInterrupt\n    value = ",
    )
    edit(toy.definition, "LOG = ", "STOP = Path(__file__).parent / 'stop'\nLOG = ")
    stop = toy.folder / "experiments" / "stop"
    stop.touch()
    assert toy.call("run", "toy") == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert not toy.stored.exists()
    with pytest.raises(ValueError, match="4 of 6 cells are missing"):
        read(toy.unfinished)
    toy.measured()
    stop.unlink()
    assert toy.call("run", "toy") == 0
    assert toy.measured() == ["plain 1 10", "squared 1 10", "plain 2 10", "squared 2 10"]
    assert read(toy.stored).values("plain", "value").tolist() == [30.0, 60.0, 90.0]


SLOW = """
import sys, time, types
import edmnotes
edmnotes.rule = types.SimpleNamespace(rule=lambda x: time.sleep(0.2) or 3.0 * x)
sys.path.insert(0, {tools!r})
import results
sys.exit(results.main({words!r}))
"""


def test_a_killed_run_goes_on_where_it_was(toy):
    """SIGKILL, at no chosen moment; what is stored then is whole, and the end is that of a run that was not killed."""
    program = SLOW.format(tools=str(TOOL.parent), words=["run", "toy", *toy.arguments()])
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (toy.unfinished.exists() and len(json.loads(toy.unfinished.read_text())["cells"]) >= 2):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(json.loads(toy.unfinished.read_text())["cells"])
    assert 2 <= done < 6
    toy.measured()
    assert toy.call("run", "toy") == 0
    assert len(toy.measured()) == 6 - done
    whole = read(toy.stored)
    assert toy.call("run", "--force", "toy") == 0
    assert read(toy.stored).cells == whole.cells


def test_a_failing_write_leaves_the_file_as_it_was(toy, monkeypatch):
    path = toy.folder / "some.json"
    results.write(path, {"cells": [1]})
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(results.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        results.write(path, {"cells": [1, 2]})
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", '{"code": {}, "cel', "[]", "{}"])
def test_a_half_file_is_refused(toy, capsys, text):
    toy.unfinished.parent.mkdir(parents=True)
    toy.unfinished.write_text(text)
    assert toy.call("run", "toy") == 1
    assert "toy.json is damaged" in capsys.readouterr().err
    toy.stored.parent.mkdir(parents=True)
    toy.stored.write_text(text)
    assert toy.call("check") == 1
    assert "toy.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "{1}"])
def test_a_value_that_json_cannot_hold_is_refused(toy, capsys, value):
    edit(toy.definition, '"value": value', f'"value": {value}')
    assert toy.call("run", "toy") == 1
    assert "toy, row plain, seed 0" in capsys.readouterr().err
    assert not toy.stored.exists()


# --- code that changes ----------------------------------------------------------------------------------------------


def test_cells_of_other_code_are_not_mixed(toy, capsys):
    toy.call("run", "toy")
    content = json.loads(toy.stored.read_text())
    del content["cells"][2:]
    results.write(toy.unfinished, content)
    toy.stored.unlink()
    edit(toy.rule, "3.0 * x", "4.0 * x")
    toy.measured()
    assert toy.call("run", "toy") == 1
    assert "made by other code, edmnotes.rule changed" in capsys.readouterr().err
    assert toy.measured() == []
    assert toy.call("confirm", "toy") == 1
    assert toy.call("run", "--force", "toy") == 0
    assert read(toy.stored).values("plain", "value").tolist() == [40.0, 80.0, 120.0]


def test_an_unfinished_run_goes_on_with_code_that_was_confirmed(toy):
    toy.call("run", "toy")
    content = json.loads(toy.stored.read_text())
    del content["cells"][2:]
    results.write(toy.unfinished, content)
    toy.stored.unlink()
    edit(toy.rule, "3.0 * x", "x * 3.0")
    assert toy.call("run", "toy") == 1
    assert toy.call("confirm", "toy") == 0
    toy.measured()
    assert toy.call("run", "toy") == 0
    assert len(toy.measured()) == 4
    assert toy.call("check") == 0
    assert sorted(p.name for p in toy.stored.parent.iterdir()) == ["toy.confirmed.json", "toy.json"]


def test_a_change_that_leaves_the_numbers_is_stale_until_it_is_confirmed(toy, capsys):
    toy.call("run", "toy")
    before = toy.stored.read_bytes()
    edit(toy.rule, "3.0 * x", "x * 3.0")
    toy.measured()
    assert toy.call("check") == 1
    assert "toy is stale, code changed: edmnotes.rule; python tools/results.py confirm toy" in capsys.readouterr().err
    assert toy.call("run", "toy") == 1  # forty minutes are not spent unasked
    assert "'confirm toy' sees in seconds" in capsys.readouterr().err
    assert toy.measured() == []
    assert toy.call("confirm") == 0
    assert toy.measured() == ["plain 0 1", "squared 0 1"]
    assert toy.call("check") == 0
    assert toy.measured() == ["plain 0 1"]
    assert toy.stored.read_bytes() == before  # chapters that read it stay fresh
    assert toy.call("run", "--force", "toy") == 0
    assert [p.name for p in toy.stored.parent.iterdir()] == ["toy.json"]


def test_the_definition_counts_as_code_and_its_words_do_not(toy):
    toy.call("run", "toy")
    edit(toy.definition, "More about it.", "More about it, at length.")
    edit(toy.rule, '"""A rule."""', '"""A better rule."""  # said twice')
    assert toy.call("check") == 0
    edit(toy.definition, "rule.rule(seed + 1) ** 2", "rule.rule(1 + seed) ** 2")
    assert toy.call("check") == 1


def test_a_change_that_moves_a_number_is_not_confirmed(toy, capsys):
    """The row ``squared`` moves by 1e-5, ten tolerances, at seed 0; ``plain`` stays."""
    toy.call("run", "toy")
    edit(toy.definition, "rule.rule(seed + 1) ** 2", "rule.rule(seed + 1) ** 2.00001")
    assert toy.call("confirm") == 1
    error = capsys.readouterr().err
    assert "row squared at scale smoke: list.0 was 9.0, is 9.0000988" in error
    assert "run --force toy" in error
    assert toy.call("check") == 1


def test_the_tolerance_is_what_may_differ(toy):
    toy.call("run", "toy")
    edit(toy.definition, "rule.rule(seed + 1) ** 2", "rule.rule(seed + 1) ** 2.0000001")
    assert toy.call("confirm") == 0
    confirmed = json.loads(toy.stored.with_name("toy.confirmed.json").read_text())
    assert 1e-8 < confirmed["largest_difference"] < 1e-6


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("laptop=10", "laptop=20", "settings.factor was 10, is 20"),
        ("SEEDS = (0, 1, 2)", "SEEDS = (0, 1, 3)", "seeds.2 was 2, is 3"),
        ('ROWS = ("plain", "squared")', 'ROWS = ("plain",)', "rows.1 was squared, is None"),
    ],
)
def test_another_table_or_length_is_not_confirmed(toy, capsys, old, new, said):
    """None of these is seen at scale smoke."""
    toy.call("run", "toy")
    edit(toy.definition, old, new)
    assert toy.call("confirm") == 1
    assert said in capsys.readouterr().err


def test_a_number_that_drifted_under_the_same_code_fails_the_check(toy, capsys):
    """As it would with another version of torch, say."""
    toy.call("run", "toy")
    edit(toy.stored, '"values": {"value": 3.0,', '"values": {"value": 3.001,')
    assert toy.call("check") == 1
    assert "row plain at scale smoke: value was 3.001, is 3.0" in capsys.readouterr().err


@pytest.mark.parametrize("now", [{"a": 1.0}, {"a": 1.0, "b": [2.0]}, {"a": 1.0, "b": [2.0, "3"]}, {}])
def test_values_that_do_not_correspond_differ_without_bound(now):
    then = {"a": 1.0, "b": [2.0, 3.0]}
    assert results.difference(then, now)[0] == float("inf")
    assert results.difference(then, then) == (0.0, "")
    assert results.difference({"a": 0.0}, {"a": 1e-30})[0] == 1.0


# --- what is not there ----------------------------------------------------------------------------------------------


def test_an_experiment_without_result_and_a_result_without_experiment_fail(toy, capsys):
    assert toy.call("check") == 1
    assert "toy has no stored result; python tools/results.py run toy" in capsys.readouterr().err
    toy.call("run", "toy")
    assert toy.call("check") == 0
    toy.stored.with_name("other.json").write_text("{}")
    assert toy.call("check") == 1
    assert "other.json: no experiment makes it" in capsys.readouterr().err


def test_a_stored_result_that_lacks_a_cell_fails(toy, capsys):
    toy.call("run", "toy")
    content = json.loads(toy.stored.read_text())
    del content["cells"][0]
    results.write(toy.stored, content)
    assert toy.call("check") == 1
    assert "1 cells are missing, the first ('plain', 0)" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [(["run"], "name the experiment"), (["check", "tow"], "no experiment tow")])
def test_a_wrong_name_is_refused(toy, capsys, words, said):
    with pytest.raises(SystemExit):
        toy.call(*words)
    assert said in capsys.readouterr().err
