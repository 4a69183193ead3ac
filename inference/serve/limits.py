"""How much a client may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from configs.errors import PredictionError


@dataclass(frozen=True)
class Limits:
    """Of a request: `body_bytes`, images, and seconds until its answer; pixels of an image; of all requests together
    the images that wait. batch: images that the model is asked about at once. wait_seconds: how long the first of
    them waits for others.

    Raises PredictionError, naming the option, for what cannot be.
    """

    body_bytes: int = 64 * 10**6
    images: int = 16
    pixels: int = 80 * 10**6
    queue: int = 64
    batch: int = 16
    wait_seconds: float = 0.005
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        least = {
            "--max-megabytes": self.body_bytes,
            "--max-images": self.images,
            "--max-megapixels": self.pixels,
            "--queue": self.queue,
            "--batch-size": self.batch,
        }
        for option, value in least.items():
            if value < 1:
                raise PredictionError(f"{option}: must be at least 1")
        if self.queue < self.images:
            raise PredictionError(
                f"--queue {self.queue}: must be at least --max-images {self.images}, or no request of so many images "
                "would ever be taken"
            )
        if not 0 <= self.wait_seconds <= 1:
            raise PredictionError(f"--wait-ms {self.wait_seconds * 1000:g}: from 0 to 1000")
        if not self.timeout_seconds > 0:
            raise PredictionError(f"--timeout {self.timeout_seconds:g}: must be above 0")
