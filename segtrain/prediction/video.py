"""Video files frame by frame, and overlays as a video, by OpenCV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from segtrain.errors import DataError, ResourceError

USUAL_RATE = 25.0
"""Frames per second of a video that does not say."""


class Film:
    """A video file to read; use it as a context.

    Args:
        file: any container and codec that this OpenCV reads.
        channels: 3 (RGB) or 1 (luma, as for images).

    Raises:
        DataError: OpenCV cannot read it.
    """

    def __init__(self, file: Path, channels: Literal[1, 3]) -> None:
        self.file = file
        self.channels = channels
        # Absolute, because FFmpeg takes a name such as `concat:a.mp4` for a command.
        self.capture = cv2.VideoCapture(os.path.abspath(file))  # noqa: PTH100
        rate = self.capture.get(cv2.CAP_PROP_FPS) if self.capture.isOpened() else 0.0
        self.rate = rate if 0 < rate <= 1000 else USUAL_RATE

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *error: object) -> None:
        self.capture.release()

    def frames(self) -> Iterator[np.ndarray]:
        """Frames (H, W, channels) uint8, from the first to the last that can be decoded."""
        number = 0
        while True:
            there, frame = self.capture.read()
            if not there:
                break
            number += 1
            rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            yield rgb if self.channels == 3 else np.array(Image.fromarray(rgb).convert("L"))[..., None]
        if number == 0:
            raise DataError(
                "file is not a video that OpenCV can read",
                where=self.file,
                expected="a container and codec that OpenCV's build knows, as MP4 with H.264",
                fix="replace or convert the file, or give its frames as images",
            )


class OverlayVideo:
    """An MP4 of overlays, written beside its place and renamed when it is whole; use it as a context.

    Args:
        path: where it goes.
        rate: frames per second.
        size: height and width of a frame.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self.path = path
        self.beside = path.with_name(f".{path.name}.{os.getpid()}.tmp.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self.writer = cv2.VideoWriter(os.path.abspath(self.beside), codec, rate, (size[1], size[0]))  # noqa: PTH100

    def __enter__(self) -> OverlayVideo:
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.release()
        with contextlib.suppress(OSError):
            self.beside.unlink(missing_ok=True)

    @property
    def works(self) -> bool:
        """Whether this OpenCV can write it."""
        return bool(self.writer.isOpened())

    def add(self, overlay: np.ndarray) -> None:
        """One frame more, (H, W, 3) uint8 RGB."""
        self.writer.write(cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))

    def finish(self) -> None:
        """Puts it in its place.

        Raises:
            ResourceError: nothing was written, which OpenCV itself does not say.
        """
        self.writer.release()
        if not self.beside.is_file() or self.beside.stat().st_size == 0:
            raise ResourceError("the overlay video cannot be written", where=self.path, fix="free some space")
        self.beside.replace(self.path)
