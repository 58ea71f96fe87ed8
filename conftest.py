"""How ``pytest --nbval book/`` re-executes and compares the chapters, without further options."""

import os
from pathlib import Path

import pytest
from nbval.kernel import RunningKernel

ROOT = Path(__file__).parent

# As in tools/notebooks.py: kernels that this process starts inherit it.
os.environ.update(TQDM_DISABLE="1", PYTHONHASHSEED="0")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores


def execute(self: RunningKernel, source: str, allow_stdin: bool | None = None) -> str:
    """Send a cell as Jupyter does: without the history nbval switches off, IPython ignores a trailing semicolon."""
    return self.kc.execute(source, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


RunningKernel.execute_cell_input = execute


def pytest_configure(config: pytest.Config) -> None:
    """Options of nbval: this environment's kernel whatever a notebook names, and what to overlook in a comparison."""
    if config.option.nbval:
        config.option.nbval_current_env = True
        config.option.nbval_sanitize_with = str(ROOT / "tests" / "book" / "sanitize.cfg")
        config.option.nbval_cell_timeout = 600
