#!/usr/bin/env python3
"""Train a segmentation network on a folder of scans: `python train_body.py --dataset_root DIR`, or `--help`."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
