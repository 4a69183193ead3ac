"""Settings of attention that is taught where to look, and what they mean together with others."""

from __future__ import annotations

from typing import ClassVar, Literal

from configs.section import Section
from configs.section import setting as _setting

WITH_PLACES = ("cbam", "multi_scale", "cross_scale")


class AttentionSupervision(Section):
    """Where the network is taught to look."""

    section_name: ClassVar[str] = "LOSS.attention"

    method: Literal["none", "mask", "cam", "consistency"] = _setting(
        "none",
        "mask: the attention between backbone and fusion is drawn to annotated regions; cam: the class activation map "
        "of what an image has is; consistency: the maps of two augmented views of an image agree. docs/studies.md says "
        "what each has been worth.",
    )
    weight: float = _setting(0.1, "Of this term, beside the loss of the labels; 0: as without it.", ge=0)
    boxes: str | None = _setting(
        None,
        "Table of boxes (image, finding, x, y, w, h; or NIH's BBox_List_2017.csv), in data_dir or a path. With any "
        "method, none too, maps are measured against regions in validation and evaluation.",
    )
    masks: str | None = _setting(
        None,
        "Black and white images of regions: a column of the labels table that names their files, or a folder, in "
        "data_dir or a path, where they are called as the images are (or with _mask or _segmentation behind).",
    )

    @property
    def trains(self) -> bool:
        """Whether the loss has this term at all."""
        return self.method != "none" and self.weight > 0

    @property
    def has_regions(self) -> bool:
        """Whether regions are named."""
        return self.boxes is not None or self.masks is not None


def attention_problems(
    attention: AttentionSupervision,
    volumes: bool,
    augment: bool,
    use_albumentations: bool,
    attention_mode: str,
    compiled: bool,
    quantization_aware: bool,
) -> list[str]:
    """A method without what it needs, or with what it cannot be used with. attention_mode: MODEL.attention."""
    method, found = attention.method, []
    if attention.boxes is not None and attention.masks is not None:
        found.append("LOSS.attention has both boxes and masks: give one of them")
    if volumes and (method != "none" or attention.has_regions):
        return [*found, "LOSS.attention is for images, not for volumes: leave it out"]
    if method in ("mask", "cam") and not attention.has_regions:
        found.append(
            f"LOSS.attention.method '{method}' needs regions: set LOSS.attention.boxes or LOSS.attention.masks"
        )
    if method == "mask" and attention_mode == "none":
        found.append(
            "LOSS.attention.method 'mask' teaches the attention over places, and MODEL.attention 'none' has none: "
            f"{', '.join(WITH_PLACES)} have one; or use method 'cam'"
        )
    if method == "consistency" and not augment:
        found.append("LOSS.attention.method 'consistency' compares two augmented views: set DATA.augment to true")
    if use_albumentations and (method != "none" or attention.has_regions):
        found.append(
            "LOSS.attention follows images through the light augmentation only: set DATA.use_albumentations to false"
        )
    if attention.trains:
        for key, on in (("TRAIN.compile", compiled), ("TRAIN.quantization_aware", quantization_aware)):
            if on:
                found.append(f"LOSS.attention.method '{method}' looks into the network: set {key} to false")
    return found
