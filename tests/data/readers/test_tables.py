"""Text tables and lists: encodings, delimiters, cells, and the roles of columns."""

import pytest

from configs.errors import DataError
from data.readers.delimited import clean
from data.readers.tables import TableSettings, column_roles, parse_split, read_list, read_table, read_text
from data.readers.text_encoding import decode
from utils.words import has_no_value, is_missing, name_key

CHINESE = "image,labels\na.png,肺炎\nb.png,正常\n"


@pytest.mark.parametrize(
    "text, encoding, read_as",
    [
        (CHINESE, "utf-8", ""),
        (CHINESE, "utf-8-sig", ""),
        (CHINESE, "utf-16", ""),
        (CHINESE, "utf-16-be", ""),
        (CHINESE, "gbk", "gb18030"),
        (CHINESE, "big5", "big5"),
        ("image,labels\na.png,Größe\nb.png,Ödem\n", "cp1252", "cp1252"),
        ("image,labels\na.png,Mass\n", "utf-16-le", ""),
        ("", "utf-8", ""),
    ],
)
def test_certain_encodings(text, encoding, read_as):
    assert decode(text.encode(encoding)) == (text, read_as)


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("image,labels\na.png,폐렴\n", "euc_kr"),
        ("image,labels\na.png,肺炎\n", "euc_jp"),
        ("image,labels\na.png,пневмония\n", "cp1251"),
        ("image,labels\na.png,guz płuca\n", "cp1250"),
        ("image,labels\na.png,甲乙丙\n", "gbk"),
        ("image,labels\na.png,œdème\n", "cp1252"),
    ],
)
def test_other_encodings_are_asked_for(text, encoding):
    """In each the bytes are text in several encodings; the error shows how they look in them."""
    with pytest.raises(DataError, match=r"byte \d+ is 0x.*DATA\.encoding"):
        decode(text.encode(encoding))
    assert decode(text.encode(encoding), encoding) == (text, "")


def test_bytes_that_are_text_in_two_encodings():
    """GBK's bytes of '图片' are valid UTF-8 too."""
    raw = "图片,labels\na.png,Mass\n".encode("gbk")
    assert raw.decode("utf-8").startswith("ͼƬ")
    with pytest.raises(DataError, match=r"may be UTF-8 or gb18030.*图片.*DATA\.encoding"):
        decode(raw)
    assert decode(raw, "gbk")[0].startswith("图片")


def test_an_encoding_that_the_bytes_are_not_in(tmp_path):
    (tmp_path / "labels.csv").write_bytes(CHINESE.encode("gbk"))
    with pytest.raises(DataError, match=r"labels\.csv' is not all text in it: DATA\.encoding is 'utf-8', but"):
        read_table(tmp_path / "labels.csv", TableSettings(encoding="utf-8"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_no_byte_order_mark_stays_in_a_header(tmp_path, encoding):
    """Also where the user names the encoding with a fixed byte order."""
    mark = "" if encoding in ("utf-8-sig", "utf-16") else "\ufeff"
    (tmp_path / "labels.csv").write_bytes((mark + CHINESE).encode(encoding))
    for settings in (TableSettings(), TableSettings(encoding=encoding)):
        assert read_table(tmp_path / "labels.csv", settings).header == ("image", "labels")


@pytest.mark.parametrize(
    "text, header, rows, decimal_comma",
    [
        ("image;l\na.png;x,y\n", ("image", "l"), [(2, ("a.png", "x,y"))], True),
        ("image\tl\na.png\tx;y\n", ("image", "l"), [(2, ("a.png", "x;y"))], True),
        ("image|l\na.png|x\n", ("image", "l"), [(2, ("a.png", "x"))], False),
        ("image\na.png\n", ("image",), [(2, ("a.png",))], False),
        ("sep=;\nimage;l\na.png;x\n", ("image", "l"), [(3, ("a.png", "x"))], True),
        ('"sep=\t"\r\nimage\tl\r\na.png\tx\r\n', ("image", "l"), [(3, ("a.png", "x"))], True),
        ("SEP=^\nimage^l\na.png^x\n", ("image", "l"), [(3, ("a.png", "x"))], False),
        ('image,l\na.png,"x\ny"\n\nb.png,z\n', ("image", "l"), [(3, ("a.png", "x\ny")), (5, ("b.png", "z"))], False),
        ("image,l\ra.png,x\r", ("image", "l"), [(2, ("a.png", "x"))], False),
        ("image,l,,\na.png,x,,\n,,,\nb.png,y,,\n", ("image", "l"), [(2, ("a.png", "x")), (4, ("b.png", "y"))], False),
        ("image,l\na.png,x,,,\n", ("image", "l"), [(2, ("a.png", "x"))], False),
        ("image, l ,\u3000m\u200b\na.png, x , y\n", ("image", "l", "m"), [(2, ("a.png", "x", "y"))], False),
        ('image, "l"\na.png, "x, y"\n', ("image", "l"), [(2, ("a.png", "x, y"))], False),
        ("scan;image,x\n1;a.png,2\n", ("scan;image", "x"), [(2, ("1;a.png", "2"))], False),
        ("image;remark, old\na.png;1\n", ("image", "remark, old"), [(2, ("a.png", "1"))], True),
    ],
)
def test_delimiters(tmp_path, text, header, rows, decimal_comma):
    if header == ("scan;image", "x"):  # neither names the images, and both give rows of two cells
        (tmp_path / "t.csv").write_bytes(text.encode())
        with pytest.raises(DataError, match=r"may be separated by commas or semicolons: write 'sep=,'"):
            read_table(tmp_path / "t.csv")
        assert read_table(tmp_path / "t.csv", TableSettings(columns={"image": "scan"})).header == ("scan", "image,x")
        return
    (tmp_path / "t.csv").write_bytes(text.encode())
    table = read_table(tmp_path / "t.csv")
    assert (table.header, list(table.rows), table.decimal_comma) == (header, rows, decimal_comma)


@pytest.mark.parametrize(
    "cell, text",
    [
        ('="007"', "007"),
        ('=""', ""),
        ("'=x", "=x"),
        ("'-5", "'-5"),
        ("'x'", "'x'"),
        (" \ufeffa\u200b ", "a"),
        ("''=x", "'=x"),
    ],
)
def test_what_spreadsheets_are_kept_from_changing(cell, text):
    assert clean(cell) == text


@pytest.mark.parametrize(
    "header, role, name",
    [
        ("文件名,诊断", "image", "文件名"),
        ("a,患者ID", "patient_id", "患者ID"),
        ("a,病人编号", "patient_id", "病人编号"),
        ("ＩＭＡＧＥ,b", "image", "ＩＭＡＧＥ"),
        ("File_Name,b", "image", "File_Name"),
        ("图像,image", "image", "image"),
        ("a,Patient.Age", "age", "Patient.Age"),
        ("a,年龄", "age", "年龄"),
    ],
)
def test_roles(tmp_path, header, role, name):
    (tmp_path / "t.csv").write_text(f"{header}\nx,y\n", "utf-8")
    table = read_table(tmp_path / "t.csv")
    assert table.header[column_roles(table)[role]] == name


def test_roles_that_the_user_says(tmp_path):
    (tmp_path / "t.csv").write_text("image,scan,who,split\na,b,c,d\n", "utf-8")
    table = read_table(tmp_path / "t.csv")
    assert column_roles(table, {"image": "scan", "patient_id": "Who ", "split": None}) == {"image": 1, "patient_id": 2}
    assert column_roles(table, {"labels": "image"}) == {"labels": 0, "split": 3}
    with pytest.raises(DataError, match=r"DATA\.columns\.sex: 'geschlecht' is no column of .*its columns: image, scan"):
        column_roles(table, {"sex": "geschlecht"})


def test_splits():
    assert [parse_split(text) for text in ("Train", " VALID", "dev", "测试集", "驗證", "", "NA", "未知")] == [
        *("train", "val", "val", "test", "val"),
        *(None, None, None),
    ]
    with pytest.raises(ValueError, match="'trian' is not train"):
        parse_split("trian")


def test_lists(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffa.png\r\n\r\n 肺 .png\n".encode())
    assert read_list(tmp_path / "list.txt") == ["a.png", "肺 .png"]
    (tmp_path / "list.txt").write_bytes("é".encode("cp1251", "replace") + b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"list\.txt'"):
        read_text(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("Pleural_Thickening", "pleural thickening", True),
        ("PleuralThickening", "Pleural-Thickening", True),
        ("ＭＡＳＳ", "mass", True),
        ("é", "e\u0301", True),
        ("左肺\u3000结节", "左肺结节", True),
        ("1", "1.0", True),
        ("HER2+", "HER2-", False),
        ("HER2-", "HER2", False),
        ("-1", "1", False),
        ("type 1-2", "type 12", False),
        ("Mass", "Masse", False),
        ("", "-", False),
    ],
)
def test_names_that_are_one(one, other, same):
    assert (name_key(one) == name_key(other)) is same


def test_pandas_own_words_for_missing():
    from pandas._libs.parsers import STR_NA_VALUES

    words = set(STR_NA_VALUES) - {"None"}  # which in a labels cell means that nothing was found
    assert {word for word in words if not is_missing(word)} == set()


def test_a_column_of_values_has_more_words_for_none_than_one_of_findings():
    """'none' and '无' say in a column of findings that there are none."""
    assert all(map(has_no_value, ["None", "nil", "无", "#REF!", "N/A", "..", "未填"]))
    assert not any(map(has_no_value, ["no", "0", "F", "nonexistent"]))
    assert is_missing("..") and is_missing("Not Specified") and not is_missing("None")
