"""`python -m explain` of models of studies: heatmaps of views, and what columns and views add."""

import csv
import itertools
import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.default_config import Config
from data.builder import saved_preprocess, saved_table
from data.evaluation_data import WholeStudies, open_evaluation_data
from explain import __main__ as script
from explain.background import Background
from explain.table_explainer import Column, TableExplainer, View
from models.saved_model import load_model
from tests.training_runs import arguments, process_state, run_main
from utils.batch import Inputs, Logits

STUDIES = {
    "DATA__study_column": "study_id",
    "DATA__class_names": "[lesion, none]",
    "DATA__view_kinds": "{frontal: [PA, AP], lateral: [LL]}",
    "DATA__table.file": "clinical.csv",
    "DATA__table.columns": "{年龄: numeric, sex: categorical}",
    "MODEL__views.aggregator": "attention",
    "MODEL__table.fusion": "attention",
    "TRAIN__study_learning_rate_factor": 10,
    "TRAIN__epochs": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """30 studies: a frontal image, in half of them a lateral one, in most of them a row of a table, with gaps; boxes
    in two of them."""
    folder = tmp_path_factory.mktemp("studies") / "data"
    folder.mkdir()
    images, table, boxes, rng = [], [], [], np.random.default_rng(0)
    for number in range(30):
        label = int(rng.random() < 0.5)
        for view in ("PA", "LL")[: 1 + number % 2]:
            name = f"{number:02d}_{view}.png"
            pixels = rng.integers(0, 120, (32, 40)).astype(np.uint8) + 80 * label
            assert cv2.imwrite(str(folder / name), pixels)
            images.append((name, f"s{number}", f"p{number // 2}", view, label, 1 - label))
            if label and number % 2 and len(boxes) < 4:
                boxes.append((name, "lesion", 4, 4, 10, 8))
        if number % 5:
            table.append((f"s{number}", "" if number % 7 == 0 else 40 + number, "FM"[number % 3 > 0]))
    for name, rows in (
        ("labels.csv", [("image", "study_id", "patient_id", "view", "lesion", "none"), *images]),
        ("clinical.csv", [("study_id", "年龄", "sex"), *table]),
        ("boxes.csv", [("image", "finding", "x", "y", "w", "h"), *boxes]),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert run_main(arguments(data, runs, "run", **STUDIES)) == 0
    return runs / "run"


def explain(run: Path, *more: str, code: int = 0) -> None:
    with process_state():
        assert script.main([str(run), *map(str, more)]) == code


def whole_of(run: Path, data: Path):
    """(model, its studies, encoding, rows of training)."""
    saved = load_model(run / "best_model.pth")
    config = Config.from_yaml(run / "config.yaml", saved=True)
    opened = open_evaluation_data(config, saved.class_names, run, saved.description["split_sha256"], True)
    encoding, backbone = saved_table(saved.description["table"]), saved.model.backbone
    preprocess = saved_preprocess(saved.preprocessing, saved.config, backbone.mean, backbone.std)
    return saved.model, WholeStudies(opened.dataset_index, preprocess, encoding), encoding, opened.split.rows("train")


@pytest.fixture(scope="module")
def written(run, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("explained")
    explain(run, "--split", "all", "--count", "8", "--table", "shapley", "lime", "attention", "--output", output)
    return output


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "table_explanations.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_themselves_add_up(written):
    about = json.loads((written / "table_explanations.json").read_text(encoding="utf-8"))
    sums, players = defaultdict(float), defaultdict(set)
    for row in rows_of(written):
        players[row["method"]].add(row["column_or_view"])
        if row["method"] == "shapley":
            sums[row["study"], row["class"]] += float(row["attribution"])
    assert players["shapley"] == players["lime"] == players["attention"] == {"年龄", "sex", "frontal", "lateral"}
    assert len(sums) == 8 * 2 and len(about["studies"]) == 8 and about["studies_of_split"] == 30
    moved = 0.0
    for (study, name), total in sums.items():
        of = about["studies"][study][name]
        assert abs(total - (of["output"] - of["base"])) <= 1e-5 and of["additivity_error"] <= 1e-6
        moved = max(moved, abs(of["output"] - of["base"]))
        assert of["rank_correlation_columns"] == of["rank_correlation_views"] == "undefined"
    assert moved > 1e-3 and about["largest_difference_from_network"] <= 1e-5
    assert about["background"]["seed"] == 0 and about["background"]["split"] == "train"
    assert len({*about["background"]["studies"]}) == len(about["background"]["studies"]) > 10
    assert sorted(p.name.split("_")[0] for p in (written / "summary").iterdir()) == ["lesion", "none"]
    assert len([*(written / "waterfall").iterdir()]) == 8


def test_what_a_study_lacks_is_missing_and_gets_nothing(written):
    missing = [row for row in rows_of(written) if not row["value"]]
    assert {row["column_or_view"] for row in missing} == {"年龄", "sex", "lateral"}
    assert all(float(row["attribution"]) == 0 for row in missing)
    there = [row for row in rows_of(written) if row["value"] and row["method"] == "shapley"]
    assert {row["value"] for row in there if row["column_or_view"] == "lateral"} == {"LL"}
    assert sum(float(row["attribution"]) != 0 for row in there) > 0.9 * len(there)


def test_attention_is_the_models_own(written, run, data):
    model, whole, _, _ = whole_of(run, data)
    names = [study.name for study in whole.dataset_index.studies]
    shares = defaultdict(dict)
    for row in rows_of(written):
        if row["method"] == "attention" and row["class"] == "lesion":
            shares[row["study"]][row["column_or_view"]] = float(row["attribution"])
    for study, found in shares.items():
        inputs = whole.read(names.index(study)).inputs
        views, columns = model.view_weights(inputs)[0].tolist(), model.table_weights(inputs)[0].tolist()
        assert [found["frontal"], found["lateral"]] == pytest.approx([*views, 0][:2], abs=1e-6)
        assert [found["年龄"], found["sex"]] == pytest.approx(columns, abs=1e-6)


def explainer_of(run: Path, data: Path, limit: int = 6, methods=("shapley",)):
    model, whole, _, rows = whole_of(run, data)
    background = Background.of_training(whole.table.values[rows], whole.table.known[rows], limit=limit)
    columns = [Column("年龄", False), Column("sex", True)]
    kinds = ["frontal", "lateral"]
    return TableExplainer(model, columns, kinds, "attention", "attention", background, methods, [0, 1]), whole


def full_study(whole: WholeStudies) -> int:
    """One with two views and both columns."""
    rows = whole.dataset_index.images.rows
    return next(i for i in range(len(rows)) if len(rows[i]) == 2 and whole.table.known[i].all())


def outputs_of_the_network(model, inputs: Inputs, background: Background, coalition) -> np.ndarray:
    """The mean logits over the background where only a coalition of (年龄, sex, frontal, lateral) is known."""
    views = torch.tensor([list(coalition[2:])])
    found = []
    for row, has in zip(background.rows, background.known):
        table, known = inputs.table.clone(), inputs.table_mask.clone()
        for j in range(2):
            if not coalition[j]:
                table[0, j], known[0, j] = float(row[j]), bool(has[j])
        with torch.no_grad():
            left = Inputs(inputs.image[views[0]], views, inputs.view_kind, table, known)
            found.append(Logits.of(model(left)).fine[0].double().numpy())
    return np.mean(found, axis=0)


def test_shapley_values_are_those_of_the_whole_network(run, data):
    """The mean gain over all 24 orders, each coalition asked of the network itself."""
    explainer, whole = explainer_of(run, data)
    number = full_study(whole)
    study = whole.read(number)
    views = [View(view.name, view.value) for view in study.views]
    explained = explainer.explain("s", study.inputs, whole.cells(number), views).explained.shapley
    value = {
        key: outputs_of_the_network(explainer.model, study.inputs, explainer.background, key)
        for key in itertools.product([False, True], repeat=4)
    }
    phi = np.zeros((4, 2))
    for order in itertools.permutations(range(4)):
        there = [False] * 4
        for player in order:
            before = value[tuple(there)]
            there[player] = True
            phi[player] += (value[tuple(there)] - before) / 24
    assert np.abs(phi).min() > 1e-6
    np.testing.assert_allclose(explained.values, phi, atol=1e-6)
    np.testing.assert_allclose(explained.output, value[True, True, True, True], atol=1e-6)


@pytest.mark.slow
def test_shapley_values_are_those_of_shap(run, data):
    shap = pytest.importorskip("shap", reason="shap is not installed")
    explainer, whole = explainer_of(run, data)
    number = full_study(whole)
    study = whole.read(number)
    asked = explainer.model.one_study(study.inputs)

    def model(x: np.ndarray) -> np.ndarray:
        known = ~np.isnan(x[:, :2])
        table = torch.from_numpy(np.nan_to_num(x[:, :2])).float()
        return asked.logits(table, torch.from_numpy(known), torch.from_numpy(x[:, 2:] > 0.5)).numpy()

    rows = np.where(explainer.background.known, explainer.background.rows, np.nan)
    masker = shap.maskers.Independent(np.hstack([rows, np.zeros((len(rows), 2))]))
    x = np.hstack([study.inputs.table.numpy(), np.ones((1, 2))]).astype(float)
    theirs = shap.explainers.Exact(model, masker)(x).values[0]
    views = [View(view.name, view.value) for view in study.views]
    ours = explainer.explain("s", study.inputs, whole.cells(number), views).explained.shapley
    np.testing.assert_allclose(ours.values, theirs, atol=1e-6)


def test_a_column_without_effect_has_exactly_nothing_and_gaps_hide_what_is_behind(run, data):
    """Its embeddings are all 0; that a value is known at all does have an effect, so it is in all of the background."""
    explainer, whole = explainer_of(run, data, methods=("shapley", "lime"))
    explainer.background.known[:, 1] = True
    number = full_study(whole)
    study = whole.read(number)
    views = [View(view.name, view.value) for view in study.views]
    with torch.no_grad():
        explainer.model.classifier.study.tokens.categories[0].zero_()
    found = explainer.explain("s", study.inputs, whole.cells(number), views).explained
    assert (found.shapley.values[1] == 0).all() and np.abs(found.shapley.values[[0, 2, 3]]).min() > 1e-6
    assert np.abs(found.lime.coefficients[1]).max() < 0.03 * np.abs(found.lime.coefficients).max()
    gap = study.inputs._replace(table_mask=torch.tensor([[False, True]]))
    behind = gap._replace(table=torch.tensor([[torch.nan, float(gap.table[0, 1])]]))
    one, other = (explainer.explain("s", inputs, ["", "F"], views).explained.shapley.values for inputs in (gap, behind))
    assert np.isfinite(other).all() and (one == other).all() and (one[0] == 0).all()


def test_heatmaps_of_views_are_measured_drawn_and_checked(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "SANITY_IMAGES", 2)
    methods = ["--method", "grad_cam", "layer_cam", "attention_rollout", "--sanity"]
    explain(run, "--split", "all", "--count", "2", *methods, "--output", tmp_path)
    about = json.loads((tmp_path / "localization.json").read_text(encoding="utf-8"))
    assert (about["studies"], about["images"], about["annotated_images"]) == (30, 45, 4)
    for method in ("grad_cam", "layer_cam"):
        assert about["methods"][method]["all"]["trained"]["maps"] == 4
        assert about["methods"][method]["all"]["trained"]["patients"] == 2
        assert about["methods"][method]["sanity"]["stages"][0]["maps"] == 2
        assert len([*(tmp_path / method).iterdir()]) == 2
    assert "needs a backbone whose blocks attend" in about["methods"]["attention_rollout"]["error"]
    assert "grad_cam, level auto, all split" in capsys.readouterr().out
    assert not (tmp_path / "table_explanations.csv").exists()


def test_a_view_that_cannot_be_read_is_missing(run, data, tmp_path, capsys):
    broken = tmp_path / "data"
    broken.mkdir()
    for path in data.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[:60] if path.name == "29_LL.png" else path.read_bytes())
    more = ["--data", broken, "--split", "all", "--classes", "none", "--output", tmp_path / "out"]
    explain(run, *more, "--table", "shapley", "--method", "grad_cam", "--count", "2", "--limit", "0")
    rows = [row for row in rows_of(tmp_path / "out") if row["study"] == "s29" and row["column_or_view"] == "lateral"]
    assert [(row["class"], row["value"], row["attribution"]) for row in rows] == [("none", "", "0")]
    assert {p.name.split("_")[0] for p in (tmp_path / "out" / "grad_cam").iterdir()} == {"none"}


@pytest.mark.parametrize(
    "more, message",
    [
        (["--table", "shap"], "--table: unknown method 'shap': one of shapley, lime, attention"),
        (["--table", "grad_cam"], "'grad_cam' (that is one of --method's)"),
        (["--method", "shapley"], "unknown method 'shapley' (that is one of --table's)"),
        (["--table", "shapley", "--sanity"], "--sanity: no effect on --table alone"),
        (["--table", "shapley", "--count", "0"], "--count 0: at least 1"),
        (["--table", "shapley", "--classes", "Lesion"], "no class 'Lesion': did you mean 'lesion'?"),
        (["--table", "shapley", "--split", "all", "--set", "DATA.view_kinds={frontal: [PA]}"], "the kinds of view"),
    ],
)
def test_errors_are_one_line(run, tmp_path, capsys, more, message):
    explain(run, *more, "--output", tmp_path / "out", code=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line and not (tmp_path / "out").exists()


def test_without_the_training_split_there_is_no_background(run, data, tmp_path, capsys):
    alone = tmp_path / "best_model.pth"
    alone.write_bytes((run / "best_model.pth").read_bytes())
    more = ["--data", data, "--split", "all", "--output", tmp_path / "out"]
    explain(alone, *more, "--table", "shapley", code=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "rows of the training split" in line and "config.yaml" in line
    explain(alone, *more, "--table", "attention", "--count", "2")
    assert {row["method"] for row in rows_of(tmp_path / "out")} == {"attention"}
