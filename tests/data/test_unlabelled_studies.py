"""Studies that a model is asked about: put together as its settings say, with its own encoding of the table."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.default_config import Config
from configs.errors import DataError
from data.builder import saved_table, study_settings
from data.clinical_table import CategoricalColumn, ClinicalTable, NumericColumn
from data.joint_inputs import JointPreprocess, UnreadableInputs, unlabelled_study_loader
from data.readers.tables import TableSettings
from data.sources.asked_studies import asked_studies
from data.sources.unlabelled import open_unlabelled
from data.study import DatasetIndex
from data.table_encoding import TableEncoding
from data.transforms.images import Preprocess
from tests.data.sources.test_studies import write_dicom

SMALL, LARGE = Preprocess((16, 16), 3, [0.5] * 3, [0.25] * 3), Preprocess((24, 20), 1, [0.4], [0.3])
SAVED = Config.from_overrides(
    [
        "DATA.study_column=study_id",
        "DATA.view_kinds={frontal: [PA, AP], lateral: [lateral]}",
        "DATA.table={file: clinical.csv, columns: {age: numeric, sex: categorical}}",
        "DATA.required_views=[lateral]",
    ]
)
TABLE = """image,study_id,view,age,sex
a.png,s1,PA,60,F
b.png,s1,lateral,60,F
broken.png,s2,lateral,,M
c.png,s2,AP,,
broken.png,s3,PA,,
"""


def encoding() -> TableEncoding:
    ages, sexes = np.array([40.0, 60.0, 50.0, 50.0]), ("F", "M", "F", "M")
    table = ClinicalTable((NumericColumn("age", ages), CategoricalColumn("sex", sexes)), np.ones(4, bool))
    fitted = TableEncoding.fit(table, range(4))
    again = saved_table(dict(fitted.as_dict()))
    assert again == fitted
    return fitted


def write_images(folder: Path) -> None:
    for number, name in enumerate("abc"):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{name}.png"), pixels)
    (folder / "broken.png").write_bytes(b"\x89PNG")


def asked(path: Path, config: Config = SAVED) -> DatasetIndex:
    settings = replace(study_settings(config.DATA), table_file=None, required_views=(), tolerant=True)
    opened = open_unlabelled([path], False, TableSettings(study_column=settings.study_column))
    return asked_studies(*opened, settings).dataset_index


def studies_of(folder: Path, table: str, config: Config = SAVED) -> DatasetIndex:
    write_images(folder)
    (folder / "asked.csv").write_text(table)
    return asked(folder / "asked.csv", config)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_model_gets_its_own_inputs_of_each_study(tmp_path, workers):
    found = studies_of(tmp_path, TABLE.replace("broken.png,s3,PA,,", "broken.png,s3,PA,,F"))
    assert [study.name for study in found.studies] == ["s1", "s2", "s3"]
    joint, unread = JointPreprocess([SMALL, LARGE]), UnreadableInputs()
    models = [(0, encoding()), (1, None), (1, encoding())]
    ((_, rows, read),) = unlabelled_study_loader(found, joint, models, unread, 8, workers).epoch(0)
    assert rows.tolist() == [0, 1, 2] and sorted(unread.reasons) == [2, 4]
    one, other, third = read.inputs
    index = found.image_index
    assert torch.equal(one.image, torch.stack([SMALL.apply(index, row).image for row in (0, 1, 3)]))
    assert torch.equal(other.image, torch.stack([LARGE.apply(index, row).image for row in (0, 1, 3)]))
    assert torch.equal(third.image, other.image) and torch.equal(third.table, one.table)
    for inputs in read.inputs:
        assert inputs.view_mask.tolist() == [[True, True], [False, True], [False, False]]
        assert inputs.view_kind.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert one.table_mask.tolist() == [[True, True], [False, True], [False, True]]
    assert one.table[:, 0].tolist() == pytest.approx([10 / np.sqrt(50), 0, 0]) and one.table[:, 1].tolist() == [1, 2, 1]
    assert other.table.shape == (3, 0)
    assert [len(traits) for traits in read.traits] == [2, 1, 0]


def test_a_study_of_which_nothing_is_known_has_no_row(tmp_path):
    found = studies_of(tmp_path, TABLE)
    loader = unlabelled_study_loader(found, JointPreprocess([SMALL]), [(0, encoding())], UnreadableInputs(), 8, 0)
    ((_, rows, _),) = loader.epoch(0)
    assert rows.tolist() == [0, 1]


def test_images_without_columns_are_a_study_each_with_a_word(tmp_path):
    write_images(tmp_path)
    (tmp_path / "broken.png").unlink()
    found = asked(tmp_path)
    assert [study.name for study in found.studies] == ["a.png", "b.png", "c.png"]
    assert found.images.view_kinds == ("frontal", "lateral", "other") and found.images.kinds == ((2,), (2,), (2,))
    assert not any(column.known.any() for column in found.table.columns)
    note, of_views = found.notes
    assert of_views == "3 images say no view and are of the kind 'other'"
    assert note.startswith("3 images come without a table: 3 count as a study each")
    assert note.endswith("unknown for all: view, age, sex")


def test_a_folder_of_dicom_studies(tmp_path):
    own = {"PatientAge": "060Y", "PatientSex": "M"}
    for number, view in enumerate(("PA", "LL", "AP")):
        uid = f"1.2.{number // 2}"
        write_dicom(tmp_path / f"study{number // 2}" / f"{number}.dcm", uid, ViewPosition=view, **own)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "study0" / "0.dcm").read_bytes()[:140])
    config = Config.from_overrides(
        [
            "DATA.study_column=StudyInstanceUID",
            "DATA.view_kinds={frontal: [PA, AP], lateral: [LL, RL]}",
            "DATA.table.columns={age: numeric, sex: categorical}",
        ]
    )
    found = asked(tmp_path, config)
    assert {study.name: [*study.views] for study in found.studies} == {
        "cut.dcm": ["other"],
        "1.2.0": ["frontal", "lateral"],
        "1.2.1": ["frontal"],
    }
    unread = UnreadableInputs()
    ((_, rows, read),) = unlabelled_study_loader(
        found, JointPreprocess([SMALL]), [(0, encoding())], unread, 4, 0
    ).epoch(0)
    assert [found.studies[row].name for row in rows.tolist()] == ["1.2.0", "1.2.1"] and len(unread.reasons) == 1
    assert read.inputs[0].table_mask.all() and len(read.inputs[0].image) == 3


def test_a_table_is_needed(tmp_path):
    plain = Config.from_overrides(["DATA.study_column=study_id"])
    joint, unread = JointPreprocess([SMALL]), UnreadableInputs()
    with pytest.raises(DataError, match=r"trained with a table \(age, sex\)"):
        unlabelled_study_loader(studies_of(tmp_path, TABLE, plain), joint, [(0, encoding())], unread, 4, 0)
