"""From a checkpoint to a file that runs anywhere."""

from notan.export.make import export

__all__ = ["export"]
