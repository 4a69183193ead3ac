"""Config files made to do harm: each is a ConfigError or harmless; nothing runs, hangs, swells or is opened."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from configs.default_config import Config
from configs.errors import ConfigError, ModelError
from models import check_backbone
from tests.faults import in_child, outside

ALLOWED_MB, ALLOWED_S = 64, 30


def laughs(start: str, many: str, levels: int = 30) -> str:
    """Anchors that name the one before ten times: 10**levels, were they written out."""
    lines = [f"l0: &l0 {start}"]
    lines += [f"l{level}: &l{level} {many.format(', '.join([f'*l{level - 1}'] * 10))}" for level in range(1, levels)]
    return "\n".join(lines) + f"\nTRAIN: {{batch_size: *l{levels - 1}}}\n"


TAGS = {
    name: f"MODEL: {{name: !!python/{text}}}"
    for name, text in {
        "apply": "object/apply:os.system ['touch {canary}']",
        "new": "object/new:subprocess.Popen [['touch', '{canary}']]",
        "object": "object:os.system {{}}",
        "name": "name:os.system ''",
        "module": "module:antigravity ''",
        "tuple": "tuple [1, 2]",
    }.items()
}
HOSTILE = {
    **TAGS,
    "own_tag": "MODEL: {{name: !evil x}}",
    "verbatim_tag": "MODEL: {{name: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch {canary}']}}",
    "tag_directive": "%TAG ! tag:yaml.org,2002:python/\n---\nMODEL: {{name: !object/apply:os.system [id]}}",
    "binary": "MODEL: {{name: !!binary '====='}}",
    "bool_tag": "MODEL: {{name: !!bool maybe}}",
    "int_tag": "MODEL: {{name: !!int ''}}",
    "time_tag": "MODEL: {{name: !!timestamp x}}",
    "laughs_list": laughs("[lol, lol]", "[{}]"),
    "laughs_mapping": laughs("{{a: lol}}", "{{{{? x : [{}]}}}}"),
    "laughs_merge": laughs("{{a: lol}}", "{{{{<<: [{}], k: 1}}}}"),
    "laughs_text": "a: &a " + "x" * 50_000 + "\nTRAIN: {{batch_size: [" + ", ".join(["*a"] * 5000) + "]}}",
    "laughs_key": "? &a [x, x]\n: 1",
    "deep_list": "TRAIN: " + "[" * 100_000,
    "deep_mapping": "TRAIN: " + "{{a: " * 50_000,
    "deep_block": "\n".join(" " * level + "a:" for level in range(500)),
    "deep_sequence": "- " * 100_000,
    "deep_question": "? " * 100_000,
    "recursive_list": "TRAIN: &a [*a]",
    "recursive_mapping": "TRAIN: &a {{batch_size: *a}}",
    "recursive_merge": "TRAIN: &a {{<<: *a, batch_size: 2}}",
    "recursive_top": "&a {{TRAIN: *a, MODEL: *a}}",
    "unknown_alias": "TRAIN: *a",
    "ten_megabytes": "TRAIN: {{batch_size: 2}}\n#" + "x" * 10 * 2**20,
    "ten_megabytes_of_nodes": "DATA: {{class_names: [" + "a," * 5 * 2**20 + "]}}",
    "just_too_long": "#" * 2**18 + "\n",
    "nul": "MODEL: {{name: \0}}",
    "escaped_nul": 'LOGGING: {{run_name: "a\\0b"}}',
    "surrogate": 'LOGGING: {{run_name: "\\ud800"}}',
    "control": "MODEL: {{name: \x07}}",
    "huge_hexadecimal": "TRAIN: {{batch_size: 0x" + "f" * 20_000 + "}}",
    "huge_decimal": "TRAIN: {{batch_size: 1" + "0" * 20_000 + "}}",
    "nineteen_digits": "TRAIN: {{batch_size: 9223372036854775808}}",
    "value_key": "TRAIN: {{=: 2}}",
    "date": "LOGGING: {{run_name: 2024-13-45}}",
    "list_key": "? [a, b]\n: 1",
    "date_key": "2024-01-01: 1",
    "many_documents": "TRAIN: {{}}\n---\nTRAIN: {{}}\n",
    "many_keys": "TRAIN: {{" + ", ".join(f"k{index}: 1" for index in range(15_000)) + "}}",
    "long_key": "? " + "k" * 200_000 + "\n: 1",
    "long_setting": "TRAIN:\n  ? " + "k" * 200_000 + "\n  : 1",
    "long_value": "MODEL: {{task: " + "m" * 200_000 + "}}",
    "self": "MODEL: {{self: 1, __class__: 2, model_config: 3, model_fields: 4}}",
    "dunder": "__class__: {{}}\n__init__: 1",
    "base_passwd": "base: /etc/passwd",
    "base_passwd_relative": "base: ../../../../../../../../etc/passwd",
    "base_device": "base: /dev/zero",
    "base_random": "base: /dev/urandom",
    "base_folder": "base: .",
    "base_folder_yaml": "base: folder.yaml",
    "base_device_yaml": "base: zero.yaml",
    "base_pipe": "base: pipe.yaml",
    "base_itself": "base: base_itself.yaml",
    "base_loop": "base: loop.yaml",
    "base_nul": 'base: "a\\0.yaml"',
    "base_long": "base: " + "x" * 5000 + ".yaml",
    "base_chain": "base: chain_0.yaml",
    "base_huge": "base: huge.yaml",
    "base_url": "base: http://127.0.0.1:9/a.yaml",
    "base_missing": "base: ~/none.yaml",
    "base_list": "base: [a.yaml]",
}
OVERRIDES = (
    "",
    "=",
    "=1",
    ".=1",
    "a=1",
    "TRAIN",
    "TRAIN.=1",
    "TRAIN..batch_size=1",
    "TRAIN.batch_size",
    "TRAIN.batch_size" + ".a" * 100_000 + "=1",
    "TRAIN.batch_size.a.a.a=1",
    "TRAIN.batch_size=" + "[" * 100_000,
    "TRAIN.batch_size=!!python/object/apply:os.system ['id']",
    "TRAIN.batch_size=&a [*a]",
    "TRAIN.batch_size=" + "9" * 100_000,
    "TRAIN.batch_size=0x" + "f" * 100_000,
    "TRAIN.__class__=1",
    "__class__.__init__=1",
    "TRAIN.model_config=1",
    "MODEL.coarse_groups={a: {b: c}}",
    "MODEL.backbone={type: {type: x}}",
    "LOGGING.run_name=../x",
    "TRAIN.batch_size=\udcff",
    "TRAIN.\udcff=1",
    "x" * 200_000 + ".a=1",
)


def attempt(tasks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """In the child: load each; [message or None, seconds of the processor]."""
    found = {}
    for task in tasks:
        start = time.process_time()
        try:
            if task["path"] is None:
                Config.from_overrides(task["overrides"])
            else:
                Config.from_yaml(task["path"], task["overrides"])
            message = None
        except ConfigError as error:
            message = str(error)
        found[task["name"]] = [message, time.process_time() - start]
    return found


def traps(folder: Path) -> None:
    (folder / "folder.yaml").mkdir()
    (folder / "zero.yaml").symlink_to("/dev/zero")
    with (folder / "huge.yaml").open("wb") as file:
        file.truncate(10 * 2**30)
    (folder / "loop.yaml").symlink_to("loop.yaml")
    os.mkfifo(folder / "pipe.yaml")
    for number in range(2000):
        (folder / f"chain_{number}.yaml").write_text(f"base: chain_{number + 1}.yaml\n", encoding="utf-8")


def test_each_is_a_config_error_in_bounded_time_and_memory(tmp_path):
    folder, canary = tmp_path / "in", tmp_path / "canary"
    folder.mkdir()
    traps(folder)
    tasks = [{"name": "sound", "path": str(folder / "sound.yaml"), "overrides": ["TRAIN.seed=1"]}]
    (folder / "sound.yaml").write_text("TRAIN: {batch_size: 2}\n", encoding="utf-8")
    for name, text in HOSTILE.items():
        path = folder / f"{name}.yaml"
        path.write_text(text.replace("{canary}", str(canary)).replace("{{", "{").replace("}}", "}"), encoding="utf-8")
        tasks.append({"name": name, "path": str(path), "overrides": []})
    tasks += [{"name": f"override {text[:40]!a}", "path": None, "overrides": [text]} for text in OVERRIDES]
    answer = in_child(__name__, "attempt", tasks[:1], tasks)
    result = answer["result"]
    slowest = max(result, key=lambda name: result[name][1])
    total = sum(seconds for _, seconds in result.values())
    longest = max(len(message or "") for message, _ in result.values())
    print(f"{len(HOSTILE)} files and {len(OVERRIDES)} overrides: {total:.1f} s, {answer['grown_mb']:.0f} MB more")
    print(f"the slowest is {slowest} ({result[slowest][1]:.2f} s); the longest message has {longest:,} characters")
    assert result.pop("sound")[0] is None
    assert [name for name, (message, _) in result.items() if message is None] == []
    assert longest < 150_000  # 50 problems of 2,000 characters
    assert total < ALLOWED_S and answer["grown_mb"] < ALLOWED_MB
    assert answer["forbidden"] == [] and not canary.exists()
    assert outside(answer["opened"], folder) == []


@pytest.mark.parametrize(
    "name",
    ["os.system", "subprocess", "timm/hf-hub:evil/x", "timm/local-dir:/tmp/x", "timm/../x", "timm/", "hf-hub:evil/x"]
    + ["__import__", "models.backbones", "/etc/passwd", "timm/timm/resnet18", "a" * 10_000, "\0", ""],
)
def test_a_backbone_names_nothing_to_import_or_fetch(name, monkeypatch):
    events = []
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: events.append(arguments))
    monkeypatch.setattr("pathlib.Path.open", lambda *arguments, **options: events.append(arguments))
    config = Config()
    config.MODEL.backbone = name
    with pytest.raises(ModelError, match="unknown backbone"):
        check_backbone(config.MODEL.backbone)
    assert events == []


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "..", ".", "/tmp/x", "C:x", "C:\\x", "a\nb", "a\0b", "~/x", "x" * 101, "é" * 51]
)
def test_the_name_of_a_run_is_one_folders(name):
    config = Config()
    config.LOGGING.run_name = name
    assert any("LOGGING.run_name" in problem for problem in config.problems())


@pytest.mark.parametrize("name", ["run 1", "exp-12:30", "Versuch_ü", "..x", "a.b", "x" * 100, None])
def test_other_names_are_fine(name):
    config = Config()
    config.LOGGING.run_name = config.MODEL.name = name or "HybridMedNet"
    assert config.problems() == []


def test_a_models_name_may_be_no_path_either():
    config = Config()
    for name in ("..\\x", "C:\\x", "a\0b", "x" * 101):
        config.MODEL.name = name
        assert any("MODEL.name" in problem for problem in config.problems()), name
