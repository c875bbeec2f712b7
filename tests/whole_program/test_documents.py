"""What README and docs/ name is there: commands, flags, settings, functions, and the files that they link to."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import re
from dataclasses import fields, is_dataclass
from functools import cache
from typing import get_type_hints

import pytest

from pipeline.cli.main import COMMANDS, main
from pipeline.config.settings import Config
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
}
PAGES |= {
    str(path.relative_to(ROOT)): "\n\n".join(
        "".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    )
    for path in DOCS.glob("*.ipynb")
}
OURS = re.compile(r"\b(?:bodyseg|train_body\.py|docs/\w+\.sbatch)\b[^`\n#│]*")
FOREIGN = {"--kill-on-bad-exit", "--signal", "--requeue", "--gpus-per-node", "--gpus-per-task", "--array", "--ntasks"}
"""Flags of SLURM's own programs."""


@cache
def flags_of(command: str) -> frozenset[str]:
    """The flags that `bodyseg COMMAND --help` explains."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return frozenset(re.findall(r"--[a-z][\w.]*", output.getvalue()))


@cache
def all_flags() -> frozenset[str]:
    return frozenset().union(*map(flags_of, COMMANDS)) | {"--version", "--debug"}


def invocations(text: str) -> list[tuple[str, list[str]]]:
    """Command and flags of every command line of ours."""
    found = []
    for line in OURS.findall(text):
        words = line.split()
        if words[0] == "bodyseg" and len(words) > 1 and words[1] in COMMANDS:
            command = words[1]
        elif words[0] == "bodyseg":
            continue
        else:
            command = "cross-validate" if "cross_validate" in words[0] else "train"
        found.append((command, re.findall(r"(?<!\S)--[a-z][\w.-]*", line)))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_flag_of_a_page_exists(page):
    text = PAGES[page]
    assert set(re.findall(r"bodyseg ([a-z][a-z-]+)", text)) <= set(COMMANDS)
    for command, flags in invocations(text):
        assert set(flags) <= flags_of(command) | {"--debug", "--help"}, command
    prose = [span for span in re.findall(r"`(--[^`]+)`", text) if span.split("=")[0].split()[0] not in FOREIGN]
    for span in prose:
        assert set(re.findall(r"(?<!\S)--[a-z][\w.]*", span)) <= all_flags(), span


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_of_a_page_exists(page):
    groups = {field.name: get_type_hints(Config)[field.name] for field in fields(Config)}
    assert all(map(is_dataclass, groups.values()))
    named = re.findall(rf"`(?:--)?({'|'.join(groups)})\.(\w+)\b[^`]*`", PAGES[page])
    known = {group: {field.name for field in fields(kind)} for group, kind in groups.items()}
    assert not [f"{group}.{name}" for group, name in named if name not in known[group] | {"skipped_cases"}]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", PAGES[page]):
        if target and not target.startswith("https://"):
            assert ((ROOT / page).parent / target).is_file(), target
    for page_of, heading in re.findall(r"\]\(([^)#]*)#([^)]*)\)", PAGES[page]):
        text = ((ROOT / page).parent / page_of).read_text(encoding="utf-8") if page_of else PAGES[page]
        headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
        assert heading in [re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings]


def test_every_page_of_docs_is_linked_from_the_readme():
    linked = set(re.findall(r"\((docs/[\w.]+)", PAGES["README.md"]))
    assert {page for page in PAGES if page.startswith("docs/")} <= linked


def functions() -> list[str]:
    return sorted(set(re.findall(r"`(pipeline(?:\.\w+)+)`", PAGES["docs/python.md"].partition("## Check")[0])))


@pytest.mark.parametrize("name", functions())
def test_every_function_of_the_python_page_is_typed_and_documented(name):
    module, _, attribute = name.rpartition(".")
    function = getattr(importlib.import_module(module), attribute)
    assert inspect.getdoc(function)
    signature = inspect.signature(function)
    assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values())
    if inspect.isfunction(function):
        returned = str(signature.return_annotation)
        row = next(line for line in PAGES["docs/python.md"].splitlines() if f"`{name}`" in line)
        said = re.search(r"\| `(\w+)`[^|]*\|$", row)
        assert returned == said[1] if said else returned in ("Path", "bool")
