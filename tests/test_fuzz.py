"""Spoilt files of every kind end in one message and an exit code, whatever was spoilt."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import fuzz


@pytest.mark.slow
def test_three_hundred_spoilt_files_are_answered_cleanly() -> None:
    assert fuzz(300, seed=1) == {}
