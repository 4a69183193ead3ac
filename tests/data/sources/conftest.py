"""What the tests of the sources share."""

import pytest

from tests.data.sources.writers import images


@pytest.fixture
def three(tmp_path):
    """A folder with a.png, b.png and c.png of grey 0, 1 and 2."""
    images(tmp_path, "a.png b.png c.png")
    return tmp_path
