"""What readers remark reaches the log of training, evaluation and prediction: counted, with names, once."""

import logging

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from configs.errors import DataError
from data.builder import build_evaluation_loader, saved_preprocess
from data.joint_inputs import JointPreprocess, UnreadableInputs, unlabelled_loader
from data.loading.remarks import ImageRemarks, as_json, from_json
from data.readers.remarks import Remark
from data.sources.unlabelled import open_unlabelled
from tests.data.cache.cached_sources import MEAN, STD, config_of, inputs, loaders_of

HOT = ("03.png", "11.png", "20.png")


@pytest.fixture
def data(tmp_path):
    """24 grey images of 16 bits; of three, one pixel is so bright that all others become black; one is of one value."""
    rng = np.random.default_rng(0)
    lines = ["image,a,split"]
    for number in range(24):
        name = f"{number:02d}.png"
        image = rng.integers(0, 100, (30, 30)).astype(np.uint16)
        image[2, 2] = 65535 if name in HOT else 100
        Image.fromarray(image if number != 5 else np.full_like(image, 7)).save(tmp_path / name)
        lines.append(f"{name},{number % 2},{'train' if number < 14 else 'val' if number < 18 else 'test'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path


def told(caplog) -> list[str]:
    """The counted warnings of the two kinds."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [line for line in lines if " are black or white nearly " in line or " have one value " in line]


@pytest.mark.parametrize("workers", [0, 2])
def test_training(data, caplog, workers):
    loaders = loaders_of(data, f"DATA.num_workers={workers}")
    inputs(loaders.train)
    constant, clipped = sorted(told(caplog), key=lambda text: "nearly" in text)
    assert constant.startswith("1 images have one value everywhere") and "05.png (all values are 7)" in constant
    assert clipped.startswith("2 images are black or white nearly everywhere")
    assert "03.png (99.9% black, 0.1% white), 11.png" in clipped and "DATA.window" in clipped
    caplog.clear()
    inputs(loaders.train, 1)
    inputs(loaders.val)
    assert told(caplog) == []
    inputs(loaders.test)
    (more,) = told(caplog)
    assert more.startswith("1 images more (3 in all) are black or white") and "20.png" in more and "03.png" not in more


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_cache_keeps_what_was_remarked(data, caplog, where):
    for _ in range(2):
        caplog.clear()
        loaders = loaders_of(data, f"DATA.cache={where}", "DATA.augment=false")
        inputs(loaders.train), inputs(loaders.val), inputs(loaders.test)
        text = "\n".join(told(caplog))
        assert text.count("one value") == 1 and all(text.count(name) == 1 for name in (*HOT, "05.png"))


def test_evaluation(data, caplog):
    config = config_of(data)
    loaders = loaders_of(data)
    preprocess = saved_preprocess(None, config, MEAN, STD)
    loader = build_evaluation_loader(config, loaders.source, np.arange(24), preprocess)
    inputs(loader)
    assert len(told(caplog)) == 2 and all(name in caplog.text for name in HOT)


def test_prediction(data, caplog):
    dataset_index, items = open_unlabelled([data], volumes=False)
    unread, joint = UnreadableInputs(), JointPreprocess([saved_preprocess(None, config_of(data), MEAN, STD)])
    loader = unlabelled_loader(dataset_index, joint, unread, 8, 0)
    assert sum(len(rows) for _, rows, _ in loader.epoch(0)) == 24
    assert len(told(caplog)) == 2
    row = [item.name for item in items].index("11.png")
    assert [remark.kind for remark in unread.remarks.of(row)] == ["clipped"]


def test_a_window_beyond_all_voxels_is_an_unreadable_volume(tmp_path):
    """Stored voxels vary and what is shown does not: it counts against DATA.max_bad_images."""
    rng = np.random.default_rng(0)
    lines = ["image,a,split"]
    for number, split in enumerate(["train"] * 4 + ["val"] * 2):
        voxels = rng.normal(40, 10, (8, 9, 10)).astype(np.float32)
        nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / f"{number}.nii.gz")
        lines.append(f"{number}.nii.gz,{number % 2},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    size = "DATA.image_size=[8, 8, 8]"
    loaders = loaders_of(tmp_path, size, "DATA.window=[1000, 2000]", "DATA.max_bad_images=1")
    with pytest.raises(
        DataError, match=r"2 images cannot be read, .*\n.*volume '.*nii.gz': the window 1000 to 2000 shows"
    ):
        inputs(loaders.train)


def test_what_a_cache_says_is_checked():
    found = ImageRemarks()
    found.add(3, "a", [Remark("flat", "x"), Remark("clipped", "y")])
    assert from_json(as_json(found, 5), 5) == {3: (Remark("clipped", "y"), Remark("flat", "x"))}
    for forged in (
        None,
        [],
        {"9": []},
        {"x": []},
        {"1": 3},
        {"1": [["flat"]]},
        {"1": [["odd", "x"]]},
        {"1": [["flat", 3]]},
    ):
        with pytest.raises(ValueError, match="remark"):
            from_json(forged, 5)
