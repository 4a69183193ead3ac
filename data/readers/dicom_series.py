"""The slices of a DICOM series, or the frames of one multi-frame file, to one volume.

Where a slice lies is what ImagePositionPatient and ImageOrientationPatient say (PS3.3 C.7.6.2.1.1; in multi-frame
files the functional groups of C.7.6.16.2.2 to .4): neither InstanceNumber, SliceLocation nor file names are looked at,
nor SliceThickness, which is no distance between slices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import DataError
from data.readers.dicom import DICOM_SUFFIXES, looks_like_dicom, read_dataset
from data.readers.dicom_attributes import check_frame_groups, group_with, integer
from data.readers.dicom_bits import StoredPixels, decode_pixels
from data.readers.dicom_colour import has_supplemental_palette
from data.readers.dicom_values import padding_mask, refuse_constant, to_units
from data.readers.regular_files import read_head
from data.readers.tables import some
from data.readers.volumes import Volume, check_size, to_convention

if TYPE_CHECKING:
    from pydicom import Dataset

# The functional groups that place a frame (PS3.3 C.7.6.16.2.1, .3, .4), and what each must hold.
_GEOMETRY = (
    ("PlanePositionSequence", ("ImagePositionPatient",)),
    ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
    ("PixelMeasuresSequence", ("PixelSpacing",)),
)
_COSINE_TOLERANCE = 1e-3
_LARGEST_TILT_DEGREES = 0.5
# Equal positions and missing slices change a distance by 100 %; rounded positions by far less.
_STEP_TOLERANCE, _STEP_TOLERANCE_MM = 0.1, 0.1
_MAX_DISPLAYED_SERIES = 4


@dataclass(frozen=True)
class Slice:
    """One slice, not yet decoded.

    position: centre of its first pixel in mm. orientation: [2, 3], unit vectors along a row and down a column.
    spacing: (between rows, between columns) in mm. shape: (rows, columns). frame: None in a single-frame file.
    series: its SeriesInstanceUID, '' where absent.
    """

    path: Path
    frame: int | None
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, int]
    series: str

    @property
    def name(self) -> str:
        return self.path.name if self.frame is None else f"frame {self.frame + 1}"


def read_series(folder: Path, files: Sequence[Path] | None = None) -> Volume:
    """A folder of single-frame slices as one volume, rescaled slice by slice (modality units, HU for CT).

    files: the slices, None: all DICOM files right in the folder. Other files are left alone, unless their name says
    DICOM. Slices are sorted by their positions on the common normal. Padding (PixelPaddingValue) becomes the smallest
    value that is none.

    Raises DataError, naming the files, for several series, differing sizes, spacings or orientations, two slices at
    one place, a gap (a slice missing at either end cannot be known), slices sheared by a tilted gantry, colours and
    MONOCHROME1, a single slice, or what keeps a slice from being decoded. Slices may be Enhanced objects of one frame.
    """
    files = list_slices(folder) if files is None else files
    slices = []
    for path in files:
        with naming(path.name):
            header = read_dataset(path, header_only=True)
            check_frame_groups(header)
            slices.append(_slice_of(path, None, header, [group_with(header, 0, *group) for group in _GEOMETRY]))
    ordered, affine = arrange(slices)
    voxels = np.empty((len(ordered), *ordered[0].shape), np.float32)
    padded = np.zeros(voxels.shape, bool)
    for index, item in enumerate(ordered):
        with naming(item.name):
            dataset = read_dataset(item.path)
            voxels[index], padded[index] = _values(decode_pixels(dataset), dataset, 0, item.shape)
    return to_convention(_fill(voxels, padded).T, affine)


def read_multiframe(path: Path) -> Volume:
    """An Enhanced CT, MR or PET file, or another whose frames say where they lie, as one volume; see read_series."""
    dataset = read_dataset(path)
    frames = integer(dataset, "NumberOfFrames", 1)
    if frames < 2:
        raise DataError("the file holds one slice; name the folder that holds the slices of the series")
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(per_frame) != frames:
        raise DataError(f"{frames} frames, but PerFrameFunctionalGroupsSequence places {len(per_frame)} of them")
    slices = [_frame_of(path, index, dataset) for index in range(frames)]
    ordered, affine = arrange(slices)
    pixels = decode_pixels(dataset)
    voxels = np.empty((frames, *ordered[0].shape), np.float32)
    padded = np.zeros(voxels.shape, bool)
    for index, item in enumerate(ordered):
        number = item.frame or 0
        with naming(item.name):
            voxels[index], padded[index] = _values(pixels.frame(number), dataset, number, item.shape)
    return to_convention(_fill(voxels, padded).T, affine)


def list_slices(folder: Path) -> list[Path]:
    """The DICOM files right in a folder, sorted by name; hidden files and DICOMDIR are left out.

    Raises DataError for a file that is DICOM by its name and not by its content, and for a folder without any.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
            continue
        if looks_like_dicom(read_head(path)):
            found.append(path)
        elif path.suffix.lower() in DICOM_SUFFIXES:
            raise DataError(f"'{path.name}' is not DICOM: neither 'DICM' at byte 128 nor a data set at byte 0")
    if not found:
        below = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise DataError(f"no DICOM file lies right in it{f'; its folders are {some(below)}' if below else ''}")
    return found


def arrange(slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray]:
    """The slices in the order of their positions, and the affine [4, 4] from (column, row, slice, 1) to mm.

    Raises DataError where they are not one regular stack: see read_series.
    """
    _check_alike(slices)
    first = slices[0]
    check_size((len(slices), *first.shape))
    if len(slices) < 2:
        raise DataError("it holds one slice; a volume needs two or more")
    normal = np.cross(*first.orientation)
    ordered = sorted(slices, key=lambda item: float(item.position @ normal))
    _check_steps(ordered, np.diff([float(item.position @ normal) for item in ordered]))
    step = (ordered[-1].position - ordered[0].position) / (len(ordered) - 1)
    _check_tilt(step, normal)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, ordered[0].position
    return ordered, affine


def _check_alike(slices: Sequence[Slice]) -> None:
    series = Counter(item.series for item in slices)
    if len(series) > 1:
        listed = ", ".join(
            f"{uid or '(none)'} ({count} files)" for uid, count in series.most_common(_MAX_DISPLAYED_SERIES)
        )
        more = f" and {len(series) - _MAX_DISPLAYED_SERIES} more" if len(series) > _MAX_DISPLAYED_SERIES else ""
        raise DataError(f"it holds {len(series)} series, SeriesInstanceUID {listed}{more}: give each its own folder")
    first = slices[0]
    for item in slices[1:]:
        pair = f"'{first.name}' and '{item.name}'"
        if item.shape != first.shape:
            raise DataError(f"{pair} differ in Rows and Columns: {list(first.shape)} and {list(item.shape)}")
        if np.abs(item.orientation - first.orientation).max() > _COSINE_TOLERANCE:
            raise DataError(f"{pair} differ in ImageOrientationPatient: a scout among the slices, or two stacks?")
        if not np.allclose(item.spacing, first.spacing, rtol=1e-3, atol=0):
            raise DataError(f"{pair} differ in PixelSpacing: {first.spacing.tolist()} and {item.spacing.tolist()} mm")


def _check_steps(ordered: Sequence[Slice], steps: np.ndarray) -> None:
    def pair(index: int) -> str:
        return f"'{ordered[index].name}' and '{ordered[index + 1].name}'"

    closest = int(steps.argmin())
    if steps[closest] < 1e-3:
        raise DataError(f"{pair(closest)} lie at the same place: a file twice, or several phases: keep one of them")
    usual = float(np.median(steps))
    tolerance = min(max(_STEP_TOLERANCE * usual, _STEP_TOLERANCE_MM), 0.4 * usual)
    worst = int(np.abs(steps - usual).argmax())
    if abs(steps[worst] - usual) > tolerance:
        more = steps[worst] > usual
        what = f"about {max(round(float(steps[worst]) / usual) - 1, 1)} slices are missing" if more else "irregular"
        raise DataError(f"{pair(worst)} are {steps[worst]:.4g} mm apart, others {usual:.4g} mm: {what}")


def _check_tilt(step: np.ndarray, normal: np.ndarray) -> None:
    cosine = float(step @ normal / np.linalg.norm(step))
    tilt = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if tilt > _LARGEST_TILT_DEGREES:
        raise DataError(
            f"its slices are sheared by {tilt:.1f} degrees (a tilted gantry), which is not corrected here: "
            "resample it to an upright grid and save that as .nii.gz"
        )


def _slice_of(path: Path, frame: int | None, dataset: Dataset, groups: Sequence[Dataset]) -> Slice:
    """groups: the data sets with ImagePositionPatient, ImageOrientationPatient and PixelSpacing."""
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    if photometric != "MONOCHROME2":
        raise DataError(f"PhotometricInterpretation {photometric or 'missing'}: volumes are read from MONOCHROME2")
    if has_supplemental_palette(dataset):
        raise DataError("some of its values are colours (PixelPresentation): volumes are read from grey values")
    if frame is None and integer(dataset, "NumberOfFrames", 1) > 1:
        raise DataError("it holds several frames: name this file itself, it is a volume of its own")
    shape = (integer(dataset, "Rows", 0), integer(dataset, "Columns", 0))
    check_size(shape)
    position = _numbers(groups[0], "ImagePositionPatient", 3)
    orientation = _numbers(groups[1], "ImageOrientationPatient", 6).reshape(2, 3)
    spacing = _numbers(groups[2], "PixelSpacing", 2)
    if np.abs(orientation @ orientation.T - np.eye(2)).max() > 0.01:
        raise DataError(f"ImageOrientationPatient {orientation.ravel().tolist()}: not two unit vectors at right angles")
    if spacing.min() <= 0:
        raise DataError(f"PixelSpacing {spacing.tolist()} must be positive")
    return Slice(path, frame, position, orientation, spacing, shape, str(dataset.get("SeriesInstanceUID", "")))


def _frame_of(path: Path, index: int, dataset: Dataset) -> Slice:
    """A frame where its own functional groups or the shared ones place it."""
    from pydicom import Dataset

    groups = (group_with(dataset, index, *group) for group in _GEOMETRY)
    with naming(f"frame {index + 1}"):  # an attribute of the data set itself would put all frames at one place
        return _slice_of(path, index, dataset, [Dataset() if group is dataset else group for group in groups])


def _numbers(dataset: Dataset, name: str, count: int) -> np.ndarray:
    value = dataset.get(name)
    if value is None or value == "":
        raise DataError(f"it lacks {name}, so that its place is not known (a scout or a screenshot?): remove it")
    numbers = np.asarray(value, np.float64).ravel()
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise DataError(f"{name} {list(map(str, numbers))} must be {count} finite numbers")
    return numbers


def _values(
    pixels: StoredPixels, dataset: Dataset, frame: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(modality units float32, which pixels are padding), both [H, W]; NaN only where it is stored."""
    if pixels.values.shape != shape:
        raise DataError(f"its pixel data have shape {list(pixels.values.shape)}, not {list(shape)}")
    padded = padding_mask(pixels, dataset)
    with np.errstate(over="ignore"):
        units = to_units(pixels, dataset, frame, ~padded).astype(np.float32)
    if not np.isfinite(units[np.isfinite(pixels.values)]).all():
        raise DataError("its rescale makes values beyond 32-bit numbers")
    refuse_constant(pixels.values, units, ~padded & np.isfinite(pixels.values))
    return units, padded


def _fill(voxels: np.ndarray, padded: np.ndarray) -> np.ndarray:
    if padded.any() and not padded.all():
        voxels[padded] = voxels[~padded].min()
    return voxels


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Re-raise errors of a slice as a DataError with its name."""
    try:
        yield
    except DataError as reason:
        raise DataError(f"'{name}': {reason}") from reason
    except Exception as reason:  # decoders of foreign bytes raise anything
        detail = " ".join(str(reason).split()) or "no further detail"
        raise DataError(f"'{name}': {type(reason).__name__}: {detail}") from reason
