"""From a checkpoint to a file that runs anywhere."""

from notan.exporting.export import export

__all__ = ["export"]
