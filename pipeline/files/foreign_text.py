"""Decode text files that people and other programs wrote, in whatever encoding."""

from __future__ import annotations

import json


def decoded(content: bytes) -> str:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32 (with or without a byte order mark), else Windows' cp1252.

    Raises:
        UnicodeDecodeError: it is in none of them.

    >>> decoded("a;b".encode("utf-16-le")), decoded("Müller".encode("cp1252"))
    ('a;b', 'Müller')
    """
    encoding = json.detect_encoding(content)  # by the zero bytes of the first letters (RFC 4627, 3)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        if encoding not in ("utf-8", "utf-8-sig"):
            raise
        return content.decode("cp1252")
