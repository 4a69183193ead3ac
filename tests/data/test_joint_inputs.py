"""One image for several models: what each would have got alone."""

import numpy as np
import pytest
import torch

from configs.errors import DataError
from data.joint_inputs import JointPreprocess, UnreadableInputs, unlabelled_loader
from data.profile import measure
from data.readers.volumes import Volume
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.images import Preprocess
from data.transforms.volumes import VolumePreprocess

SMALL = Preprocess((16, 16), 3, [0.5] * 3, [0.25] * 3)
LARGE = Preprocess((24, 20), 1, [0.4], [0.3], "letterbox")


def image(index: int) -> np.ndarray:
    if index % 4 == 3:
        raise DataError(f"cannot read image {index}")
    return np.random.default_rng(index).integers(0, 256, (30 + index, 40), dtype=np.uint8)


def dataset_index_of(count: int) -> DatasetIndex:
    return DatasetIndex(
        (), tuple(Study(f"{i}.png", {IMAGE: f"{i}.png"}, np.empty(0, np.float32)) for i in range(count)), image
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_every_model_gets_its_own_input(workers, caplog):
    joint, unread = JointPreprocess([SMALL, LARGE]), UnreadableInputs()
    seen = []
    for _, rows, (inputs, traits) in unlabelled_loader(dataset_index_of(30), joint, unread, 4, workers).epoch(0):
        small, large = (one.single_images() for one in inputs)
        assert small.shape[1:] == (3, 16, 16) and large.shape[1:] == (1, 24, 20)
        for position, index in enumerate(rows.tolist()):
            assert torch.equal(small[position], torch.from_numpy(SMALL(image(index))))
            assert torch.equal(large[position], torch.from_numpy(LARGE(image(index))))
            for found, expected in zip(traits[position], measure(image(index)), strict=True):
                np.testing.assert_array_equal(found, expected)
            seen.append(index)
    assert seen == [i for i in range(30) if i % 4 != 3]
    assert unread.reasons == {i: f"cannot read image {i}" for i in range(3, 30, 4)}
    assert len(caplog.records) == 5 and caplog.records[-1].getMessage().endswith("in the results only")


def test_what_a_heatmap_is_laid_over():
    grey = image(0)
    displayed, more = JointPreprocess([LARGE]).display_image(grey)
    assert (
        np.array_equal(displayed, grey)
        and more == {}
        and JointPreprocess([SMALL, LARGE]).modes == ["stretch", "letterbox"]
    )
    deep, _ = JointPreprocess([SMALL]).display_image(grey.astype(np.uint16) * 16)
    assert deep.dtype == np.uint8 and (deep.min(), deep.max()) == (0, 255)
    preprocess = VolumePreprocess((8, 12, 12), 1, [0.5], [0.5])
    volume = Volume(np.random.default_rng(0).random((16, 24, 36)).astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    displayed, more = JointPreprocess([preprocess]).display_image(volume)
    assert displayed.shape == (8, 12, 12) and more["spacing"] == pytest.approx((4.0, 2.0, 3.0))
    np.testing.assert_allclose(preprocess(volume)[0], (displayed - 0.5) / 0.5, atol=1e-6)


def test_what_does_not_go_together():
    with pytest.raises(DataError, match="some for volumes"):
        JointPreprocess([SMALL, VolumePreprocess((8, 8, 8), 1, [0.5], [0.5])])
    for numbers in ((0, 0), (-1, 0), (4, -1)):
        with pytest.raises(DataError, match="--batch-size"):
            unlabelled_loader(dataset_index_of(2), JointPreprocess([SMALL]), UnreadableInputs(), *numbers)
