"""Write results as files and tables: which machine measured, with which versions, when, by which command."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from pipeline.console.text import aligned

PACKAGES = ("torch", "monai", "pytorch-lightning", "numpy", "scipy", "nibabel")
HEADER = ("what", "method", "time", "memory", "faster", "memory share", "remarks")


def circumstances(command: str) -> dict[str, Any]:
    """Machine, versions, command and date, as every result file holds them."""
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.system(),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "command": command,
        "date": date.today().isoformat(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def result_path(folder: Path, row: str, scale: str) -> Path:
    """Results at the documented size are named by their row, others also by their scale."""
    return folder / (f"{row}.json" if scale == "full" else f"{row}.{scale}.json")


def write_result(folder: Path, row: str, scale: str, result: dict[str, Any], command: str) -> Path:
    """Write one row's result; what the methods agreed in is left out, the difference stays."""
    for comparison in result["comparisons"]:
        for method in comparison["methods"].values():
            method.pop("value", None)
        for settings in (comparison["settings"], *comparison["too_large"]):
            settings.pop("dataset_root", None)  # a path on this machine
    folder.mkdir(parents=True, exist_ok=True)
    path = result_path(folder, row, scale)
    path.write_text(json.dumps({"row": row, "scale": scale} | circumstances(command) | result, indent=1) + "\n")
    return path


def read_results(folder: Path, rows: Iterable[str]) -> list[dict[str, Any]]:
    """The rows' results there are: those at the documented size, reduced ones where that was not measured."""
    found = []
    for row in rows:
        paths = [path for path in (result_path(folder, row, scale) for scale in ("full", "reduced")) if path.exists()]
        if paths:
            found.append(json.loads(paths[0].read_text(encoding="utf-8")))
    return found


def lines_of(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A result as lines under HEADER."""
    if result.get("skipped"):
        return [(result["title"], "", "", "", "", "", result["skipped"])]
    lines = [line for comparison in result["comparisons"] for line in _lines_of_comparison(result, comparison)]
    if "memory_spread" in result:
        spread = f"most memory / least over the class counts: {result['memory_spread']:.3f}"
        lines.append((result["title"], "all class counts", "", "", "", "", spread))
    return lines


def _lines_of_comparison(result: dict[str, Any], comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    several = len(result["comparisons"]) > 1
    what = f"{result['title']}: {comparison['name']}" if several else result["title"]
    size = comparison["settings"].get("size")
    if size:
        what += f", {'×'.join(map(str, size))}"
    last = list(comparison["methods"])[-1]
    lines: list[tuple[str, ...]] = []
    for method, found in comparison["methods"].items():
        ratios = comparison["ratios"].get(method, {})
        remarks = [*_facts(found.get("facts", {})), *(_remarks(comparison) if method == last else [])]
        share = ratios.get("memory")
        cells = (
            found.get("killed") or _time(found["seconds"]),
            "" if "killed" in found else _memory(comparison, found),
            f"{ratios['faster']:.3g}×" if "faster" in ratios else "",
            f"{share:.3g}" if share is not None else "",
        )
        lines.append((what, method, *cells, "; ".join(remarks)))
    return lines


def _remarks(comparison: dict[str, Any]) -> list[str]:
    remarks = [f"{'met' if met else 'MISSED'}: {demand}" for demand, met in comparison.get("goals", {}).items()]
    if "difference" in comparison:
        remarks.append(f"largest relative difference {comparison['difference']:.1e}")
    return remarks + [f"killed at {'×'.join(map(str, s['size']))}" for s in comparison["too_large"]]


def _facts(facts: dict[str, Any]) -> list[str]:
    words = {name: name.replace("_", " ") for name in facts}
    return [f"{words[k]} {v:,.4g}" if isinstance(v, float) else f"{words[k]} {v}" for k, v in facts.items()]


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 0.995 else f"{seconds:.3g} s"


def _memory(comparison: dict[str, Any], found: dict[str, Any]) -> str:
    kind = comparison["memory"]
    n_bytes = found.get(f"{kind}_bytes")
    if n_bytes is None:
        return ""
    sign = "+" if kind == "extra" else ""
    return f"{sign}{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{sign}{n_bytes / 1e6:.3g} MB"


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    return "\n".join(aligned((HEADER, *lines), left=range(len(HEADER))))


def as_markdown(results: Sequence[dict[str, Any]]) -> str:
    """The README's table: results grouped by the machine, versions and command they were measured with."""
    groups: dict[str, list[str]] = {}
    for result in results:
        lines = ["| " + " | ".join(line) + " |" for line in lines_of(result)]
        groups.setdefault(_measured(result), []).extend(lines)
    head = ["| " + " | ".join(HEADER) + " |", "| " + " | ".join(["---"] * len(HEADER)) + " |"]
    return "\n\n".join("\n".join([measured, "", *head, *lines]) for measured, lines in groups.items())


def _measured(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']:g} GiB"
    return f"`{result['command']}`: {where}; {packages}; {result['date']}."
