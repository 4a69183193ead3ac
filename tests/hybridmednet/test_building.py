"""The package that is made of the repository: imports rewritten, nothing left behind, and usable from elsewhere."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hybridmednet.building import build_package, dotted_names, files, new_names, rewritten
from tests.test_imports import imported

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"data": "hybridmednet.data", "train": "hybridmednet.commands.train"}


def change(text: str) -> str:
    return rewritten(text, NAMES, {"data.study", "data"}, "x.py")


def test_imports_and_names_of_modules_are_rewritten_and_nothing_else():
    before = (
        '"""of data.study"""\n'
        "from data.study import Study  # data.study\n"
        "from train import train\n"
        "import data.study as s, os\n"
        "def f():\n    'é'; from data import study\n"
        "    return {'é': 'data.study', 'data': f'data.study', 'x': 'data.study.Study'}\n"
        "import database\nfrom . import data\n"
    )
    after = change(before)
    expected = before.replace("from data.study import", "from hybridmednet.data.study import")
    expected = expected.replace("from train", "from hybridmednet.commands.train")
    expected = expected.replace("import data.study as", "import hybridmednet.data.study as")
    expected = expected.replace("from data import", "from hybridmednet.data import")
    expected = expected.replace("'é': 'data.study'", "'é': 'hybridmednet.data.study'")
    assert after == expected


def test_an_import_that_binds_a_name_of_ours_is_refused():
    with pytest.raises(ValueError, match=r"x.py, line 1: 'import a.b'"):
        change("import data.study\n")


@pytest.mark.slow
def test_the_package_imports_nothing_of_the_top_level(tmp_path):
    package = build_package(ROOT, tmp_path)
    ours = set(new_names(ROOT))
    sources = sorted(package.rglob("*.py"))
    assert len(sources) > 250 and (package / "commands" / "train.py") in sources
    for path in sources:
        found = imported(ast.parse(path.read_text(encoding="utf-8")), "hybridmednet.x")
        assert not [name for name, _ in found if name.partition(".")[0] in ours], path
    assert (package / "configs" / "quickstart.yaml").is_file() and (package / "evaluation" / "report.html.j2").is_file()
    assert not [path for path in package.rglob("*") if path.suffix in (".pyc", ".png", ".csv") or "test" in path.name]
    assert {"data.study", "utils.batch"} < set(dotted_names(ROOT)) and all(path.is_file() for path, _ in files(ROOT))


# Somewhere else: no name of ours but the package's, a preset, a training with workers, one's own network, its file.
USE = """
import sys, logging
import hybridmednet
assert "torch" not in sys.modules
for name in ("data", "models", "utils", "configs", "training", "inference", "train", "predict"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from hybridmednet import Config, Trainer, from_pretrained, preset, train

def small(config):
    config.TRAIN.mixed_precision = config.TRAIN.channels_last = False
    config.TRAIN.device, config.LOGGING.tensorboard, config.CHECKPOINT.save_freq = "cpu", False, 0
    return config

def main():
    own = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    data = DataLoader(TensorDataset(torch.randn(8, 3, 2, 2), torch.arange(8) % 2), 4, num_workers=1)
    result = Trainer(own, data, data, config=small(Config())).train(epochs=1, folder="runs/own")
    assert from_pretrained("runs/own", model=own, device="cpu").classes == ("class 0", "class 1")
    config = small(Config.from_yaml(preset("quickstart")))
    config.MODEL.backbone, config.MODEL.pretrained, config.DATA.image_size = "timm/test_resnet", False, 32
    config.MODEL.fpn_channels = config.MODEL.fusion_channels = 8
    config.DATA.sample_count, config.DATA.sample_size, config.DATA.num_workers, config.TRAIN.epochs = 40, 64, 1, 1
    config.CHECKPOINT.save_dir = "runs"
    there, here = from_pretrained(sys.argv[1], device="cpu"), from_pretrained(train(config).folder, device="cpu")
    folder = "data/sample_chest_xray/images"
    print([round(p, 6) for p in there.predict(folder)[0].probabilities.values()])
    assert len(here.predict(folder)) == 40
    ours = {"data", "models", "utils", "configs", "training", "inference", "evaluation", "train"}
    assert not [name for name in sys.modules if name.partition(".")[0] in ours]

if __name__ == "__main__":
    main()
"""


def run(arguments: list[str], cwd: Path, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=clean | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_elsewhere_and_reads_runs_of_the_clone(tmp_path):
    from data.phantom.radiographs import write_phantom
    from hybridmednet.pretrained import from_pretrained
    from tests.test_predict import write_model

    source = tmp_path / "source"
    for path in [ROOT / name for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")]:
        source.mkdir(exist_ok=True)
        shutil.copyfile(path, source / path.name)
    for path in [*files(ROOT), (ROOT / "hybridmednet" / "building.py", None)]:
        place = source / path[0].relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path[0], place)
    pip = ["-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(tmp_path), "."], source)
    (wheel,) = tmp_path.glob("*.whl")
    assert not (source / "build").exists(), "sources would be found in it"
    site = tmp_path / "site"
    run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], tmp_path)
    assert {path.name for path in site.iterdir()} == {"bin", "hybridmednet", wheel.name.split("-py3")[0] + ".dist-info"}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_phantom(tmp_path / "phantom", 20, 64, seed=6)
    model = write_model(tmp_path / "model.pth", tmp_path / "phantom")
    (elsewhere / "use.py").write_text(USE)
    said = run(["use.py", str(model)], elsewhere, PYTHONPATH=str(site))
    found = from_pretrained(model, device="cpu").predict(elsewhere / "data" / "sample_chest_xray" / "images")
    assert said.strip() == str([round(p, 6) for p in found[0].probabilities.values()])
    listed = run(["-m", "hybridmednet", "--help"], elsewhere, PYTHONPATH=str(site))
    assert "train" in listed and "explain" in listed
    run(["-m", "hybridmednet", "explain", "--help"], elsewhere, PYTHONPATH=str(site))
