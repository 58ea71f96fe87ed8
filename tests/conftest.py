"""``--typed`` runs the tests under jaxtyping and beartype: every annotated shape and dtype is checked at each call."""

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong; and the same examples each time make a failure reproducible.
settings.register_profile("edmnotes", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("edmnotes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--typed", action="store_true", help="check jaxtyping annotations at run time")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--typed"):
        from jaxtyping import install_import_hook

        install_import_hook("edmnotes", "checked.checked")
        # A call has the right types or has not: a few examples tell as much as many.
        settings.register_profile("typed", parent=settings.get_profile("edmnotes"), max_examples=5)
        settings.load_profile("typed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker waits for one of them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_types.py", "test_equations.py"))
