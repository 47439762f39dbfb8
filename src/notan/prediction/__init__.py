"""From an image to its mask, at the image's own size."""
