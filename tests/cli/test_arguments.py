"""What the command lines share: flags that may stand alone, one line for an error."""

from __future__ import annotations

import pytest

from pipeline.cli.arguments import complain, warn, with_value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--tta", "scan.nii"], ["--tta=auto", "scan.nii"]),
        (["--tta", "xy", "scan.nii"], ["--tta", "xy", "scan.nii"]),
        (["scan.nii", "--tta"], ["scan.nii", "--tta=auto"]),
        (["scan.nii"], ["scan.nii"]),
    ],
)
def test_a_flag_alone_does_not_take_the_next_path_for_its_value(given, expected):
    assert with_value(given, "--tta", "auto|[xyz,]+", "auto", "auto or axes") == expected


def test_an_error_is_one_line_and_hands_its_code_through(capsys):
    assert complain("a\nb   c\x1b[2J", 7) == 7
    assert complain("wrong") == 2
    warn("odd")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["bodyseg: a b c\N{REPLACEMENT CHARACTER}[2J", "bodyseg: wrong", "bodyseg: warning: odd"]
