import importlib
import subprocess
import sys
from pathlib import Path

import nasb

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there() -> None:
    for name in nasb.__all__:
        assert getattr(nasb, name) is not None
    assert set(nasb._HOMES) == set(nasb.__all__)


def test_importing_nasb_and_its_configs_needs_no_torch() -> None:
    code = "import nasb, nasb.cli, nasb.training.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_package_says_what_lives_there() -> None:
    for folder in (ROOT / "src" / "nasb").rglob("__init__.py"):
        name = ".".join(folder.parent.relative_to(ROOT / "src").parts)
        assert importlib.import_module(name).__doc__, name
