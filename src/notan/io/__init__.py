"""Bytes to arrays and back: images, masks, TIFF, video, whole-or-nothing writing, download."""
