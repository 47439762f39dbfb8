"""Videos, frame by frame, through OpenCV's FFmpeg."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import cv2
from cv2.utils import logging as cv2_logging

from notan.errors import DataError
from notan.io.headers import refuse_size

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from notan.types import RGBImage, Size

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".flv", ".ogv"]
)
"""File names that count as videos in a folder; what is inside decides."""

_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_STILL = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"jp2 ")
_SIGNATURES = (
    b"\x1a\x45\xdf\xa3",  # Matroska and WebM
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF: WMV
    b"FLV\x01",
    b"OggS",
)
MISSING_FRACTION = 0.1
"""Containers estimate their number of frames; a video that is shorter by more was cut off."""


def is_video(start: bytes) -> bool:
    """Say whether a file begins like a video.

    FFmpeg would also take playlists, which are text that names other files to open. They are told
    apart here, by content, and never reach it.

    Args:
        start: The first 16 bytes.
    """
    if start[4:8] in _BOXES:
        return start[8:12] not in _STILL
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"AVI ")


class Video:
    """An open video; a context manager.

    Attributes:
        path: The file.
        size: (height, width) of its frames.
        claimed: Frames that its container claims to hold; an estimate, 0 where there is none.
        number: Of the current frame, from 1; 0 before the first.
    """

    def __init__(self, path: Path) -> None:
        """Open a video and read its header.

        Raises:
            DataError: Damaged, of a codec that is not there, or of a size that must not be decoded.
        """
        self.path = path
        self.number = 0
        # FFmpeg writes its complaints to stderr, which would break up the progress bar; what
        # matters of them is said by our own errors
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        level = cv2_logging.setLogLevel(cv2_logging.LOG_LEVEL_SILENT)
        try:
            # An absolute path is never taken for an address on a network
            self._capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
        finally:
            cv2_logging.setLogLevel(level)
        if not self._capture.isOpened():
            raise DataError(
                f"{path}: this video cannot be opened: it is damaged or cut short, or its codec is "
                "not in OpenCV; copy it again, or convert it to MP4 with H.264"
            )
        self.size: Size = (
            int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
            int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        )
        self.claimed = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        try:
            refuse_size(self.size, str(path))
        except DataError:
            self._capture.release()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._capture.release()

    def advance(self) -> bool:
        """Go on to the next frame; False at the end.

        Raises:
            DataError: The video ends long before it should, or has no frame at all.
        """
        if self._capture.grab():
            self.number += 1
            return True
        if self.number == 0:
            raise DataError(
                f"{self.path}: no frame of this video can be decoded; copy it again, or convert it "
                "to MP4 with H.264"
            )
        if self.number < self.claimed * (1 - MISSING_FRACTION) - 1:
            raise DataError(
                f"{self.path}: this video claims {self.claimed} frames and ends after "
                f"{self.number}: it is cut short; those are predicted, copy it again for the rest"
            )
        return False

    def read(self) -> RGBImage:
        """Decode the current frame as uint8, (height, width, 3), RGB, upright.

        Raises:
            DataError: This frame is damaged.
        """
        fine, frame = self._retrieve()
        if not fine or frame is None or frame.ndim != 3 or frame.shape[2] != 3:
            raise DataError(
                f"{self.path}, frame {self.number}: cannot be decoded; copy the video again"
            )
        image: RGBImage = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        return image

    def _retrieve(self) -> tuple[bool, Any]:
        try:
            return self._capture.retrieve()
        except cv2.error:
            return False, None
