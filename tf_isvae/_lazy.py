"""Packages that import their modules when a name of theirs is first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def attributes(package: str, places: dict[str, str | None]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: its name.
        places: name -> the full name of the module that has it; None: it is itself a module of the package.
    """

    def getattribute(name: str):
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = places[name]
        value = importlib.import_module(module or f"{package}.{name}")
        if module is not None:
            value = getattr(value, name)
        setattr(sys.modules[package], name, value)
        return value

    return getattribute
