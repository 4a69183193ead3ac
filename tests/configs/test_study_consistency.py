"""Settings of studies that contradict each other are refused, all at once, in the user's words."""

import pytest

from configs.default_config import Config
from configs.errors import ConfigError

STUDIES = ("DATA.study_column=study_id",)
VIEWS = "DATA.view_kinds={frontal: [PA, AP], lateral: [lateral]}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((VIEWS,), "view_kinds is for studies"),
        (("DATA.required_views=[lateral]",), "required_views is for studies"),
        ((*STUDIES, VIEWS, "DATA.required_views=[latral]"), "did you mean 'lateral'?"),
        ((*STUDIES, VIEWS, "DATA.required_views=[frontal, lateral]", "DATA.max_views=1"), "max_views is 1"),
        ((*STUDIES, "DATA.view_kinds={a: [PA], b: [pa]}"), "'pa' cannot be of two kinds"),
        ((*STUDIES, "DATA.view_kinds={other: [PA]}"), "'other' is what no kind names"),
        (("DATA.table.columns=[age, age]",), "'age' is there twice"),
        (("DATA.table.file=clinical.csv",), "no column of it is taken"),
        (("DATA.table.columns=[Mass]", "DATA.class_names=[mass, Nodule]"), "'Mass' is a class"),
        ((*STUDIES, "DATA.table.columns={Study ID: numeric}"), "is the column of the study"),
        (("DATA.table.columns=[who]", "DATA.columns={patient_id: who}"), "is the column of the patient_id"),
        (("DATA.table.columns=[part]", "DATA.columns={split: part}"), "is the column of the split"),
        (("DATA.table.columns={age: numerical}",), "did you mean 'numeric'?"),
        (("DATA.table.missing=tell",), "one of ignore, indicator"),
        (("DATA.max_views=0",), "greater than 0"),
    ],
)
def test_contradictions_are_refused(overrides, said):
    with pytest.raises(ConfigError) as error:
        Config.from_overrides(overrides)
    assert said in str(error.value)


def test_age_sex_and_view_may_be_inputs():
    overrides = ("DATA.columns={age: Years, sex: Gender}", "DATA.table.columns={Years: numeric, Gender: categorical}")
    assert Config.from_overrides(overrides).problems() == []


def test_columns_and_kinds_of_views_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(
        "DATA:\n  study_column: s\n  view_kinds: {a: [x]}\n  table: {columns: {age: numeric}, missing: indicator}\n"
    )
    config = Config.from_yaml(path, ["DATA.view_kinds={b: [x]}", "DATA.table.columns={sex: categorical}"])
    assert config.DATA.view_kinds == {"b": ["x"]} and config.DATA.table.columns == {"sex": "categorical"}
    assert config.DATA.table.missing == "indicator"


def test_resolve_writes_kinds_out_and_without_studies_nothing():
    config = Config.from_overrides([*STUDIES, "DATA.table.columns=[age, sex]"])
    resolved = config.resolve(["a", "b"], False, {"PA": ["PA"]}, {"age": "numeric", "sex": "categorical"})
    assert resolved.DATA.view_kinds == {"PA": ["PA"]}
    assert resolved.DATA.table.columns == {"age": "numeric", "sex": "categorical"}
    assert Config.from_values(resolved.model_dump()) == resolved
    plain = Config().resolve(["a", "b"])
    assert plain.DATA.view_kinds is None and plain.DATA.table.columns == []
