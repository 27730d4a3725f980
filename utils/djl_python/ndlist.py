"""Arrays in DJL's `tensor/ndlist` format, version 3, big-endian headers."""

import io
import struct
from typing import Any

MAGIC = "NDAR"
VERSION = 3


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack(">h", len(data)) + data


def encode(arrays: Any) -> bytes:
    """One array or a list of arrays as bytes."""
    import numpy

    arrays = arrays if isinstance(arrays, list) else [arrays]
    parts = [struct.pack(">i", len(arrays))]
    for array in map(numpy.asarray, arrays):
        data = array.astype(array.dtype.newbyteorder("<")).tobytes("C")
        rank = array.ndim
        parts += [
            _text(MAGIC),
            struct.pack(">ib", VERSION, 0),  # 0: the array has no name
            _text("default"),
            _text(array.dtype.name.upper()),
            struct.pack(f">i{rank}q", rank, *array.shape),
            struct.pack(f">i{rank}h", rank, *[ord("?")] * rank),
            struct.pack(">ci", b"<", len(data)),
            data,
        ]
    return b"".join(parts)


def decode(data: bytes) -> list:
    """The arrays of a `tensor/ndlist` body, or of an npz file.

    Raises:
        ValueError: if the body is neither.
    """
    import numpy

    if data[:2] == b"PK":
        archive = numpy.load(io.BytesIO(data))
        return [archive[name] for name in archive.files]
    stream = io.BytesIO(data)

    def read(form: str) -> tuple:
        return struct.unpack(form, stream.read(struct.calcsize(form)))

    def read_text() -> str:
        return stream.read(read(">h")[0]).decode("utf-8")

    try:
        return [_decode_one(stream, read, read_text) for _ in range(read(">i")[0])]
    except (struct.error, UnicodeDecodeError, TypeError) as error:
        raise ValueError(
            f"the body is no tensor/ndlist of version {VERSION}: {error}"
        ) from error


def _decode_one(stream: io.BytesIO, read: Any, read_text: Any) -> Any:
    import numpy

    magic = read_text()
    (version,) = read(">i")
    if (magic, version) != (MAGIC, VERSION):
        raise ValueError(
            f"the body starts with {magic!r} version {version}, "
            f"expected {MAGIC!r} version {VERSION}"
        )
    if read(">b")[0]:
        read_text()  # a name, of no use to a handler
    read_text()  # sparse or dense: only dense is in use
    kind = numpy.dtype(read_text().lower())
    (rank,) = read(">i")
    shape = read(f">{rank}q")
    (letters,) = read(">i")
    read(f">{letters}h")
    (order,) = read(">c")
    data = stream.read(read(">i")[0])
    stored = numpy.frombuffer(data, kind.newbyteorder(order.decode()))
    return stored.reshape(shape).astype(kind)
