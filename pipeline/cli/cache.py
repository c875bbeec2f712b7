"""Flags of `bodyseg cache`."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

from pipeline.cli.arguments import command_parser, show
from pipeline.cli.quick_imports import quick_imports
from pipeline.config.settings import ConfigError
from pipeline.console.text import BYTES_PER_GB, gigabytes


def run(arguments: list[str]) -> int:
    """Show what the cache holds, or remove what was used longest ago."""
    parser = command_parser("cache", run)
    parser.add_argument("action", choices=["info", "prune"], help="info shows; prune removes.")
    parser.add_argument("--cache_dir", type=Path, default=Path("cache"), metavar="DIR", help="The cache folder.")
    parser.add_argument(
        "--max_gb", type=float | None, metavar="GB", help="prune: GB (10^9 bytes) to keep of the folder; 0 empties it."
    )
    parser.switch("--json", "Print JSON.")
    given = parser.parse_args(arguments)
    with quick_imports():
        from pipeline.cache.folder import cache_info, prune

    if given.action == "prune":
        if given.max_gb is None:
            raise ConfigError("cache prune: expected --max_gb GB, how much to keep; --max_gb 0 empties the folder")
        if not 0 <= given.max_gb < math.inf:
            raise ConfigError(f"--max_gb: expected a number of 0 or more, found {given.max_gb:g}")
        pruned = prune(given.cache_dir, int(given.max_gb * BYTES_PER_GB))
        text = f"removed {len(pruned.files)} files, {gigabytes(pruned.n_bytes)}"
        print(json.dumps(dataclasses.asdict(pruned), default=str) if given.json else text)
        return 0
    found = cache_info(given.cache_dir)
    if given.json:
        print(json.dumps(dataclasses.asdict(found), default=str))
        return 0
    size, free = gigabytes(found.n_bytes), gigabytes(found.free_bytes, 1)
    show(f"{found.folder}: {found.n_entries} cases, {size}; {free} free on its disk")
    for chain in found.chains:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(chain.last_used))
        size = gigabytes(chain.n_bytes)
        show(f"  {chain.chain}  {chain.n_entries} cases  {size}  last used {used}  {chain.parameters}")
    return 0
