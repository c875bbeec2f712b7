"""Text in the encodings of other programs."""

from __future__ import annotations

import pytest

from pipeline.files.foreign_text import decoded


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "cp1252"]
)
def test_text_is_read_in_the_encodings_of_windows_and_others(encoding):
    assert decoded("case;Müller".encode(encoding)) == "case;Müller"


def test_what_is_in_no_encoding_is_refused():
    with pytest.raises(UnicodeDecodeError):
        decoded(b"\xff\x81\x8d")
