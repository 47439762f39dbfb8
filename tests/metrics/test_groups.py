"""Groups of images: by the foreground's size, by breed, and by what a table says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from notan.config import Data
from notan.data.folders import open_split
from notan.errors import DataError
from notan.metrics import Counts
from notan.metrics.groups import by_breed, by_foreground_size, read_groupings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAMES = ("a", "b", "c")


def images_with(*foregrounds: int) -> dict[str, Counts]:
    """Images of 100 pixels, called by their number, with so many pixels of foreground."""
    return {
        str(index): Counts(foreground, 0, 0, 100 - foreground)
        for index, foreground in enumerate(foregrounds)
    }


def members(group_of: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, group in group_of.items():
        groups.setdefault(group, []).append(name)
    return groups


def test_foregrounds_are_small_medium_or_large_by_thirds_of_the_images() -> None:
    grouping = by_foreground_size(images_with(50, 2, 30, 0, 1, 40, 3))
    assert grouping is not None
    assert members(grouping.group_of) == {
        "small": ["1", "4"],
        "medium": ["2", "6"],
        "large": ["0", "5"],
        "no foreground": ["3"],
    }
    assert list(members(grouping.group_of)) == ["small", "medium", "large", "no foreground"]
    assert "small up to 0.0267, medium up to 0.333, large above" in grouping.rule


def test_the_share_is_of_the_pixels_that_count() -> None:
    images = {**images_with(10, 39, 41, 60), "half": Counts(20, 0, 0, 30)}
    grouping = by_foreground_size(images)
    assert grouping is not None
    assert (grouping.group_of["half"], grouping.group_of["1"]) == ("medium", "small")
    grouping = by_foreground_size({**images_with(10, 20, 30), "ignored": Counts(0, 0, 0, 0)})
    assert grouping is not None
    assert grouping.group_of["ignored"] == "no foreground"


@pytest.mark.parametrize("foregrounds", [(), (5, 9), (5, 9, 0), (7, 7, 7, 7), (0, 0, 0)])
def test_too_few_foregrounds_or_foregrounds_of_one_size_make_no_thirds(
    foregrounds: tuple[int, ...],
) -> None:
    assert by_foreground_size(images_with(*foregrounds)) is None


def test_foregrounds_of_one_size_are_never_parted() -> None:
    grouping = by_foreground_size(images_with(7, 7, 7, 7, 90))
    assert grouping is not None
    assert members(grouping.group_of) == {"small": ["0", "1", "2", "3"], "large": ["4"]}


def test_an_oxford_name_is_its_breed_and_a_number() -> None:
    grouping = by_breed(["great_pyrenees_12", "Abyssinian_5", "great_pyrenees_100", "my cat"])
    assert members(grouping.group_of) == {
        "Abyssinian": ["Abyssinian_5"],
        "great_pyrenees": ["great_pyrenees_100", "great_pyrenees_12"],
        "other": ["my cat"],
    }


def test_the_breeds_of_the_pets_are_found(pets_folder: Path) -> None:
    names = open_split(Data(path=pets_folder), "test", seed=0).names
    breeds = members(by_breed(names).group_of)
    assert len(breeds) == 3
    assert "other" not in breeds


def table(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "groups.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "name,site\na,north\nb,south\nc,north\n",
        "site,name\nnorth,a\nsouth,b\nnorth,c\n",
        "image,site\nc,north\nb,south\na,north\n",
        "\ufeffname,site\r\na,north\r\n\r\n b , south \r\nc,north\r\nd,west\r\nd,east\r\n",
        'name,site\na.png,"north"\nimages/b.tif,south\nc,north',
    ],
    ids=["name first", "name second", "no name column", "from a spreadsheet", "file names"],
)
def test_a_table_groups_the_images_by_its_columns(tmp_path: Path, text: str) -> None:
    (site,) = read_groupings(table(tmp_path, text), NAMES)
    assert (site.name, site.rule) == ("site", "column of groups.csv")
    assert members(site.group_of) == {"north": ["a", "c"], "south": ["b"]}


def test_every_column_is_a_grouping_and_an_empty_cell_a_group(tmp_path: Path) -> None:
    path = table(tmp_path, "name,site,age\na,north,\nb,,4\nc,north,4\n")
    site, age = read_groupings(path, NAMES)
    assert members(site.group_of) == {"north": ["a", "c"], "not given": ["b"]}
    assert members(age.group_of) == {"4": ["b", "c"], "not given": ["a"]}


def test_a_name_with_a_dot_is_found_as_it_is_written(tmp_path: Path) -> None:
    path = table(tmp_path, "name,site\nscan.1,north\nscan.2.png,south\n")
    (site,) = read_groupings(path, ("scan.1", "scan.2"))
    assert site.group_of == {"scan.1": "north", "scan.2": "south"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty; a CSV was wanted"),
        ("\n , \n", "the file is empty"),
        ("name\na\nb\nc\n", "the only column is 'name'; a CSV was wanted"),
        ("name;site\na;north\n", "the only column is 'name;site'.* with commas"),
        ("name,site\na,north\nb,south\n", "the image c has no row; every image of the split"),
        ("name,site\n", "the image a has no row, nor do 2 others"),
        ("name,site\na,n\nb,s\na,s\nc,n\n", "line 4 names the image a again, after line 2"),
        ("name,site\na,n\na.png,n\nb,s\nc,n\n", "line 3 names the image a again, after line 2"),
        ("name,site\na,north\nb\nc,north\n", "line 3 has 1 of 2 cells"),
        ("name,site\na,north,x\n", "line 2 has 3 of 2 cells"),
        ("name,site,site\na,n,n\n", "two columns are called 'site'"),
        ("name,\na,n\n", "a column has no name"),
        (b"name,site\na,\xff\xfe\n", "cannot be read as UTF-8 text"),
        ('name,site\na,"north\n', "cannot be read as UTF-8 text"),
        ("name,site\na,n\0rth\n", "cannot be read as UTF-8 text|has no row"),
    ],
)
def test_a_broken_table_is_refused_with_its_name(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(DataError, match=rf"groups\.csv: .*{words}"):
        read_groupings(table(tmp_path, text), NAMES)


def test_a_table_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: there is no such file; check --groups"):
        read_groupings(tmp_path / "gone.csv", NAMES)
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        read_groupings(tmp_path, NAMES)
