"""Signals that ask a stage to stop."""

import os
import signal
from collections.abc import Iterator

import pytest

from nasb.training.loop import SAME_REQUEST, _StopSignals


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Whoever starts the tests in the background has SIGINT ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("_interruptible")
def test_signals_within_two_seconds_are_one_request_and_a_later_one_ends_at_once() -> None:
    with _StopSignals() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop._first is not None
        stop._first -= SAME_REQUEST
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
