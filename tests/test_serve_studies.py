"""python -m inference.serve on studies: predict.py's answers, and what is refused."""

import base64
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import predict
from inference.serve import __main__ as script
from inference.serve.app import create_app
from tests.served_studies import write_studies, write_study_run

pytestmark = pytest.mark.usefixtures("logging_as_it_was")  # main() takes over logging


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Studies of one or two views, of most a row of the table; of one an image is damaged, of another all are."""
    folder = write_studies(tmp_path_factory.mktemp("studies") / "data")
    for name in ("03_LL.png", "00_PA.png"):
        (folder / name).write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    intact = write_studies(tmp_path_factory.mktemp("intact") / "data")
    return write_study_run(tmp_path_factory.mktemp("runs") / "run", intact, "DATA.table.missing=indicator")


@pytest.fixture(scope="module")
def client(run):
    before = Image.MAX_IMAGE_PIXELS
    options = script.parse_arguments([str(run), "--device", "cpu", "--max-images", "64"])
    with TestClient(create_app(script.open_service(options, script.limits_of(options)))) as client:
        yield client
    Image.MAX_IMAGE_PIXELS = before


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def studies_in(data: Path) -> dict[str, dict[str, object]]:
    """The field `studies`, as the tables have them."""
    found: dict[str, dict] = {}
    for row in rows_of(data / "labels.csv"):
        found.setdefault(row["study_id"], {"images": {}})["images"][row["image"]] = row["view"]
    for row in rows_of(data / "clinical.csv"):
        age = float(row["age"]) if row["age"] else None
        found[row["study_id"]]["table"] = {"age": age, "sex": row["sex"]}
    return found


def test_answers_are_those_of_predict(client, run, data, tmp_path, capsys):
    given = [data / "labels.csv", "--table", data / "clinical.csv", "--checkpoint", run, "--output", tmp_path]
    assert predict.main([*map(str, given), "--device", "cpu"]) == 3
    capsys.readouterr()
    expected = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))["studies"]
    studies = studies_in(data)
    names = [name for study in studies.values() for name in study["images"]]
    files = [("image", (name, (data / name).read_bytes())) for name in names]
    form = client.post("/predict", files=files, data={"studies": json.dumps(studies)})
    records = [{"name": name, "data": base64.b64encode((data / name).read_bytes()).decode()} for name in names]
    for answer in (form, client.post("/predict", json={"images": records, "studies": studies})):
        assert answer.status_code == 200 and answer.json()["kind"] == "studies"
        for one, row in zip(answer.json()["answers"], expected, strict=True):
            assert (one["name"], one["images"], one["missing"]) == (row["study"], row["images"], row["missing"])
            assert one["findings"] == row["findings"] and len(one["warnings"]) == len(row["warnings"])
            assert (one["error"] is None) == (row["error"] is None) == (row["study"] != "s0")
            if row["error"] is None:
                values = [list(each["probabilities"].values()) for each in (one, row)]
                np.testing.assert_allclose(*values, atol=1e-6)
        said = json.dumps(answer.json())
        assert "cannot read image '00_PA.png'" in said and "left out: cannot read image '03_LL.png'" in said
        assert "hybridmednet-" not in said and "upload-" not in said
    assert np.ptp([list(row["probabilities"].values()) for row in expected[1:]], axis=0).max() > 0.01


def test_the_model_says_that_it_takes_studies_and_how(client):
    said = client.get("/model").json()
    assert said["kind"] == "studies" and "images" in said["fields"]["studies"]


def test_of_studies_none_of_which_can_be_read_each_says_why(client):
    sent = {"images": [{"name": "x.png", "data": "AAAA"}], "studies": {"s": {"images": {"x.png": "PA"}}}}
    answer = client.post("/predict", json=sent)
    (one,) = answer.json()["answers"]
    assert answer.status_code == 422 and one["name"] == "s" and "cannot read image 'x.png'" in one["error"]


IMAGE = {"name": "a.png", "data": "AAAA"}


@pytest.mark.parametrize(
    "images, studies, what, which",
    [
        ([IMAGE], None, "no field says which", "studies"),
        ([IMAGE], [], "no field says which", "studies"),
        ([IMAGE], {"s": {}}, "no object of 'images'", "s"),
        ([IMAGE], {"s": {"images": {"b.png": ""}}}, "there is no image 'b.png'", "s"),
        ([IMAGE], {"s": {"images": {"a.png": 3}}}, "the view of 'a.png' is no text", "s"),
        ([IMAGE, IMAGE], {"s": {"images": {"a.png": ""}}}, "two images have this name", "a.png"),
        ([IMAGE, {**IMAGE, "name": "b"}], {"s": {"images": {"a.png": ""}}}, "the image is of no study", "b"),
        ([IMAGE], {"s": {"images": {"a.png": ""}, "table": {"agee": 3}}}, "the model has no column 'agee'", "s"),
        ([IMAGE], {"s": {"images": {"a.png": ""}, "table": {"age": [3]}}}, "neither a number nor a text", "s"),
        ([IMAGE], {"s": {"images": {"a.png": ""}, "file": "/etc/passwd"}}, "no object of 'images'", "s"),
    ],
)
def test_what_is_no_study_is_refused(client, images, studies, what, which):
    answer = client.post("/predict", json={"images": images, **({} if studies is None else {"studies": studies})})
    error = answer.json()["error"]
    assert answer.status_code == 400 and what in error["what"] and error["which"] == which and error["advice"]


def test_a_value_that_a_column_cannot_have_is_said(client):
    sent = {"images": [IMAGE], "studies": {"s": {"images": {"a.png": "PA"}, "table": {"age": "old"}}}}
    answer = client.post("/predict", json=sent)
    error = answer.json()["error"]
    assert answer.status_code == 400 and "old" in error["what"] and error["which"] == "studies"
    assert "hybridmednet-" not in answer.text
