"""Names of what a model is given of a study, and studies without some of it."""

import pytest

from configs.errors import EvaluationError
from data.withheld import StudyInputNames, anything_left, having, study_groups, without
from tests.data.sources.test_studies import CLINICAL, LONG, open_table

KINDS = "DATA.view_kinds={frontal: [PA, AP], lateral: [lateral]}"
COLUMNS = "DATA.table.columns={age: numeric, sex: categorical}"


@pytest.fixture
def found(tmp_path):
    """s1: frontal and lateral, age and sex; s2: two frontal ones, sex; s3: a view without a name, no row."""
    return open_table(tmp_path, LONG, CLINICAL, KINDS, COLUMNS)


def names_of(kinds=("frontal", "lateral", "other"), columns=("age", "sex")) -> StudyInputNames:
    return StudyInputNames(kinds, columns)


def test_names_in_any_spelling_each_once():
    names = names_of(columns=("age", "SpO2 %"))
    assert list(names.inputs) == ["table", "images", "frontal", "lateral", "other", "age", "SpO2 %"]
    assert [one.name for one in names.find(["Lateral", "spo2 %", "lateral", "table"])] == ["lateral", "SpO2 %", "table"]
    assert list(names_of(columns=()).inputs) == ["frontal", "lateral", "other"]
    assert list(names_of(kinds=("other",)).inputs) == ["table", "images", "age", "sex"]
    assert StudyInputNames.of(None, None) is None


def test_a_name_of_two_inputs_is_told_apart():
    names = names_of(columns=("lateral", "table"))
    assert list(names.inputs) == [
        "table",
        "images",
        "frontal",
        "view:lateral",
        "other",
        "column:lateral",
        "column:table",
    ]
    view, column = names.find(["view:lateral", "column:lateral"])
    assert view.kinds == {"lateral"} and not view.columns and column.columns == {"lateral"} and not column.kinds
    with pytest.raises(EvaluationError, match="'lateral' is no input of this model"):
        names.find(["lateral"])


@pytest.mark.parametrize(
    ("name", "views", "known", "has"),
    [
        ("lateral", [[0], [0, 0], [2]], [2, 1, 0], [True, False, False]),
        ("frontal", [[1], [], [2]], [2, 1, 0], [True, True, False]),
        ("age", [[0, 1], [0, 0], [2]], [1, 1, 0], [True, False, False]),
        ("table", [[0, 1], [0, 0], [2]], [0, 0, 0], [True, True, False]),
        ("images", [[], [], []], [2, 1, 0], [True, True, True]),
    ],
)
def test_what_is_withheld_is_gone_and_nothing_else(found, name, views, known, has):
    (one,) = names_of().find([name])
    rest = without(found, one)
    assert [list(own) for own in rest.images.kinds] == views
    assert [len(rows) for rows in rest.images.rows] == [len(own) for own in views]
    assert sum(column.known.astype(int) for column in rest.table.columns).tolist() == known
    assert having(found, one).tolist() == has and rest.studies == found.studies
    assert [column.known.tolist() for column in found.table.columns] == [[True, False, False], [True, True, False]]
    left = [bool(own) or bool(values) for own, values in zip(views, known)]
    assert anything_left(rest).tolist() == left
    assert all({*rows} <= {*found.images.rows[study]} for study, rows in enumerate(rest.images.rows))


def test_a_table_without_columns_has_no_rows_but_without_one_column_it_has(found):
    assert found.table.without(["age", "sex"]).has_row.tolist() == [False] * 3
    assert found.table.without(["age"]).has_row.tolist() == [True, True, False]


def test_groups_say_which_views_and_how_much_of_the_table(found):
    groups = study_groups(found, ("age", "sex"))
    assert groups["views"] == ["frontal + lateral", "frontal only", "other only"]
    assert groups["table"] == ["complete", "gaps", "no table"]
    assert study_groups(found, ("sex",))["table"] == ["complete", "complete", "no table"]
    assert list(study_groups(found, ())) == ["views"]
    images = without(found, names_of().find(["images"])[0])
    assert study_groups(images, ())["views"] == ["no image"] * 3


def test_rare_combinations_of_views_are_one_group(tmp_path):
    views = [f"v{number}" for number in range(14)]
    lines = [f"a{number}.png,s{number},p,{view},train,1,0,x" for number, view in enumerate(views)]
    for number in range(14):
        (tmp_path / f"a{number}.png").write_bytes(str(number).encode())
    groups = study_groups(open_table(tmp_path, "\n".join([LONG.splitlines()[0], *lines])), ())["views"]
    assert len(set(groups)) == 13 and groups.count("another combination") == 2
