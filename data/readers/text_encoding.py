"""From a text file's bytes to its text, where it is certain which encoding they are in; else an error that asks.

Certain are: a byte order mark; valid UTF-8; 16-bit units among which there are line ends; GBK and Big5 in which
words of tables stand; and bytes that all Latin code pages of Windows and ISO read as the same letters within words.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

from configs.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Two characters that make sense are no accident: a reading in the wrong encoding does not give such a word.
_SIMPLIFIED = """
    图像 图片 影像 文件 名称 路径 标签 诊断 类别 结果 患者 病人 编号 病历 姓名 性别 年龄 划分 训练 验证 测试 体位
    正常 异常 未见 阴性 阳性 肺炎 结节 肿块 肿瘤 气胸 积液 积气 心影 心脏 增大 骨折 肺不张 实变 浸润 水肿 气肿 纤维
    钙化 空洞 疝气 胸膜 胸腔 肺结核 结核 病变 良性 恶性 出血 囊肿 炎症 感染 增厚 斑片 左侧 右侧 左肺 右肺 双肺 肺部
    医院 新冠 癌症 肺癌 胸部 未知 缺失 吸烟 增生 狭窄
"""
_TRADITIONAL = """
    圖像 圖片 影像 檔案 檔名 名稱 路徑 標籤 診斷 類別 結果 患者 病人 編號 病歷 姓名 性別 年齡 劃分 訓練 驗證 測試
    體位 正常 異常 未見 陰性 陽性 肺炎 結節 腫塊 腫瘤 氣胸 積液 積氣 心影 心臟 增大 骨折 肺不張 實變 浸潤 水腫 氣腫
    纖維 鈣化 空洞 疝氣 胸膜 胸腔 肺結核 結核 病變 良性 惡性 出血 囊腫 炎症 感染 增厚 左側 右側 左肺 右肺 雙肺 肺部
    醫院 新冠 癌症 肺癌 胸部 未知 缺失 吸煙 增生 狹窄
"""
_BY_WORDS = {"gb18030": _SIMPLIFIED.split(), "big5": _TRADITIONAL.split()}
_LATIN_PAGES = ("cp1252", "cp1250", "cp1254", "iso8859-1", "iso8859-2", "iso8859-15")
# Characters of two bytes, of which the second may be one of ASCII.
_RUNS = re.compile(rb"(?:[\x80-\xff]+[@-~]?)+")
_OFFERED = ("gb18030", "big5", "cp1252", "cp1251", "shift_jis", "euc_kr")
_SHOWN = 24


def decode(raw: bytes, encoding: str | None = None) -> tuple[str, str]:
    """(the text without a byte order mark, the encoding, '' where that needs no word).

    encoding: DATA.encoding, which then counts. Raises DataError, a sentence after the file's name, where the bytes are
    not in it, or where it is None and not certain.
    """
    if encoding is not None:
        return _as_asked(raw, encoding), ""
    for mark, name in _MARKS:
        if raw.startswith(mark):
            return _strict(raw[len(mark) :], name, f"it begins with the mark of {name}, but"), ""
    if text := _of_16_bits(raw):
        return text, ""
    try:
        text = raw.decode()
    except UnicodeDecodeError as reason:
        return _of_code_page(raw, _by_words(raw), reason.start)
    if text.isascii():
        return text, ""
    found = " ".join(set(re.findall(r"[^\x00-\x7f]+", text)))
    known = any(word in found for words in _BY_WORDS.values() for word in words)
    if not known and (by_words := _by_words(raw)):  # the bytes of '联通' in GBK are valid UTF-8
        raise DataError(f"may be UTF-8 or {' or '.join(by_words)}: {_readings(raw, ('utf-8', *by_words))}: {_ASK}")
    return text, ""


_ASK = "say which by DATA.encoding, or save it as UTF-8"


def _as_asked(raw: bytes, encoding: str) -> str:
    name = codecs.lookup(encoding).name
    if name in ("utf-8", "utf-8-sig", "utf-16", "utf-32") or name.startswith(("utf-16-", "utf-32-")):
        for mark, marked in _MARKS:  # in a fixed byte order Python would leave the mark in the first cell
            if raw.startswith(mark) and marked.startswith(name.removesuffix("-sig")):
                return _strict(raw[len(mark) :], marked, f"DATA.encoding is {encoding!r}, but")
    return _strict(raw, encoding, f"DATA.encoding is {encoding!r}, but")


def _strict(raw: bytes, encoding: str, why: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeError as reason:
        raise DataError(f"is not all text in it: {why} {reason}") from None


def _of_16_bits(raw: bytes) -> str:
    """UTF-16 without a mark: in the other byte order a line end is no character at all."""
    if b"\0" not in raw or len(raw) % 2:
        return ""
    for name in ("utf-16-le", "utf-16-be"):
        try:
            text = raw.decode(name)
        except UnicodeDecodeError:
            continue
        lines = text.splitlines()
        if len(lines) > 1 and "\0" not in text and ("\n" in text or "\r" in text) and _is_readable(text[:4096]):
            return text
    return ""


def _is_readable(text: str) -> bool:
    return all(mark in "\t\r\n" or unicodedata.category(mark) not in ("Cn", "Cc", "Co", "Cs") for mark in text)


def _by_words(raw: bytes) -> list[str]:
    """The encodings of Chinese in which there are words of tables."""
    found = b" ".join(set(_RUNS.findall(raw)))
    likely = [name for name, words in _BY_WORDS.items() if any(word.encode(name) in found for word in words)]
    return [name for name in likely if _has_word(raw, name, _BY_WORDS[name])]


def _has_word(raw: bytes, encoding: str, words: list[str]) -> bool:
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return any(word in text for word in words)


def _of_code_page(raw: bytes, by_words: list[str], first: int) -> tuple[str, str]:
    if len(by_words) == 1:
        return raw.decode(by_words[0]), by_words[0]
    if not by_words and _is_latin(raw):
        return raw.decode("cp1252"), "cp1252"
    listed = _readings(raw, _OFFERED)
    raise DataError(f"is not UTF-8 (byte {first + 1} is 0x{raw[first]:02x}) and may be {listed}: {_ASK}")


def _same_everywhere() -> bytes:
    """Bytes that are the same letter in all Latin code pages."""
    found = bytearray()
    for code in range(0x80, 0x100):
        read = {bytes([code]).decode(page, "replace") for page in _LATIN_PAGES}
        if len(read) == 1 and read.pop().isalpha():
            found.append(code)
    return bytes(found)


_LATIN = re.escape(_same_everywhere())
# One or two such letters in a row, beside a letter of ASCII: 'Ödem', 'Größe'.
_LATIN_WORDS = re.compile(
    b"(?<=[A-Za-z])[%b]{1,2}(?![\x80-\xff])|(?<![\x80-\xff])[%b]{1,2}(?=[A-Za-z])" % (_LATIN, _LATIN)
)


def _is_latin(raw: bytes) -> bool:
    return _LATIN_WORDS.sub(b"", raw).isascii()


def _readings(raw: bytes, encodings: tuple[str, ...]) -> str:
    """How the first line with other than ASCII characters looks in each encoding that it can be in."""
    line = next((line for line in re.split(rb"[\r\n]+", raw) if not line.isascii()), raw)
    found = []
    for name in encodings:
        try:
            text = line.decode(name)
        except UnicodeDecodeError:
            continue
        if text.isprintable():
            start = max(0, next(i for i, mark in enumerate(text) if not mark.isascii()) - 8)
            found.append(f"{name} ('{text[start : start + _SHOWN]}')")
    return ", ".join(found) or "no text"
