"""Modules that can be called, so that `lsdali.train` is a function in Python and a command for `python -m`."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def call_module(name: str, function: Callable[..., Any]) -> None:
    """Let a call of the module be a call of the function."""
    kind = type(f"module {name}", (ModuleType,), {"__call__": staticmethod(function), "__doc__": function.__doc__})
    sys.modules[name].__class__ = kind
