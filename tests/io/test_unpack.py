"""Unpacking: only plain files, all of them or none, and never over somebody's own."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, NamedTuple

import pytest

from notan.errors import DataError, StorageError
from notan.io.download import Archive, is_unpacked, refuse_foreign, unpack

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = Archive("images.tar.gz", "0" * 32)  # the checksum is looked at before, by the download


class Member(NamedTuple):
    name: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    target: str = ""


CAT = Member("images/cat.jpg", bytes(range(256)) * 50)


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
    path = folder / IMAGES.name
    path.write_bytes(content)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_an_archive_is_unpacked_recorded_and_removed(tmp_path: Path) -> None:
    assert not is_unpacked(IMAGES, tmp_path)
    unpack(IMAGES, put(pack(Member("images", type=tarfile.DIRTYPE), CAT), tmp_path), tmp_path)
    assert names_in(tmp_path) == [".unpacked.json", "images", "images/cat.jpg"]
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == CAT.content
    assert is_unpacked(IMAGES, tmp_path)
    assert not is_unpacked(Archive(IMAGES.name, "1" * 32), tmp_path)


def test_the_notes_that_macos_adds_are_left_out(tmp_path: Path) -> None:
    junk = (Member("._images", b"note"), Member("images/._cat.jpg", b"note"))
    unpack(IMAGES, put(pack(*junk, CAT), tmp_path), tmp_path)
    assert names_in(tmp_path) == [".unpacked.json", "images", "images/cat.jpg"]


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
        unpack(IMAGES, path, tmp_path / "pets")
    assert names_in(tmp_path) == ["pets", "pets/images.tar.gz"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pack(CAT)[:-100], "the archive is damaged"),
        (b"<html>not found</html>", "the archive is damaged"),
        (pack(), "the archive is empty"),
        (pack(Member("._images", b"note")), "the archive is empty"),
    ],
    ids=["cut short", "no archive", "empty", "nothing but notes"],  # an archive holds its time
)
def test_a_damaged_archive_leaves_nothing_unpacked(
    tmp_path: Path, content: bytes, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        unpack(IMAGES, put(content, tmp_path), tmp_path)
    assert names_in(tmp_path) == ["images.tar.gz"]


def test_what_a_crash_left_behind_is_replaced(tmp_path: Path) -> None:
    unpack(IMAGES, put(pack(CAT), tmp_path), tmp_path)
    (tmp_path / ".unpacking-images.tar.gz" / "images").mkdir(parents=True)
    (tmp_path / "images" / "cat.jpg").write_bytes(b"half")
    unpack(IMAGES, put(pack(CAT), tmp_path), tmp_path)
    assert names_in(tmp_path) == [".unpacked.json", "images", "images/cat.jpg"]
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == CAT.content


def test_what_the_user_put_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cats").write_text("mine")
    path = put(pack(CAT, Member("cats/tom.jpg", b"x")), tmp_path)
    refuse_foreign(IMAGES, tmp_path)  # its own name tells nothing of "cats"
    with pytest.raises(DataError, match=r"cats is already there .* move it away"):
        unpack(IMAGES, path, tmp_path)
    assert names_in(tmp_path) == ["cats", "images.tar.gz"]
    assert (tmp_path / "cats").read_text() == "mine"


@pytest.mark.parametrize("record", ["", "[]", '{"images.tar.gz": 1}', '{"images.tar.gz": {}}'])
def test_a_damaged_record_claims_nothing(tmp_path: Path, record: str) -> None:
    (tmp_path / ".unpacked.json").write_text(record)
    (tmp_path / "images").mkdir()
    assert not is_unpacked(IMAGES, tmp_path)


def test_a_full_disk_leaves_the_archive_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tarfile.TarFile.extract", full)
    with pytest.raises(StorageError, match="No space left on device"):
        unpack(IMAGES, put(pack(CAT), tmp_path), tmp_path)
    assert names_in(tmp_path) == ["images.tar.gz"]
