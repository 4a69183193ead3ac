"""A radiograph before it is developed: the measures of a chest, and the layers that are drawn from them.

The layers stay separate until the end, as a finding acts on what a radiograph is made of: fluid takes the air out of
a lung, a pneumothorax takes its vessels. All lengths are fractions of the image's side: x runs right, y runs down, the
patient's right side is on the image's left (side -1). A lateral radiograph shows the patient facing left; there side
-1 is the front of the chest and side +1 the back.
"""

from dataclasses import dataclass

from data.phantom.drawing import Array, Point


@dataclass(frozen=True)
class Shape:
    """A chest's measures before it is drawn; findings that move organs change these."""

    seed: int  # ribs and vessels
    centre: float = 0.5
    half_width: float = 0.385  # of the inner chest at its base
    top: float = 0.09  # of the lungs
    domes: tuple[float, float] = (0.72, 0.745)  # diaphragm, right and left
    drop: float = 0.13  # from a dome to its costophrenic angle
    heart: float = 0.45  # cardiothoracic ratio
    shift: float = 0.0  # of heart and mediastinum
    air: float = 1.0  # darkness of the lungs
    vessels: float = 1.0
    breast: float = 0.0
    bubble: float = 0.05  # half width of the gastric bubble


@dataclass
class Radiograph:
    """An undeveloped image: layers and landmarks; arrays are float32 [width, width]."""

    lateral: bool
    lungs: dict[int, Array]  # side: 0 to 1
    inset: dict[int, Array]  # side: distance to the chest wall, positive inside
    floor: dict[int, Array]  # side: height of the diaphragm, [1, width]
    centres: dict[tuple[int, int], Point]  # (side, zone)
    hila: dict[int, Point]
    hiatus: Point  # where a hernia comes through
    heart: Array
    soft: Array
    air: Array
    marks: Array
    bone: Array
    extra: Array

    @property
    def width(self) -> int:
        return self.air.shape[0]

    @property
    def sides(self) -> tuple[int, ...]:
        """The lungs that can be distinguished: both from the front, one (its back wall) from the side."""
        return (1,) if self.lateral else (-1, 1)

    def fill(self, opacity: Array, density: float) -> None:
        """Replaces air by something of `density` where `opacity` (0 to 1) is set."""
        self.air *= 1 - density * opacity
        self.marks *= 1 - 0.8 * density * opacity
