"""What the tests of studies share: the scripts of studies/ can be imported, as they import each other."""

import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "studies"
collect_ignore_glob = [] if STUDIES.is_dir() else ["*"]  # the source distribution has none

if str(STUDIES) not in sys.path:
    sys.path.insert(0, str(STUDIES))


@pytest.fixture(autouse=True)
def _no_networks_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's plugin registers networks, once a process: each test has its own registry."""
    from nasb import plugin
    from nasb.networks.registry import RIVALS, list_networks

    list_networks()  # so that nasb's own are there
    monkeypatch.setattr(RIVALS, "_entries", dict(RIVALS._entries))
    monkeypatch.setattr(plugin, "_LOADED", set())
