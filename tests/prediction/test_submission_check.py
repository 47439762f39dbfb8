"""What a leaderboard would refuse is found before it does."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from notan.errors import DataError
from notan.prediction.formats.rows import kaggle_rle
from notan.prediction.submission import MOST_LISTED, Findings, NameList, check_submission

NAMES = NameList(Path("test.txt"), {"a": 1, "b": 2})
SIZES = {"a": (3, 4), "b": (2, 2)}
HEADER = "image_id,encoded_mask\n"


def checked(tmp_path: Path, text: str | bytes, names: NameList | None = NAMES) -> Findings:
    path = tmp_path / "s.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return check_submission(path, names, SIZES if names else None)


@pytest.mark.parametrize(
    "rows",
    ["a,1 12\nb,\n", "b,1 1 4 1\na,2 3\n", 'a," 2 3 "\r\nb,\r\n', "a,1 2 3 1\nb,1 4"],
    ids=["full and empty", "other order", "quoted", "touching"],
)
def test_what_a_leaderboard_takes_is_fine(tmp_path: Path, rows: str) -> None:
    findings = checked(tmp_path, HEADER + rows)
    assert (findings.problems, findings.images) == ([], 2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file is empty"),
        ("name,rle\na,1 1\nb,\n", "the header is 'name,rle'; wanted image_id,encoded_mask"),
        ("encoded_mask,image_id\na,1 1\nb,\n", "the header is 'encoded_mask,image_id'"),
        ("a,1 1\nb,\n", "the header is 'a,1 1'"),
        ("\ufeff" + HEADER + "a,1 1\nb,\n", "begins with a byte order mark"),
        (HEADER + "a,1 1\nb,\na,2 1\n", "row 4, 'a': stands in row 2 already"),
        (HEADER + "a,1 1\nb,\nc,\n", "row 4, 'c': is not in test.txt"),
        (HEADER + "a,1 1\n", "no row for 'b', line 2 of test.txt"),
        (HEADER + "a,1 1\nb,\n,1 1\n", "row 4 has no name"),
        (HEADER + "a,1 1\n\nb,\n", "row 3 is empty"),
        (HEADER + "a,1 1\nb,\n1 1\n", "row 4 has 1 cells ('1 1')"),
        (HEADER + "a,1 1\nb,\nb,1,1\n", "row 4 has 3 cells"),
        (HEADER + "a,1 1 1\nb,\n", "row 2, 'a': 3 numbers; an even count"),
        (HEADER + "a,1 x\nb,\n", "row 2, 'a': 'x' is no whole number"),
        (HEADER + "a,-1 2\nb,\n", "row 2, 'a': '-1' is no whole number"),
        (HEADER + "a,0 2\nb,\n", "row 2, 'a': a run starts at 0"),
        (HEADER + "a,1 0\nb,\n", "row 2, 'a': the run at 1 is of length 0"),
        (HEADER + "a,5 2 1 2\nb,\n", "row 2, 'a': the run at 1 begins before"),
        (HEADER + "a,1 3 3 2\nb,\n", "row 2, 'a': the run at 3 begins before"),
        (HEADER + "a,1 13\nb,\n", "reaches pixel 13, but the image has 12 (3x4"),
        (HEADER + "a,1 1\nb,1 12\n", "reaches pixel 12, but the image has 4 (2x2"),
        (HEADER + f"a,1 {'9' * 5000}\nb,\n", "a number of 5000 digits"),
    ],
)
def test_one_fault_is_one_problem(tmp_path: Path, text: str, problem: str) -> None:
    findings = checked(tmp_path, text, None if not text else NAMES)
    assert findings.count == 1, findings.problems
    assert problem in findings.problems[0]


def test_a_quote_that_never_ends_is_said_once_and_what_it_hides_is_missing(tmp_path: Path) -> None:
    findings = checked(tmp_path, HEADER + 'a,1 1\nb,"1 2\n')
    assert "row 3 is no CSV" in findings.problems[0]
    assert findings.problems[1:] == ["no row for 'b', line 2 of test.txt"]


def test_a_header_alone_is_no_submission(tmp_path: Path) -> None:
    assert checked(tmp_path, HEADER, None).problems == ["there are no rows below the header"]


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\xff", HEADER.encode("utf-16")])
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"s\.csv: cannot be read .*UTF-8 text"):
        checked(tmp_path, content)


def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(DataError, match=rf"{re.escape(str(path))}: cannot be read"):
            check_submission(path)


def test_a_cell_longer_than_the_csv_module_takes_is_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    mask = np.zeros((400, 400), np.bool_)
    mask[::2] = True
    text = kaggle_rle(mask)
    assert len(text) > before
    assert checked(tmp_path, f"{HEADER}big,{text}\n", None).problems == []
    assert csv.field_size_limit() == before


def test_of_many_problems_the_first_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    extra = "".join(f"x{number},\n" for number in range(MOST_LISTED + 7))
    findings = checked(tmp_path, f"{HEADER}a,\nb,\n{extra}")
    assert findings.count == MOST_LISTED + 7
    lines = findings.in_words().splitlines()
    assert len(lines) == MOST_LISTED + 1
    assert lines[-1] == "... and 7 more"
