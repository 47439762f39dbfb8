"""``notan download``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def download(
    dataset: Positional[Annotated[Literal["oxford-iiit-pet"], arg(metavar="oxford-iiit-pet")]],
    *,
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("dataset"),
) -> None:
    """Download a dataset from its own site, verify it and unpack it.

    A broken transfer goes on where it stopped when the command is given again.

    Args:
        dataset: The Oxford-IIIT Pet dataset (Parkhi et al., CVPR 2012; CC BY-SA 4.0; 0.8 GB).
        out: The folder in which the dataset's folder is made.
    """
    from notan.data.download import download_pets

    del dataset  # there is one; its name is there to be read
    print(download_pets(out))
