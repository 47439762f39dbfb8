"""From a picture to its mask, at the picture's own size."""
