"""Every command with --log-format json: all on stdout and stderr is JSON, and --log-file has what was logged."""

import importlib
import json
from pathlib import Path

import pytest

from data.phantom.radiographs import write_phantom
from tests.training_runs import arguments, process_state

SCRIPTS = ("train", "evaluate", "predict", "export", "explain.__main__", "utils.checkpoint.__main__")


def call(name: str, words: list[object], capfd) -> tuple[int, list[dict]]:
    """(exit code, the objects of both streams)."""
    capfd.readouterr()
    with process_state():
        try:
            code = importlib.import_module(name).main([str(word) for word in words])
        except SystemExit as leave:
            code = leave.code
    lines = [line for stream in capfd.readouterr() for line in stream.splitlines()]
    found = [json.loads(line) for line in lines]
    assert found and all(one.keys() == {"time", "level", "logger", "message"} for one in found)
    return code, found


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(folder, 40, 64)
    return folder


def test_a_run_and_what_is_done_with_it(data, tmp_path, capfd):
    json_too = ["--log-format", "json", "--log-file", tmp_path / "log.jsonl"]
    words = arguments(data, tmp_path, "run", LOGGING__progress="bar", TRAIN__epochs=1)
    code, found = call("train", [*words, "--log-format", "json"], capfd)
    assert code == 0 and any("epoch 1/1" in one["message"] for one in found)
    run = tmp_path / "run"
    assert all(json.loads(line) for line in (run / "train.log").read_text().splitlines()), "LOGGING.format is set by it"
    results = {
        "evaluate": [run, "--draws", 5, "--set", "DATA.num_workers=0"],
        "predict": [data / "images", "--checkpoint", run, "--output", tmp_path / "predictions", "--num-workers", 0],
        "export": [run],
        "explain.__main__": [run, "--count", 1, "--limit", 1],
        "utils.checkpoint.__main__": ["verify", run / "best_model.pth"],
    }
    for name, words in results.items():
        code, found = call(name, [*words, *json_too], capfd)
        assert code == 0 and (name == "predict" or any(one["logger"] == "result" for one in found)), name
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"evaluate", "export", "explain"} <= {one["logger"] for one in logged}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_wrong_command_line_is_json(name, capfd):
    code, found = call(name, ["--log-format", "json", "--nonsense"], capfd)
    assert code == 2 and [one["level"] for one in found] == ["ERROR"]


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "gone.yaml", "--log-format", "json"],
        ["--config", "wrong.yaml"],
        ["--set", "LOGGING.format=json", "TRAIN.epochs=many"],
        ["--set", "LOGGING.format=json", "--log-format", "json"],
        ["--log-format", "json", "--log-file", "nowhere/log", "--print-config"],
    ],
)
def test_an_error_before_the_settings_are_known_is_json_and_logged(words, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text("LOGGING: {format: json}\nTRAIN: {epochs: many}\n")
    file = [] if "--log-file" in words else ["--log-file", "log"]
    code, found = call("train", [*words, *file], capfd)
    (error,) = (one for one in found if one["level"] == "ERROR")
    assert code == 2
    if file:
        assert json.loads(Path("log").read_text().splitlines()[-1])["message"] == error["message"]


def test_text_stays_text_and_the_log_file_is_appended_to(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with process_state():
            assert importlib.import_module("predict").main(
                ["gone.png", "--checkpoint", "gone.pth", "--log-file", "log"]
            )
    assert capfd.readouterr().err.startswith("error: ")
    lines = Path("log").read_text().splitlines()
    assert len(lines) == 2 and all("ERROR: " in line and "gone.pth" in line for line in lines)
