"""How an image becomes the input of an exported file, said in full: for a program that has neither torch nor this one.

The models below are the schema of the metadata's `input`; docs/export_input.schema.json is what `schema` gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

# Of the names in the metadata and of what `input` holds; to be raised where a reader of today's would go wrong.
SCHEMA_VERSION = "1"
# ITU-R BT.601 in 1/65536, as data.readers.images has it.
LUMA = (19595, 38470, 7471)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Intensity(_Record):
    """From stored values to [0, 1], bright is dense. Each entry: the rule for a decoded image of that kind."""

    uint8: Literal["divide_by_255"] = Field(default="divide_by_255", description="after resizing, which rounds")
    uint16: Literal["min_max_of_image"] = Field(
        default="min_max_of_image", description="float32 (x - min) / max(max - min, 1), before resizing"
    )
    float32: Literal["as_it_is"] = Field(
        default="as_it_is", description="in [0, 1] already: DICOM, 32-bit TIFF by its min-max"
    )


class ColourToGrey(_Record):
    """Of a colour image for a model of one channel, before resizing."""

    weights: tuple[int, int, int] = Field(default=LUMA, description="of R, G, B: sum(weight * value) / divisor")
    divisor: Literal[65536] = 65536
    rounding: Literal["half_up"] = Field(default="half_up", description="of integers")


class Resize(_Record):
    """Two steps, each left out where no axis needs it."""

    mode: Literal["stretch", "letterbox"] = Field(
        description="stretch: to `size`; letterbox: side = min(size, max(1, round(side * min ratio))), halves to even, "
        "then centred in `size`"
    )
    shrinking_axes: Literal["area_mean"] = Field(default="area_mean", description="first; OpenCV's INTER_AREA")
    growing_axes: Literal["linear"] = Field(
        default="linear",
        description="second; OpenCV's INTER_LINEAR: centres of pixels at half numbers, no antialiasing",
    )
    uint8: Literal["rounded_after_each_step"] = "rounded_after_each_step"
    pad_value: Literal[0] = Field(default=0, description="of letterbox, before normalisation: black")
    odd_pad: Literal["below_and_right"] = "below_and_right"


class ReducedJpeg(_Record):
    """JPEG files are decoded at a smaller scale where that leaves enough: libjpeg's, as Pillow's Image.draft asks."""

    scales: tuple[int, int, int] = Field(
        default=(8, 4, 2), description="one over these; the largest that fits is taken"
    )
    leaves_at_least: tuple[int, int] = Field(description="(height, width), of the upright image: twice `size`")


class Dicom(_Record):
    """What a stored value of a DICOM image goes through, in this order; PS3.3 C.11.1, C.11.2, C.7.6.3.1.2."""

    modality: Literal["modality_lut_or_rescale"] = "modality_lut_or_rescale"
    grey_values: tuple[str, ...] = Field(
        default=("voi_lut", "first_window", "min_max"),
        description="the first of these that the file has: VOI LUT; WindowCenter and WindowWidth with their "
        "VOILUTFunction; else the image's own min-max without padding. To [0, 1], clipped, float32",
    )
    window_functions: tuple[str, ...] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
    for_presentation: Literal["windowed_too"] = "windowed_too"
    monochrome1: Literal["inverted_last"] = Field(default="inverted_last", description="1 - x")
    padding: Literal["black"] = Field(
        default="black", description="PixelPaddingValue and its range: 0 after the inversion"
    )
    colour: Literal["uint8_rgb"] = Field(default="uint8_rgb", description="no rescale and no window")


class _Input(_Record):
    name: Literal["image"] = "image"
    dtype: Literal["float32"] = "float32"
    channels: Literal[1, 3]
    channel_order: Literal["grey", "RGB"]
    grey_to_colour: Literal["repeated", "not_needed"]
    value_range: tuple[float, float] = Field(default=(0.0, 1.0), description="before `mean` and `std`")
    mean: tuple[float, ...] = Field(description="a channel each, in units of `value_range`")
    std: tuple[float, ...] = Field(description="a channel each: (x - mean) / std, the last step")


class ImageInput(_Input):
    """Images. The order: orientation, transparency, intensity of 16 bits, colour, resize, mean and std."""

    kind: Literal["images"] = "images"
    layout: tuple[str, ...] = Field(description="axes; N: images, or studies of V slots")
    size: tuple[int, int] = Field(description="(height, width)")
    orientation: Literal["upright"] = Field(default="upright", description="EXIF, XMP or TIFF's tag 274 is applied")
    transparency: Literal["over_black"] = "over_black"
    intensity: Intensity = Intensity()
    colour_to_grey: ColourToGrey = ColourToGrey()
    resize: Resize
    jpeg: ReducedJpeg
    dicom: Dicom = Dicom()


class VolumeInput(_Input):
    """Volumes [z, y, x], from the feet up, front to back, the patient's right to left. The order: window, grid, mean
    and std.
    """

    kind: Literal["volumes"] = "volumes"
    layout: tuple[str, ...]
    size: tuple[int, int, int] = Field(description="(depth, height, width)")
    window: tuple[float, float] | None = Field(
        description="modality units (HU) to [0, 1], clipped; null: the volume's 0.5 and 99.5 percentiles, of more than "
        "2^21 voxels of every n-th"
    )
    spacing_mm: tuple[float, float, float] | None = Field(
        description="(z, y, x) of the grid, which has the volume's centre; null: the whole volume is fitted to it"
    )
    interpolation: Literal["linear_axis_by_axis"] = Field(
        default="linear_axis_by_axis",
        description="axes that shrink: a triangle of the new voxel's width on either side",
    )
    outside: Literal[0] = 0


AnyInput = Annotated[ImageInput | VolumeInput, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[ImageInput | VolumeInput] = TypeAdapter(AnyInput)


def describe_input(preprocessing: Mapping[str, object], studies: bool = False) -> ImageInput | VolumeInput:
    """preprocessing: `as_dict` of data's Preprocess or VolumePreprocess. studies: whether the file takes slots of
    images.
    """
    size = tuple(_integers(preprocessing["size"]))
    colour = preprocessing["channels"] == 3
    spatial = ("H", "W") if len(size) == 2 else ("D", "H", "W")
    values: dict[str, object] = {
        **{key: preprocessing[key] for key in ("channels", "mean", "std")},
        "size": size,
        "layout": ("N", *(("V",) if studies else ()), "C", *spatial),
        "channel_order": "RGB" if colour and len(size) == 2 else "grey",
        "grey_to_colour": "repeated" if colour else "not_needed",
    }
    if len(size) == 3:
        given = {key: preprocessing[key] for key in ("window", "spacing_mm")}
        return _ADAPTER.validate_python({"kind": "volumes", **values, **given})
    resize = {"mode": preprocessing["resize_mode"]}
    jpeg = {"leaves_at_least": tuple(2 * side for side in size)}
    return _ADAPTER.validate_python({"kind": "images", **values, "resize": resize, "jpeg": jpeg})


def schema() -> str:
    """The JSON schema of the metadata's `input`, as docs/export_input.schema.json has it."""
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "input", **_ADAPTER.json_schema()}
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


def _integers(values: object) -> list[int]:
    assert isinstance(values, (list, tuple)), "sizes are listed"
    return [int(value) for value in values]
