"""The table of faults cannot claim what no passing test shows."""

from __future__ import annotations

import pytest

from tests.support.fault_table import END, START, Fault, disagreements, replaced, rows

CUT = Fault("tests/test_a.py", 7, "a cut file", "one line | exit 2", "passed")
FULL = Fault("tests/test_b.py", 3, "a full disk", "the old file stands", "passed")


def readme(*faults: Fault) -> str:
    return replaced(f"before\n\n{START}\n{END}\n\nafter\n", faults)


def test_the_table_holds_what_passed_in_the_order_of_the_files() -> None:
    text = readme(FULL, CUT)
    assert text.index("| a cut file | one line \\| exit 2 | `tests/test_a.py` |") < text.index("| a full disk |")
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert replaced(text, (FULL, CUT)) == text
    assert disagreements(text, (CUT, FULL)) == []


def test_a_claim_without_a_passing_test_is_named() -> None:
    failed = Fault(FULL.file, 9, FULL.injected, FULL.happened, "failed")
    for ran in ([CUT], [CUT, failed], [CUT, FULL, failed]):
        (sentence,) = disagreements(readme(CUT, FULL), ran)
        assert sentence.startswith("The table claims what no passing test shows: | a full disk |")


def test_a_passing_test_without_a_claim_is_named() -> None:
    (sentence,) = disagreements(readme(CUT), [CUT, FULL])
    assert sentence.startswith("The table lacks what a test shows (run `make faults`): | a full disk |")


def test_a_claim_whose_tests_were_skipped_here_stands_but_is_not_written_anew() -> None:
    skipped = Fault(FULL.file, FULL.line, FULL.injected, FULL.happened, "skipped")
    assert disagreements(readme(CUT, FULL), [CUT, skipped]) == []
    assert rows([CUT, skipped]) == [CUT.row]


def test_a_fault_of_which_one_case_was_skipped_here_is_shown_by_the_others() -> None:
    skipped = Fault(FULL.file, FULL.line, FULL.injected, FULL.happened, "skipped")
    assert rows([skipped, FULL]) == [FULL.row]


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="end of faults"):
        replaced("no table here", [CUT])


TESTS = """
import pytest

@pytest.mark.fault("a cut file", "one line")
@pytest.mark.parametrize("n", [1, 2])
def test_cut(n):
    pass

@pytest.mark.parametrize("full", [pytest.param(True, marks=pytest.mark.fault("a full disk", "the old file stands"))])
def test_full(full):
    assert full

@pytest.mark.fault("no network", "goes on")
def test_skipped():
    pytest.skip("not here")
"""


def test_a_real_session_writes_the_table_and_fails_when_it_is_untrue(pytester, request, monkeypatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # no other plugin has a part in it
    root = request.config.rootpath
    source = (root / "tests" / "conftest.py").read_text(encoding="utf-8")
    start = source.index("# What the tests marked as faults showed")
    names = "from pathlib import Path\nimport fault_table\nimport pytest\nfrom fault_table import Fault\n"
    pytester.mkdir("tests").joinpath("conftest.py").write_text(
        f"{names}RELIABILITY = Path(__file__).parents[1] / 'README.md'\n{source[start:]}", encoding="utf-8"
    )
    (pytester.path / "tests" / "fault_table.py").write_text((root / "tests" / "support" / "fault_table.py").read_text())
    (pytester.path / "tests" / "test_it.py").write_text(TESTS)
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\ntestpaths = ["tests"]\nmarkers = ["fault(injected, happened): a row"]'
    )
    path = pytester.path / "README.md"
    path.write_text(f"{START}\n{END}\n")
    assert pytester.runpytest_subprocess("-p", "xdist", "-n", "2", "-m", "fault", "--write-faults").ret == 0
    assert [line for line in path.read_text().splitlines() if line.startswith("| ")][2:] == [
        "| a cut file | one line | `tests/test_it.py` |",
        "| a full disk | the old file stands | `tests/test_it.py` |",
    ]
    assert pytester.runpytest_subprocess("-p", "xdist", "-n", "2").ret == 0
    path.write_text(path.read_text().replace("one line", "all is well"))
    result = pytester.runpytest_subprocess()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*The table claims what no passing test shows: | a cut file | all is well |*"])
