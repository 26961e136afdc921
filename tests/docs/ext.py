"""The modules of docs/_ext, as Sphinx has them."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

from tests.docs.fences import ROOT


def ext(name: str) -> ModuleType:
    """One by its name; they import each other by theirs."""
    path = str(ROOT / "docs/_ext")
    if path not in sys.path:
        sys.path.append(path)
    return import_module(name)
