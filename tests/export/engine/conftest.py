"""Fixtures for engines."""

import pytest

from model.checkpoint.directory import open_checkpoint


@pytest.fixture(scope="session")
def wide(wide_checkpoint):
    """A checkpoint of two blocks of the real width: 4608, 18 heads of 256."""
    return open_checkpoint(wide_checkpoint)
