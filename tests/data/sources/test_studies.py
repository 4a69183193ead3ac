"""Images of one study put together: what must agree, kinds of view, and what the clinical table says of them."""

from pathlib import Path

import numpy as np
import pytest

from configs.default_config import Config
from configs.errors import DataError
from data.builder import open_data, resolve, split_data
from data.sources.studies import check_view_kinds
from data.splits.assignment import read_split, write_split
from data.study import DatasetIndex
from tests.data.readers.dicom_cases import dataset_of, ramp, written

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"

LONG = """image,study_id,patient_id,view,split,A,B,site
a1.png,s1,p1,PA,train,1,0,x
a2.png,s1,p1,lateral,train,1,0,x
b1.png,s2,p2,AP,val,0,,y
b2.png,s2,p2,AP,val,0,,y
c1.png,s3,p3,,train,0,1,
"""
CLINICAL = """study_id,age,sex,crp
s1,40,F,1.5
s2,,M,NA
s9,30,F,3
"""


def open_table(folder: Path, labels: str = LONG, clinical: str | None = None, *overrides: str) -> DatasetIndex:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in "abcd":
        for number in "123":
            (folder / f"{stem}{number}.png").write_bytes(f"{stem}{number}".encode())
    (folder / "labels.csv").write_text(labels, encoding="utf-8")
    table = []
    if clinical is not None:
        (folder / "clinical.csv").write_text(clinical, encoding="utf-8")
        table = ["DATA.table.file=clinical.csv"]
    config = [f"DATA.data_dir={folder}", "DATA.study_column=study_id", "DATA.num_workers=0", *table, *overrides]
    return open_data(Config.from_overrides(config))


def test_rows_of_one_study_are_one_study(tmp_path, caplog):
    caplog.set_level("INFO")
    found = open_table(tmp_path)
    assert [study.name for study in found.studies] == ["s1", "s2", "s3"]
    assert found.studies[0].views == {"PA": "a1.png", "lateral": "a2.png"}
    assert found.studies[1].views == {"AP": "b1.png", "AP 2": "b2.png"}
    assert found.studies[2].views == {"other": "c1.png"}
    assert found.label_matrix().tolist()[0] == [1, 0] and np.isnan(found.label_matrix()[1, 1])
    assert [(s.patient_id, s.split) for s in found.studies] == [("p1", "train"), ("p2", "val"), ("p3", "train")]
    assert found.studies[0].table == {"study_id": "s1", "view": "PA|lateral", "site": "x"}
    images = found.images
    assert images.view_kinds == ("AP", "lateral", "PA", "other") and images.rows == ((0, 1), (2, 3), (4,))
    assert images.kinds == ((2, 1), (0, 0), (3,))
    assert [study.name for study in found.image_index.studies] == ["a1.png", "a2.png", "b1.png", "b2.png", "c1.png"]
    assert found.image_rows([2, 0]).tolist() == [4, 0, 1]
    assert [path.name for path in found.files(0)] == ["a1.png", "a2.png"]
    assert "3 studies (1 of 1, 2 of 2 images; AP 2" in caplog.text


def test_without_settings_of_studies_images_stand_alone(tmp_path):
    found = open_table(tmp_path, LONG, None, "DATA.study_column=null")
    assert found.images is None and found.table is None and found.image_index is found
    assert found.studies[0].views == {"image": "a1.png"} and len(found.studies) == 5


def test_views_of_one_kind_have_several_names(tmp_path):
    kinds = "DATA.view_kinds={frontal: [pa, AP], lateral: []}"
    found = open_table(tmp_path, LONG.replace("a2.png,s1,p1,lateral", "a2.png,s1,p1,LATERAL"), None, kinds)
    assert found.images.view_kinds == ("frontal", "lateral", "other") and found.images.kinds == ((0, 1), (0, 0), (2,))
    strange = open_table(tmp_path, LONG.replace(",lateral,", ",oblique,"), None, kinds)
    assert strange.images.kinds[0] == (0, 2)
    assert any("1 images are of the kind 'other'" in note and "'oblique' (1)" in note for note in strange.notes)


def test_the_kinds_that_data_have_are_written_out_and_mean_the_same(tmp_path):
    found = open_table(tmp_path)
    written = resolve(Config.from_overrides(["DATA.study_column=study_id"]), found).DATA.view_kinds
    assert written == {"AP": ["AP"], "lateral": ["lateral"], "PA": ["PA"]}
    again = open_table(tmp_path, LONG, None, f"DATA.view_kinds={written}")
    check_view_kinds(found.images.view_kinds, again)
    with pytest.raises(DataError, match="AP, lateral, PA, other, the data have single images"):
        check_view_kinds(found.images.view_kinds, open_table(tmp_path, LONG, None, "DATA.study_column=null"))
    assert again.images.view_kinds == found.images.view_kinds and again.images.kinds == found.images.kinds


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("a2.png,s1,p1", "a2.png,s1,p2", ("lines 2 and 3", "'s1'", "'p1' and 'p2'", "count within a patient")),
        ("lateral,train,1", "lateral,val,1", ("lines 2 and 3", "splits train and val")),
        ("lateral,train,1,0", "lateral,train,1,1", ("lines 2 and 3", "two labels of B, 0 and 1")),
        ("b2.png,s2,p2,AP,val,0,", "b2.png,s2,p2,AP,val,0,1", ("lines 4 and 5", "unknown and 1")),
        ("b2.png,s2", "b1.png,s3", ("lines 4 and 5", "two studies")),
    ],
)
def test_images_of_a_study_that_disagree_are_an_error_with_their_lines(tmp_path, old, new, said):
    labels = LONG.replace(old, new)
    assert labels != LONG
    with pytest.raises(DataError) as error:
        open_table(tmp_path, labels)
    assert all(text in str(error.value) for text in said), str(error.value)


def test_more_images_than_allowed_are_an_error_that_names_the_study(tmp_path):
    with pytest.raises(DataError, match=r"study 's1' has 2 images \(a1.png, a2.png\), DATA.max_views is 1"):
        open_table(tmp_path, LONG, None, "DATA.max_views=1")
    given = Config.from_overrides(["DATA.study_column=study_id"])
    assert resolve(given, open_table(tmp_path)).DATA.max_views == 2


def test_a_column_that_most_images_share_is_not_taken_for_one_of_studies(tmp_path):
    lines = [f"{number}.png,s1,p1,PA,train,1,0,x" for number in range(33)]
    for line in lines:
        (tmp_path / line.split(",")[0]).write_bytes(line.encode())
    with pytest.raises(DataError, match=r"labels.csv':\n  study 's1' has 33 images .*is 'study_id' the column of stud"):
        open_table(tmp_path, "\n".join([*LONG.splitlines()[:1], *lines]))
    assert (
        len(open_table(tmp_path, "\n".join([*LONG.splitlines()[:1], *lines]), None, "DATA.max_views=33").studies) == 1
    )


def test_studies_without_a_required_view_are_left_out_and_counted(tmp_path):
    found = open_table(tmp_path, LONG, None, "DATA.required_views=[lateral]")
    assert [study.name for study in found.studies] == ["s1"]
    assert [study.name for study in found.image_index.studies] == ["a1.png", "a2.png"]
    assert [path.name for path in found.image_index.files(1)] == ["a2.png"]
    assert any("2 of 3 studies lack a view" in note and "s2, s3" in note for note in found.notes)
    with pytest.raises(DataError, match="none of the views"):
        open_table(tmp_path, LONG, None, "DATA.required_views=[oblique]")


def test_a_study_column_that_is_not_there_is_an_error_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match="did you mean 'study_id'"):
        open_table(tmp_path, LONG, None, "DATA.study_column=studyid1")


def test_an_image_without_a_study_is_one_itself_and_ids_that_look_alike_are_told(tmp_path):
    labels = LONG.replace("c1.png,s3", "c1.png,").replace("b2.png,s2", "b2.png,S2")
    found = open_table(tmp_path, labels)
    assert [study.name for study in found.studies] == ["s1", "s2", "S2", "c1.png"]
    assert any("1 images name no study" in note for note in found.notes)
    assert any("may be one: 's2' and 'S2'" in note for note in found.notes)


def test_a_study_column_of_ones_and_zeros_is_no_class(tmp_path):
    labels = LONG.replace(",s1,", ",1,").replace(",s2,", ",0,").replace(",s3,", ",0,").replace("p3,,train", "p2,,val")
    labels = labels.replace("val,0,1,", "val,0,,y")
    assert open_table(tmp_path, labels).class_names == ("A", "B")


WIDE = """study_id,patient_id,image_frontal,image_lateral,image_lateral_2,A
s1,p1,a1.png,a2.png,a3.png,1
s2,p2,b1.png,,,0
s3,p3,,c1.png,NA,1
s4,p4,,,,1
"""


def test_a_row_a_study_with_a_column_a_view(tmp_path):
    found = open_table(tmp_path, WIDE)
    assert [study.views for study in found.studies] == [
        {"frontal": "a1.png", "lateral": "a2.png", "lateral 2": "a3.png"},
        {"frontal": "b1.png"},
        {"lateral": "c1.png"},
    ]
    assert found.class_names == ("A",) and found.images.view_kinds == ("frontal", "lateral", "other")
    assert any("1 studies name no image" in note and "line 5" in note for note in found.notes)
    both = WIDE.replace("image_lateral_2", "view")
    with pytest.raises(DataError, match="a row is a study or an image, not both"):
        open_table(tmp_path, both)


def test_both_forms_give_the_same(tmp_path):
    long = """image,study_id,patient_id,view,A
a1.png,s1,p1,frontal,1
a2.png,s1,p1,lateral,1
a3.png,s1,p1,lateral,1
b1.png,s2,p2,frontal,0
c1.png,s3,p3,lateral,1
"""
    one, other = open_table(tmp_path / "long", long), open_table(tmp_path / "wide", WIDE)
    assert [study.views for study in one.studies] == [study.views for study in other.studies]
    assert one.images.kinds == other.images.kinds and one.label_matrix().tolist() == other.label_matrix().tolist()


COLUMNS = "DATA.table.columns={age: numeric, sex: categorical, crp: numeric}"


def test_a_clinical_table_by_study(tmp_path):
    found = open_table(tmp_path, LONG, CLINICAL, COLUMNS)
    age, sex, crp = found.table.columns
    assert found.table.has_row.tolist() == [True, True, False]
    assert age.known.tolist() == [True, False, False] and age.values[0] == 40 and crp.values[0] == 1.5
    assert sex.words == ("F", "M", "")
    assert found.studies[0].table["crp"] == "1.5" and found.studies[0].table["site"] == "x"
    assert any("1 of 3 studies have no row in 'clinical.csv': s3" in note for note in found.notes)
    assert any("1 rows of 'clinical.csv' are of no study here: s9" in note for note in found.notes)


def test_a_clinical_table_by_patient(tmp_path):
    clinical = CLINICAL.replace("study_id", "PatientID").replace("s1", "p2").replace("s2", "p1")
    found = open_table(tmp_path, LONG, clinical, "DATA.table.columns=[age, sex]")
    assert found.table.kinds == {"age": "numeric", "sex": "categorical"}
    assert found.table.columns[1].words == ("M", "F", "")


def test_ids_that_a_spreadsheet_has_rewritten_are_found(tmp_path):
    """'007' becomes 7, and 7.0 where a cell of the column was empty."""
    labels = LONG.replace(",s1,", ",007,").replace(",s2,", ",V-8,").replace(",s3,", ",V8,")
    clinical = CLINICAL.replace("s1", "7.0").replace("s2", "v8").replace("s9", "9")
    found = open_table(tmp_path, labels, clinical, COLUMNS)
    assert found.table.has_row.tolist() == [True, False, True]  # a sign is a sign
    assert any("2 ids" in note and "'007' as '7.0'" in note for note in found.notes)
    twice = open_table(tmp_path, labels, clinical + "07,50,F,1\n", COLUMNS)
    assert twice.table.has_row.tolist() == [False, False, True]


def test_columns_of_the_labels_table(tmp_path):
    labels = LONG.replace("site", "Patient Age").replace(",x\n", ",61\n", 1).replace(",x\n", ",\n").replace(",y", ",7")
    found = open_table(tmp_path, labels, None, "DATA.table.columns={Patient Age: numeric}")
    assert found.table.columns[0].values[:2].tolist() == [61, 7] and np.isnan(found.table.columns[0].values[2])
    with pytest.raises(DataError, match=r"lines 2, 3, column 'Patient Age': study 's1' has '61' and '62'"):
        torn = labels.replace("lateral,train,1,0,", "lateral,train,1,0,62")
        open_table(tmp_path, torn, None, "DATA.table.columns={Patient Age: numeric}")


def test_a_table_without_studies(tmp_path):
    found = open_table(tmp_path, LONG, None, "DATA.study_column=null", "DATA.table.columns=[site]")
    assert len(found.studies) == 5 and found.images.rows == ((0,), (1,), (2,), (3,), (4,))
    assert found.table.columns[0].words == ("x", "x", "y", "y", "")
    by_image = "image,dose\na1.png,1\nb2.png,2\n"
    found = open_table(tmp_path, LONG, by_image, "DATA.study_column=null", "DATA.table.columns=[dose]")
    assert found.table.has_row.tolist() == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("clinical", "overrides", "said"),
    [
        (CLINICAL, ("DATA.table.columns=[agee]",), ("'agee'", "age")),
        (CLINICAL + "s1,50,F,2\n", (COLUMNS,), ("lines 2 and 5 both have 's1'",)),
        (CLINICAL.replace("1.5", "1.5 mg/l"), (COLUMNS,), ("line 2, column 'crp': '1.5 mg/l' is no number",)),
        (CLINICAL.replace("study_id", "visit"), (COLUMNS,), ("no column 'study_id'", "visit")),
        (CLINICAL.replace("s1", "x1").replace("s2", "x2"), (COLUMNS,), ("no row for any of 3 studies", "'x1'", "'s1'")),
        (CLINICAL.replace("crp", "b"), ("DATA.table.columns=[age, b]",), ("b, which is a class", "ignore_columns")),
        (CLINICAL.replace("crp", "split"), ("DATA.table.columns=[split]",), ("'split' is the split",)),
        (None, ("DATA.table.columns=[A]",), ("A, which is a class",)),
        (None, ("DATA.table.columns=[split]",), ("'split' is the column of the split",)),
        (None, ("DATA.table.columns=[sight]",), ("'sight'", "site")),
        (None, ("DATA.table.columns=[age]", "DATA.table.file=nowhere.csv"), ("there is no", "nowhere.csv")),
    ],
)
def test_tables_that_cannot_be_used_are_an_error_in_words(tmp_path, clinical, overrides, said):
    with pytest.raises(DataError) as error:
        open_table(tmp_path, LONG, clinical, *overrides)
    assert all(text in str(error.value) for text in said), str(error.value)


def test_identical_images_are_told_by_image_and_drawn_apart_by_study(tmp_path):
    open_table(tmp_path)
    (tmp_path / "c1.png").write_bytes(b"a1")
    (tmp_path / "a2.png").write_bytes(b"a1")
    found = open_data(Config.from_overrides([f"DATA.data_dir={tmp_path}", "DATA.study_column=study_id"]))
    assert found.identical == ((0, 2),)  # a1 and a2 are of one study
    assert any("different patients" in note and "c1.png" in note for note in found.notes)


def test_a_saved_split_is_of_studies_and_of_their_images(tmp_path):
    found = open_table(tmp_path)
    assignment = split_data(Config(), found)
    assert assignment.tolist() == ["train", "val", "train"]
    path = tmp_path / "split.csv"
    write_split(path, found, assignment)
    assert read_split(path, found).tolist() == ["train", "val", "train"]
    moved = open_table(tmp_path, LONG.replace("c1.png,s3", "d1.png,s3"))
    with pytest.raises(DataError, match="s3"):
        read_split(path, moved)


@pytest.mark.skipif(not (SHARED / "covid_studies").is_dir(), reason="../shared/data/covid_studies is not there")
def test_real_studies():
    """STUDIES 1.1: 358 images of 293 studies, of which 37 have frontal and lateral; columns as often known."""
    kinds = "DATA.view_kinds={frontal: [PA, AP, AP supine], lateral: [lateral]}"
    columns = "age: numeric, sex: categorical, days_since_onset: numeric, temperature_c: numeric, spo2_percent: numeric"
    found = open_data(
        Config.from_overrides(
            [f"DATA.data_dir={SHARED / 'covid_studies'}", "DATA.study_column=study_id", kinds, "DATA.max_views=5"]
            + [f"DATA.table={{file: clinical.csv, columns: {{{columns}}}}}"]
        )
    )
    assert (len(found.image_index.studies), len(found.studies)) == (358, 293)
    assert len({study.patient_id for study in found.studies}) == 173
    lateral = [kinds for kinds in found.images.kinds if 1 in kinds and len({*kinds}) > 1]
    assert len(lateral) == 37
    assert [int(column.known.sum()) for column in found.table.columns] == [198, 284, 239, 15, 63]
    assert len(found.image_index.identical) == 1 and found.identical == ()  # one image twice in one study
    assignment = split_data(Config(), found)
    assert [(assignment == split).sum() for split in ("train", "val")] == [197, 96]
    folder = SHARED / "covid_studies"
    overrides = [f"DATA.data_dir={folder}", "DATA.study_column=study_id", kinds]
    given = Config.from_overrides(overrides)
    assert resolve(given, open_data(given)).DATA.max_views == 5  # of cov359_x
    with pytest.raises(DataError) as error:
        open_data(Config.from_overrides([*overrides, "DATA.max_views=4"]))
    assert f"'{folder / 'labels.csv'}'" in str(error.value) and "'cov359_x' has 5 images" in str(error.value)


JSON = """[
 {"study_id": "s1", "patient_id": 1, "labels": ["A", "B"], "age": 61.50,
  "images": {"frontal": "a1.png", "lateral": "a2.png", "oblique": null}},
 {"study_id": "s2", "patient_id": 2, "labels": [], "age": null, "images": [{"image": "b1.png", "view": "lateral"}]},
 {"study_id": "s3", "patient_id": 3, "labels": ["A"], "images": ["c1.png"]},
 {"study_id": "s4", "patient_id": 4, "labels": ["B"], "image": "d1.png", "view": "frontal"}
]"""


def test_a_json_list_of_studies(tmp_path):
    (tmp_path / "labels.json").write_text(JSON)
    found = open_table(tmp_path, LONG, None, "DATA.labels_file=labels.json", "DATA.table.columns=[age]")
    assert [study.views for study in found.studies] == [
        {"frontal": "a1.png", "lateral": "a2.png"},
        {"lateral": "b1.png"},
        {"other": "c1.png"},
        {"frontal": "d1.png"},
    ]
    assert found.class_names == ("A", "B") and found.label_matrix().tolist() == [[1, 1], [0, 0], [1, 0], [0, 1]]
    assert [study.patient_id for study in found.studies] == ["1", "2", "3", "4"]
    assert found.table.columns[0].values[0] == 61.5 and found.table.columns[0].known.tolist() == [True, *[False] * 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "is not a list of objects"),
        ("[]", "is not a list of objects"),
        ("[1]", "object 1 is str"),
        ("[{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('[{"image": "a1.png", "image": "a2.png"}]', "'image' twice"),
        ('[{"images": 3}]', "object 1: 'images' must be"),
        ('[{"image": {"a": 1}}]', "object 1: 'image' must be"),
    ],
)
def test_json_of_another_form_is_an_error_in_words(tmp_path, text, said):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(DataError) as error:
        open_table(tmp_path, LONG, None, "DATA.labels_file=labels.json")
    assert said in str(error.value)


def write_dicom(path: Path, study: str, **attributes: str) -> None:
    dataset = dataset_of(ramp(12), 12, StudyInstanceUID=study, **attributes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written(dataset))


def test_dicom_files_without_a_table_are_put_together_by_their_headers(tmp_path):
    """Class folders, as there is no table; PS3.3 C.8.7.10 (ViewPosition) and C.7.3.1 (Laterality)."""
    own = {"PatientAge": "057Y", "PatientSex": "F", "PatientID": "p1"}
    for folder, number, view, side in (("ill", 1, "CC", "L"), ("ill", 2, "MLO", "L"), ("well", 3, "CC", "R")):
        uid = f"1.2.{1 + (folder == 'well')}"
        write_dicom(tmp_path / folder / f"{number}.dcm", uid, ViewPosition=view, ImageLaterality=side, **own)
    write_dicom(tmp_path / "well" / "4.dcm", "1.2.9", ViewPosition="PA", ImageLaterality="U", PatientID="p2")
    settings = [f"DATA.data_dir={tmp_path}", "DATA.study_column=StudyInstanceUID", "DATA.table.columns=[age, sex]"]
    found = open_data(Config.from_overrides(settings))
    views = {study.name: (study.patient_id, [*study.views], study.table["view"]) for study in found.studies}
    assert views == {
        "1.2.1": ("p1", ["L CC", "L MLO"], "L CC|L MLO"),
        "1.2.2": ("p1", ["R CC"], "R CC"),
        "1.2.9": ("p2", ["PA"], "PA"),
    }
    age, sex = found.table.columns
    assert age.values[:2].tolist() == [57, 57] and sex.words == ("F", "F", "")
    kinds = open_data(Config.from_overrides([*settings, "DATA.view_kinds={cc: [CC], left mlo: [L MLO]}"])).images
    assert kinds.view_kinds == ("cc", "left mlo", "other") and kinds.kinds == ((0, 1), (0,), (2,))


def test_headers_that_name_nobody_are_no_patient(tmp_path):
    for number, patient in enumerate(("ANONYMOUS", "Anonymized", "", "p7")):
        write_dicom(tmp_path / ("ill", "well")[number % 2] / f"{number}.dcm", f"1.2.{number}", PatientID=patient)
    found = open_data(Config.from_overrides([f"DATA.data_dir={tmp_path}", "DATA.study_column=StudyInstanceUID"]))
    assert {study.name: study.patient_id for study in found.studies} == {
        "1.2.0": "",
        "1.2.1": "",
        "1.2.2": "",
        "1.2.3": "p7",
    }


def test_images_without_headers_cannot_be_put_together_by_them(tmp_path):
    with pytest.raises(DataError, match=r"no DICOM header says it \(a1.png"):
        open_table(tmp_path, LONG.replace("view,", "projection,"), None, "DATA.study_column=StudyInstanceUID")
