"""Requests to save and leave: real signals sent to this very process, and words in a file."""

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from tests.waiting import LIMIT_S
from utils.runs.control import Control, Interrupted, discard_request

SIGNALS = [(signal.SIGINT, 130, "stop"), (signal.SIGTERM, 143, "pause")]


@pytest.fixture
def control():
    before = {number: signal.getsignal(number) for number, *_ in SIGNALS}
    yield Control(seconds_between_looks=0).install()
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def asking(control: Control):
    """As a training loop, which leaves on what it was asked for."""
    with suppress(Interrupted), control.saving_first():
        yield


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs the handler between two bytecodes


# ---- signals


@pytest.mark.parametrize(("number", "code", "request_"), SIGNALS)
def test_with_nothing_to_save_a_signal_leaves_at_once(control, number, code, request_):
    with pytest.raises(Interrupted, match=signal.Signals(number).name) as interrupted:
        send(number)
    left = interrupted.value
    assert (left.exit_code, left.request, left.saved) == (code, request_, False) and control.request() is None


@pytest.mark.parametrize(("number", "code", "request_"), SIGNALS)
def test_the_first_is_noted_the_second_leaves(control, number, code, request_):
    with asking(control):
        assert control.request() is None
        send(number)
        assert control.request() == request_ and signal.Signals(number).name in control.reason
        with pytest.raises(Interrupted) as interrupted:
            send(signal.SIGTERM)
    assert interrupted.value.exit_code == 143 and not interrupted.value.saved
    assert Interrupted(request_).exit_code == code


def test_a_signal_that_comes_after_the_last_question_still_leaves(control):
    """The end of the last epoch has saved; the final report is not for one who asked to leave."""
    with pytest.raises(Interrupted) as interrupted, control.saving_first():
        send(signal.SIGTERM)
    assert interrupted.value.saved and interrupted.value.request == "pause"


def test_nobody_is_asked_to_save_when_there_is_nothing_to_save(tmp_path):
    control = Control(seconds_between_looks=0)
    with control.watching(tmp_path):
        (tmp_path / "control").write_text("pause")
        assert control.request() is None
    assert not (tmp_path / "control").exists()


def test_the_file_of_a_folder_around_the_runs_counts_for_each_of_them(tmp_path):
    """A cross-validation's folder, and those of its folds one after the other."""
    control, runs = Control(seconds_between_looks=0), [tmp_path / "fold0", tmp_path / "fold1"]
    with control.watching(tmp_path):
        for number, run in enumerate(runs):
            run.mkdir()
            with control.watching(run), suppress(Interrupted), control.saving_first():
                (runs[0] / "control").write_text("stop")  # of the second no longer its own
                if number:
                    assert control.request() is None
                    (tmp_path / "control").write_text("pause")
                    assert control.request() == "pause" and str(tmp_path / "control") in control.reason
            (runs[0] / "control").unlink(missing_ok=True)
    assert not (tmp_path / "control").exists()


def test_a_signal_after_a_request_by_file_leaves_at_once(control, tmp_path):
    with control.watching(tmp_path), asking(control):
        (tmp_path / "control").write_text("pause")
        assert control.request() == "pause"
        with pytest.raises(Interrupted) as interrupted:
            send(signal.SIGINT)
    assert interrupted.value.exit_code == 130 and not interrupted.value.saved


def test_it_is_no_error_that_a_handler_of_errors_swallows(control):
    with pytest.raises(Interrupted):
        try:
            send(signal.SIGINT)
        except Exception:
            pytest.fail("an except Exception must not catch it")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_dies_of_the_signal_instead_of_noting_it(control):
    with control.saving_first():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 143 and control.request() is None


# ---- the file


@pytest.mark.parametrize(
    ("text", "request_"), [("pause", "pause"), ("stop\n", "stop"), ("  Pause\r\n", "pause"), ("STOP", "stop")]
)
def test_a_word_in_the_file_is_a_request_and_is_gone_in_the_end(tmp_path, text, request_):
    control = Control(seconds_between_looks=0)
    with control.watching(tmp_path), asking(control):
        assert control.request() is None
        (tmp_path / "control").write_text(text)
        assert control.request() == request_ and str(tmp_path / "control") in control.reason
        assert (tmp_path / "control").is_file(), "it is removed when it was obeyed"
    assert not (tmp_path / "control").exists()


def test_another_word_is_said_once_and_a_right_one_obeyed_after_it(tmp_path, caplog):
    control = Control(seconds_between_looks=0)
    with control.watching(tmp_path), asking(control):
        for _ in range(3):
            (tmp_path / "control").write_text("halt")
            assert control.request() is None
        assert caplog.text.count("'halt'") == 1 and "it may say pause or stop" in caplog.text
        for text in ("", "\n"):  # made, and not written yet
            (tmp_path / "control").write_text(text)
            assert control.request() is None
        (tmp_path / "control").write_bytes(b"\xff" * 10**6)
        assert control.request() is None and caplog.text.count("WARNING") == 2
        (tmp_path / "control").write_text("stop")
        assert control.request() == "stop"


def test_what_is_no_file_stops_nothing(tmp_path):
    control = Control(seconds_between_looks=0)
    with control.watching(tmp_path), asking(control):
        (tmp_path / "control").mkdir()
        assert control.request() is None
        (tmp_path / "control").rmdir()
        if hasattr(os, "mkfifo"):
            os.mkfifo(tmp_path / "control")
            assert control.request() is None


def test_the_file_is_looked_for_once_in_a_while(tmp_path, monkeypatch):
    now, looks = [100.0], []
    monkeypatch.setattr("utils.runs.control.time.monotonic", lambda: now[0])
    monkeypatch.setattr("utils.runs.control._read", looks.append)
    control = Control(seconds_between_looks=1.0)
    with control.watching(tmp_path), asking(control):
        for _ in range(1000):  # 1,000 steps of 5 ms
            assert control.request() is None
            now[0] += 0.005
    assert 5 <= len(looks) <= 6


def test_what_nobody_was_there_to_obey_is_discarded(tmp_path):
    discard_request(tmp_path)
    (tmp_path / "control").write_text("pause")
    discard_request(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_thread_is_asked_by_file_and_cannot_take_signals_over(tmp_path):
    seen = []

    def work() -> None:
        try:
            Control().install()
        except ValueError as error:
            seen.append(type(error))
        control = Control(seconds_between_looks=0)
        with control.watching(tmp_path), asking(control):
            seen.append(control.request())

    (tmp_path / "control").write_text("pause")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(LIMIT_S)
    assert seen == [ValueError, "pause"]
