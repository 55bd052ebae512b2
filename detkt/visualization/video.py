"""Videos: their frames as pictures, and written again with the boxes drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.colors import to_rgb

from detkt.base.errors import InputError
from detkt.visualization.panels import Mark

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
DRAWN = ".mp4"
_FALLBACK_RATE = 25.0


def is_video(path: Path) -> bool:
    """Whether *path* is a video, by its suffix."""
    return path.suffix.lower() in SUFFIXES


class Video:
    """A video file that can be read; raises InputError where it cannot.

    rate: frames a second; count: how many frames its header promises, 0 where it does not say.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._reader = path, cv2.VideoCapture(str(path))
        if not self._reader.isOpened():
            raise InputError(f"{path}: not a video that OpenCV can read")
        rate = self._reader.get(cv2.CAP_PROP_FPS)
        self.rate = rate if rate and rate > 0 else _FALLBACK_RATE
        self.count = max(0, int(self._reader.get(cv2.CAP_PROP_FRAME_COUNT)))

    def frames(self) -> Iterator[np.ndarray]:
        """The frames (H, W, 3) uint8, RGB, one after the other; raises InputError where there is none."""
        number = 0
        try:
            while True:
                found, frame = self._reader.read()
                if not found:
                    break
                number += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._reader.release()
        if not number:
            raise InputError(f"{self.path}: the video holds no frame that can be read")


class VideoWriter:
    """Writes frames of one size to *path*, an MP4; raises InputError where it cannot be written."""

    def __init__(self, path: Path, rate: float, width: int, height: int) -> None:
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
        if not self._writer.isOpened():
            raise InputError(f"cannot write {path}: OpenCV has no encoder for it, or the folder is not writable")

    def write(self, frame: np.ndarray) -> None:
        """Add *frame* (H, W, 3) uint8, RGB."""
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()


def draw_marks(frame: np.ndarray, marks: Sequence[Mark]) -> np.ndarray:
    """A copy of *frame* (H, W, 3) uint8, RGB, with boxes and labels: plainer than `picture_figure`, but fast."""
    drawn = np.ascontiguousarray(frame).copy()
    scale = max(0.35, min(drawn.shape[:2]) / 1000)
    for mark in marks:
        left, top, right, bottom = (round(corner) for corner in mark.box)
        colour, ink = (
            tuple(round(255 * part) for part in to_rgb(name)) for name in (mark.style.color, mark.style.text_color)
        )
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, max(1, round(2 * scale)))
        (width, height), below = cv2.getTextSize(mark.text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        top = max(top, height + below)
        cv2.rectangle(drawn, (left, top - height - below), (left + width, top), colour, -1)
        place = (left, top - below + 1)
        cv2.putText(drawn, mark.text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    return drawn
