"""The engine that runs exported files, where it is installed: ``nasb.engine.Session`` is ``nasb_engine.Session``.

The engine is a distribution of its own (engine/), so that a board needs no torch; nasb works without it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nasb.errors import UserError

if TYPE_CHECKING:
    from nasb_engine import EngineError, Kernel, LayerProfile, Session, cpu_name, kernels

__all__ = ["EngineError", "Kernel", "LayerProfile", "Session", "cpu_name", "kernels"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(engine_module("nasb_engine"), name)
    raise AttributeError(f"module 'nasb.engine' has no attribute {name!r}")


def engine_module(name: str) -> Any:
    """Import a module of the engine.

    Raises:
        UserError: the engine is not installed, or does not fit this Python.
    """
    try:
        return import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "nasb_engine"
        state = "is not installed" if missing else f"cannot be imported ({error})"
        raise UserError(
            f"the engine (nasb-engine) {state}: pip install ./engine in nasb's repository, which needs a C++17 compiler"
        ) from None


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn what the engine refuses, and files that cannot be read, into a UserError."""
    refused: type[Exception] = engine_module("nasb_engine").EngineError
    try:
        yield
    except refused as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
