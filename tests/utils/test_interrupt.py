"""SIGINT and SIGTERM by their handlers, with real signals sent to this very process."""

import os
import signal

import pytest

from utils.interrupt import Interrupted, StopRequest

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture
def stop():
    before = {number: signal.getsignal(number) for number, _ in SIGNALS}
    yield StopRequest().install()
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    signal.raise_signal(number)  # to this thread; Python's handler has run when it returns


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_with_nothing_to_save_a_signal_leaves_at_once(stop, number, code):
    with pytest.raises(Interrupted, match=signal.Signals(number).name) as interrupted:
        send(number)
    assert interrupted.value.exit_code == code and stop() == 0


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_first_is_noted_the_second_leaves(stop, number, code):
    stop.save_before_leaving = True
    assert stop() == 0
    send(number)
    assert stop() == number
    with pytest.raises(Interrupted) as interrupted:
        send(signal.SIGTERM)
    assert interrupted.value.exit_code == 143 and stop() == number


def test_it_is_no_error_that_a_handler_of_errors_swallows(stop):
    with pytest.raises(Interrupted):
        try:
            send(signal.SIGINT)
        except Exception:
            pytest.fail("an except Exception must not catch it")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_dies_of_the_signal_instead_of_noting_it(stop):
    stop.save_before_leaving = True
    child = os.fork()
    if child == 0:
        send(signal.SIGTERM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 143 and stop() == 0
