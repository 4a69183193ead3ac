"""What all tests share."""

import gc
import logging
import os
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of NumPy's libraries and of the processes that tests start; see below

import cv2
import torch
from matplotlib.figure import Figure

from tests.selection import pytest_addoption, pytest_configure  # noqa: F401  --part and --minutes
from utils.torch_private import loader_utils

SAVEFIG = Figure.savefig
# Some tests fork this process. A thread of OpenCV's that holds their common lock just then is not there in the child,
# which waits for it at its next warp for ever: once in some thousand forks, and two whole runs.
cv2.setNumThreads(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: after some uses of autograd, torch refuses backward passes in a forked process."""
    items.sort(key=lambda item: "harness" not in getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    """Thousands of tests and all that they import stay to the end: the garbage collector need not look at them again.

    What runs out of memory collects garbage at each try, which took longer than the rest of such a test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and on busy cores their barriers cost ten times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def workers_leave_soon() -> Iterator[None]:
    """torch gives each data worker 5 s to leave; after an error it has often not been told to, and waits in vain."""
    with patch.object(loader_utils, "MP_STATUS_CHECK_INTERVAL", 0.5):
        yield


@pytest.fixture(scope="session")
def harness():
    """tests/kill_harness.py, which is a script as well."""
    from tests import kill_harness

    return kill_harness


@pytest.fixture(scope="module", autouse=True)
def blank_figures(request) -> Iterator[None]:
    """Figures are saved blank, in their size: drawing one takes longer than a tiny network trains.

    A module that says `DRAWN = True` has them drawn, and so does what runs within `drawing()`.
    """
    if getattr(request.module, "DRAWN", False):
        yield
        return
    with patch.object(Figure, "savefig", _save_blank):
        yield


def _save_blank(figure: Figure, *position, **options) -> None:
    SAVEFIG(Figure(figure.get_size_inches()), *position, **options)


@pytest.fixture(scope="session")
def drawing():
    """A context in which figures are drawn."""
    return partial(patch.object, Figure, "savefig", SAVEFIG)


@pytest.fixture
def logging_as_it_was():
    """For tests that call a script's main(), which takes over logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
