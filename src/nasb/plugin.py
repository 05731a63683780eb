"""The user's own code: a Python file that registers networks with `nasb.register_host`, or a factory of a network."""

import runpy
import sys
from pathlib import Path

from nasb.errors import UserError

_LOADED: set[Path] = set()


def import_from(folder: Path) -> None:
    """Let imports find what lies in a folder, now and when the user's code runs later."""
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))


def load_plugin(path: str) -> None:
    """Execute a file, once in a process, or import a factory, ``package.module:function`` or ``file.py:function``.

    Raises:
        UserError: there is no such file or function, or it fails.
    """
    if ":" in path:
        from nasb.networks import register_factory

        register_factory(path)
        return
    if not Path(path).is_file():
        raise UserError(f"plugin: {path}: there is no such file")
    file = Path(path).resolve()
    if file in _LOADED:
        return
    import_from(file.parent)
    try:
        runpy.run_path(path)
    except (Exception, SystemExit) as error:
        raise UserError(f"plugin: {path} failed: {type(error).__name__}: {error}") from None
    _LOADED.add(file)
