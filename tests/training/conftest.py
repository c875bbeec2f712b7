"""A finished training that all files here share."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.support.tiny_training import EPOCHS, ended, train


@pytest.fixture(scope="session")
def work():
    """A folder that other users can enter, with a finished training "whole" in it.

    What writes into it belongs to the session, too: a worker that takes tests from others comes back to a file.
    """
    with tempfile.TemporaryDirectory(prefix="tiny-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        ended(*train(folder, "whole", max_epochs=EPOCHS), code=0)
        yield folder
