"""Files of studies: all slots with masks and a raw table give what the network gives for what is there."""

import numpy as np
import pytest
import torch
from torch import nn

from configs.default_config import Config
from configs.errors import ExportError
from data.clinical_table import CategoricalColumn as Words
from data.clinical_table import ClinicalTable
from data.clinical_table import NumericColumn as Numbers
from data.table_encoding import TableEncoding
from deployment.exported_network import ExportedNetwork
from deployment.exported_studies import (
    CategoricalColumn,
    ExportedStudyNetwork,
    NumericColumn,
    SingleViews,
    StudyForm,
    of_form,
    random_studies,
)
from deployment.formats import FORMATS, Request, export_file
from deployment.verification import BOUNDS, check
from models import HybridMedNet
from models.studies import AGGREGATORS, FUSIONS
from utils.batch import Inputs, Logits

IMAGE, VIEWS, KINDS = (3, 32, 32), 3, ("frontal", "lateral", "other")
WORDS = ("F", "M", "X")
# What training saw; the middle column has gaps, of which the network is told where it says so.
TRAINED = ClinicalTable(
    (
        Numbers("age", np.array([30.0, 50, 70, 90])),
        Numbers("crp", np.array([1.0, np.nan, 5, 9])),
        Words("sex", ("F", "M", "F", "M")),
    ),
    np.ones(4, bool),
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def encoding(told: bool = False) -> TableEncoding:
    return TableEncoding.fit(TRAINED, range(4), "indicator" if told else "ignore")


def form(told: bool = False) -> StudyForm:
    age, crp = ((one.name, one.mean, one.std, 5.0, one.low, one.high) for one in encoding().columns[:2])
    columns = NumericColumn(*age), NumericColumn(*crp), CategoricalColumn("sex", ("F", "M"))
    return StudyForm(VIEWS, KINDS, columns, ("crp",) if told else ())


def network(aggregator: str, fusion: str, backbones: str = "shared", told: bool = False) -> HybridMedNet:
    """Of which every part counts: no weight of the head is zero."""
    columns = ", ".join(f"'{name}': {kind}" for name, kind in encoding(told).model_columns.items())
    given = {
        "backbone": "timm/test_resnet",
        "pretrained": False,
        "attention": "none",
        "fusion_channels": 8,
        "views": f"{{aggregator: {aggregator}, width: 8, backbones: {backbones}}}",
        "table": f"{{fusion: {fusion}, width: 8, rank: 4}}",
        "view_kinds": "[frontal, lateral, other]",
        "table_columns": f"{{{columns}}}",
        "num_classes": 4,
    }
    config = Config.from_overrides(["DATA.image_size=32", *(f"MODEL.{key}={value}" for key, value in given.items())])
    torch.manual_seed(0)
    model = HybridMedNet(config)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            nn.init.normal_(parameter, std=0.5)
        for other in model.view_backbones:
            for parameter in other.parameters():
                parameter.mul_(1.1)
    return model.eval()


def expected(model: HybridMedNet, inputs: tuple[np.ndarray, ...], told: bool = False) -> np.ndarray:
    """What evaluation computes: only the images that are there, and the table as the loaders encode it."""
    image, mask, kind, table, *row = inputs
    there = row[0] if row else ~np.isnan(table).all(1)
    known = ~np.isnan(table)
    words = tuple(
        WORDS[int(c) - 1] if k and 1 <= c <= 2 else "X" if k else "" for c, k in zip(table[:, 2], known[:, 2])
    )
    read = ClinicalTable((Numbers("age", table[:, 0]), Numbers("crp", table[:, 1]), Words("sex", words)), there)
    values, mask_of_table = encoding(told).encode(read)
    images = torch.from_numpy(np.ascontiguousarray(image[mask]))
    kinds = torch.from_numpy(np.where((kind < 0) | (kind > 2), 2, kind))
    study = Inputs(images, torch.from_numpy(mask), kinds, torch.from_numpy(values), torch.from_numpy(mask_of_table))
    with torch.no_grad():
        return Logits.of(model(study)).fine.sigmoid().numpy()


def agrees(run, model: HybridMedNet, told: bool = False) -> None:
    inputs = random_studies(form(told), IMAGE, count=15, seed=3)
    wanted = expected(model, inputs, told)
    assert np.isfinite(wanted).all() and np.ptp(wanted, axis=0).max() > 0.05
    for size in (1, 3, 5):
        for start in range(0, 15, size):
            (found,) = run(*(np.ascontiguousarray(one[start : start + size]) for one in inputs))
            np.testing.assert_allclose(found, wanted[start : start + size], rtol=0, atol=1e-4)


def test_random_studies_have_every_gap_with_nan_behind_it():
    image, mask, kind, table, row = random_studies(form(told=True), IMAGE, count=40)
    assert image.shape == (40, VIEWS, *IMAGE) and kind.dtype == np.int64 and table.dtype == np.float32
    assert mask[:4].sum(1).tolist() == [0, 1, 0, VIEWS] and row[:4].tolist() == [False, False, True, True]
    assert np.isnan(table[:2]).all() and not np.isnan(table[2:4]).any() and np.isnan(table[~row]).all()
    assert np.isnan(image[~mask]).all() and np.isfinite(image[mask]).all()
    assert {*mask.sum(1).tolist()} == {0, 1, 2, 3} and {*kind.ravel().tolist()} == {-1, 0, 1, 2, 3}


@pytest.mark.parametrize(
    ("aggregator", "fusion", "backbones"),
    [
        *((aggregator, fusion, "shared") for aggregator in AGGREGATORS for fusion in FUSIONS),
        *((aggregator, fusion, "separate") for aggregator, fusion in zip(AGGREGATORS, FUSIONS, strict=True)),
    ],
)
def test_the_graphs_way_is_evaluations(aggregator, fusion, backbones, monkeypatch):
    """All slots computed and masked, as a file does it, without making one."""
    model = network(aggregator, fusion, backbones)
    for module in ("deployment.exported_studies", "models.view_backbones"):
        monkeypatch.setattr(f"{module}.is_exported", lambda: True)
    exported = ExportedStudyNetwork(model, form())

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [exported(*map(torch.from_numpy, arrays)).numpy()]

    agrees(run, model)


@pytest.mark.parametrize("told", [False, True])
def test_a_script_with_any_batch(told, tmp_path):
    """The quickest of the formats; whether the network is told of missing values, too."""
    model = network("attention", "attention", "separate", told)
    path = tmp_path / "x.torchscript"
    difference = export_file(
        ExportedStudyNetwork(model, form(told)), "torchscript", path, Request(IMAGE), random_studies(form(told), IMAGE)
    )
    assert difference < 1e-5
    agrees(FORMATS["torchscript"].open(path), model, told)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch_export", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_formats(kind, precision, tmp_path):
    if kind == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here")
    model, path = network("cross_attention", "cross_attention", "separate", True), tmp_path / "x"
    path = path.with_suffix({"onnx": ".onnx", "torch_export": ".pt2", "openvino": ".xml"}[kind])
    exported = ExportedStudyNetwork(model, form(True))
    request = Request(IMAGE, precision=precision)
    assert export_file(exported, kind, path, request, random_studies(form(True), IMAGE)) < BOUNDS[precision]
    if precision == "fp32":
        agrees(lambda *arrays: [np.asarray(FORMATS[kind].open(path)(*arrays)).reshape(-1, 4)], model, True)


FUSED = [*zip(AGGREGATORS, FUSIONS, strict=True), *zip(AGGREGATORS, [*FUSIONS][1:] + [*FUSIONS][:1], strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("aggregator", "fusion"), FUSED)
def test_onnx_of_every_aggregator(aggregator, fusion, tmp_path):
    """Each with two fusions; the second five with a backbone for each kind of view."""
    separate = "separate" if FUSED.index((aggregator, fusion)) >= len(AGGREGATORS) else "shared"
    model, path = network(aggregator, fusion, separate), tmp_path / "x.onnx"
    exported = ExportedStudyNetwork(model, form())
    assert export_file(exported, "onnx", path, Request(IMAGE), random_studies(form(), IMAGE)) < 1e-4
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    assert names == ["image", "view_mask", "view_kind", "table"]
    agrees(lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True))), model)


def test_a_file_that_looks_behind_gaps_is_found():
    model = ExportedStudyNetwork(network("mean", "gated"), form()).eval()
    inputs = random_studies(form(), IMAGE)

    def faithful(*arrays: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(*map(torch.from_numpy, arrays)).numpy()

    def blind(image: np.ndarray, mask: np.ndarray, *others: np.ndarray) -> np.ndarray:
        return faithful(np.nan_to_num(image), np.ones_like(mask), *others)

    assert check(model, faithful, inputs, "fp32", (1, 3)) < 1e-5
    with pytest.raises(ExportError, match="does not compute what the network does"):
        check(model, blind, inputs, "fp32", (1, 3))


def test_inputs_are_those_that_a_model_has(tmp_path):
    whole = random_studies(form(True), IMAGE)
    assert ExportedStudyNetwork(nn.Linear(1, 1), form(True)).input_names() == [
        "image",
        "view_mask",
        "view_kind",
        "table",
        "table_row",
    ]
    alone = StudyForm(1, (), form().columns)
    assert ExportedStudyNetwork(nn.Linear(1, 1), alone).input_names() == ["image", "view_mask", "table"]
    assert len(of_form(alone, *whole)) == 3
    with pytest.raises(ExportError, match="--format tensorrt is for single images"):
        export_file(
            ExportedStudyNetwork(network("max", "gated"), form()),
            "tensorrt",
            tmp_path / "x.engine",
            Request(IMAGE),
            whole,
        )


def test_single_views_are_studies_of_one_view():
    model = network("cross_attention", "concatenate", "separate")
    images = np.random.default_rng(0).standard_normal((5, *IMAGE)).astype(np.float32)
    found = []
    for kind in range(3):
        with torch.no_grad():
            found.append(ExportedNetwork(SingleViews(model, kind))(torch.from_numpy(images)).numpy())
        study = images[:, None], np.ones((5, 1), bool), np.full((5, 1), kind), np.full((5, 3), np.nan, np.float32)
        np.testing.assert_allclose(found[-1], expected(model, study), rtol=0, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01
