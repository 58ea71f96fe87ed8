"""What the book's tests share: the built book."""

from pathlib import Path

import pytest

import book

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def built() -> Path:
    """The book as it is now, in _build/html: built by the same tool as 'make book', which does what is left to do."""
    assert book.build(ROOT) == 0, "the book does not build: run 'make book'"
    return ROOT / "_build" / "html"
