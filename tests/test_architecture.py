"""The map of the house agrees with the house."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted(
    path for folder in ("pipeline", "transforms", "networks") for path in (ROOT / folder).glob("*.py")
    if path.name != "__init__.py"
)  # fmt: skip


def test_every_room_stands_in_the_architecture_page_and_no_other():
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = page.split("```")[1]
    named = set(re.findall(r"\b([a-z_]+\.py)\b", rooms))
    assert {path.name for path in ROOMS} | {"train_body.py"} == named


def test_every_room_of_the_pipeline_has_a_layer():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    placed = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    rooms = {f"pipeline.{path.stem}" for path in ROOMS if path.parent.name == "pipeline"} - {"pipeline.__main__"}
    assert rooms <= placed


def test_no_room_is_larger_than_450_lines():
    assert {path.name: n for path in ROOMS if (n := len(path.read_text().splitlines())) > 450} == {}
