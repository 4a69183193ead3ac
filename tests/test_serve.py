"""python -m inference.serve: answers equal to predict.py's, limits, and errors that a client can act upon."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import predict
from data.phantom.radiographs import draw_images
from data.transforms.images import Preprocess
from inference.serve import __main__ as script
from inference.serve.app import create_app
from tests.data.readers.bad_images import dicom
from tests.small_models import NAMES, POINT, save_model
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
PREPROCESS = Preprocess((48, 64), 3, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
KEY = "a secret of the ward"
pytestmark = pytest.mark.usefixtures("logging_as_it_was")  # main() takes over logging


@pytest.fixture(scope="module", autouse=True)
def pixels_as_they_were():
    """A server sets Pillow's limit, which is of the whole process."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "run"
    folder.mkdir()
    save_model(folder / "best_model.pth", PREPROCESS, POINT)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Of each kind one, and one that is damaged."""
    folder = tmp_path_factory.mktemp("files")
    first, second, third, fourth = (drawn.image for drawn in draw_images(4, 96))
    Image.fromarray(first).save(folder / "a.png")
    Image.fromarray(second).save(folder / "b.jpg", quality=90)
    Image.fromarray(third.astype(np.uint16) * 13).save(folder / "c.png")
    (folder / "d.dcm").write_bytes(dicom(fourth))
    (folder / "e_cut.png").write_bytes((folder / "a.png").read_bytes()[:-40])
    return folder


def service_of(run: Path, *arguments: str):
    """(the application without its lifespan, its service), as the command would make them."""
    options = script.parse_arguments([str(run), "--device", "cpu", *arguments])
    service = script.open_service(options, script.limits_of(options))
    return create_app(service), service


@pytest.fixture(scope="module")
def served(run):
    app, service = service_of(run)
    with TestClient(app) as client:
        yield client, service


def forms(files: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (path.name, path.read_bytes())) for path in sorted(files.iterdir())]


def test_answers_are_those_of_predict(served, run, files, tmp_path, capsys):
    """Whichever way they come; a damaged image fails alone, with predict.py's words."""
    client, _ = served
    paths = sorted(files.iterdir())
    predict.main([*map(str, paths), "--checkpoint", str(run), "--output", str(tmp_path)])
    capsys.readouterr()
    expected = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))["images"]
    records = [{"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    answers = [
        client.post("/predict", files=forms(files)).json()["answers"],
        client.post("/predict", json={"images": records}).json()["answers"],
    ]
    kinds = {".png": "image/png", ".jpg": "image/jpeg", ".dcm": "application/dicom"}
    alone = []
    for path in paths:
        answer = client.post("/predict", content=path.read_bytes(), headers={"Content-Type": kinds[path.suffix]})
        assert answer.status_code == (422 if path.stem == "e_cut" else 200)
        alone += answer.json()["answers"]
    for found in [*answers, alone]:
        for one, row, path in zip(found, expected, paths, strict=True):
            assert one["findings"] == row["findings"] and one["warnings"] == row["warnings"]
            assert (one["error"] is None) == (row["error"] is None)
            if row["error"]:
                assert one["probabilities"] is None
                assert one["error"].split(": ", 1)[1] == row["error"].split(": ", 1)[1]
                assert one["error"].startswith(f"cannot read image '{one['name']}': the PNG is truncated")
            else:
                assert [*one["probabilities"]] == NAMES
                values = [list(each["probabilities"].values()) for each in (one, row)]
                np.testing.assert_allclose(*values, atol=1e-6)
            assert one["name"] in (path.name, "image")
    assert np.ptp([list(row["probabilities"].values()) for row in expected[:-1]], axis=0).max() > 0.01


def test_requests_that_come_together_are_asked_together(run, files):
    app, _ = service_of(run, "--wait-ms", "1000", "--batch-size", "4")
    content = (files / "a.png").read_bytes()
    with TestClient(app) as client, ThreadPoolExecutor(8) as pool:
        ask = lambda _: client.post("/predict", content=content, headers={"Content-Type": "image/png"})  # noqa: E731
        answers = list(pool.map(ask, range(8)))
        figures = metrics_of(client)
    assert {answer.status_code for answer in answers} == {200}
    assert figures["hybridmednet_batch_images_sum"] == 8 and figures["hybridmednet_batch_images_count"] <= 4
    values = [list(answer.json()["answers"][0]["probabilities"].values()) for answer in answers]
    assert np.ptp(values, axis=0).max() < 1e-6


def metrics_of(client: TestClient) -> dict[str, float]:
    """Sums over labels of each sample."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_the_model_says_what_it_is_and_no_path_of_the_server(served, run):
    client, _ = served
    said = client.get("/model").json()
    assert said["classes"] == NAMES and said["kind"] == "images" and said["decision"]["thresholds"]["heart"] == 0.2
    (model,) = said["models"]
    assert model["file"] == "run/best_model.pth" and len(model["sha256"]) == 64
    assert model["input"]["size"] == [48, 64] and model["calibration"]["method"] == "platt"
    assert str(run.parent) not in json.dumps(said)


def test_metrics_are_prometheus_and_count(served, files):
    client, _ = served
    before = metrics_of(client)
    client.post("/predict", files=forms(files))
    after = metrics_of(client)
    assert after["hybridmednet_images_total"] - before["hybridmednet_images_total"] == 5
    assert after["hybridmednet_queue_images"] == 0 and after["hybridmednet_model_info"] == 1


def test_nothing_is_asked_of_a_network(served):
    """FastAPI's pages of documentation load scripts from one; there are none."""
    client, _ = served
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    described = client.get("/openapi.json").json()
    assert {"/predict", "/model", "/health", "/ready", "/metrics"} <= set(described["paths"])
    assert "://" not in json.dumps(described)


@pytest.mark.parametrize(
    "given, status, what, which",
    [
        (
            {"content": b"x", "headers": {"Content-Type": "text/html"}},
            415,
            "Content-Type is 'text/html'",
            "Content-Type",
        ),
        ({"content": b"x"}, 415, "Content-Type is ''", "Content-Type"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "it is no JSON", "body"),
        ({"content": b"[" * 100000, "headers": {"Content-Type": "application/json"}}, 400, "it is no JSON", "body"),
        ({"json": {"image": []}}, 400, "there is no list 'images'", "images"),
        ({"json": {"images": []}}, 400, "there is no image", "image"),
        ({"json": {"images": ["x"]}}, 400, "is no object of 'data'", "image 1"),
        ({"json": {"images": [{"data": "€"}]}}, 400, "no base64", "image 1"),
        ({"json": {"images": [{"data": "AA==", "path": "/etc/passwd"}]}}, 400, "is no object of 'data'", "image 1"),
        ({"json": {"images": [{"data": "AA=="}], "file": "/etc/passwd"}}, 400, "the field is not known", "file"),
        ({"json": {"images": [{"data": "AA=="}] * 17}}, 413, "more than 16 images", "image"),
        ({"files": [("image", ("a.png", b"x"))] * 17}, 413, "more than 16 images", "image"),
        ({"files": [("picture", ("a.png", b"x"))]}, 400, "a file in another field", "picture"),
        ({"files": {"image": b"x"}, "data": {"path": '"/etc/passwd"'}}, 400, "the field is not known", "path"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "the form cannot be read", "body"),
        ({"content": b"x" * 64_000_001, "headers": {"Content-Type": "image/png"}}, 413, "more than 64 MB", "body"),
    ],
)
def test_a_wrong_request_is_told_what_which_and_what_to_do(served, given, status, what, which):
    client, service = served
    answer = client.post("/predict", **given)
    error = answer.json()["error"]
    assert answer.status_code == status and what in error["what"] and error["which"] == which and error["advice"]
    assert "Traceback" not in answer.text and service.batcher.waiting == 0


def test_a_body_that_does_not_say_its_length_is_limited_too(run):
    app, _ = service_of(run, "--max-megabytes", "1")
    with TestClient(app) as client:
        pieces = (b"x" * 100_000 for _ in range(100))
        answer = client.post("/predict", content=pieces, headers={"Content-Type": "image/png"})
    assert answer.status_code == 413 and answer.json()["error"]["what"] == "the body has more than 1 MB"


def test_what_all_requests_hold_together_is_limited(run, files, monkeypatch):
    """A slow model keeps many bodies waiting; there is room again when it has answered."""
    monkeypatch.setattr("inference.serve.app.BODIES", 1)
    content = (files / "a.png").read_bytes()
    app, service = service_of(run, "--max-megabytes", str(1.5 * len(content) / 1e6), "--batch-size", "1")
    held = Held(service, monkeypatch)
    headers = {"Content-Type": "image/png"}
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", content=content, headers=headers)
        wait_until(held.entered.is_set, "the model is asked")
        answer = client.post("/predict", content=content, headers=headers)
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        assert "are here already" in answer.json()["error"]["what"]
        held.go.set()
        assert first.result().status_code == 200
        assert client.post("/predict", content=content, headers=headers).status_code == 200


def test_other_routes_and_methods_are_json_too(served):
    client, _ = served
    for answer, status in ((client.get("/etc/passwd"), 404), (client.get("/predict"), 405)):
        assert answer.status_code == status and "routes: /health" in answer.json()["error"]["advice"]


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a\x1b[2J.png", "x" * 5000, "é肺.png"])
def test_a_name_is_a_label_and_never_a_path(served, files, name, tmp_path, monkeypatch):
    client, _ = served
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = base64.b64encode((files / "a.png").read_bytes()).decode()
    (one,) = client.post("/predict", json={"images": [{"name": name, "data": data}]}).json()["answers"]
    assert one["error"] is None and len(one["name"]) <= 201 and "\x1b" not in one["name"]
    (one,) = client.post("/predict", json={"images": [{"name": name, "data": "AAAA"}]}).json()["answers"]
    assert "cannot read image" in one["error"] and str(tmp_path) not in one["error"] and "\x1b" not in one["error"]
    assert not list(tmp_path.iterdir())


def test_a_decompression_bomb_is_not_decoded(run, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # as the others have it, afterwards
    app, _ = service_of(run, "--max-megapixels", "0.01")
    buffers = []
    for side in (100, 101, 200):
        buffers.append(io.BytesIO())
        Image.new("L", (side, side)).save(buffers[-1], "PNG")
    content = dicom(np.zeros((101, 101), np.uint8))
    with TestClient(app) as client:
        sent = [("image", (str(n), buffer.getvalue())) for n, buffer in enumerate(buffers)] + [
            ("image", ("d", content))
        ]
        answers = client.post("/predict", files=sent).json()["answers"]
    assert [answer["error"] is None for answer in answers] == [True, False, False, False]
    assert all("limit" in answer["error"] or "exceeds" in answer["error"] for answer in answers[1:])


class Held:
    """Stands before the model until it is let go."""

    def __init__(self, service, monkeypatch):
        self.go, self.entered, self.seen = threading.Event(), threading.Event(), 0
        asked = service.batcher._ask

        def hold(inputs):
            self.seen += 1
            self.entered.set()
            assert self.go.wait(60)
            return asked(inputs)

        monkeypatch.setattr(service.batcher, "_ask", hold)


def test_a_full_queue_says_when_to_come_again(run, files, monkeypatch):
    app, service = service_of(run, "--queue", "2", "--max-images", "2", "--batch-size", "1")
    held = Held(service, monkeypatch)
    one = [("image", ("a.png", (files / "a.png").read_bytes()))]
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/predict", files=one)
        wait_until(held.entered.is_set, "the model is asked")
        answer = client.post("/predict", files=one * 2)
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["what"] == "2 images wait already"
        second = pool.submit(client.post, "/predict", files=one)
        wait_until(lambda: service.batcher.waiting == 2, "the queue is full")
        assert client.get("/health").status_code == 200 and client.get("/ready").status_code == 200
        held.go.set()
        assert first.result().status_code == second.result().status_code == 200
        assert client.post("/predict", files=one * 2).status_code == 200


def test_what_takes_too_long_is_given_up_and_leaves_the_queue(run, files, monkeypatch):
    app, service = service_of(run, "--timeout", "0.2", "--batch-size", "1", "--max-images", "1")
    held = Held(service, monkeypatch)
    one = [("image", ("a.png", (files / "a.png").read_bytes()))]
    with TestClient(app) as client:
        for _ in range(2):
            answer = client.post("/predict", files=one)
            assert answer.status_code == 504 and "no answer after 0.2 s" in answer.json()["error"]["what"]
        held.go.set()
        wait_until(lambda: service.batcher.waiting == 0, "the queue is empty")
        assert held.seen == 1  # nobody waited for the second


def test_a_failure_of_the_model_is_no_traceback_and_is_seen_by_ready(run, files, monkeypatch, caplog):
    app, service = service_of(run)
    good = service.batcher._ask
    one = [("image", ("a.png", (files / "a.png").read_bytes()))]
    with TestClient(app) as client:
        monkeypatch.setattr(service.batcher, "_ask", lambda inputs: 1 / 0)
        answer = client.post("/predict", files=one)
        assert answer.status_code == 500 and "ZeroDivision" not in answer.text
        assert answer.json()["error"]["advice"] == "see the server's log" and "ZeroDivisionError" in caplog.text
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        monkeypatch.setattr(service.batcher, "_ask", good)
        assert client.post("/predict", files=one).status_code == 200
        assert client.get("/ready").status_code == 200


def test_the_end_answers_what_was_taken(run, files, monkeypatch):
    app, service = service_of(run, "--batch-size", "1")
    held = Held(service, monkeypatch)
    one = [("image", ("a.png", (files / "a.png").read_bytes()))]
    with TestClient(app) as client, ThreadPoolExecutor(3) as pool:
        sent = [pool.submit(client.post, "/predict", files=one) for _ in range(3)]
        wait_until(lambda: service.batcher.waiting == 3, "all are taken")
        stopping = threading.Thread(target=service.batcher.stop)
        stopping.start()
        wait_until(lambda: service.batcher.ended == "the server is stopping", "it stops")
        assert client.get("/ready").status_code == 503
        assert client.post("/predict", files=one).status_code == 503
        held.go.set()
        assert [answer.result().status_code for answer in sent] == [200] * 3
        stopping.join(60)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 401),
        ({"X-API-Key": "another"}, 401),
        ({"Authorization": "Basic " + KEY}, 401),
        ({"X-API-Key": KEY}, 200),
        ({"Authorization": f"Bearer {KEY}"}, 200),
    ],
)
def test_a_key_is_asked_for_but_by_those_who_watch(served, headers, status):
    _, service = served
    client = TestClient(create_app(service, KEY))  # without its lifespan, which is that of the fixture
    for route in ("/model", "/metrics", "/openapi.json"):
        assert client.get(route, headers=headers).status_code == status
    assert client.post("/predict", headers=headers).status_code == (401 if status == 401 else 415)
    assert client.get("/health").status_code == client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--host", "0.0.0.0"], "can be reached from a network: set HYBRIDMEDNET_API_KEY or --api-key-file"),
        (["--api-key-file", "nowhere"], "--api-key-file 'nowhere' cannot be read"),
        (["--api-key-file", "empty"], "--api-key-file 'empty' is empty"),
        (["--api-key-file", "key", "--without-key"], "leave one of them out"),
        (["--port", "99999"], "cannot listen at 127.0.0.1, port 99999"),
        (["--queue", "3"], "--queue 3: must be at least --max-images 16"),
        (["--max-images", "0"], "--max-images: must be at least 1"),
        (["--timeout", "0"], "--timeout 0: must be above 0"),
        (["--wait-ms", "-1"], "--wait-ms -1: from 0 to 1000"),
        (["--set", "TRAIN.epochs=3"], "--set TRAIN.epochs: no effect in python -m inference.serve"),
        (["--threshold", "2"], "a threshold is a probability"),
    ],
)
def test_wrong_use_is_one_line(run, arguments, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    (tmp_path / "key").write_text("x", encoding="utf-8")
    code = script.main([str(run), "--port", "0", *arguments])
    error = capsys.readouterr().err
    assert code == 2 and error.splitlines()[-1].startswith("error: ") and reason in error and "Traceback" not in error


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert script.main(["elsewhere.pth", "--port", "0"]) == 2
    assert "elsewhere.pth" in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_package_is_named_with_the_line_that_installs_it(run, capsys, monkeypatch):
    monkeypatch.setattr(script, "NEEDED", {**script.NEEDED, "not_to_be_had": "not-to-be-had"})
    assert script.main([str(run)]) == 2
    assert "needs not-to-be-had: python -m pip install -r requirements-serve.txt" in capsys.readouterr().err


def test_an_address_that_is_taken_is_said(run, capsys):
    with script.listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert script.main([str(run), "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in capsys.readouterr().err


@pytest.mark.slow
def test_over_a_socket_until_sigterm(run, files):
    """What is in flight when the signal comes is answered; the exit code is 0."""
    command = [sys.executable, "-m", "inference.serve", str(run), "--port", "0", "--wait-ms", "1000", "--device", "cpu"]
    environment = {**os.environ, script.KEY: KEY}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.split("127.0.0.1:")[1].split()[0])
        assert "(with a key)" in line
        headers = {"Content-Type": "image/png", "X-API-Key": KEY}
        check_client(port, files, environment)
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/predict", (files / "a.png").read_bytes(), headers)
        wait_until(lambda: waiting(port) == 1, "the image waits for others, for a second")
        process.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["answers"][0]["error"] is None
        connection.close()
        assert process.wait(60) == 0
        assert "stopped: all requests that were taken are answered" in process.stdout.read()


def check_client(port: int, files: Path, environment: dict[str, str]) -> None:
    """The example: more images than a request may have, one of them damaged; and without the key."""
    paths = [str(files / "a.png"), str(files / "e_cut.png"), *[str(files / "d.dcm")] * 15]
    example = [sys.executable, str(ROOT / "docs" / "examples" / "serve_client.py"), f"http://127.0.0.1:{port}", *paths]
    done = subprocess.run(example, capture_output=True, text=True, env=environment, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3 and [bool(answer["error"]) for answer in answers] == [False, True, *[False] * 15]
    done = subprocess.run(example, capture_output=True, text=True, env={**environment, script.KEY: ""}, check=False)
    assert done.returncode == 1 and "error: 401" in done.stderr and "there is no key" in done.stderr


def waiting(port: int) -> float:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics", headers={"X-API-Key": KEY})
    text = connection.getresponse().read().decode()
    connection.close()
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith("hybridmednet_queue_images ")))
