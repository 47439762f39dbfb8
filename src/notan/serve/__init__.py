"""The HTTP API: images in, masks out."""
