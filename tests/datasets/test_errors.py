"""One error may hold what is wrong with many cases."""

from __future__ import annotations

from pipeline.datasets.errors import DatasetError


def test_the_errors_of_many_cases_are_one_error_with_a_line_each():
    first = DatasetError("missing_file", "a.nii", "a file", "none", "copy it there", "a")
    second = DatasetError("missing_label", "b.nii", "a label", "none", "add it", "b")
    both = DatasetError.all_of([first, DatasetError.all_of([second])])
    assert both.parts == (first, second)
    assert str(both) == (
        "case a: a.nii: expected a file, found none; copy it there\ncase b: b.nii: expected a label, found none; add it"
    )


def test_a_screen_full_of_lines_stands_for_thousands() -> None:
    many = DatasetError.all_of([DatasetError("missing_file", f"{n}", "a file", "none", "copy it") for n in range(1000)])
    assert len(many.parts) == 1000
    assert (len(many.lines), many.lines[-1]) == (21, "and 980 more; bodyseg check --json lists all")
