"""from_pretrained: predict.py's numbers for paths, arrays, studies and volumes; networks and loaders of a user."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import predict
from configs.errors import ConfigError, DataError, HybridMedNetError, PredictionError
from data.phantom.radiographs import write_phantom
from data.phantom.volumes import write_phantom_volumes
from hybridmednet.pretrained import from_pretrained
from models import HybridMedNet
from tests.hybridmednet.test_trainer import IMAGES, NUMBERS, Network, loader, network, settings, trainer
from tests.served_studies import write_studies, write_study_run
from tests.test_predict import write_model
from utils.batch import Inputs

pytestmark = pytest.mark.usefixtures("logging_as_it_was")
COUNT = 6


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(folder, COUNT, 64, seed=6)
    return folder


@pytest.fixture(scope="module")
def checkpoint(phantom, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "one.pth", phantom)


def by_command(output: Path, checkpoint: Path, *arguments: object) -> list[dict[str, str]]:
    more = [one for one in arguments if str(one).endswith(".pth")]
    asked = [one for one in arguments if one not in more]
    given = [*asked, "--checkpoint", checkpoint, *more, "--output", output, "--device", "cpu"]
    assert predict.main([str(one) for one in given]) == 0
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def same(found, rows) -> None:
    """Names, probabilities to the digits of the table, called classes and warnings."""
    assert len(found) == len(rows) > 0
    for one, row in zip(found, rows, strict=True):
        assert one.name == row.get("image", row.get("study"))
        written = {name: float(row[f"probability {name}"]) for name in one.probabilities}
        assert one.probabilities == pytest.approx(written, abs=1e-8)
        assert "|".join(one.called) == row["findings"] and "; ".join(one.warnings) == row["warnings"]


# ---- this program's own runs


def test_a_folder_is_predicted_as_by_the_command(checkpoint, phantom, tmp_path):
    model = from_pretrained(checkpoint, device="cpu")
    rows = by_command(tmp_path, checkpoint, phantom / "images")
    same(model.predict(phantom / "images"), rows)
    same(model.predict([phantom / "images"], num_workers=1, batch_size=16), rows)
    assert not model.training and len(model.classes) == 8 and model.preprocess.size == (32, 32)
    assert (
        from_pretrained(checkpoint, device="cpu", threshold=0.0).predict(phantom / "images")[0].called == model.classes
    )


def test_arrays_and_images_of_pillow_are_predicted_as_their_files(checkpoint, phantom):
    model = from_pretrained(checkpoint, device="cpu")
    files = sorted((phantom / "images").glob("*.png"))[:3]
    expected = [one.probabilities for one in model.predict(files)]
    opened = [Image.open(file) for file in files]
    arrays = [np.asarray(one) for one in opened]
    floats = [one.astype(np.float64) / np.iinfo(one.dtype).max for one in arrays]
    for asked, rounding in ((arrays, 0), (opened, 0), (floats, 1e-3)):  # bytes are resized as bytes
        found = [one.probabilities for one in model.predict(asked)]
        assert found == [pytest.approx(one, abs=rounding, rel=0) for one in expected]
    assert model.predict(arrays[1])[0].probabilities == pytest.approx(expected[1], abs=1e-6)
    assert [one.name for one in model.predict(arrays)] == ["array 0", "array 1", "array 2"]


def test_several_are_averaged_as_by_the_command(checkpoint, phantom, tmp_path):
    other = write_model(tmp_path / "other.pth", phantom, "DATA.resize=letterbox", seed=1)
    model = from_pretrained([checkpoint, other], device="cpu")
    rows = by_command(tmp_path / "out", checkpoint, phantom / "images", other)
    alone = by_command(tmp_path / "alone", checkpoint, phantom / "images")
    found = model.predict(phantom / "images")
    same(found, rows)
    assert found[0].probabilities != pytest.approx(
        {name: float(alone[0][f"probability {name}"]) for name in model.classes}, abs=1e-3
    )
    arrays = [np.asarray(Image.open(path)) for path in sorted((phantom / "images").glob("*.png"))]
    assert [one.probabilities for one in model.predict(arrays)] == [one.probabilities for one in found]
    with pytest.raises(PredictionError, match="2 networks have no logits in common"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(PredictionError, match="are of one file, not of 2"):
        from_pretrained([checkpoint, other], model=nn.Linear(2, 2))


def test_calling_it_gives_the_logits(checkpoint):
    model = from_pretrained(checkpoint, device="cpu")
    images = torch.randn(2, model.config.MODEL.in_channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), model.network(Inputs.of_images(images)))
    assert isinstance(model.network, HybridMedNet)


def test_what_cannot_be_read_has_an_error(checkpoint, phantom, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    good = next((phantom / "images").glob("*.png"))
    one, other = from_pretrained(checkpoint, device="cpu").predict([broken, good])
    assert one.probabilities is None and "broken.png" in one.error and other.probabilities is not None


@pytest.mark.slow
def test_volumes(tmp_path):
    write_phantom_volumes(tmp_path / "volumes", 10, 64)
    options = ("MODEL.backbone=swin3d_tiny", "DATA.image_size=[32,32,32]", "MODEL.in_channels=1", "MODEL.drop_path=0")
    file = write_model(tmp_path / "model.pth", tmp_path / "volumes", *options)
    model = from_pretrained(file, device="cpu")
    same(
        model.predict(tmp_path / "volumes"),
        by_command(tmp_path / "out", file, tmp_path / "volumes"),
    )
    with pytest.raises(DataError, match="takes volumes, whose spacing"):
        model.predict(np.zeros((4, 4, 4), np.float32))


def test_studies_with_a_table(tmp_path):
    data = write_studies(tmp_path / "data")
    run = write_study_run(tmp_path / "run", data)
    model = from_pretrained(run, device="cpu")
    listed, table = data / "labels.csv", data / "clinical.csv"
    given = (listed, "--table", table) if table.is_file() else (listed,)
    rows = by_command(tmp_path / "out", run, *given)
    found = model.predict(listed, table=table if table.is_file() else None)
    same(found, rows)
    assert ["|".join(one.images) for one in found] == [row["images"] for row in rows]
    with pytest.raises(PredictionError, match="takes studies"):
        model.predict(np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "0 paths among 0"),
        (["a.png", np.zeros((8, 8), np.uint8)], "1 paths among 2"),
        ("nowhere.png", "no file or folder"),
        (torch.zeros(3, 32, 32), "call the model itself"),
        (np.zeros((8, 8, 4), np.uint8), r"this is \(8, 8, 4\)"),
        (np.zeros((8, 8), np.int64), "this is int64"),
        (np.full((8, 8), 200.0), "from 200 to 200"),
        (np.full((8, 8), np.nan), "floats is in"),
        (7, "int is no image"),
    ],
)
def test_what_is_no_image_is_an_error_of_one_line(checkpoint, asked, words):
    with pytest.raises(HybridMedNetError, match=words) as raised:
        from_pretrained(checkpoint, device="cpu").predict(asked)
    assert "\n" not in str(raised.value)


def test_other_mistakes(checkpoint, phantom, tmp_path):
    with pytest.raises(HybridMedNetError, match=r"nowhere"):
        from_pretrained(tmp_path / "nowhere.pth")
    with pytest.raises(ConfigError, match=r"TRAIN.epochs: no effect"):
        from_pretrained(checkpoint, settings=["TRAIN.epochs=3"])
    with pytest.raises(PredictionError, match="leave out model"):
        from_pretrained(checkpoint, model=nn.Linear(2, 2))
    with pytest.raises(PredictionError, match="this is for models of studies"):
        from_pretrained(checkpoint, device="cpu").predict(phantom / "images", table="x.csv")


# ---- runs of a Trainer


def prepared(image: np.ndarray) -> torch.Tensor:
    """Of a grey image of 4 × 4."""
    return torch.from_numpy(image.astype(np.float32) / 255).expand(3, *image.shape)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "run"
    return trainer(class_names=["a", "b", "c"]).train(epochs=1, folder=folder).folder


def test_a_network_of_ones_own(own):
    model = from_pretrained(own, Network(), prepared, device="cpu")
    images = [np.full((4, 4), value, np.uint8) for value in (0, 100, 255)]
    expected = model.network(torch.stack([prepared(one) for one in images])).softmax(1).tolist()
    found = model.predict(images)
    assert [list(one.probabilities.values()) for one in found] == [pytest.approx(row, abs=1e-6) for row in expected]
    assert model.classes == ("a", "b", "c") and all(len(one.called) == 1 for one in found)
    with pytest.raises(PredictionError, match=r"weights of a network of one's own, Network"):
        from_pretrained(own, device="cpu")
    with pytest.raises(PredictionError, match=r"another network \(Network\)"):
        from_pretrained(own, nn.Linear(3, 3), device="cpu")
    with pytest.raises(PredictionError, match="preprocess="):
        from_pretrained(own, Network(), device="cpu").predict(images)
    with pytest.raises(PredictionError, match="preprocess gave list"):
        from_pretrained(own, Network(), lambda image: image.tolist(), device="cpu").predict(images)


def test_scripts_refuse_it_in_one_line(own, capsys):
    assert predict.main(["x.png", "--checkpoint", str(own)]) == 2
    assert "trained from a user's own loader, the network Network" in capsys.readouterr().err


def test_a_hybrid_network_on_ones_own_loader_is_built_from_its_file(tmp_path):
    config = settings()
    config.MODEL.backbone, config.MODEL.pretrained, config.DATA.image_size = "timm/test_resnet", False, 32
    config.MODEL.fpn_channels = config.MODEL.fusion_channels = 8
    config.DATA.class_names = ["a", "b", "c"]
    images = IMAGES[:8].repeat(1, 1, 8, 8)
    data = loader(NUMBERS[:8], images)
    run = trainer(HybridMedNet(config), data, data, config=config).train(epochs=1, folder=tmp_path / "run").folder
    model = from_pretrained(run, device="cpu")
    assert model.classes == ("a", "b", "c") and model(images).shape == (8, 3)
    other = config.model_copy(deep=True)
    other.MODEL.fusion_channels = 16
    with pytest.raises(ConfigError, match="not the one that this network was built with"):
        trainer(HybridMedNet(config), data, data, config=other).train(epochs=1, folder=tmp_path / "other")


def test_the_moving_average_is_what_is_loaded(tmp_path):
    config = settings(ema_decay=0.9)
    net = network()
    run = trainer(net, config=config).train(epochs=1, folder=tmp_path / "run").folder
    model = from_pretrained(run / "last.pth", Network(), prepared, device="cpu")
    assert not torch.equal(model.network.head[2].weight, net.head[2].weight)
