"""Windows, rescale, polarity and functional groups of the DICOM corpus, what is refused, and the same in volumes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from tests.data.readers.dicom_cases import (
    NATIVE,
    Case,
    dataset_of,
    linear,
    linear_exact,
    looked_up,
    placed,
    ramp,
    stretched,
    written,
)
from tests.data.readers.dicom_table_cases import CURVE, item_of, words_in_file

FULL = ramp(12)
UNITS = FULL.astype(np.float64)
ONE_VALUE = "run from 0 to 4095, and as an image all are"


def attributes() -> Iterator[Case]:
    """What single attributes say, in words or numbers that are hard to read, and what is refused."""
    zeros = np.zeros(FULL.shape)
    window: Callable[..., dict[str, Any]] = lambda c, w, **more: {"WindowCenter": c, "WindowWidth": w, **more}  # noqa: E731
    cases: dict[str, tuple[dict[str, Any], np.ndarray | str]] = {
        "several windows, the first": (window(["2000", "40"], ["1000", "400"]), linear(UNITS, 2000, 1000)),
        "two centers, one width": (window(["2000", "40"], "1000"), linear(UNITS, 2000, 1000)),
        "width 1 is a step": (window("2000", "1"), linear(UNITS, 2000, 1)),
        "width 0.5, exact": (window("2000", "0.5", VOILUTFunction="LINEAR_EXACT"), linear_exact(UNITS, 2000, 0.5)),
        "function in small letters": (window("9", "99", VOILUTFunction="linear_exact"), linear_exact(UNITS, 9, 99)),
        "width 0.5, linear": (window("2000", "0.5"), "window width 0.5 is not allowed for a LINEAR window"),
        "width 0": (window("2000", "0"), "window width 0 is not allowed"),
        "width 0, exact": (window("2000", "0", VOILUTFunction="LINEAR_EXACT"), "window width 0 is not allowed"),
        "width -9, sigmoid": (window("2000", "-9", VOILUTFunction="SIGMOID"), "window width -9 is not allowed"),
        "function": (window("2000", "9", VOILUTFunction="CUBIC"), "'CUBIC' is none of LINEAR, LINEAR_EXACT, SIGMOID"),
        "window above all values": (window("9000", "400"), ONE_VALUE),
        "window below all values": (window("-600", "400"), ONE_VALUE),
        "window of another modality": (window("40", "400", RescaleIntercept="-30000", RescaleSlope="1"), ONE_VALUE),
        "center nan": (window("nan", "400"), "WindowCenter nan is no finite number"),
        "center without width": ({"WindowCenter": "40"}, stretched(FULL)),
        "slope without intercept": ({"RescaleSlope": "2", **window("2000", "1000")}, linear(2 * UNITS, 2000, 1000)),
        "intercept without slope": ({"RescaleIntercept": "-9", **window("2000", "900")}, linear(UNITS - 9, 2000, 900)),
        "slope 1e-9": ({"RescaleSlope": "1e-9", "RescaleIntercept": "0"}, stretched(FULL)),
        "slope 0": ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "RescaleSlope 0 makes one value of all"),
        "slope 0, window": ({"RescaleSlope": "0", **window("0", "9")}, "RescaleSlope 0 makes one value of all"),
        "slope lost beside the intercept": ({"RescaleSlope": "1e-9", "RescaleIntercept": "1e12"}, ONE_VALUE),
        "slope nan": ({"RescaleSlope": "nan"}, "RescaleSlope nan is no finite number"),
        "intercept inf": ({"RescaleIntercept": "inf"}, "RescaleIntercept inf is no finite number"),
        "IDENTITY": ({"PresentationLUTShape": "IDENTITY"}, stretched(FULL)),
        "MONOCHROME2 and INVERSE": (
            {"PresentationLUTShape": "INVERSE"},
            "MONOCHROME2 and PresentationLUTShape INVERSE",
        ),
        "MONOCHROME1 and IDENTITY": (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
            1 - stretched(FULL),
        ),
        "MONOCHROME1 and INVERSE": (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
            1 - stretched(FULL),
        ),
        "FOR PRESENTATION is windowed once": (
            {"PresentationIntentType": "FOR PRESENTATION", **window("2000", "1000")},
            linear(UNITS, 2000, 1000),
        ),
        "HighBit 16 of 16 bits": ({"BitsStored": 16, "HighBit": 16}, stretched(FULL)),
        "HighBit 11 of 16 bits, not used": ({"BitsStored": 16, "HighBit": 11}, stretched(FULL)),
        "HighBit 10 of 16 bits, used": ({"BitsStored": 16, "HighBit": 10}, "its pixels use bits above HighBit"),
        "HighBit 15 of 12 bits in the lowest": ({"HighBit": 15}, "its pixels lie in the lowest 12 bits"),
        "HighBit 16 of 12 bits": ({"HighBit": 16}, "HighBit must be less than BitsAllocated"),
        "padding of two values": ({"PixelPaddingValue": [1, 2]}, "PixelPaddingValue has 2 values"),
        "padding is everything": (
            {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095},
            "every pixel is in the range",
        ),
        "three frames": ({"NumberOfFrames": 3}, "it holds 3 frames"),
    }
    for name, (said, right) in cases.items():
        yield Case(name, lambda said=said, right=right: (written(dataset_of(FULL, 12, **said)), right))
    for name, vr, text in (
        ("RescaleSlope", "LO", "one"),
        ("RescaleIntercept", "LO", "1,5"),
        ("WindowCenter", "SH", "LUNG"),
        ("WindowWidth", "SH", "?"),
    ):
        yield Case(
            f"{name} {text}", lambda a=(name, vr, text): (_with_element(*a), re.escape(f"{a[0]} '{a[2]}' is no number"))
        )
    empty = {"WindowCenter": None, "WindowWidth": None, "RescaleSlope": None, "RescaleIntercept": None}
    yield Case("empty attributes", lambda: (written(dataset_of(FULL, 12, **empty)), stretched(FULL)))
    flat = np.full(FULL.shape, 7, np.uint16)
    yield Case("one stored value and slope 0", lambda: (written(dataset_of(flat, 12, RescaleSlope="0")), zeros))
    yield Case("one stored value", lambda: (written(dataset_of(flat, 12)), zeros))


def _with_element(name: str, vr: str, text: str) -> bytes:
    dataset = dataset_of(FULL, 12, WindowCenter="40", WindowWidth="400")
    dataset.add_new(name, vr, text)
    return written(dataset)


# ---- functional groups


def group(sequence: str, **values: Any) -> Dataset:
    inner, outer = Dataset(), Dataset()
    for name, value in values.items():
        setattr(inner, name, value)
    setattr(outer, sequence, [inner])
    return outer


RESCALED = {"RescaleSlope": "2", "RescaleIntercept": "-1024", "RescaleType": "US"}
WINDOWED = {"WindowCenter": "3000", "WindowWidth": "2000"}
EXACT = {**WINDOWED, "VOILUTFunction": "LINEAR_EXACT"}
GROUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rescale": (RESCALED, {}),
    "window": ({}, WINDOWED),
    "rescale and window": (RESCALED, WINDOWED),
    "rescale and exact": (RESCALED, EXACT),
    "VOI LUT": ({}, {"VOILUTSequence": [item_of(words_in_file(CURVE, ""), 0, 12, 4096, "US")]}),
}


def groups() -> Iterator[Case]:
    """C.7.6.16.2.9, .10: in the shared groups, in the frame's own, and over what the data set itself says."""
    for what in GROUPS:
        for rescale_in in ("shared", "own"):
            for window_in in ("shared", "own"):
                for label in ("explicit", "implicit", "big"):
                    if what == "VOI LUT" and label == "big":
                        continue
                    name = f"{what}: rescale {rescale_in}, window {window_in}, {label}"
                    yield Case(name, lambda a=(what, rescale_in, window_in, label): _grouped(*a))
    yield Case(
        "groups over the data set", lambda: _grouped("rescale and window", "own", "shared", "explicit", **_OTHER)
    )
    yield Case("an empty group", _empty_group)
    yield Case("Real World Value Mapping", _real_world)
    yield Case("groups of another number of frames", _too_many_groups)


_OTHER = {"RescaleSlope": "7", "RescaleIntercept": "70", "WindowCenter": "1", "WindowWidth": "2"}


def _grouped(what: str, rescale_in: str, window_in: str, label: str, **said: Any) -> tuple[bytes, np.ndarray]:
    rescale, window = GROUPS[what]
    items: dict[str, Dataset] = {"shared": Dataset(), "own": Dataset()}
    if rescale:
        items[rescale_in].update(group("PixelValueTransformationSequence", **rescale))
    if window:
        items[window_in].update(group("FrameVOILUTSequence", **window))
    dataset = dataset_of(FULL, 12, NATIVE[label], NumberOfFrames=1, **said)
    dataset.SharedFunctionalGroupsSequence = [items["shared"]]
    dataset.PerFrameFunctionalGroupsSequence = [items["own"]]
    units = UNITS * 2 - 1024 if rescale else UNITS
    if "VOILUTSequence" in window:
        right = CURVE[FULL] / 4095
    elif window:
        right = (linear_exact if "VOILUTFunction" in window else linear)(units, 3000, 2000)
    else:
        right = stretched(units)
    return written(dataset), right


def _empty_group() -> tuple[bytes, np.ndarray]:
    dataset = dataset_of(FULL, 12, WindowCenter="3000", WindowWidth="2000")
    dataset.SharedFunctionalGroupsSequence = [group("FrameVOILUTSequence")]
    dataset.PerFrameFunctionalGroupsSequence = [group("FrameVOILUTSequence", WindowCenter=None, WindowWidth=None)]
    return written(dataset), linear(UNITS, 3000, 2000)


def _real_world() -> tuple[bytes, np.ndarray]:
    dataset = dataset_of(FULL, 12, WindowCenter="3000", WindowWidth="2000")
    mapping = {"RealWorldValueIntercept": 5.0, "RealWorldValueSlope": 100.0}
    dataset.SharedFunctionalGroupsSequence = [group("RealWorldValueMappingSequence", **mapping)]
    return written(dataset), linear(UNITS, 3000, 2000)


def _too_many_groups() -> tuple[bytes, str]:
    dataset = dataset_of(FULL, 12, NumberOfFrames=1)
    dataset.PerFrameFunctionalGroupsSequence = [
        group("FrameVOILUTSequence", WindowCenter=c, WindowWidth=9) for c in "12"
    ]
    return written(dataset), "describes 2 frames, NumberOfFrames is 1"


# ---- volumes


def stored_volumes() -> dict[str, tuple[np.ndarray, int, dict[str, Any], np.ndarray]]:
    """By name: words [3, SIDE, SIDE], BitsStored, attributes, and modality units, float64."""
    signed = np.stack([np.roll(ramp(12, signed=True), 7 * number) for number in range(3)])
    unsigned = np.stack([np.roll(FULL, 7 * number) for number in range(3)])
    shifted, top = placed(unsigned, 12, "shifted up")
    overlaid, _ = placed(signed, 12, "overlay above")
    table = item_of(words_in_file(CURVE, ""), -2048, 16, 4096, "SS")
    padded, inside = signed.copy(), np.ones(signed.shape, bool)
    padded[:, :2], inside[:, :2] = -2000, False
    inside &= padded != -2000
    return {
        "signed": (signed, 12, {}, signed.astype(np.float64)),
        "rescaled": (unsigned, 12, {"RescaleSlope": "2.5", "RescaleIntercept": "-1024"}, unsigned * 2.5 - 1024),
        "shifted up": (shifted, 12, {"HighBit": top}, unsigned.astype(np.float64)),
        "overlay": (overlaid, 12, {}, signed.astype(np.float64)),
        "Modality LUT": (signed, 12, {"ModalityLUTSequence": [table]}, looked_up(signed, CURVE, -2048).astype(float)),
        "padding as US": (padded, 12, {"PixelPaddingValue": 63536}, np.where(inside, padded, padded[inside].min())),
    }


def series_files(words: np.ndarray, stored: int, said: dict[str, Any], enhanced: bool) -> list[bytes]:
    """A file for each slice, classic or Enhanced of one frame."""
    found = []
    for number, pixels in enumerate(words):
        dataset = dataset_of(pixels, stored, **{"PixelRepresentation": int(words.dtype.kind == "i")})
        own, shared = placing(number)
        if enhanced:
            dataset.NumberOfFrames = 1
            dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence = [own], [shared]
        else:
            for item in (own.PlanePositionSequence, shared.PlaneOrientationSequence, shared.PixelMeasuresSequence):
                dataset.update(item[0])
        say(dataset, said, shared if enhanced else None)
        found.append(written(dataset))
    return found


def multiframe_file(words: np.ndarray, stored: int, said: dict[str, Any], own_rescale: bool) -> bytes:
    """One Enhanced file; the rescale in the groups of each frame or in the shared ones."""
    dataset = dataset_of(words[0], stored, NumberOfFrames=len(words), PixelData=words.tobytes())
    places = [placing(number) for number in range(len(words))]
    dataset.PerFrameFunctionalGroupsSequence = [own for own, _ in places]
    dataset.SharedFunctionalGroupsSequence = [places[0][1]]
    for item in dataset.PerFrameFunctionalGroupsSequence if own_rescale else dataset.SharedFunctionalGroupsSequence:
        say(dataset, said, item)
    return written(dataset)


def placing(number: int) -> tuple[Dataset, Dataset]:
    own = group("PlanePositionSequence", ImagePositionPatient=[0, 0, 2 * number])
    shared = group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.update(group("PixelMeasuresSequence", PixelSpacing=[1, 1]))
    return own, shared


def say(dataset: Dataset, said: dict[str, Any], groups: Dataset | None) -> None:
    """Attributes where they belong: a rescale in the functional groups of an Enhanced object."""
    rescale = {name: value for name, value in said.items() if name.startswith("Rescale")}
    if groups is not None and rescale:
        groups.update(group("PixelValueTransformationSequence", **rescale))
    for name, value in said.items():
        if groups is None or name not in rescale:
            setattr(dataset, name, value)
    if "PixelPaddingValue" in said:
        dataset.add_new("PixelPaddingValue", "US", said["PixelPaddingValue"])
