"""Whose a line is: a user's driver's, or ours and Python's."""

from __future__ import annotations

import json

import pytest

from xenpv import platform
from xenpv.testing.cends import wire
from xenpv.testing.ends import blame


@pytest.mark.parametrize(
    ("file", "users"),
    [
        (__file__, True),
        ("/somewhere/mine.c", True),
        ("<string>", True),
        (platform.__file__, False),
        (wire.Call.__init__.__code__.co_filename, False),
        (json.__file__, False),
        ("<frozen importlib._bootstrap>", False),
    ],
)
def test_a_file_is_a_users_or_not(file: str, users: bool) -> None:
    assert blame.is_users(file) is users
