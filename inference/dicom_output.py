"""Results as DICOM objects that an archive takes: structured reports (TID 1500) and secondary captures of heatmaps.

They are of the patient and the study of the images that were asked about, in a series of their own. UIDs are functions
of these images, the models and the probabilities: the same result has the same UIDs, another result others. Made with
highdicom, which is imported here only: `pip install "highdicom>=0.25"`.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from configs.errors import PredictionError
from inference.results import Row
from utils.atomic_file import replacing

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, FindingSite, MeasurementReport
    from pydicom import Dataset
    from pydicom.sr.coding import Code

DicomKind = Literal["sr", "sc"]
FOLDER, PROGRAM, SCHEME = "dicom", "HybridMedNet", "99HYBRIDMEDNET"
CAUTION = "Research software, not a medical device: not for clinical use, not a diagnosis"
_SERIES = {
    "sr": (9901, "AI probabilities, research only, not for clinical use"),
    "sc": (9902, "AI heatmaps, research only, not for clinical use"),
}
_NAMESPACE = uuid.UUID("6f1e1f0e-5b0b-5c2b-9f39-2f1f0d6f3c11")
_SHORT, _LONG = 16, 64  # characters of DICOM's SH and LO
_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
_STRIP, _MARGIN = 22, 6  # pixels of the line of caution below a heatmap


@dataclass(frozen=True)
class AskedModels:
    """The models, for the documents. models: SHA-256 of each. source: where thresholds come from, in words. version: of
    this program.
    """

    class_names: Sequence[str]
    models: Sequence[str]
    source: str
    version: str


def check_installed() -> None:
    """Raises PredictionError where highdicom is not."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise PredictionError('--dicom-output needs highdicom: pip install "highdicom>=0.25"') from None


class DicomOutput:
    """Writes into `folder`/dicom. kinds: 'sr', 'sc'."""

    def __init__(self, folder: Path, kinds: Sequence[DicomKind], asked: AskedModels) -> None:
        check_installed()
        self.folder, self.kinds, self.asked = folder, tuple(kinds), asked

    def write(self, row: Row, sources: Sequence[Dataset]) -> tuple[str, ...]:
        """The objects of one row, their paths relative to `folder`. sources: the headers of its images, of one study.

        Those that are there already have the same UIDs and stay. Raises PredictionError where a header has not what
        they need, and where they cannot be written.
        """
        assert row.probabilities is not None, "a predicted row"
        with _named_errors(row.image):
            sources = [_prepared(source, row.image) for source in sources]
            objects = []
            if "sr" in self.kinds:
                objects.append(structured_report(row, sources, self.asked))
            if "sc" in self.kinds:
                files = [self.folder / name for name in row.heatmaps]
                objects += [secondary_capture(file, n, row, sources, self.asked) for n, file in enumerate(files, 1)]
            return tuple(self._save(one) for one in objects)

    def _save(self, dataset: Dataset) -> str:
        name = f"{FOLDER}/{dataset.SOPInstanceUID}.dcm"
        path = self.folder / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                dataset.save_as(temporary, enforce_file_format=True)
        return name


def structured_report(row: Row, sources: Sequence[Dataset], asked: AskedModels) -> Dataset:
    """A Comprehensive SR with a TID 1500 measurement report: a probability, without unit, for each class, and whether
    it reaches the decision threshold; unverified and preliminary.
    """
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import ComprehensiveSR

    uid = _result_uid("sr", row, sources, asked)
    number, description = _SERIES["sr"]
    dataset: Dataset = ComprehensiveSR(
        sources,
        _report(row, sources, asked, uid)[0],
        _series_uid("sr", sources, asked),
        number,
        uid,
        1,
        manufacturer=PROGRAM,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=description,
        manufacturer_model_name=PROGRAM,
        software_versions=asked.version[:_LONG],
        specific_character_set="ISO_IR 192",
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, f"Classes of {PROGRAM} models, by name")],
    )
    return dataset


def secondary_capture(file: Path, number: int, row: Row, sources: Sequence[Dataset], asked: AskedModels) -> Dataset:
    """A heatmap's drawing as a Secondary Capture image, with a line of caution below it, burnt in and said to be."""
    from highdicom.sc import SCImage
    from pydicom.dataset import Dataset as NewDataset
    from pydicom.uid import ExplicitVRLittleEndian

    first = sources[0]
    series, description = _SERIES["sc"]
    side = _side(sources)
    dataset: Dataset = SCImage.from_ref_dataset(
        first,
        _with_caution(file),
        "RGB",
        8,
        "PATIENT",
        _series_uid("sc", sources, asked),
        series,
        _result_uid(f"sc {number}", row, sources, asked),
        number,
        PROGRAM,
        patient_orientation=("L", "F"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=description,
        manufacturer_model_name=PROGRAM,
        software_versions=asked.version[:_LONG],
        specific_character_set="ISO_IR 192",
    )
    dataset.PatientOrientation = None  # of a drawing of several panels: unknown, which type 2 allows
    if side:
        dataset.ImageLaterality = side
    dataset.BurnedInAnnotation = "YES"
    dataset.RecognizableVisualFeatures = "NO"
    dataset.ImageComments = CAUTION
    dataset.DerivationDescription = f"Heatmap of a neural network over the image, by {PROGRAM} {asked.version}"[:1024]
    dataset.LossyImageCompression = "01" if any(one.get("LossyImageCompression") == "01" for one in sources) else "00"
    if dataset.LossyImageCompression == "01":
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in first:
                dataset[keyword] = first[keyword]
    if first.get("BodyPartExamined"):
        dataset.BodyPartExamined = first.BodyPartExamined
    references = []
    for source in sources:
        reference = NewDataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        references.append(reference)
    dataset.SourceImageSequence = references
    return dataset


# ---- the report


def _report(row: Row, sources: Sequence[Dataset], asked: AskedModels, uid: str) -> MeasurementReport:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    assert row.probabilities is not None
    device = sr.DeviceObserverIdentifyingAttributes(
        _uid("device", PROGRAM, asked.version), PROGRAM, manufacturer_name=PROGRAM, model_name=PROGRAM
    )
    words = "; ".join(f"SHA-256 {digest}" for digest in asked.models)
    algorithm = sr.AlgorithmIdentification(
        PROGRAM, asked.version, [f"models: {words}", f"thresholds: {asked.source}", CAUTION], manufacturer=PROGRAM
    )
    measurements, evaluations = [], []
    for k, (name, probability) in enumerate(zip(asked.class_names, row.probabilities.tolist())):
        concept = _class_code("P", f"Probability of {name}")
        measurements.append(sr.Measurement(concept, float(f"{probability:.9g}"), codes.UCUM.NoUnits))
        called = _own_code("CALLED", "At or above the decision threshold")
        other = _own_code("NOTCALLED", "Below the decision threshold")
        evaluations.append(sr.QualitativeEvaluation(_class_code("F", name), called if k in row.findings else other))
    group = sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(_uid("tracking", uid), "whole study" if len(sources) > 1 else "whole image"),
        algorithm_id=algorithm,
        finding_sites=_sites(sources),
        measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source) for source in sources],
    )
    comment = sr.TextContentItem(codes.DCM.Comment, CAUTION, sr.RelationshipTypeValues.CONTAINS)
    group[0].ContentSequence.append(comment)
    return sr.MeasurementReport(
        sr.ObservationContext(sr.ObserverContext(codes.DCM.Device, device)),
        _procedure(sources),
        [group],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _class_code(letter: str, meaning: str) -> CodedConcept:
    """A private code of a class, the same for every model that has a class of this name."""
    return _own_code(f"{letter}{zlib.crc32(meaning.encode()):08X}", meaning)


def _own_code(value: str, meaning: str) -> CodedConcept:
    from highdicom.sr import CodedConcept

    short = meaning if len(meaning) <= _LONG else meaning[: _LONG - 3] + "..."
    return CodedConcept(value[:_SHORT], SCHEME, short)


def _procedure(sources: Sequence[Dataset]) -> Code:
    from pydicom.sr.codedict import codes

    modality = str(sources[0].get("Modality") or "")
    if modality in ("CR", "DX", "MG", "RF", "XA", "RG"):
        return codes.LN.XRUnspecifiedBodyRegion
    named = {"CT": codes.LN.CTUnspecifiedBodyRegion, "MR": codes.LN.MRIUnspecifiedBodyRegion}
    return named.get(modality, codes.SCT.ImagingProcedure)


def _sites(sources: Sequence[Dataset]) -> list[FindingSite]:
    """Where the images say which body part they show, that, with its side where they say one."""
    from highdicom.sr import CodedConcept, FindingSite
    from pydicom.sr.codedict import codes

    first, side = sources[0], _side(sources)
    laterality = {"L": codes.SCT.Left, "R": codes.SCT.Right}.get(side)
    regions = first.get("AnatomicRegionSequence")
    if regions:
        item = regions[0]
        return [FindingSite(CodedConcept(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning), laterality)]
    part = str(first.get("BodyPartExamined") or "").replace(" ", "").upper()
    known = {name.upper(): name for name in codes.cid4031.dir()}
    return [FindingSite(getattr(codes.cid4031, known[part]), laterality)] if part in known else []


def _side(sources: Sequence[Dataset]) -> str:
    """L or R where all images say the same, '' otherwise."""
    sides = {str(one.get("ImageLaterality") or one.get("Laterality") or "") for one in sources}
    return next(iter(sides)) if sides in ({"L"}, {"R"}) else ""


# ---- headers, UIDs, drawings


def _prepared(source: Dataset, name: str) -> Dataset:
    """A header with what type 2 allows to be empty; PredictionError where it has no UIDs."""
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not source.get(keyword):
            raise PredictionError(f"no DICOM output for '{name}': its file has no {keyword}")
    source.decode()
    if not source.get("Modality"):
        source.Modality = "OT"  # which is not written: it chooses the code of the procedure
    for keyword in _EMPTY:
        if keyword not in source:
            setattr(source, keyword, None)
    return source


def _uid(*parts: str) -> str:
    """A UID (PS3.5 B.2, from a UUID) that is a function of texts."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"


def _series_uid(kind: str, sources: Sequence[Dataset], asked: AskedModels) -> str:
    return _uid("series", kind, str(sources[0].StudyInstanceUID), *asked.models)


def _result_uid(kind: str, row: Row, sources: Sequence[Dataset], asked: AskedModels) -> str:
    assert row.probabilities is not None
    images = [str(source.SOPInstanceUID) for source in sources]
    figures = [f"{p:.9g}" for p in row.probabilities.tolist()]
    return _uid(kind, *images, *asked.models, asked.source, *asked.class_names, *figures, str(row.findings))


def _with_caution(file: Path) -> np.ndarray:
    """uint8 [H, W, 3]: a drawing with a line of text below it."""
    from PIL import Image, ImageDraw

    with Image.open(file) as opened:
        drawing = opened.convert("RGB")
    whole = Image.new("RGB", (drawing.width, drawing.height + _STRIP), "white")
    whole.paste(drawing)
    ImageDraw.Draw(whole).text((_MARGIN, drawing.height + _MARGIN), f"{PROGRAM}. {CAUTION}.", fill="black")
    return np.asarray(whole)


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """What highdicom and pydicom say of a header that cannot be."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError) as reason:
        detail = " ".join(str(reason).split())
        raise PredictionError(f"no DICOM output for '{name}': {detail}") from reason
