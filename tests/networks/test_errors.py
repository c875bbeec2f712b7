"""The package's error is one that the command line prints as a line."""

from __future__ import annotations

import pytest

from networks.errors import NetworkError
from networks.registry import check_network
from pipeline.cli.main import is_input_error


def test_what_a_user_can_mend_is_an_input_error():
    with pytest.raises(NetworkError) as caught:
        check_network("SegNet")
    assert is_input_error(caught.value)
