"""What each kind of finding is called on the page, and why it matters."""

from __future__ import annotations

TITLES = {
    "unreadable-picture": "Pictures that cannot be read",
    "truncated-picture": "Pictures that are damaged or cut short",
    "unreadable-mask": "Masks that cannot be read",
    "truncated-mask": "Masks that are damaged or cut short",
    "ambiguous-picture": "Pictures of unclear values",
    "ambiguous-mask": "Masks that can mean more than one thing",
    "unreadable-list": "Lists that cannot be read",
    "size-mismatch": "Picture and mask differ in size",
    "picture-without-mask": "Pictures without masks",
    "mask-without-picture": "Masks without pictures",
    "same-stem-twice": "Two files of one name",
    "masks-disagree": "Masks of different figure values",
    "mixed-encodings": "Masks of several encodings",
    "duplicate": "The same picture twice",
    "duplicate-across-splits": "The same picture in two splits",
    "near-duplicate": "Almost the same picture twice",
    "near-duplicate-across-splits": "Almost the same picture in two splits",
    "copies-with-different-masks": "One picture, different masks",
    "wrong-type-for-name": "Files of another type than their name says",
    "inverted-masks": "Masks the wrong way round",
    "inverted-mask": "Masks the wrong way round",
    "empty-mask": "Empty masks",
    "mostly-empty-masks": "Most masks are empty",
    "full-mask": "Full masks",
    "ragged-mask": "Ragged masks",
    "repeated-mask": "One mask for different pictures",
    "shifted-mask": "Masks beside the picture's edges",
    "shifted-masks": "All masks beside the pictures' edges",
    "tiny-picture": "Tiny pictures",
    "huge-picture": "Huge pictures",
    "extreme-aspect": "Very long pictures",
    "blank-picture": "Blank pictures",
    "different-coverage": "Splits with different shares of figure",
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
    "truncated-picture": "Often a copy or download that broke off.",
    "ambiguous-mask": "Read the wrong way, such masks train a wrong model without any error.",
    "size-mismatch": "Without one size, no pixel of the mask belongs to a pixel of the picture.",
    "masks-disagree": "Figure must be one value in the whole folder.",
    "duplicate-across-splits": "The model is tested on what it was trained on: its scores are "
    "better than the model.",
    "near-duplicate-across-splits": "Resized or recompressed copies leak between splits as the "
    "same picture would.",
    "copies-with-different-masks": "At least one of the masks is wrong.",
    "wrong-type-for-name": "notan goes by the content and reads them; other programs may not.",
    "inverted-masks": "Figure seems to be what should be ground.",
    "inverted-mask": "Figure seems to be what should be ground.",
    "shifted-mask": "The outline would fit the picture better elsewhere. Edges beside edges can "
    "deceive this test, so look.",
    "label-disagreement": "The mask may be wrong, or the picture may be unlike the others.",
    "ragged-mask": "Noise in a mask teaches noise.",
    "blank-picture": "There is nothing to be seen in them.",
}


def title_of(kind: str) -> str:
    """Return a kind's heading; an unknown kind's own name serves as well."""
    return TITLES.get(kind, kind.replace("-", " ").capitalize())


def reason_of(kind: str) -> str:
    """Return why a kind matters, or nothing where its heading says it."""
    return REASONS.get(kind, "")
