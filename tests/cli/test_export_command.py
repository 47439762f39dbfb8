"""``notan export``: what it says of the file that it wrote, and which flags go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from needs import INSTALLED
from notan.cli.main import main
from notan.modelfile.card import read_card

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("traced")
def test_int8_says_what_it_did_and_what_it_was_calibrated_on(
    small_checkpoint: Path, drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.onnx"
    words = ("--model", small_checkpoint, "--int8", "--out", out, "--data-path", drawn_folder)
    main(["export", *map(str, words)])
    exported = read_card(out).exported
    assert exported is not None
    assert exported.quantized is not None
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == (
        f"int8: {exported.quantized.layers} of 23 convolutions, "
        f"{exported.quantized.share:.1%} of the multiplications, calibrated on 24 training "
        "images, for the validation split holds 6 only"
    )
    assert [line.split(":")[0] for line in rest[:-1]] == list(INSTALLED)
    assert rest[-1].startswith(str(out))


def test_half_and_int8_exclude_each_other(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(
            ["export", "--model", str(small_checkpoint), "--half", "--int8", "--out", str(tmp_path)]
        )
    assert "--half and --int8 are two kinds of file; give one" in capsys.readouterr().err
