"""What the engine's tests share: builds without Python, tiny models, the command line in a process without torch."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_places import MISSING, ROOT, Engine

# Where the engine could not be built, test_engine_installed.py alone is left, and skips with the reason.
collect_ignore_glob = [path.name for path in Path(__file__).parent.glob("test_*.py") if "installed" not in path.name]
if not MISSING:
    collect_ignore_glob = []

# torch, torchvision and nasb cannot be imported, as on a board; at the end, nothing of them may be there.
WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "nasb"):
    sys.modules[name] = None
from nasb_engine.cli import main
code = main(sys.argv[1:])
assert not any(module and name.split(".")[0] in ("torch", "nasb") for name, module in sys.modules.items())
sys.exit(code)
"""


@cache
def build(name: str) -> Path:
    """Return the folder of a build of engine/build.sh; skip where a tool is missing, fail where it does not build."""
    beside = Path(sys.executable).parent  # cmake and ninja of the development environment
    environment = os.environ | {"PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"}
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / f".engine-{name}.lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [ROOT / "engine/build.sh", name], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return ROOT / done.stdout.strip()


@pytest.fixture(scope="session")
def native() -> Path:
    return build("native")


@pytest.fixture(scope="session")
def sanitized() -> Path:
    return build("sanitize")


@pytest.fixture(scope="session")
def aarch64() -> list[str]:
    """The command that runs nasb-run for aarch64 here."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64 is missing (apt-get install qemu-user)")
    return [emulator, str(build("aarch64") / "nasb-run")]


@pytest.fixture
def model_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes one of tiny_models.MODELS and returns its path."""
    from tiny_models import MODELS

    def write(name: str) -> Path:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(MODELS[name]().SerializeToString(deterministic=True))
        return path

    return write


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Return a function that runs nasb-engine in a process that can import neither torch nor nasb."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
