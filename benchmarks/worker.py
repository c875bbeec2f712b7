"""The process that measures: `python -m benchmarks.worker '{"function": "losses.ours", "arguments": {…}}'`.

Prints one line of JSON last: a Measurement, or {"skipped": reason}.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement, Skipped


def call(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call "module.function" of this package; what it found, as JSON types."""
    module, _, name = function.partition(".")
    found: Measurement | Skipped | None = getattr(importlib.import_module(f"benchmarks.{module}"), name)(**arguments)
    if isinstance(found, Skipped):
        return {"skipped": found.reason}
    return asdict(found) if found is not None else {}


def main() -> int:
    """Measure what the argument asks for."""
    with contextlib.suppress(OSError):  # when memory ends, the kernel kills this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    asked = json.loads(sys.argv[1])
    print("\n" + json.dumps(call(asked["function"], asked["arguments"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
