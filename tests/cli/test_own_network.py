"""A network of one's own goes through every command, and a broken one ends in a line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import notan
from notan.cli.main import main
from notan.config import load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import CheckpointError, ConfigError, NotanError
from notan.io.images import read_image
from notan.modelfile.card import read_card
from notan.training.trainer import Trainer
from runs import ask_to_stop, before_step, names_in

if TYPE_CHECKING:
    from collections.abc import Iterator

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4, depth=1):
        super().__init__()
        self.stride = 2
        self.down = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.more = nn.Sequential(*(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)))
        self.up = nn.ConvTranspose2d(width, 1, 2, stride=2)

    def forward(self, images):
        return self.up(self.more(torch.relu(self.down(images))))


class Other(Net):
    pass


def wide():
    return Net(width=6)


built = Net()
"""
SMALL = ("--image-size", "16", "--epochs", "2", "--batch-size", "8", "--learning-rate", "0.03")

pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with mynet.py and images; nothing stays imported."""
    (tmp_path / "mynet.py").write_text(NET)
    for part, count, first in (("train", 16, 0), ("val", 4, 16), ("test", 6, 20)):
        write_folder(DrawnSource(count, size=(20, 24), first=first), tmp_path / "cells" / part)
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith(("mynet", "broken")):
            del sys.modules[name]


def train(*words: str, out: str = "run") -> Path:
    main(["train", "--data-path", "cells", *SMALL, "--out", out, *words, "train.trackers=[]"])
    return Path(out) / "best.safetensors"


def refusal(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*words])
    assert stop.value.code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("notan: ")]
    return line


@pytest.mark.parametrize("spec", ["mynet:Net", "mynet.py:Net"])
def test_it_goes_through_every_command(folder: Path, spec: str) -> None:
    own = ("--model-class", spec)
    model = str(train(*own, "model.arguments.width=3"))
    card = read_card(Path(model))
    assert (card.model, card.model_class) == (None, "Net")
    assert card.run.model.class_path == spec
    assert card.run.model.arguments == {"width": 3}
    assert load_run(Path("run/run.toml")) == card.run
    main(["evaluate", "--model", model, *own, "--data-path", "cells", "--out", "score"])
    main(["inference", "--model", model, *own, "--data-path", "cells", "--out", "inferred"])
    main(["predict", "cells/test/images", "--model", model, *own, "--out", "masks"])
    main(["export", "--model", model, *own, "--out", "net.onnx"])
    main(["predict", "cells/test/images", "--model", "net.onnx", "--out", "exported"])
    main(["compare", "run", "net.onnx", *own, "--data-path", "cells", "--out", "compared"])
    main(["report", "run", *own, "--split", "test", "--out", "page"])
    folds = ("--folds", "2", "--epochs", "1", "--out", "checked")
    main(["check", "--data-path", "cells", "--model", model, *own, *folds])
    assert len(list((folder / "checked" / "held-out").rglob("*.png"))) == 20
    assert "mean Dice" in (Path("page") / "report.html").read_text()
    assert names_in(Path("compared")) == {"compare.json", "compare.html"}
    for mask in sorted((folder / "masks" / "masks").iterdir()):
        for others in ("inferred", "exported"):
            np.testing.assert_array_equal(
                read_image(mask), read_image(folder / others / "masks" / mask.name)
            )


@pytest.mark.usefixtures("folder")
def test_a_stopped_training_goes_on_to_the_same_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = ("--model-class", "mynet:Net")
    whole = train(*own, out="whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(3, ask_to_stop))
        with pytest.raises(SystemExit):
            train(*own)
    line = refusal("train", "--resume", "run", capsys=capsys)
    assert "model.class_path = mynet:Net" in line
    assert "add --model-class mynet:Net" in line
    line = refusal("train", "--resume", "run", "--model-class", "mynet:wide", capsys=capsys)
    assert "model.class_path (mynet:Net -> mynet:wide) would make it another run" in line
    main(["train", "--resume", "run", "--model-class", "mynet.py:Net"])
    assert read_card(Path("run/best.safetensors")).sha256 == read_card(whole).sha256


def test_no_file_makes_notan_import_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(train("--model-class", "mynet:Net"))
    (folder / "mynet.py").write_text("raise SystemExit('imported')")
    del sys.modules["mynet"]
    run = load_run(Path("run/run.toml"))
    (folder / "recipe.toml").write_text('[model]\nclass_path = "mynet:Net"\n')
    for words in (
        ("evaluate", "--model", model, "--data-path", "cells"),
        ("predict", "cells/test/images", "--model", model),
        ("export", "--model", model),
        ("compare", "run", model, "--data-path", "cells"),
        ("check", "--data-path", "cells", "--model", model),
        ("train", "--resume", "run"),
        ("train", "--recipe", "recipe.toml", "--data-path", "cells", "--out", "again"),
    ):
        assert "add --model-class mynet:Net" in refusal(*words, capsys=capsys), words
    with pytest.raises(CheckpointError, match="add --model-class mynet:Net"):
        notan.load(model)
    with pytest.raises(ConfigError, match="add --model-class mynet:Net"):
        notan.train(run, out="other")
    main(["report", "run"])
    assert "add --model-class mynet:Net" in (Path("run") / "report.html").read_text()
    for words in (
        ("ensemble", "run", model, "--out", "e.safetensors"),
        ("benchmark-models", "--models", "unet", "--epochs", "1", "--recipe", "recipe.toml"),
        ("train", "--data-path", "cells", "--teacher", model, "--out", "taught"),
    ):
        assert "own" in refusal(*words, capsys=capsys), words
    assert "mynet" not in sys.modules


BROKEN = {
    "torch.nn": "package:Class or file.py:Class is wanted",
    "nowhere:Net": "there is no package nowhere",
    "nowhere.py:Net": "there is no file nowhere.py",
    "mynet:Nett": "mynet has no Nett; did you mean 'Net'",
    "mynet:built": "a Net, built already; name its class",
    "math:pi": "no torch.nn.Module, nor a function that returns one",
    "pathlib:Path": "no torch.nn.Module, nor a function that returns one",
    "broken:syntax": "importing broken failed: SyntaxError",
}
CODE = {
    "Missing": ("def __init__(self, width):\n  super().__init__()", "required argument: 'width'"),
    "Raises": ("def __init__(self):\n  raise KeyError('x')", "building it failed: KeyError: 'x'"),
    "NoStride": ("def __init__(self):\n  super().__init__()\n  del self.stride", "no stride"),
    "Empty": ("def __init__(self):\n  nn.Module.__init__(self)\n  self.stride = 1", "no weights"),
    "Fails": ("def forward(self, x):\n  return x @ x.flatten()", "fails on images of"),
    "Lies": (
        "stride = 1\n def forward(self, x):\n  return self.up(self.down(x))",
        "returned (2, 1",
    ),
    "Two": ("def forward(self, x):\n  return self.conv(x).repeat(1, 2, 1, 1)", "(2, 2, 16, 16)"),
    "Pair": ("def forward(self, x):\n  return [self.conv(x)]", "returned a list"),
    "Train": (
        "def forward(self, x):\n  return (self.conv(x), 1) if self.training else self.conv(x)",
        "in training mode returned a tuple",
    ),
}


@pytest.mark.parametrize("spec", BROKEN)
def test_a_class_that_is_not_there_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], spec: str
) -> None:
    (folder / "broken.py").write_text("def (:\n")
    words = ("train", "--data-path", "cells", *SMALL, "--out", "run", "--model-class", spec)
    assert BROKEN[spec] in refusal(*words, capsys=capsys)
    assert not Path("run").exists()


@pytest.mark.parametrize("name", CODE)
def test_a_class_that_does_not_keep_the_contract_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    body, wanted = CODE[name]
    base = (
        "from torch import nn\nclass Base(nn.Module):\n def __init__(self):\n"
        "  super().__init__()\n  self.stride = 1\n  self.conv = nn.Conv2d(3, 1, 3, padding=1)\n"
        "  self.down = nn.Conv2d(3, 3, 2, stride=2)\n"
        "  self.up = nn.ConvTranspose2d(3, 1, 2, stride=2)\n"
    )
    (folder / "broken.py").write_text(f"{base}\nclass {name}(Base):\n {body}\n")
    words = ["train", "--data-path", "cells", *SMALL, "--out", "run"]
    if name == "Lies":  # seen where images come in any size
        words.append("--keep-aspect-ratio")
    assert wanted in refusal(*words, "--model-class", f"broken:{name}", capsys=capsys)
    assert not (Path("run") / "run.toml").exists()


@pytest.mark.usefixtures("folder")
def test_what_cannot_go_together_is_refused_or_said(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    begin = ("train", "--data-path", "cells", *SMALL, "--model-class", "mynet:Net")
    for more in (("--model", "unet"), ("--encoder", "resnet34"), ("--pretrained",), ("--auto",)):
        assert "leave one of them out" in refusal(*begin, *more, capsys=capsys)
    line = refusal(*begin, "model.arguments.widht=3", capsys=capsys)
    assert "unexpected keyword argument 'widht' (it takes width, depth)" in line
    train("--model-class", "mynet:Net", "model.width=8")
    assert "model.width = 8: not used; the model is your own" in caplog.text
    model = "run/best.safetensors"
    main(["export", "--model", model, "--model-class", "mynet:Net", "--out", "net.onnx"])
    for words, wanted in (
        (("predict", "cells/test/images", "--model", "net.onnx"), "holds its network"),
        (("evaluate", "--model", "net.onnx", "--data-path", "cells"), "holds its network"),
        (("predict", "cells/test/images"), "holds its network"),
        (("evaluate", "--model", model, "--data-path", "cells"), "is of the class Net"),
        (("compare", "net.onnx", "net.onnx", "--data-path", "cells"), "none of these models"),
    ):
        assert wanted in refusal(*words, "--model-class", "mynet:Other", capsys=capsys)


@pytest.mark.usefixtures("folder")
def test_two_classes_are_compared_and_refused_before_anything_is_computed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("--model-class", "mynet:Net", out="one")
    train("--model-class", "mynet:Other", out="two")
    both = ("--model-class", "mynet:Net,mynet.py:Other")
    words = ["compare", "one", "two", "--data-path", "cells", "--out", "compared"]
    main([*words, *both])
    assert "no difference" in capsys.readouterr().out
    monkeypatch.setattr("notan.comparison.comparison.measure", None)
    assert "an earlier comparison is here" in refusal(*words, *both, capsys=capsys)
    words[-1] = "new"
    for more in ((), ("--model-class", "mynet:Net")):
        line = refusal(*words, *more, capsys=capsys)
        assert "two/best.safetensors: this is of" in line or "one/best.safetensors" in line


@pytest.mark.usefixtures("folder")
def test_it_trains_from_python_by_name_by_class_and_as_a_module() -> None:
    sys.path.insert(0, ".")
    import mynet  # type: ignore[import-not-found]

    settings: dict[str, Any] = {"image_size": 16, "epochs": 1, "batch_size": 8, "device": "cpu"}
    overrides = ["train.trackers=[]", "model.arguments.width=3"]
    results = [
        notan.train("cells", model=own, overrides=overrides, out=f"run{number}", **settings)
        for number, own in enumerate(("mynet:Net", mynet.Net))
    ]
    assert len({read_card(result.checkpoint).sha256 for result in results}) == 1
    model = results[0].checkpoint
    image = next(Path("cells/test/images").iterdir())
    masks = [
        notan.predict(image, model, network=own).probability
        for own in ("mynet:Net", mynet.Net, mynet.Net(width=3), lambda width: mynet.Net(width))
    ]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])
    score = notan.evaluate(model, "cells", network=mynet.Net)
    loaded = notan.load(model, network=mynet.Net)
    assert notan.evaluate(loaded, "cells") == score
    with pytest.raises(NotanError, match="the weights do not fit Net"):
        notan.load(model, network=mynet.Net(width=5))
    with pytest.raises(ConfigError, match="a Predictor has its network already"):
        notan.evaluate(loaded, "cells", network=mynet.Net)
    exported = notan.export(model, "net.onnx", network=mynet.Net)
    compared = notan.compare(["run0", "run1", exported], data="cells", network=mynet.Net(width=3))
    assert {pair.difference for pair in compared.pairs} == {0.0}
