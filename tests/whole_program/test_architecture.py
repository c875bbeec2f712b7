"""The architecture page agrees with the tree."""

from __future__ import annotations

from pathlib import Path

from tests.support.paths import ROOT

MODULES = sorted(
    path.relative_to(ROOT)
    for folder in ("pipeline", "transforms", "networks")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
)


def test_at_most_ten_modules_lie_directly_in_the_pipeline():
    assert len([path for path in MODULES if path.parent == Path("pipeline")]) <= 10


def test_no_module_is_larger_than_450_lines():
    assert {str(path): n for path in MODULES if (n := len((ROOT / path).read_text().splitlines())) > 450} == {}
