"""Where kernels of our own run, and what is said where they do not; on a GPU `test_cuda.py` runs them."""

from __future__ import annotations

import pytest
import torch

from networks import gpu_kernels


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_they_run_on_no_other_device(device):
    assert not gpu_kernels.run_on(torch.zeros(1, device=device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("capability", "n_lines"), [((8, 6), 1), ((7, 5), 0)])
def test_where_they_cannot_be_compiled_it_is_said_once(monkeypatch, caplog, capability, n_lines):
    # A GPU of this generation that torch cannot reach, since this machine has none
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    class Unreachable(torch.Tensor):
        device = torch.device("cuda", 10 * capability[0])

    unreachable = torch.zeros(1).as_subclass(Unreachable)
    assert not gpu_kernels.run_on(unreachable)
    assert not gpu_kernels.run_on(unreachable)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == n_lines
    assert all("Triton does not compile here (" in line for line in lines)
