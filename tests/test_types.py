"""The annotations are true: the rooms' own tests pass with every annotation checked at run time."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
ROOMS = [
    "test_schedules.py",
    "test_steps.py",
    "test_noise.py",
    "test_preconditioning.py",
    "test_exact.py",
    "test_fokker_planck.py",
    "test_losses.py",
    "test_targets.py",
    "test_data.py",
    "test_networks.py",
    "test_likelihood.py",
    "test_results.py",
    "metrics",
    "samplers",
    "variational",
]


def run_typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Orders and other limits take long, by many calls of the same functions. Tests named "refused" hand over wrong
    # shapes: there the run-time checker would speak first.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--typed",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not refused and not order and not std and not wrong_drift and not sampled_on and not covers",
    ]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=TESTS, check=False)


def test_annotations_hold_in_the_rooms_own_tests():
    done = run_typed(*(str(TESTS / room) for room in ROOMS))
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_wrong_shape_is_seen(tmp_path):
    (tmp_path / "test_wrong.py").write_text(
        "import torch\nfrom edmnotes import exact\n"
        "def test_it():\n    exact.Gaussian(0.0, 1.0).log_prob(torch.zeros(2, 3, dtype=torch.int64), 1.0)\n"
    )
    done = run_typed("-p", "conftest", str(tmp_path / "test_wrong.py"))
    assert done.returncode == 1
    assert "TypeCheckError" in done.stdout
