"""Ours beside plain MONAI, PyTorch and Lightning on the same tensors and files: `python -m benchmarks --help`."""
