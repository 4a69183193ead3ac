"""export.py on models of studies: the file read by onnxruntime alone, what it says of itself, what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import export
import predict
from data.builder import saved_preprocess
from data.readers.images import read_image
from models.saved_model import load_model
from tests.served_studies import STUDIES, write_rows, write_studies, write_study_run
from tests.training_runs import process_state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
CLASSES = ("lesion", "effusion")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_studies(tmp_path_factory.mktemp("studies") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    return write_study_run(tmp_path_factory.mktemp("runs") / "run", data, "DATA.table.missing=indicator")


def run_export(capsys, *arguments: object) -> tuple[int, str, str]:
    with process_state():
        code = export.main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def predicted(output: Path, checkpoint: Path, *arguments: object) -> list[dict[str, str]]:
    given = [*arguments, "--checkpoint", checkpoint, "--output", output, "--device", "cpu"]
    with process_state():
        assert predict.main([str(argument) for argument in given]) == 0
    return rows_of(output / "predictions.csv")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def chances(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[f"probability {name}"]) for name in CLASSES] for row in rows])


def pixels(run: Path, data: Path, name: str) -> np.ndarray:
    saved = load_model(run / "best_model.pth")
    backbone = saved.model.backbone
    return saved_preprocess(saved.preprocessing, saved.config, backbone.mean, backbone.std)(read_image(data / name))


@pytest.mark.slow
def test_onnxruntime_alone_gives_the_predictions(data, run, capsys, tmp_path):
    """With what the file says of itself: names, codes, units; the table as it stands in clinical.csv."""
    onnxruntime = pytest.importorskip("onnxruntime")
    code, said, _ = run_export(capsys, run, "--output", tmp_path / "x.onnx")
    assert code == 0 and "inputs: image, view_mask, view_kind, table, table_row" in said
    assert "over 8 random studies with gaps and 8 of the run's data" in said
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    reported = session.get_modelmeta().custom_metadata_map
    kinds, columns, views = (json.loads(reported[name]) for name in ("view_kinds", "table", "max_views"))
    assert (kinds, views, json.loads(reported["missing_told"])) == (["frontal", "lateral", "other"], 2, ["age"])
    assert [(one["name"], one["kind"]) for one in columns] == [("age", "numeric"), ("sex", "categorical")]
    assert columns[1]["categories"] == ["F", "M"] and {"mean", "std", "clip", "low", "high"} < columns[0].keys()
    assert json.loads(reported["classes"]) == list(CLASSES) and json.loads(reported["preprocessing"])["size"] == [
        32,
        32,
    ]

    clinical = {row["study_id"]: row for row in rows_of(data / "clinical.csv")}
    rows = predicted(tmp_path / "out", run, data / "labels.csv", "--table", data / "clinical.csv")
    given = {
        "image": np.full((STUDIES, views, 3, 32, 32), np.nan, np.float32),
        "view_mask": np.zeros((STUDIES, views), bool),
        "view_kind": np.full((STUDIES, views), -1),
        "table": np.full((STUDIES, 2), np.nan, np.float32),
        "table_row": np.array([row["study"] in clinical for row in rows]),
    }
    for number, row in enumerate(rows):
        for slot, name in enumerate(row["images"].split("|")):
            given["image"][number, slot], given["view_mask"][number, slot] = pixels(run, data, name), True
            given["view_kind"][number, slot] = kinds.index("lateral" if "LL" in name else "frontal")
        if row["study"] in clinical:
            age, sex = clinical[row["study"]]["age"], clinical[row["study"]]["sex"]
            given["table"][number] = float(age or "nan"), columns[1]["categories"].index(sex) + 1
    for size in (1, 5, STUDIES):
        parts = range(0, STUDIES, size)
        found = [session.run(None, {k: v[at : at + size] for k, v in given.items()})[0] for at in parts]
        np.testing.assert_allclose(np.concatenate(found), chances(rows), rtol=0, atol=1e-5)


def test_images_only_are_studies_of_one_view_without_a_table(data, run, capsys, tmp_path):
    path = tmp_path / "x.torchscript"
    code, said, _ = run_export(capsys, run, "--images-only", "lateral", "--format", "torchscript", "--output", path)
    assert code == 0 and "4 random images and 8 of the run's data" in said and "inputs:" not in said
    names = sorted(one.name for one in data.glob("*.png"))[:4]
    listed = write_rows(data / "one.csv", ("image", "view"), *((name, "LL") for name in names))
    rows = predicted(tmp_path / "out", run, listed, "--missing-columns")
    extra = {"view_kind": ""}
    script = torch.jit.load(path, _extra_files=extra)
    images = torch.from_numpy(np.stack([pixels(run, data, name) for name in names]))
    np.testing.assert_allclose(script(images).detach().numpy(), chances(rows), rtol=0, atol=1e-5)
    assert extra["view_kind"] in ("lateral", b"lateral")


def test_a_table_without_views_and_data_that_are_gone(data, capsys, tmp_path):
    alone = ["DATA.study_column=null", "DATA.view_kinds=null", "MODEL.views.aggregator=null"]
    # A row an image: the images of a study would have no row of their own, so the table is found by the patient.
    write_rows(data / "patients.csv", ("patient_id", "age", "sex"), *((f"p{n}", 40 + n, "FM"[n % 2]) for n in range(7)))
    run = write_study_run(tmp_path / "run", data, *alone, "DATA.table.file=patients.csv", "DATA.table.missing=ignore")
    (run / "config.yaml").unlink()
    path = tmp_path / "x.torchscript"
    arguments = [run, "--format", "torchscript", "--output", path, "--set", f"DATA.data_dir={tmp_path / 'gone'}"]
    code, said, error = run_export(capsys, *arguments)
    assert code == 0, error
    assert "inputs: image, view_mask, table;" in said and "drawn sample data, with gaps by chance" in said
    rows = predicted(tmp_path / "out", run, data / "labels.csv", "--table", data / "patients.csv")
    image = torch.from_numpy(np.stack([pixels(run, data, row["images"]) for row in rows]))[:, None]
    people = [int(row["patient_id"][1:]) for row in rows]
    table = torch.tensor([[40.0 + n, 1 + n % 2] for n in people])
    found = torch.jit.load(path)(image, torch.ones(len(rows), 1, dtype=torch.bool), table).detach().numpy()
    np.testing.assert_allclose(found, chances(rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantize", "dynamic"], "--quantize is for models of single images"),
        (["--format", "tensorrt"], "--format tensorrt is for single images"),
        (["--images-only"], "--images-only (no kind): name the kind of view that the images are, of frontal, lateral"),
        (["--images-only", "PA"], "--images-only PA: name the kind of view"),
    ],
)
def test_errors_are_one_line(run, capsys, tmp_path, arguments, words):
    suffix = ".engine" if "tensorrt" in arguments else ".onnx"
    code, said, error = run_export(capsys, run, *arguments, "--output", tmp_path / f"x{suffix}")
    assert code == 2 and said == "" and words in error.splitlines()[-1] and not list(tmp_path.iterdir())


def test_images_only_of_single_images_is_refused(data, capsys, tmp_path):
    alone = ["DATA.study_column=null", "DATA.view_kinds=null", "DATA.table={file: null, columns: []}"]
    run = write_study_run(tmp_path / "run", data, *alone, "MODEL.views.aggregator=null", "MODEL.table.fusion=null")
    code, _, error = run_export(capsys, run, "--images-only", "--output", tmp_path / "x.onnx")
    assert code == 2 and "takes single images anyway" in error
