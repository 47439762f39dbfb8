"""The data doctor's page."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from doctor_folders import image_path, mask, pixels, write, write_clean
from notan.checking import Diagnosis, Finding, examine
from notan.report.check import (
    MOST_MESSAGES,
    MOST_THUMBNAILS,
    TITLES,
    check_page,
)

VOID = {"meta", "img", "wbr"}


class Balance(HTMLParser):
    """Sees to it that every element that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture(scope="module")
def sick(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(clean, tmp_path_factory.mktemp("sick") / "data"))
    image_path(folder, 1).write_text("hello")
    write(mask(folder, 10), 255 - pixels(mask(folder, 10)))
    write(mask(folder, 3), pixels(mask(folder, 3))[:-4])
    write(mask(folder, 4), np.arange(96 * 120).reshape(96, 120) % 7)
    image_path(folder, 5).unlink()
    mask(folder, 6).unlink()
    mask(folder, 7).write_text("hello")
    write(mask(folder, 8), pixels(mask(folder, 8)) * 0 + 255)
    for which in ("images", "masks"):
        parent = folder / "train" / which
        (parent / "drawn-0009.png").rename(parent / "<script>alert(1)&.png")
    shutil.copy(folder / "train" / "images" / "<script>alert(1)&.png", folder / "test" / "images")
    return folder


@pytest.fixture(scope="module")
def page(sick: Path) -> str:
    return check_page(examine(sick))


def test_a_clean_folder_gets_a_clean_verdict(clean: Path) -> None:
    text = check_page(examine(clean))
    assert 'class="verdict clean"' in text
    assert "Nothing wrong found in 30 images." in text


def test_a_sick_folder_gets_an_error_and_its_findings(page: str) -> None:
    assert 'class="verdict error"' in page
    for kind in ("unreadable-image", "inverted-mask", "size-mismatch", "ambiguous-mask"):
        assert TITLES[kind] in page
    assert "cannot be shown" in page


def test_warnings_alone_give_a_warning(clean: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clean, tmp_path / "data"))
    write(mask(folder, 10), 255 - pixels(mask(folder, 10)))
    assert 'class="verdict warning"' in check_page(examine(folder))


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert not re.search(r"https?://|//cdn|@import|<link|<script|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_file_names_are_escaped(page: str) -> None:
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&amp;.png" in page


def test_every_element_is_closed(page: str) -> None:
    balance = Balance()
    balance.feed(page)
    assert not balance.open


def test_the_page_follows_the_readers_light_and_screen(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_nothing_of_the_template_is_left(page: str) -> None:
    assert not re.search(r"\$[a-z]+", page)


def test_statistics_stand_in_a_row_for_each_split(page: str) -> None:
    for split in ("train", "validation", "test"):
        assert f'<th scope="row">{split}</th>' in page


def test_many_findings_are_folded_and_shortened(clean: Path) -> None:
    count = MOST_MESSAGES + 20
    findings = tuple(
        Finding("blank-image", "warning", f"message {number}", (image_path(clean, number % 18),))
        for number in range(count)
    )
    text = check_page(
        Diagnosis(folder=clean, layout="folder", trimap_border="foreground", findings=findings)
    )
    assert f"All {count} in words" in text
    assert "and 20 more, all of them in check.json" in text
    assert text.count("<img") == MOST_THUMBNAILS
    assert f"The first {MOST_THUMBNAILS} are shown" in text


def test_no_finding_at_all_is_said(clean: Path) -> None:
    assert "nothing to report" in check_page(
        Diagnosis(folder=clean, layout="folder", trimap_border="foreground")
    )


def test_an_unknown_kind_has_a_title_all_the_same(clean: Path) -> None:
    finding = Finding("strange-new-thing", "note", "a message", ())
    text = check_page(
        Diagnosis(folder=clean, layout="folder", trimap_border="foreground", findings=(finding,))
    )
    assert "<h3>Strange new thing</h3>" in text


def test_every_kind_that_the_doctor_names_has_a_title() -> None:
    folder = Path(examine.__code__.co_filename).parent
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    named = set(re.findall(r'Finding\(\s*"([a-z-]+)"', text))
    assert len(named) > 15
    assert named <= set(TITLES)
