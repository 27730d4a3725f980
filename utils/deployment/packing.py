"""The weights on their way into an archive: 16 bits, copied once, with room for them.

A base of 2.8 billion parameters is 11.1 GB in float32 and half of that in the 16 bits
that its configuration names. What a build will write is known before it begins, so it
is compared with the disk then, and said where it is much.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.deployment.findings import WEIGHTS_INDEX, ArtifactError
from utils.files import write_json

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a number
HALVES = ("bfloat16", "float16")
WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # bytes, by safetensors' names
LONG = {"F64", "F32"}
WHOLE_NUMBERS = {"I64", "I32", "I16", "I8", "BOOL"}
SAID_FROM = 10**9  # bytes to write from which a build says so beforehand
LEFT_FREE = 64 * 2**20  # bytes: headers, tar's padding, small files
PROBE = 64 * 2**20  # bytes that are packed to see how fast it goes
COPIES_OF_LOADING = 2  # `validate(load=True)`: the archive unpacked, and its trial copy
COPIES_OF_SERVING = 1
COPIED_AT_ONCE = 2**30  # bytes; the kernel may stop earlier


@dataclass(frozen=True)
class Need:
    """What an artifact takes on the disk, in bytes.

    Attributes:
        folder: laid out.
        archive: packed. Weights are stored, not squeezed, so it is as large.
        copies: unpacked at the same time, at most, by those who look at the archive.
    """

    folder: int
    archive: int
    copies: int

    @property
    def written(self) -> int:
        """What building writes."""
        return self.folder + self.archive

    @property
    def unpacked(self) -> int:
        """What validation and serving put into the temporary folder for a while."""
        return self.copies * self.folder

    @property
    def total(self) -> int:
        """The most that there is at one time."""
        return self.written + self.unpacked

    def __str__(self) -> str:
        return (
            f"{gigabytes(self.folder)} for the folder, {gigabytes(self.archive)} for "
            f"the archive, and for a while {gigabytes(self.unpacked)} in the temporary "
            "folder while it is loaded to check it or to serve it"
        )


def gigabytes(size: float) -> str:
    """Write a number of bytes as it is read: "5.6 GB"."""
    return f"{size / 1e9:.1f} GB"


def model_bytes(parameters: int, dtype: str = "bfloat16") -> int:
    """Return how many bytes the weights of a model take.

    Args:
        parameters: how many numbers it has.
        dtype: of each: float32, bfloat16 or float16.
    """
    return parameters * BYTES[dtype]


def needed_disk(
    base: Path | int | None,
    adapter: Path | None = None,
    *,
    dtype: str | None = None,
    merged: bool = False,
    more: int = 0,
    copies: int = COPIES_OF_LOADING,
) -> Need:
    """Compute what an artifact will take on the disk, before any of it is written.

    Args:
        base: the folder of a model; or how many bytes its weights take; None if the
            container downloads it.
        adapter: the folder of an adapter, if there is one.
        dtype: as for `artifact.build`.
        merged: all weights are saved anew in `dtype`, as `build_without_code` does.
        more: bytes of what else is packed, such as `notes.packed_bytes` counts.
        copies: unpacked ones at the same time.
    """
    size = more + (base if isinstance(base, int) else 0)
    if isinstance(base, Path):
        size += sum(path.stat().st_size for path in base.iterdir() if _is_small(path))
        size += _packed_weights(base, dtype, merged)
    if adapter is not None:
        size += sum(path.stat().st_size for path in adapter.iterdir() if path.is_file())
    return Need(size, size, copies)


def _is_small(path: Path) -> bool:
    return path.is_file() and path.suffix in (".json", ".model", ".txt", ".jinja")


def _packed_weights(base: Path, dtype: str | None, merged: bool) -> int:
    """Return the bytes of a base's weights once they are copied, or saved anew."""
    shorter = packed_dtype(base, dtype)
    target = dtype if merged else shorter
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    if target is not None:
        for kind, shape in _stored_tensors(base):
            if width := WIDTHS.get(kind):
                size += math.prod(shape) * (BYTES[target] - width)
    return size


def require_room(
    need: Need, folder: Path, archive: Path, say: Callable[[str], None] = print
) -> None:
    """Compare what a build will write with the disk; say it first where it is much.

    Old versions of folder and archive stay until the new ones are complete, so that
    what they take does not count as free.

    Raises:
        ArtifactError: if it does not fit: nothing has been written then.
    """
    places: dict[int, tuple[Path, int]] = {}
    for path, size in ((folder, need.folder), (archive, need.archive)):
        place = _existing(path)
        device = place.stat().st_dev
        first, sum_so_far = places.get(device, (place, 0))
        places[device] = first, sum_so_far + size
    for place, size in places.values():
        free = shutil.disk_usage(place).free
        if size + LEFT_FREE > free:
            raise ArtifactError(
                f"{place} has {gigabytes(free)} free, and building {folder.name} and "
                f"{archive.name} needs {gigabytes(size + LEFT_FREE)} there. Nothing "
                "was written. Make room, or set COURSE_BUILD to a folder on a larger "
                "disk."
            )
    if need.written < SAID_FROM:
        return
    say(f"Packing {archive.name}: {need}.")
    with contextlib.suppress(OSError):  # who may not write there is told so later
        seconds = need.written / _bytes_a_second(_existing(folder))
        say(
            f"It takes about {_minutes(seconds)} here, reckoned from the time that "
            f"{PROBE // 2**20} MiB took."
        )
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free
    if temporary.stat().st_dev in places:
        free -= places[temporary.stat().st_dev][1]
    if need.unpacked > free:
        say(
            f"{temporary}, the temporary folder, will have {gigabytes(max(free, 0))} "
            "free: too little to load the archive here. TMPDIR names another one."
        )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _existing(path: Path) -> Path:
    """Return the folder around a path that is already there."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _bytes_a_second(place: Path) -> float:
    """Measure how fast a folder takes what is packed; the probe is removed again."""
    data = os.urandom(2**20)
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile(dir=place) as raw,
        gzip.GzipFile("", "wb", compresslevel=0, fileobj=raw) as zipped,
    ):
        for _ in range(PROBE // len(data)):
            zipped.write(data)
        raw.flush()
        os.fsync(raw.fileno())
    return PROBE / max(time.perf_counter() - started, 1e-6)


# --- in which type --------------------------------------------------------------------


def packed_dtype(base: Path, dtype: str | None = None) -> str | None:
    """Return the type to which a base's weights are shortened; None: as they are.

    By default it is the type of its own that its configuration names, if that has 16
    bits: what `from_pretrained` of transformers 5 loads it in, and what a server on a
    graphics card computes in. A base that is quantised, or holds both float32 and 16
    bits, was saved so on purpose and stays.

    Args:
        base: the folder of a model.
        dtype: "bfloat16" or "float16" to have all of it so; "float32" to leave it as
            it is on the disk.

    Raises:
        ArtifactError: if `dtype` is none of these.
    """
    if dtype is not None and dtype not in BYTES:
        raise ArtifactError(
            f"dtype is {dtype!r}. Give one of {', '.join(BYTES)}; float32 leaves the "
            "base as it is."
        )
    settings = _settings(base)
    if dtype == "float32" or "quantization_config" in settings:
        return None
    own = str(settings.get("dtype") or settings.get("torch_dtype"))
    target = dtype or own.removeprefix("torch.")
    if target not in HALVES:
        return None
    stored = {kind for kind, _ in _stored_tensors(base)} - WHOLE_NUMBERS
    return target if stored and stored <= LONG else None


def _settings(base: Path) -> dict[str, object]:
    with contextlib.suppress(ValueError):
        found = json.loads((base / "config.json").read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _stored_tensors(base: Path) -> list[tuple[str, list[int]]]:
    """Return type, by safetensors' name, and shape of each of a base's tensors."""
    from safetensors import SafetensorError, safe_open

    found = []
    for path in base.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                    part = weights.get_slice(name)
                    found.append((part.get_dtype(), part.get_shape()))
        except SafetensorError:
            return []  # damaged: it is copied, and `validate` says what it is
    return found


# --- copying --------------------------------------------------------------------------


def copy_weights(base: Path, target: Path, dtype: str | None = None) -> bool:
    """Copy a base's weights into a folder, in 16 bits where `packed_dtype` says so.

    Args:
        base: the folder of a model.
        target: the folder, which already holds the other files.
        dtype: as for `packed_dtype`.

    Returns:
        Whether numbers were rounded: those of a float32 base often are.
    """
    shorter = packed_dtype(base, dtype)
    rounded = False
    saved = 0
    for path in sorted(base.glob("*.safetensors")):
        if shorter is None:
            copy_file(path, target / path.name)
        else:
            lost, size = _shorten(path, target / path.name, shorter)
            rounded, saved = rounded or lost, saved + size
    if shorter is not None:
        _note_type(target, shorter, saved)
    return rounded


def _shorten(source: Path, target: Path, dtype: str) -> tuple[bool, int]:
    """Save a file's tensors in 16 bits; say whether that rounds, and their bytes.

    At most the shortened tensors are in memory, and one that is not yet.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    shorter: dict[str, torch.Tensor] = {}
    rounded = False
    with safe_open(source, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = weights.get_tensor(name)
            short = tensor
            if tensor.is_floating_point():
                short = tensor.to(getattr(torch, dtype))
                rounded = rounded or not torch.equal(short.to(tensor.dtype), tensor)
                if not torch.equal(short.isfinite(), tensor.isfinite()):
                    raise ArtifactError(
                        f"{source.name}: {name} holds a number too large for {dtype}. "
                        'Build with dtype="bfloat16", which reaches as far as float32, '
                        'or dtype="float32".'
                    )
            shorter[name] = short
        metadata = weights.metadata()
    save_file(shorter, target, metadata)
    return rounded, sum(tensor.nbytes for tensor in shorter.values())


def _note_type(folder: Path, dtype: str, size: int) -> None:
    """Write the type into the configuration, and the size into the shards' index."""
    path = folder / "config.json"
    settings = json.loads(path.read_text("utf-8"))
    # transformers called it `torch_dtype` before 4.56, and still reads that.
    keys = {"dtype", "torch_dtype"} & set(settings) or {"dtype"}
    write_json(path, settings | dict.fromkeys(keys, dtype))
    index = folder / WEIGHTS_INDEX
    if index.is_file():
        content = json.loads(index.read_text("utf-8"))
        content["metadata"] = {**content.get("metadata", {}), "total_size": size}
        write_json(index, content)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that there are."""
    for name in names:
        if (source / name).is_file():
            copy_file(source / name, target / name)


def copy_file(source: str | Path, target: str | Path) -> Path:
    """Copy a file's content, sharing its blocks where the file system can.

    Not by a hard link: then both names would be one file, and `save_pretrained` into
    the source, which writes over it in place, would change what lies packed here. XFS
    and Btrfs let `copy_file_range` give the copy the same blocks until one of the two
    changes (copy_file_range(2), "reflink"): no time, no disk, and still two files.
    """
    source, target = Path(source), Path(target)
    try:
        with open(source, "rb") as old, open(target, "wb") as new:
            left = os.fstat(old.fileno()).st_size
            while left > 0:
                most = min(left, COPIED_AT_ONCE)
                left -= (moved := os.copy_file_range(old.fileno(), new.fileno(), most))
                if not moved:
                    raise OSError(f"{source.name} became shorter")
        return target
    except (AttributeError, OSError):  # macOS has no such call, some disks refuse it
        return Path(shutil.copyfile(source, target))
