"""Annotations as labelling tools write them, read as masks: one file a format, one way to paint."""
