"""Read the JSON files that data sets bring: dataset.json, labels.json, lists of cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config.files import write_yaml
from pipeline.datasets.errors import DatasetError
from pipeline.files.foreign_text import decoded
from pipeline.files.regular import read_regular

_MAX_BYTES = 256 * 2**20


def read_json(path: Path, *, keys_twice: bool = False) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.
        keys_twice: take the last value of a key that an object has twice, which is refused by default.

    Raises:
        DatasetError: it cannot be read or parsed.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            found = f"{path.stat().st_size} bytes of JSON"
            raise DatasetError("dataset", path, "a description of a data set", found, "name the file itself")
        text = decoded(read_regular(path, _MAX_BYTES))
        return json.loads(text, object_pairs_hook=dict if keys_twice else _object)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        found = f"a file that cannot be read as JSON ({error})"
        remedy = error.remedy if isinstance(error, _KeyTwiceError) else "repair the file"
        if isinstance(error, json.JSONDecodeError):
            remedy = (
                f"correct line {error.lineno}; JSON has no comma behind the last entry, no comments, and double quotes"
            )
        raise DatasetError("dataset", path, "JSON", found, remedy) from error


def read_description(root: Path, *, keys_twice: bool = False) -> dict[str, Any]:
    """Return the object in dataset.json, or in a file of its kind that is named itself.

    A class name twice spoils labels alone: `keys_twice` where these do not matter.

    Raises:
        DatasetError: it holds anything else.
    """
    path = root if root.is_file() else root / "dataset.json"
    description = read_json(path, keys_twice=keys_twice)
    if not isinstance(description, dict):
        raise DatasetError(
            "dataset", path, "an object with labels", f"{description!r:.60}", 'write {"labels": {"liver": 1, …}, …}'
        )
    return description


class _KeyTwiceError(ValueError):
    """An object of JSON that has one key twice, with two values."""

    is_input_error = True

    def __init__(self, key: str, first: Any, second: Any) -> None:
        super().__init__(f"the key {key!r} twice, with {first!r:.40} and {second!r:.40}")
        self.remedy = "keep one of the two"
        if isinstance(first, int) and isinstance(second, int):  # values of a class
            table = write_yaml({second: key}, in_one_line=True).strip()
            self.remedy += f"; if label files hold both, write under data in the settings  label_remap: {table}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a key twice with two values is an error, since the first would be lost in silence."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content and content[key] != value:
            raise _KeyTwiceError(key, content[key], value)
        content[key] = value
    return content
