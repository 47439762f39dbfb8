"""Unpacking: only plain files, all of them or none, and never over somebody's own."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, NamedTuple

import pytest

from notan.errors import DataError, StorageError
from notan.io.download import unpack

if TYPE_CHECKING:
    from pathlib import Path

KNOWN_HASH = "md5:00"  # checked before, by the download


class Member(NamedTuple):
    name: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    target: str = ""


CAT = Member("images/cat.jpg", bytes(range(256)) * 50)
UNPACKED = ["images", "images/.archive", "images/cat.jpg"]


def pack(*members: Member) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname, info.size = member.type, member.target, len(member.content)
            tar.addfile(info, io.BytesIO(member.content))
    return buffer.getvalue()


def put(content: bytes, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "images.tar.gz"
    path.write_bytes(content)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_an_archive_is_unpacked_marked_and_removed(tmp_path: Path) -> None:
    path = put(pack(Member("images", type=tarfile.DIRTYPE), CAT), tmp_path)
    assert unpack(path, KNOWN_HASH) == tmp_path / "images"
    assert names_in(tmp_path) == UNPACKED
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == CAT.content
    assert (tmp_path / "images" / ".archive").read_text() == KNOWN_HASH


def test_the_notes_that_macos_adds_are_left_out(tmp_path: Path) -> None:
    junk = (Member("._images", b"note"), Member("images/._cat.jpg", b"note"))
    unpack(put(pack(*junk, CAT), tmp_path), KNOWN_HASH)
    assert names_in(tmp_path) == UNPACKED


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (Member("../evil", b"x"), r"'\.\./evil' leads out of the folder"),
        (Member("images/../../evil", b"x"), r"evil' leads out of the folder"),
        (Member("/tmp/evil", b"x"), r"'/tmp/evil' leads out of the folder"),  # noqa: S108
        (Member("C:\\evil", b"x"), r"evil' leads out of the folder"),
        (Member("..\\evil", b"x"), r"evil' leads out of the folder"),
        (Member("images/evil", type=tarfile.SYMTYPE, target="/etc"), "'images/evil' is a link"),
        (Member("images/evil", type=tarfile.LNKTYPE, target="images/cat.jpg"), "is a link"),
        (Member("images/evil", type=tarfile.FIFOTYPE), "is a link or a device"),
        (Member("images/evil", type=tarfile.CHRTYPE), "is a link or a device"),
    ],
)
def test_an_unsafe_member_is_named_and_nothing_is_unpacked(
    tmp_path: Path, member: Member, words: str
) -> None:
    path = put(pack(CAT, member), tmp_path / "pets")
    with pytest.raises(DataError, match=words):
        unpack(path, KNOWN_HASH)
    assert names_in(tmp_path) == ["pets", "pets/images.tar.gz"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pack(CAT)[:-100], "the archive is damaged"),
        (b"<html>not found</html>", "the archive is damaged"),
        (pack(), "holds nothing; wanted a folder images/"),
        (pack(Member("._images", b"note")), "holds nothing"),
        (pack(CAT, Member("cats/tom.jpg", b"x")), "holds cats, images; wanted a folder images/"),
    ],
    ids=[
        "cut short",
        "no archive",
        "empty",
        "nothing but notes",
        "more than its folder",
    ],  # an archive holds its time
)
def test_a_damaged_archive_leaves_nothing_unpacked(
    tmp_path: Path, content: bytes, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        unpack(put(content, tmp_path), KNOWN_HASH)
    assert names_in(tmp_path) == ["images.tar.gz"]


def test_what_a_crash_left_behind_is_replaced(tmp_path: Path) -> None:
    unpack(put(pack(CAT), tmp_path), "md5:an older archive")
    (tmp_path / ".unpacking-images" / "images").mkdir(parents=True)
    (tmp_path / "images" / "older.jpg").write_bytes(b"older")
    unpack(put(pack(CAT), tmp_path), KNOWN_HASH)
    assert names_in(tmp_path) == UNPACKED
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == CAT.content


def test_what_the_user_put_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = put(pack(CAT), tmp_path)
    with pytest.raises(DataError, match=r"images is already there .* move it away"):
        unpack(path, KNOWN_HASH)
    assert names_in(tmp_path) == ["images", "images.tar.gz"]


def test_a_full_disk_leaves_the_archive_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tarfile.TarFile.extract", full)
    with pytest.raises(StorageError, match="No space left on device"):
        unpack(put(pack(CAT), tmp_path), KNOWN_HASH)
    assert names_in(tmp_path) == ["images.tar.gz"]
