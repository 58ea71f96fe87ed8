"""Three files name what is installed; they must say the same: pyproject.toml, constraints.txt, environment.yml."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What the CUDA build of torch brings along is pinned by torch itself, and differs between machines.
BY_TORCH = re.compile(r"nvidia-.*|cuda-.*|triton")


def pins(text: str) -> dict[str, Requirement]:
    """The exact versions of a constraints file, by canonical name."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    return {canonicalize_name(r.name): r for r in requirements}


def version(pin: Requirement) -> str:
    (spec,) = pin.specifier
    assert spec.operator == "==", f"{pin} is not one version"
    assert "*" not in spec.version, f"{pin} is not one version"
    return spec.version


def closure(extra: str) -> dict[str, list[Requirement]]:
    """Every requirement on every distribution that installing edmnotes[extra] brings here."""
    found: dict[str, list[Requirement]] = {}
    done: set[tuple[str, str]] = set()
    todo = [("edmnotes", ""), ("edmnotes", extra)]
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in done:
            continue
        done.add((name, wanted))
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                needed = canonicalize_name(requirement.name)
                found.setdefault(needed, []).append(requirement)
                todo += [(needed, e) for e in ("", *requirement.extras)]
    return {n: r for n, r in found.items() if n != "edmnotes" and not BY_TORCH.fullmatch(n)}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text())


def test_what_is_installed_is_what_pyproject_asks_for():
    """Otherwise the closure below would be that of an older pyproject.toml."""
    declared = {str(Requirement(r)) for r in PROJECT["dependencies"]}
    for extra, requirements in PROJECT["optional-dependencies"].items():
        declared |= {f"{extra}: {Requirement(r)}" for r in requirements}
    installed = set()
    for text in importlib.metadata.requires("edmnotes"):
        requirement = Requirement(text)
        extra = re.search(r"extra == ['\"](\w+)['\"]", str(requirement.marker))
        requirement.marker = None
        installed.add(f"{extra[1]}: {requirement}" if extra else str(requirement))
    assert installed == declared, "run 'make test': .venv is older than pyproject.toml"


def test_every_requirement_is_pinned_within_its_range_and_nothing_else_is():
    needed = closure("dev")
    assert sorted(needed.keys() - CONSTRAINTS.keys()) == [], "not in constraints.txt"
    if sys.version_info[:2] == (3, 11):  # a newer Python needs fewer backports
        assert sorted(CONSTRAINTS.keys() - needed.keys()) == [], "in constraints.txt, needed by nothing"
    wrong = [
        f"{asked} against {CONSTRAINTS[name]}"
        for name, requirements in needed.items()
        for asked in requirements
        if not asked.specifier.contains(version(CONSTRAINTS[name]), prereleases=True)
    ]
    assert not wrong


def test_the_pinned_versions_are_the_ones_that_the_tests_run_with():
    different = {
        name: (importlib.metadata.version(name), str(pin))
        for name, pin in CONSTRAINTS.items()
        if not pin.specifier.contains(importlib.metadata.version(name), prereleases=True)
    }
    assert not different


def test_environment_yml_installs_by_pip_what_make_installs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (by_pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert [re.split("[=<>]", d)[0] for d in conda] == ["python", "pip"]
    assert re.search(
        r"pip install .*--constraint constraints\.txt --editable '\.\[dev\]'", (ROOT / "Makefile").read_text()
    )
    assert by_pip == ["--constraint constraints.txt", "--editable .[dev]"]
    (python,) = [Requirement(re.sub("=+", "==", d)) for d in conda if d.startswith("python=")]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version(python))


@pytest.mark.parametrize("line", ["torch>=2.6", "torch==2.*", "torch"])
def test_a_constraint_that_pins_nothing_is_refused(line):
    with pytest.raises((AssertionError, ValueError)):
        version(pins(line)["torch"])


# --- make sets itself up --------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """The files that setting up looks at, and a .venv as it is after an installation."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch(mode=0o755)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(folder, *arguments):
    return subprocess.run(["make", "-C", str(folder), *arguments], capture_output=True, text=True)


def test_nothing_is_installed_again_until_the_requirements_change(checkout):
    assert "pip install" not in make(checkout, "--dry-run", "test").stdout
    later = (checkout / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(checkout / "constraints.txt", (later, later))
    assert "pip install" in make(checkout, "--dry-run", "test").stdout


@pytest.mark.parametrize("target", ["book", "test", "notebooks", "check", "serve"])
def test_every_target_sets_up_first(checkout, target):
    (checkout / ".venv" / ".installed").unlink()
    assert "pip install" in make(checkout, "--dry-run", target).stdout


def test_an_old_python_is_told_what_would_do(checkout):
    (checkout / ".venv" / ".installed").unlink()
    old = checkout / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    for python in (old, checkout / "missing"):
        result = make(checkout, "check", f"PYTHON={python}")
        assert result.returncode != 0
        assert "edmnotes needs Python 3.11 or newer" in result.stderr
        assert "PYTHON=/path/to/python3" in result.stderr
    assert "Python 3.9.2" in make(checkout, "check", f"PYTHON={old}").stderr
