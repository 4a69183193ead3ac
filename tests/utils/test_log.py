"""Log lines: text for people, JSON for machines, the same on stderr and in the file."""

import json
import logging
from datetime import UTC, datetime, timedelta

import pytest

from configs.errors import CheckpointError
from utils.figures import encoded, new_figure, panel_title
from utils.log import log_to_file, setup_logging


@pytest.fixture(autouse=True)
def root():
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)


AWKWARD = 'a "quoted" 胸片 \\ line\nand a second one'


def test_json_lines_parse_and_hold_everything(capsys):
    setup_logging("json")
    before = datetime.now(UTC) - timedelta(milliseconds=1)  # the record is cut to milliseconds
    logging.getLogger("data.loading.loaders").warning("left out: %s (%d)", AWKWARD, 3)
    logging.getLogger("train").info("next")
    after = datetime.now(UTC)
    out, err = capsys.readouterr()
    first, second = (json.loads(line) for line in err.splitlines())
    assert out == ""
    assert first.keys() == {"time", "level", "logger", "message"}
    assert (first["level"], first["logger"]) == ("WARNING", "data.loading.loaders")
    assert first["message"] == f"left out: {AWKWARD} (3)"
    assert (second["level"], second["logger"], second["message"]) == ("INFO", "train", "next")
    assert before <= datetime.fromisoformat(first["time"]) <= after
    assert datetime.fromisoformat(first["time"]).utcoffset().total_seconds() == 0


def test_text_names_the_level_only_where_it_matters(capsys):
    setup_logging("text")
    logging.getLogger("train").info("epoch %d", 1)
    logging.getLogger("train").warning("careful")
    logging.getLogger("train").debug("unseen")
    err = capsys.readouterr().err.splitlines()
    assert [line.split("  ", 1)[1] for line in err] == ["epoch 1", "WARNING: careful"]
    assert all(datetime.strptime(line[:8], "%H:%M:%S") for line in err)


def test_chatty_libraries_are_heard_only_when_they_warn(capsys):
    setup_logging()
    for name in ("timm.models", "PIL.PngImagePlugin", "matplotlib.font_manager", "fontTools.subset"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("trouble")
    assert capsys.readouterr().err.count("trouble") == 4
    setup_logging()
    logging.getLogger("train").info("once")
    err = capsys.readouterr().err
    assert err.count("once") == 1 and "chatter" not in err


@pytest.mark.parametrize("style", ["text", "json"])
def test_the_file_gets_the_same_lines_and_is_appended_to(style, capsys, tmp_path):
    path = tmp_path / "train.log"
    path.write_text("of an earlier start\n", encoding="utf-8")
    setup_logging(style)
    with log_to_file(path, style):
        logging.getLogger("train").info("胸片 %d", 7)
    assert path.read_text(encoding="utf-8") == "of an earlier start\n" + capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_a_users_error(tmp_path):
    setup_logging()
    with pytest.raises(CheckpointError, match="cannot write the log"), log_to_file(tmp_path / "missing" / "train.log"):
        pass


def test_a_file_gets_the_lines_of_its_own_run_only(tmp_path):
    """Several runs of one process, whose root logger nobody has set up."""
    root, logger = logging.getLogger(), logging.getLogger("train")
    before = root.level
    root.setLevel(logging.WARNING)
    try:
        for name in ("one", "two"):
            with log_to_file(tmp_path / name):
                logger.info("in %s", name)
            logger.info("between")
        assert root.level == logging.WARNING
    finally:
        root.setLevel(before)
    texts = [(tmp_path / name).read_text().split("  ")[-1] for name in ("one", "two")]
    assert texts == ["in one\n", "in two\n"]


def test_figures_for_papers_say_nothing(capsys, drawing):
    """A PDF brings a part of each font along, of which fontTools tells letter by letter."""
    setup_logging()
    figure = new_figure(3, 3)
    panel_title(figure.subplots(), "Pneumonia 肺炎")
    with drawing():
        assert encoded(figure, "pdf").startswith(b"%PDF")
    lines = [line for line in capsys.readouterr().err.splitlines() if "No font here" not in line]
    assert lines == []
