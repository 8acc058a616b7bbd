"""The usual JPEG, decoded a third faster: by OpenCV, to the same pixels as by Pillow.

Both packages carry libjpeg-turbo; Pillow copies each image three times on its way to an array. OpenCV says less of
damage, and older versions of it fill up what a truncated file lacks. So it is given only files whose markers are those
of one whole sequential scan, and whatever it refuses Pillow is asked about, whose errors say what is wrong.
"""

from __future__ import annotations

import re

import cv2
import numpy as np

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_SEQUENTIAL = 0xC0
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frames: how the pixels are coded (ITU-T T.81, table B.1); the three left out are tables."""
_SCAN = 0xDA
_NO_LENGTH = frozenset(range(0xD0, 0xDA)) | {0x00, 0x01, 0xFF}
"""Second bytes after which no length stands: in a header, none of them belongs there."""
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""In a scan: anything but a byte 255 of the code itself and restarts."""
_MOST_PIXELS = 2**30
"""OpenCV refuses more, whatever limit the user has set."""


def decoded(data: bytes, height: int, width: int) -> np.ndarray | None:
    """The pixels (H, W, 3) uint8, RGB, as stored; None: not a file for this decoder, or a damaged one.

    Args:
        data: a file whose header announces a color JPEG (YCbCr or RGB) of this height and width.
    """
    if height * width > _MOST_PIXELS or not is_one_whole_scan(data):
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return pixels if pixels is not None and pixels.shape == (height, width, 3) else None


def is_one_whole_scan(data: bytes) -> bool:
    """Whether the file is a sequential JPEG whose one scan goes on to the end-of-image marker."""
    if not data.startswith(_START):
        return False
    at = len(_START)
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in _NO_LENGTH or (kind in _FRAMES and kind != _SEQUENTIAL):
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == _SCAN:
            following = _MARKER.search(data, at)
            return following is not None and following.group() == _END
    return False
