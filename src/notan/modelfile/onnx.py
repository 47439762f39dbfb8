"""The container of an ONNX model: its text metadata and its hash, without any ONNX library.

Source: onnx.proto (ModelProto.metadata_props is field 14, StringStringEntryProto holds key = 1 and
    value = 2) and the Protocol Buffers encoding, protobuf.dev/programming-guides/encoding: a
    message is a row of fields, each a varint of (number << 3 | wire type) and its content. Only
    the outermost row is walked here; what the fields hold is the runtime's matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.errors import CheckpointError
from notan.io.digest import sha256
from notan.io.write import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIX = ".onnx"
GRAPH, METADATA, KEY, VALUE = 7, 14, 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
HIGHEST = 26
"""The highest field number of ModelProto as of ONNX 1.23; a higher one means another format."""

LONGEST_VARINT = 10


class _BrokenError(Exception):
    """The bytes are no row of fields."""


def is_onnx(path: Path) -> bool:
    """Say whether a path names an ONNX model."""
    return path.suffix.lower() == SUFFIX


def read_metadata(path: Path) -> tuple[dict[str, str], str]:
    """Read and hash an ONNX model.

    Returns:
        Its text by key, and the SHA-256 of every outermost field but the text, in their order.

    Raises:
        CheckpointError: Missing, unreadable, cut short, or no ONNX file.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no such ONNX model; make one with "
            "notan export --model RUN/best.safetensors --to onnx"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: the file cannot be read ({error})") from error
    try:
        return _parse(memoryview(content))
    except _BrokenError as error:
        raise CheckpointError(
            f"{path}: not an ONNX file, or one that is damaged or cut short ({error}); "
            "use another copy"
        ) from error


def write_onnx(path: Path, model: bytes, metadata: dict[str, str]) -> None:
    """Write a serialized model with metadata, whole or not at all.

    Args:
        path: The file.
        model: A ModelProto in bytes, without metadata of its own.
        metadata: Text by key.

    Raises:
        StorageError: The file could not be written; an older one is left as it was.
    """
    with replacing(path) as file:
        file.write(model)
        for key, value in metadata.items():
            entry = _field(KEY, key.encode()) + _field(VALUE, value.encode())
            file.write(_field(METADATA, entry))


def hash_model(model: bytes) -> str:
    """Return the SHA-256 of a serialized model, whatever its metadata say."""
    return _parse(memoryview(model))[1]


def _parse(content: memoryview) -> tuple[dict[str, str], str]:
    metadata, hashed, has_graph = {}, list[memoryview](), False
    for number, whole, value in _fields(content):
        if not 1 <= number <= HIGHEST:
            raise _BrokenError(f"a field {number}, which no ONNX file has")
        has_graph |= number == GRAPH
        if number == METADATA:
            entry = {each: bytes(text) for each, _, text in _fields(value)}
            try:
                metadata[entry.get(KEY, b"").decode()] = entry.get(VALUE, b"").decode()
            except UnicodeDecodeError as error:
                raise _BrokenError("metadata that are no text") from error
        else:
            hashed.append(whole)
    if not has_graph:
        raise _BrokenError("it holds no network")
    return metadata, sha256(*hashed)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield each field's number, all of its bytes, and its content alone."""
    start = 0
    while start < len(content):
        tag, begin = _varint(content, start)
        kind = tag & 7
        if kind == VARINT:
            _, end = _varint(content, begin)
        elif kind == BYTES:
            length, begin = _varint(content, begin)
            end = begin + length
        elif kind in (FIXED32, FIXED64):
            end = begin + (4 if kind == FIXED32 else 8)
        else:
            raise _BrokenError(f"wire type {kind} at byte {start}")
        if end > len(content):
            raise _BrokenError(f"it ends {end - len(content)} bytes too soon")
        yield tag >> 3, content[start:end], content[begin:end]
        start = end


def _varint(content: memoryview, start: int) -> tuple[int, int]:
    """Return a number of seven bits to a byte, lowest first, and where it ends."""
    value = 0
    for place, byte in enumerate(content[start : start + LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, start + place + 1
    raise _BrokenError(f"a number without an end at byte {start}")


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | BYTES) + _number(len(content)) + content


def _number(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
