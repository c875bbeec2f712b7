"""Flags of `bodyseg cache`."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

from pipeline.cli.arguments import command_parser


def run(arguments: list[str]) -> int:
    """Show what the cache holds, or remove what was used longest ago."""
    parser = command_parser("cache", run)
    parser.add_argument("action", choices=["info", "prune"], help="info shows; prune removes.")
    parser.add_argument("--cache_dir", type=Path, default=Path("cache"), metavar="DIR", help="The cache folder.")
    parser.add_argument("--max_gb", type=float, default=0.0, metavar="GB", help="prune: size to shrink the folder to.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    given = parser.parse_args(arguments)
    from pipeline.cache.folder import cache_info, prune

    if given.action == "prune":
        pruned = prune(given.cache_dir, int(given.max_gb * 2**30))
        text = f"removed {len(pruned.files)} files, {pruned.n_bytes / 2**30:.2f} GiB"
        print(json.dumps(dataclasses.asdict(pruned), default=str) if given.json else text)
        return 0
    found = cache_info(given.cache_dir)
    if given.json:
        print(json.dumps(dataclasses.asdict(found), default=str))
        return 0
    print(
        f"{found.folder}: {found.n_entries} cases, {found.n_bytes / 2**30:.2f} GiB; {found.free_bytes / 2**30:.1f} free"
    )
    for chain in found.chains:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(chain.last_used))
        size = chain.n_bytes / 2**30
        print(f"  {chain.chain}  {chain.n_entries} cases  {size:.2f} GiB  last used {used}  {chain.parameters}")
    return 0
