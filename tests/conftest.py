"""What every test shares: one thread a worker, a fixed seed, and where the real scans lie (if they do)."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# The shapes in these rooms' annotations are executed: one that nothing checks becomes false in silence.
install_import_hook(
    [f"pipeline.{room}" for room in ("losses", "slab_softmax", "slabs", "metrics", "surfaces")], "beartype.beartype"
)

SHARED = Path(__file__).resolve().parents[2] / "shared"


# The last bits of a sum depend on the number of threads; several test processes share the machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans, see its README; tests that need it skip where it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"real scans are absent: {data} does not exist")
    return data


@pytest.fixture(scope="session")
def shared_spec() -> Path:
    """The folder of the run-folder contract and its checker."""
    spec = SHARED / "spec"
    if not spec.is_dir():
        pytest.skip(f"the run-folder contract is absent: {spec} does not exist")
    return spec
