"""notan: two-class image segmentation, figure against ground."""

__version__ = "0.1.0"
