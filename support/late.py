"""Modules that are imported when one of their functions is called."""

import importlib
from collections.abc import Callable
from typing import Any


class LateModule:
    """Stands for a module that takes seconds to import.

    `LateModule("torch").zeros` is a function. When it is called, it imports torch and calls `torch.zeros`.
    Not handled: constants, classes other than to call them, and `is`: the function is not the module's own.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, function: str) -> Callable[..., Any]:
        if function.startswith("__"):  # tools look for such names in every object
            raise AttributeError(function)

        def call(*args: Any, **named: Any) -> Any:
            return getattr(importlib.import_module(self.name), function)(*args, **named)

        return call
