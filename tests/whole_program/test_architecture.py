"""The structure of the code: modules have tests and first sentences, functions are short, the page agrees."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("pipeline", "transforms", "networks")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = [path for path in FILES if path.name not in ("__init__.py", "__main__.py")]

MAX_LINES_OF_A_FUNCTION = 60
MAX_PARAMETERS = 10

# Functions that are longer or take more, each with its reason.
LONG: dict[str, str] = {}
MANY_PARAMETERS = {
    "transforms/chains.py:preprocessing_chain": "plain arguments are the point of it: checkpoints store them by name",
}

# Modules whose test has another name, each with its reason.
TESTED_ELSEWHERE = {
    "pipeline/cli/sample.py": "tests/phantoms/test_sample_dataset.py writes through the command",
    "pipeline/cli/cache.py": "tests/cache/test_folder.py shows and prunes through the command",
}


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def n_lines(function: ast.FunctionDef) -> int:
    """Lines of the body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return body[-1].end_lineno - body[0].lineno + 1


def n_parameters(function: ast.FunctionDef) -> int:
    arguments = function.args
    return len(
        [a for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs if a.arg not in ("self", "cls")]
    )


def test_at_most_ten_modules_lie_directly_in_the_pipeline():
    assert len([path for path in FILES if path.parent == Path("pipeline") and path.name != "__init__.py"]) <= 10


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_begins_with_a_sentence_that_says_what_it_does(path):
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    assert docstring
    assert re.match(r"[A-Za-z`].*[.:]", docstring.split("\n\n")[0], flags=re.DOTALL)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_has_a_test_file(path):
    parts = path.parts[1:] if path.parts[0] == "pipeline" else path.parts
    expected = [Path("tests", *parts[:-1], f"test_{path.name}")]
    if parts[0] == "cli":  # the flags of a command are tested with what it does
        expected.append(Path("tests", f"test_{path.name}"))
    assert any((ROOT / test).is_file() for test in expected) or str(path) in TESTED_ELSEWHERE, f"expected {expected[0]}"


def test_functions_are_short():
    found = {
        f"{path}:{f.name}": n for path in FILES for f in functions(path) if (n := n_lines(f)) > MAX_LINES_OF_A_FUNCTION
    }
    assert found.keys() == LONG.keys(), found


def test_functions_take_few_parameters():
    found = {
        f"{path}:{f.name}": n
        for path in FILES
        for f in functions(path)
        # A kernel for a GPU takes numbers and memory, no records
        if (n := n_parameters(f)) > MAX_PARAMETERS and "triton.jit" not in map(ast.unparse, f.decorator_list)
    }
    assert found.keys() == MANY_PARAMETERS.keys(), found


def test_no_test_imports_another_test_and_none_is_longer_than_400_lines():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) tests\.(?!support)", text, flags=re.MULTILINE), path
        assert len(text.splitlines()) <= 420, path


def tree_of_the_page() -> set[str]:
    """Paths named in the tree of ARCHITECTURE.md: a line `folder/` or `  folder/`, then its files."""
    block = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    found, top, folder = set(), "", ""
    for line in block.splitlines():
        if match := re.match(r"(\S+)/", line):
            top, folder = match[1], match[1]
        elif match := re.match(r"  (\w+)/", line):
            folder = f"{top}/{match[1]}"
        found |= {f"{folder}/{name}" for name in re.findall(r"\b(\w+\.py)\b", line)}
    return {path for path in found if path.split("/")[0] in PACKAGES}


def test_the_architecture_page_shows_the_tree():
    assert {str(path) for path in FILES if path.name != "__init__.py"} == tree_of_the_page()
