"""MedMNIST files: tasks, repeated images, and what is refused."""

import pickle

import numpy as np
import pytest

from configs.errors import DataError
from data.sources.formats import open_medmnist, open_source
from tests.data.sources.writers import medmnist

NAN = np.nan


def test_medmnist_binary(tmp_path):
    path = medmnist(tmp_path / "a.npz", np.array([[0], [1], [1]], np.uint8))
    for source in (open_medmnist(path), open_source(tmp_path), open_source(path), open_source(tmp_path, "a.npz")):
        assert source.class_names == ("positive",) and not source.exclusive
        np.testing.assert_array_equal(source.label_matrix()[:, 0], [0, 1, 1] * 3)
    assert open_medmnist(path, ["pneumonia"]).class_names == ("pneumonia",)
    with pytest.raises(DataError, match="name the one that 1 means"):
        open_medmnist(path, ["normal", "pneumonia"])


def test_medmnist_multi_class_and_multi_label(tmp_path):
    dataset_index = open_medmnist(medmnist(tmp_path / "a.npz", [[0], [3], [1]]))
    assert dataset_index.exclusive and len(dataset_index.class_names) == 4
    np.testing.assert_array_equal(dataset_index.label_matrix()[:3], np.eye(4)[[0, 3, 1]])
    dataset_index = open_medmnist(medmnist(tmp_path / "b.npz", [[0, 1], [1, 1], [0, 0]]), ["p", "q"])
    assert not dataset_index.exclusive and dataset_index.class_names == ("p", "q")
    np.testing.assert_array_equal(dataset_index.label_matrix()[:3], [[0, 1], [1, 1], [0, 0]])


def test_medmnist_reads_the_right_image_also_after_pickling(tmp_path):
    path = medmnist(tmp_path / "a.npz", [[0], [1], [1]])
    dataset_index = open_medmnist(path)
    again = pickle.loads(pickle.dumps(dataset_index))
    assert len(pickle.dumps(dataset_index.read)) < 1000
    for index, study in enumerate(dataset_index.studies):
        split, number = study.name.rstrip("]").split("[")
        want = np.load(path)[f"{split}_images"][int(number)]
        np.testing.assert_array_equal(dataset_index.read(index), want)
        np.testing.assert_array_equal(again.read(index), want)
    with pytest.raises(IndexError):
        dataset_index.read(9)


def test_medmnist_counts_repeated_images(tmp_path):
    same = np.random.default_rng(5).integers(0, 256, (3, 6, 7), dtype=np.uint8)
    notes = open_medmnist(medmnist(tmp_path / "a.npz", [[0], [1], [1]], train_images=same, test_images=same)).notes
    assert [note for note in notes if "identical" in note] == [
        "3 identical images stand in both train and test: scores on test are flattered "
        "(train[0] = test[0], train[1] = test[1], train[2] = test[2])"
    ]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"val_labels": None}, "lacks val_labels"),
        ({"images": np.zeros((3, 8, 8, 8), np.uint8)}, "volumes"),
        ({"images": np.zeros((3, 8, 8, 8, 3), np.uint8)}, "volumes"),
        ({"images": np.zeros((3, 8, 8))}, "not uint8 images"),
        ({"images": np.zeros((3, 8), np.uint8)}, "not uint8 images"),
        ({"labels": [[0], [1]]}, "do not go with labels"),
        ({"labels": [[0.0], [1.0], [0.5]]}, "do not go with labels"),
        ({"labels": [[0], [-1], [1]]}, "labels run from -1"),
        ({"labels": [[0, 1], [2, 1], [0, 0]]}, "labels run from 0 to 2"),
        ({"test_labels": np.zeros((3, 2), int)}, "label columns"),
        ({"train_images": np.array([{"evil": 1}, None, 2], object)}, "allow_pickle"),
        ({"train_labels": np.array([[print]] * 3, object)}, "allow_pickle"),
    ],
)
def test_medmnist_refuses(tmp_path, change, says):
    with pytest.raises(DataError, match=says):
        open_medmnist(medmnist(tmp_path / "a.npz", **{"labels": [[0], [1], [1]], **change}))


def test_medmnist_damaged(tmp_path):
    path = medmnist(tmp_path / "a.npz", [[0], [1], [1]])
    content = bytearray(path.read_bytes())
    for damaged in (content[:-200], content[:100], b"", b"no zip at all", content[:300] + b"\xff" + content[301:]):
        path.write_bytes(bytes(damaged))
        with pytest.raises(DataError, match="cannot read"):
            open_medmnist(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"not an \.npz"):
        open_medmnist(tmp_path / "b.npy")
    with pytest.raises(DataError, match="cannot read"):
        open_medmnist(tmp_path / "none.npz")
