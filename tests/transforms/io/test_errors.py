"""Errors with fields: what they say, and that they survive the way between processes."""

from __future__ import annotations

import pickle

from transforms.io.errors import InputError


def test_an_error_says_its_fields_in_one_line():
    error = InputError("not_3d", "scan.nii", "one 3-D volume", "4 frames", "save each by itself", "liver_07")
    assert str(error) == "case liver_07: scan.nii: expected one 3-D volume, found 4 frames; save each by itself"
    assert str(InputError("x", "", "a", "b", "c")) == "expected a, found b; c"


def test_an_error_comes_back_from_another_process_with_its_fields():
    sent = InputError("not_3d", "scan.nii", "one 3-D volume", "4 frames", "save each by itself", "liver_07")
    back = pickle.loads(pickle.dumps(sent))  # noqa: S301  (as multiprocessing does)
    assert vars(back) == vars(sent)
    assert str(back) == str(sent)
