"""Whether the engine is there to be tested."""

import pytest

from engine_places import MISSING


def test_engine_is_installed() -> None:
    if MISSING:
        pytest.skip(
            f"{' and '.join(MISSING)} not installed: make setup builds the engine where a C++17 compiler is there"
        )
    import nasb_engine

    assert nasb_engine.__version__
