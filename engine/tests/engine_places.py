"""What the engine's tests import of each other. (Not conftest.py: other folders of tests have files of that name.)"""

import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MISSING = [name for name in ("nasb_engine", "onnx") if find_spec(name) is None]
"""What the tests need and cannot be imported here."""

Engine = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs nasb-engine with arguments, in a process that can import neither torch nor nasb."""
