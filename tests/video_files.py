"""Small videos for the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

FRAMES = 7


def write_video(path: Path, frames: int = FRAMES, size: tuple[int, int] = (48, 64)) -> Path:
    """Write frames that grow brighter, 20 x number; size is (height, width)."""
    codec = {".avi": "MJPG", ".webm": "VP80"}.get(path.suffix, "mp4v")
    four = [ord(letter) for letter in codec]
    code = four[0] | four[1] << 8 | four[2] << 16 | four[3] << 24
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 5.0, size[::-1])
    assert writer.isOpened()
    for number in range(1, frames + 1):
        writer.write(np.full((*size, 3), min(20 * number, 255), np.uint8))
    writer.release()
    return path
