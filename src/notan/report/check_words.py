"""What each kind of finding is called on the page, and why it matters."""

from __future__ import annotations

TITLES = {
    "unreadable-image": "Images that cannot be read",
    "truncated-image": "Images that are damaged or cut short",
    "unreadable-mask": "Masks that cannot be read",
    "truncated-mask": "Masks that are damaged or cut short",
    "ambiguous-image": "Images of unclear values",
    "ambiguous-mask": "Masks that can mean more than one thing",
    "unreadable-list": "Lists that cannot be read",
    "size-mismatch": "Image and mask differ in size",
    "image-without-mask": "Images without masks",
    "mask-without-image": "Masks without images",
    "same-stem-twice": "Two files of one name",
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


def title_of(kind: str) -> str:
    """Return a kind's heading; an unknown kind's own name serves as well."""
    return TITLES.get(kind, kind.replace("-", " ").capitalize())


def reason_of(kind: str) -> str:
    """Return why a kind matters, or nothing where its heading says it."""
    return REASONS.get(kind, "")
