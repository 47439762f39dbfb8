"""The data doctor's page: findings with thumbnails and each split's numbers, in one HTML file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from notan.checking.diagnosis import SEVERITIES, number_of
from notan.checking.reading import mask_reader
from notan.checking.suspicion import KINDS
from notan.data.layouts import MASK_FOLDERS
from notan.errors import DataError
from notan.io.images import PLAIN, ImageReading, read_image, shown
from notan.prediction.formats import TRUTH, mask_image, overlay_image
from notan.report.page import TIMES, fill, fitted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from notan.checking import Diagnosis, SplitStatistics
    from notan.checking.label_errors import LabelSearch
    from notan.checking.suspicion import Suspect
    from notan.types import Mask, RGBImage

TITLES = {
    "unreadable-image": "Images that cannot be read",
    "truncated-image": "Images that are damaged or cut short",
    "unreadable-mask": "Masks that cannot be read",
    "truncated-mask": "Masks that are damaged or cut short",
    "unsupported-image": "Images of a kind that is not read",
    "unsupported-mask": "Masks of a kind that is not read",
    "ambiguous-image": "Images of unclear values",
    "mixed-channels": "Images of different numbers of channels, or of values on no common scale",
    "annotation-fault": "Annotations that do not fit their images",
    "several-classes": "Several classes, and none chosen",
    "ambiguous-mask": "Masks that can mean more than one thing",
    "unreadable-list": "Lists that cannot be read",
    "size-mismatch": "Image and mask differ in size",
    "image-without-mask": "Images without masks",
    "mask-without-image": "Masks without images",
    "same-stem-twice": "Two files of one name",
    "unclear-partner": "Files that could belong to several",
    "masks-disagree": "Masks of different foreground values",
    "mixed-encodings": "Masks of several encodings",
    "duplicate": "The same image twice",
    "duplicate-across-splits": "The same image in two splits",
    "near-duplicate": "Almost the same image twice",
    "near-duplicate-across-splits": "Almost the same image in two splits",
    "copies-with-different-masks": "One image, different masks",
    "wrong-type-for-name": "Files of another type than their name says",
    "inverted-masks": "Masks the wrong way round",
    "inverted-mask": "Masks the wrong way round",
    "empty-mask": "Empty masks",
    "mostly-empty-masks": "Most masks are empty",
    "full-mask": "Full masks",
    "ragged-mask": "Ragged masks",
    "repeated-mask": "One mask for different images",
    "turned-masks": "Masks of images before they were turned",
    "turned-images": "Images turned by their EXIF orientation",
    "image-choice": "How the images are read",
    "shifted-mask": "Masks beside the image's edges",
    "shifted-masks": "All masks beside the images' edges",
    "tiny-image": "Tiny images",
    "huge-image": "Huge images",
    "extreme-aspect": "Very long images",
    "blank-image": "Blank images",
    "different-coverage": "Splits with different shares of foreground",
    "different-colour": "Splits with different colours",
    "label-inverted": "Masks that look inverted to networks that never saw them",
    "label-shifted": "Masks that look shifted to networks that never saw them",
    "label-eroded": "Masks that look too thin to networks that never saw them",
    "label-dilated": "Masks that look too fat to networks that never saw them",
    "label-swapped": "Masks that look swapped to networks that never saw them",
    "label-disagreement": "Masks that networks that never saw them disagree with",
    "label-unjudged": "Masks that could not be ranked",
    "mask-encoding": "How the masks are read",
    "ignored-file": "Files that are never read",
    "recognised": "How the folders are read",
    "unlisted": "Files that are in no list",
}

REASONS = {
    "truncated-image": "Often a copy or download that broke off.",
    "ambiguous-mask": "Read the wrong way, such masks train a wrong model without any error.",
    "size-mismatch": "Without one size, no pixel of the mask belongs to a pixel of the image.",
    "masks-disagree": "Foreground must be one value in the whole folder.",
    "duplicate-across-splits": "The model is tested on what it was trained on: its scores are "
    "better than the model.",
    "near-duplicate-across-splits": "Resized or recompressed copies leak between splits as the "
    "same image would.",
    "copies-with-different-masks": "At least one of the masks is wrong.",
    "wrong-type-for-name": "notan goes by the content and reads them; other programs may not.",
    "inverted-masks": "Foreground seems to be what should be background.",
    "inverted-mask": "Foreground seems to be what should be background.",
    "shifted-mask": "The outline would fit the image better elsewhere. Edges beside edges can "
    "deceive this test, so look.",
    "label-disagreement": "The mask may be wrong, or the image may be unlike the others.",
    "ragged-mask": "Noise in a mask teaches noise.",
    "blank-image": "There is nothing to be seen in them.",
}


MOST_ROWS = 12
"""Doubted masks that the page shows."""


def _images(search: LabelSearch, suspect: Suspect) -> Iterator[RGBImage]:
    """Give the image alone, with the given mask's outline, and with the prediction's."""
    name = suspect.name
    sample = search.sample(name)
    predicted = read_image(search.predictions / f"{name}.png")[..., 0] > 127
    small = fit(shown(sample.image))
    nothing = np.zeros(small.shape[:2], bool)
    mask, prediction = (
        fit(np.asarray(each, np.uint8) * np.uint8(255)) > 127 for each in (sample.mask, predicted)
    )
    yield small
    yield overlay_image(small, nothing, truth=mask)
    yield overlay_image(small, prediction)


SIDE = 220
"""The longer side of a thumbnail: twice what a phone shows, for sharp screens."""

LEAST_SIDE = 110
"""Smaller images are magnified to this, pixel by pixel."""

GAP = 6


class Thumbnails:
    """Reads files again and shrinks them, image and mask together."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self._read_mask = mask_reader(diagnosis.layout, diagnosis.data)
        self._reading = diagnosis.reading
        self._mask_of = dict(diagnosis.pairs)
        self._masks = {mask for _, mask in diagnosis.pairs}

    def of(self, path: Path) -> RGBImage | None:
        """Return a small image, or None when the file cannot be shown.

        Args:
            path: An image, shown with its mask where it has one, or a lone mask.
        """
        if path in self._masks or path.parent.name.lower() in (*MASK_FOLDERS, "trimaps"):
            return self._mask_alone(path)
        image = self._image(path)
        if image is None:
            return None
        mask_path = self._mask_of.get(path)
        mask = self._mask(mask_path) if mask_path else None
        if mask is not None and mask.shape == image.shape[:2]:
            return _tinted(fit(image), fit(mask_image(mask)) > 127)
        alone = self._mask_alone(mask_path) if mask_path else None
        return fit(image) if alone is None else _beside(fit(image), alone)

    def _image(self, path: Path, reading: ImageReading | None = None) -> RGBImage | None:
        try:
            return shown(read_image(path, reading or self._reading))
        except DataError:
            return None

    def _mask(self, path: Path) -> Mask | None:
        try:
            return self._read_mask(path).labels.mask
        except DataError:
            return None

    def _mask_alone(self, path: Path) -> RGBImage | None:
        """Show a mask without its image; one that cannot be understood with its values spread."""
        mask = self._mask(path)
        if mask is not None:
            return np.repeat(fit(mask_image(mask))[..., None], 3, axis=2)
        raw = self._image(path, replace(PLAIN, upright=self._reading.upright))
        if raw is None:
            return None
        low, high = int(raw.min()), int(raw.max())
        spread = (raw.astype(np.float32) - low) * (255 / max(1, high - low))
        return fit(spread.astype(np.uint8))


def fit(image: RGBImage) -> RGBImage:
    """Shrink to the thumbnail's size, or magnify what is tiny."""
    return fitted(image, side=SIDE, least_side=LEAST_SIDE)


def _tinted(image: RGBImage, mask: Mask) -> RGBImage:
    """Tint and outline the foreground in the colour that every page gives to the truth."""
    tinted = image.copy()
    tinted[mask] = (0.65 * image[mask] + 0.35 * np.array(TRUTH)).astype(np.uint8)
    return overlay_image(tinted, np.zeros_like(mask), truth=mask)


def _beside(one: RGBImage, other: RGBImage) -> RGBImage:
    height = max(one.shape[0], other.shape[0])
    sheet = np.full((height, one.shape[1] + GAP + other.shape[1], 3), 128, np.uint8)
    sheet[: one.shape[0], : one.shape[1]] = one
    sheet[: other.shape[0], -other.shape[1] :] = other
    return sheet


MOST_MESSAGES = 100
"""Findings of one kind that the page puts into words; the JSON beside it has all."""

MOST_THUMBNAILS = 12
MOST_OPEN = 3
"""More findings of one kind than this are folded away."""

WITHOUT_THUMBNAILS = frozenset(
    {"mask-encoding", "recognised", "several-classes", "ignored-file", "label-unjudged"}
    | {"label-disagreement"}
    | {f"label-{kind}" for kind in KINDS}  # the section about labels shows them
)

Frame = list[tuple[str, "RGBImage | None"]]
"""The names of a finding's files with their thumbnails; None cannot be shown."""


def check_page(diagnosis: Diagnosis, search: LabelSearch | None = None) -> str:
    """Return the page: one HTML text with its images and its style inside.

    Args:
        diagnosis: What the doctor found. Of the files that findings name, up to 12 of each kind
            are read again to be shown.
        search: The ranking of the masks, where there is one; the first 12 are shown.

    Returns:
        HTML that refers to nothing outside itself.
    """
    suspects = search.ranking.suspects[:MOST_ROWS] if search else ()
    return fill(
        "check.html",
        diagnosis=diagnosis,
        state=next((each for each in ("error", "warning") if diagnosis.count(each)), "clean"),
        severities=SEVERITIES,
        number_of=number_of,
        groups=diagnosis.grouped(),
        frames=_frames(diagnosis),
        sizes=_sizes,
        titles=TITLES,
        reasons=REASONS,
        most_messages=MOST_MESSAGES,
        most_open=MOST_OPEN,
        most_thumbnails=MOST_THUMBNAILS,
        search=search,
        doubted=[(each, list(_images(search, each))) for each in suspects] if search else [],
    )


def _frames(diagnosis: Diagnosis) -> dict[tuple[str, str], list[Frame]]:
    """Read the files of each finding, until there are enough of its kind."""
    thumbnails = Thumbnails(diagnosis)
    image_of = {mask: image for image, mask in diagnosis.pairs}
    frames: dict[tuple[str, str], list[Frame]] = {}
    for group, findings in diagnosis.grouped().items():
        left = 0 if group[1] in WITHOUT_THUMBNAILS else MOST_THUMBNAILS
        shown = frames.setdefault(group, [])
        for finding in findings:
            # a sample is shown once, by its image, whichever of its two files is meant
            paths = list(dict.fromkeys(image_of.get(path, path) for path in finding.files))[:left]
            left -= len(paths)
            if paths:
                shown.append([(_caption(diagnosis, path), thumbnails.of(path)) for path in paths])
    return frames


def _caption(diagnosis: Diagnosis, path: Path) -> str:
    inside = path.is_relative_to(diagnosis.folder)
    return (path.relative_to(diagnosis.folder) if inside else path).as_posix()


def _sizes(split: SplitStatistics) -> list[str]:
    """Return the least, middle and largest size, each once."""
    sizes = (f"{split.height[i]} {TIMES} {split.width[i]}" for i in range(3))
    return list(dict.fromkeys(sizes))
