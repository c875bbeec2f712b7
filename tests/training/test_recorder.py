"""The files that appear while a network trains."""

from __future__ import annotations

import os
from functools import partial

from tests.support.tiny_training import ended, train


def test_the_files_of_a_run_are_readable_by_the_group(work):
    process, run, output = train(work, "group", max_epochs=1, before=partial(os.umask, 0o027))
    ended(process, run, output, code=0)
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.rglob("*")}
    folders = {path.name for path in run.rglob("*") if path.is_dir()}
    assert {name: oct(mode) for name, mode in modes.items() if mode != (0o750 if name in folders else 0o640)} == {}
