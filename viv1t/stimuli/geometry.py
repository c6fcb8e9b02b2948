"""The screen: from pixels of the model's frame to degrees of visual angle and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from viv1t.errors import ConfigError

FRAME_SIZE = (36, 64)  # rows, columns of a Sensorium frame


@dataclass(frozen=True)
class Monitor:
    """A flat screen, seen at its middle.

    Args:
        width: of the screen, cm.
        height: of the screen, cm.
        distance: of the eye from the screen's middle, cm.
    """

    width: float = 56.5
    height: float = 31.8
    distance: float = 15.0

    def __post_init__(self) -> None:
        for name in ("width", "height", "distance"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ConfigError(f"monitor: the {name} must be a length above 0 cm, not {value!r}")

    @classmethod
    def from_text(cls, text: str) -> Monitor:
        """`"56.5,31.8,15"`, width, height and distance in cm.

        Raises:
            ConfigError: not three lengths.
        """
        try:
            width, height, distance = (float(part) for part in text.split(","))
        except ValueError as error:
            raise ConfigError(f"--monitor takes WIDTH,HEIGHT,DISTANCE in cm, as 56.5,31.8,15, not {text!r}") from error
        return cls(width, height, distance)

    def pixel(self, columns: int = FRAME_SIZE[1]) -> float:
        """Width of one of `columns` pixels, cm."""
        return self.width / columns

    def degrees_per_pixel(self, columns: int = FRAME_SIZE[1]) -> float:
        """Angle that a pixel in the middle of the screen covers: 3.371 on the Sensorium screen."""
        return self.size(0.5, columns)

    def radius(self, size: float, columns: int = FRAME_SIZE[1]) -> float:
        """Radius in pixels of a circle about the screen's middle whose diameter covers `size` degrees (0 to below 180).

        Raises:
            ConfigError: no such circle exists on a flat screen.
        """
        if not 0 <= size < 180:
            raise ConfigError(f"a circle on a flat screen covers from 0 to below 180 degrees, not {size}")
        return self.distance / self.pixel(columns) * math.tan(math.radians(size) / 2)

    def size(self, radius: float, columns: int = FRAME_SIZE[1]) -> float:
        """Diameter in degrees of a circle of `radius` pixels about the screen's middle."""
        return 2 * math.degrees(math.atan(radius * self.pixel(columns) / self.distance))

    def degrees(self, x: np.ndarray, y: np.ndarray, frame_size: tuple[int, int] = FRAME_SIZE) -> np.ndarray:
        """Angles of places on the frame from its middle.

        Args:
            x: columns, pixels from the left, at pixels' centres.
            y: rows, pixels from the top.
            frame_size: rows and columns of the frame.

        Returns:
            (..., 2) degrees: azimuth (right positive) and elevation (up positive).
        """
        rows, columns = frame_size
        pixel = self.pixel(columns)
        right = (np.asarray(x) - (columns - 1) / 2) * pixel
        up = ((rows - 1) / 2 - np.asarray(y)) * pixel
        return np.degrees(np.stack([np.arctan(right / self.distance), np.arctan(up / self.distance)], axis=-1))


SENSORIUM = Monitor()
CLOSED_LOOP = Monitor(51.0, 29.0, 20.0)  # of the recordings of ViV1T-closed-loop


def circle(
    size: float,
    center: tuple[float, float] | None = None,
    *,
    monitor: Monitor = SENSORIUM,
    frame_size: tuple[int, int] = FRAME_SIZE,
) -> np.ndarray:
    """Pixels nearer than `size / 2` degrees to a centre, strictly.

    Args:
        size: diameter, degrees. 0 holds no pixel.
        center: (x, y) in pixels; None is the column W // 2 and the row H // 2.
        monitor: turns degrees into pixels.
        frame_size: (H, W).

    Returns:
        (H, W) bool.
    """
    rows, columns = frame_size
    x0, y0 = (columns // 2, rows // 2) if center is None else center
    y, x = np.mgrid[:rows, :columns]
    return np.asarray(np.hypot(x - x0, y - y0) < monitor.radius(size, columns))
