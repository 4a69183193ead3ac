"""What a run notes of its training images: right numbers, cheap, harmless, and differences that are real."""

import numpy as np
import pytest
import torch

from configs.errors import CheckpointError
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.phantom.radiographs import write_phantom
from data.phantom.volumes import write_phantom_volumes
from data.profile import IMAGE_TRAITS, VOLUME_TRAITS, TrainingData, Traits, describe_images, likeness, measure
from data.readers.volumes import Volume
from data.sources.formats import open_source
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.images import Preprocess
from utils.checkpoint import load_checkpoint, save_checkpoint

COUNT = 70


def loader_of(dataset_index: DatasetIndex, workers: int = 0) -> ImageLoader:
    count, classes = len(dataset_index.studies), max(len(dataset_index.class_names), 1)
    labels = Labels(np.zeros((count, classes), np.float32), np.ones((count, classes), bool))
    dataset = ImageDataset(dataset_index, Preprocess((8, 8), 1, [0.5], [0.5]), 0)
    return ImageLoader(dataset, labels, EpochBatchSampler(np.arange(count), 4, True, 0), UnreadableImages(0), workers)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> DatasetIndex:
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(folder, COUNT, 64)
    return open_source(folder)


@pytest.fixture(scope="module")
def described(phantom) -> dict:
    return describe_images(loader_of(phantom), volumes=False)


def named(traits: Traits) -> dict[str, float]:
    return dict(zip((trait.name for trait in IMAGE_TRAITS), traits.figures.tolist()))


def test_the_traits_of_an_image():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (60, 90), dtype=np.uint8)
    figures = named(measure(grey))
    assert (figures["height"], figures["width"], figures["bits"], figures["colour"]) == (60, 90, 8, 0)
    assert figures["aspect"] == pytest.approx(1.5)
    assert figures["brightness"] == pytest.approx(grey.mean() / 255, abs=1e-6)
    assert figures["contrast"] == pytest.approx(grey.std() / 255, abs=1e-6)
    assert named(measure(np.repeat(grey[..., None], 3, axis=2)))["colour"] == 0
    assert named(measure(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)))["colour"] == 1
    deep = named(measure(grey.astype(np.uint16) * 16))
    stretched = (grey.astype(float) - grey.min()) / (grey.max() - grey.min())
    assert deep["bits"] == 16 and deep["brightness"] == pytest.approx(stretched.mean(), abs=1e-6)
    windowed = named(measure(grey.astype(np.float32) / np.float32(255)))
    assert windowed["bits"] == 32 and windowed["brightness"] == pytest.approx(grey.mean() / 255, abs=1e-6)


def test_of_a_large_image_a_part_is_looked_at():
    image = np.random.default_rng(0).integers(0, 256, (2500, 2000), dtype=np.uint8)
    figures = named(measure(image))
    assert (figures["height"], figures["width"]) == (2500, 2000)
    assert figures["brightness"] == pytest.approx(image[::10, ::8].mean() / 255, abs=1e-6)


def test_the_traits_of_a_volume():
    affine = np.diag([0.7, 0.8, 2.5, 1.0])
    voxels = np.random.default_rng(0).normal(40, 200, (30, 50, 60)).astype(np.float32)
    figures = dict(zip((trait.name for trait in VOLUME_TRAITS), measure(Volume(voxels, affine)).figures.tolist()))
    assert [figures[f"spacing_{axis}_mm"] for axis in "zyx"] == pytest.approx([2.5, 0.8, 0.7])
    assert [figures[f"{axis}_mm"] for axis in ("depth", "height", "width")] == pytest.approx([75, 40, 42])
    assert [figures["low"], figures["high"]] == pytest.approx(np.percentile(voxels, (0.5, 99.5)), rel=0.03)


def test_a_description_is_of_at_most_64_images(described, phantom):
    assert (described["images"], described["of"], described["kind"]) == (64, COUNT, "images")
    assert described["ranges"]["height"] == [64, 64] and described["kinds"] == {
        "bits": {"8 bits": 64},
        "colour": {"grey": 64},
    }
    views = [study.table["view"] for study in phantom.studies]
    assert (
        described["views"] == {view: views.count(view) for view in described["views"]}
        and sum(described["views"].values()) == COUNT
    )


def test_a_description_is_the_same_with_workers_and_draws_nothing(described, phantom):
    before, generator = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    assert describe_images(loader_of(phantom, workers=2), volumes=False) == described
    assert torch.equal(before, torch.get_rng_state()) and generator == np.random.get_state()[1].tobytes()  # noqa: NPY002


def test_a_checkpoint_carries_it(described, tmp_path):
    save_checkpoint({"training_data": described}, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth")["training_data"] == described


def test_unreadable_images_are_skipped_in_silence(tmp_path, caplog):
    write_phantom(tmp_path / "p", 12, 64)
    dataset_index = open_source(tmp_path / "p")
    for study in dataset_index.studies[:5]:
        (tmp_path / "p" / study.name).write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    described = describe_images(loader_of(dataset_index), volumes=False)
    assert (described["images"], described["of"]) == (7, 12) and not caplog.records
    for study in dataset_index.studies:
        (tmp_path / "p" / study.name).write_bytes(b"")
    assert describe_images(loader_of(dataset_index), volumes=False) == {}


def test_huge_images_end_it_early():
    image = np.zeros((5000, 4000), np.uint8)
    studies = tuple(Study(f"{i}.png", {IMAGE: f"{i}.png"}, np.zeros(1, np.float32)) for i in range(40))
    dataset_index = DatasetIndex(("a",), studies, lambda index: image)
    assert describe_images(loader_of(dataset_index), volumes=False)["images"] == 8


def warnings_of(described: dict, image: np.ndarray, view: str = "") -> list[str]:
    return TrainingData.from_dict(described, volumes=False).differences(measure(image), view)


def test_images_of_the_training_data_are_not_unlike_it(described, phantom):
    data = TrainingData.from_dict(described, volumes=False)
    found = [data.differences(measure(phantom.read(i)), study.table["view"]) for i, study in enumerate(phantom.studies)]
    print(f"warned of {sum(map(bool, found))} of {COUNT} images, 6 of them not in the description")
    assert not any(found)


def test_likeness_is_the_correlation_of_cells(described, phantom):
    one, other = (phantom.read(i).astype(float).reshape(8, 8, 8, 8).mean(axis=(1, 3)).ravel() for i in (0, 1))
    assert likeness(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-12)
    np.testing.assert_allclose(measure(phantom.read(0)).cells, one / 255, atol=1e-6)
    assert likeness(one, -other) == -likeness(one, other) and likeness(one, np.ones(64)) == 0.0
    low, high = described["ranges"]["likeness"]
    print(f"likeness of the training images to the mean of all others: {low:.2f} to {high:.2f}")
    assert 0 < low < high <= 1


def test_negatives_and_turned_images(described, phantom):
    """A negative looks like no image; upside down, most of a thorax is still bright in the middle."""
    changes = {"negative": lambda p: 255 - p, "quarter turn": np.rot90, "half turn": lambda p: np.rot90(p, 2)}
    found = {
        name: sum("correlation" in "".join(warnings_of(described, change(phantom.read(i)))) for i in range(COUNT))
        for name, change in changes.items()
    }
    print(f"of {COUNT} images told to be unlike: {found}")
    assert found["negative"] == COUNT and found["quarter turn"] > COUNT / 2


def test_images_that_are_unlike_the_training_data(described, phantom):
    image = phantom.read(0)
    large = np.kron(image, np.ones((2, 2), np.uint8))
    assert warnings_of(described, large) == ["height 128 pixels (training: 64)", "width 128 pixels (training: 64)"]
    assert warnings_of(described, image[:, 8:-8])[0] == "width / height 0.75 (training: 1.00)"
    assert any("16 bits (training: 8 bits)" in text for text in warnings_of(described, image.astype(np.uint16) * 257))
    colour = np.stack([image, image // 2, image // 3], axis=2)
    assert "colour (training: grey)" in warnings_of(described, colour)
    assert any("mean brightness" in text for text in warnings_of(described, np.full_like(image, 250)))
    assert any(
        "standard deviation of brightness 0.00" in text for text in warnings_of(described, np.full_like(image, 90))
    )


def test_views(described, phantom):
    image = phantom.read(0)
    known = sorted(described["views"])
    assert warnings_of(described, image, f" {known[0].lower()} ") == [] == warnings_of(described, image, "")
    assert warnings_of(described, image, "swimmer") == [f"view SWIMMER (training: {', '.join(known)})"]
    assert warnings_of(described | {"views": {}}, image, "swimmer") == []


def test_volumes_unlike_the_training_data(tmp_path):
    write_phantom_volumes(tmp_path / "v", 4, 64)
    dataset_index = open_source(tmp_path / "v", volumes=True)
    described = describe_images(loader_of(dataset_index), volumes=True)
    data = TrainingData.from_dict(described, volumes=True)
    assert described["kind"] == "volumes" and described["images"] == 4
    one = dataset_index.read(0)
    assert data.differences(measure(one)) == []
    thick = Volume(one.voxels[::6], one.affine @ np.diag([1, 1, 6, 1]))
    assert any(text.startswith("spacing in z") for text in data.differences(measure(thick)))
    assert any("99.5 percentile" in text for text in data.differences(measure(Volume(one.voxels * 20, one.affine))))


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "scans"},
        {"kind": "volumes"},
        {"pattern": [1.0] * 63},
        {"pattern": [float("nan")] * 64},
        {"ranges": {}},
        {"ranges": None},
        {"views": 3},
        {"kinds": {"bits": {"8 bits": "many"}}},
        {"ranges": {trait.name: [2, 1] for trait in IMAGE_TRAITS}},
        {"ranges": {trait.name: [0, float("nan")] for trait in IMAGE_TRAITS}},
    ],
)
def test_a_description_that_is_none(described, broken):
    with pytest.raises(CheckpointError, match="training data cannot be read"):
        TrainingData.from_dict(described | broken, volumes=False)
