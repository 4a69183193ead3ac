"""What all tests share."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and on busy cores their barriers cost ten times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def harness():
    """tests/kill_harness.py, which is a script as well."""
    spec = importlib.util.spec_from_file_location("kill_harness", Path(__file__).with_name("kill_harness.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules["kill_harness"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
