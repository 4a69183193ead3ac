"""The guides of docs/notebooks, run from the first cell to the last."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


# Written for a clone, in which it looks for the scripts; what it writes goes into a temporary folder.
IN_THE_CLONE = {"onnx_alone", "cross_validation"}


def test_they_are_notebooks_with_titles():
    assert {"own_model", "own_loop", "checkpointing"} | IN_THE_CLONE <= {path.stem for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.cells[0].source.startswith("# "), f"{path.name} has no title"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    place = path.parent if path.stem in IN_THE_CLONE else tmp_path
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}).execute(env=dict(os.environ))
