"""What benchmarks/data.py measures with: sources that read alike, and what it says where MONAI is missing."""

import sys

import numpy as np
import pytest

from benchmarks import data as benchmark
from benchmarks.data_pipelines import IMAGE, SIZE, import_monai, our_reader, write_sources
from configs.errors import ConfigError
from data.readers.images import read_image


def test_sources_hold_the_same_images(tmp_path):
    jpeg, png, dicom, npz = write_sources(tmp_path, 20)
    images = [read_image(source.files[17]).astype(float) for source in (jpeg, png, dicom)]
    assert all(image.shape == (IMAGE, IMAGE) for image in images)
    images[2] *= 255
    for other in (0, 2):
        assert np.abs(images[1] - images[other]).mean() < 2
    for source in (png, npz):
        fitted = our_reader(source, "disk")(3)
        assert fitted.shape == (SIZE, SIZE, 1) and fitted.dtype == np.uint8 and fitted.std() > 10


def test_rates_and_rows():
    batches = [[1, 2, 3], [4]]
    assert benchmark.rate(lambda number: iter(batches), iter(range(9)), 0.0) > 0
    row = {"source": "PNG", "pipeline": benchmark.FILES, "workers": 0, "rates": [1, 9, 4], "filling_seconds": None}
    cached = {**row, "pipeline": benchmark.DISK, "rates": [44], "filling_seconds": 2.5}
    table = benchmark.rows({"rows": [row, cached]})
    assert table == [
        ["PNG", benchmark.FILES, "4", "", "", "1.0", ""],
        ["PNG", benchmark.DISK, "44", "", "", "11.0", "2.5 s"],
    ]


def test_without_monai_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ConfigError, match=r"pip install -r benchmarks/requirements.txt"):
        import_monai()
    assert benchmark.main(["--no-write"]) == 2 and "--without-monai" in capsys.readouterr().err
