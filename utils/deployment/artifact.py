"""Build the artifact that a DJL endpoint serves.

`build` and `build_without_code` write a folder and pack it as `model.tar.gz`;
`validate` (in `utils.deployment.checks`) says what would go wrong with one. From the
command line: `python -m utils.deployment.artifact check build/model.tar.gz`.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import shutil
import sys
import tarfile
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.deployment.checks import validate
from utils.deployment.findings import (
    ADAPTER_FILES,
    ADAPTERS_FOLDER,
    CHAT_TEMPLATE,
    TEMPLATE_FILE,
    VLLM_HANDLER,
    ArtifactError,
    Finding,
    Report,
)
from utils.deployment.image import LORA_RANKS, least_rank
from utils.deployment.notes import add_notes, packed_bytes
from utils.deployment.packing import (
    copy_file,
    copy_files,
    copy_weights,
    model_bytes,
    needed_disk,
    require_room,
)
from utils.files import replace_folder, write_file, write_json

if TYPE_CHECKING:
    from utils.templates import Template

__all__ = [
    "ArtifactError",
    "Finding",
    "Report",
    "build",
    "build_without_code",
    "model_bytes",
    "needed_disk",
    "validate",
    "with_adapter",
]

DJL_VERSION = "0.36.0"  # of the container image, which notebook 06 looks up
ENTRY_POINT = Path(__file__).with_name("deployment_model.py")
BASE_FOLDER = "base"
ADAPTER_FOLDER = "adapter"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    CHAT_TEMPLATE,
    TEMPLATE_FILE,
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")


# --- building -------------------------------------------------------------------------


def build(
    base: str | Path,
    adapter: Path | None,
    folder: Path,
    archive: Path,
    *,
    base_revision: str | None = None,
    adapter_name: str = "adapter",
    template: Template | None = None,
    entry_point: Path = ENTRY_POINT,
    options: Mapping[str, str | int] | None = None,
    notes: Sequence[Mapping[str, Any]] | Path | None = None,
    encoder: Path | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the folder of an artifact with the course's entry point, and pack it.

    Nothing half written is left behind: both appear under their names only when they
    are complete. The same input gives the same bytes. From a gigabyte on, what it will
    take of disk and time is said before it begins.

    Args:
        base: a folder, which is packed, or a hub id, which the endpoint downloads.
        adapter: what peft saved, with its tokenizer; None for the base alone.
        folder: where the artifact is laid out; replaced if it exists.
        archive: the `model.tar.gz` to write.
        base_revision: the hub's version of the base.
        adapter_name: what a request may call the adapter.
        template: what the model was tuned in, where no course_template.json beside
            adapter or base says so (`save_adapter` writes one).
        entry_point: packed as model.py.
        options: further lines of serving.properties, which override the usual ones.
        notes: what a request with `retrieve` is answered from: rows with `id`, `text`
            and perhaps `questions`, by which the note is found, too; or a .jsonl file
            of such rows.
        encoder: the folder of a sentence encoder that helps to find them; it is
            packed. None to find them by words alone.
        dtype: in which the base's weights are packed: by default the 16 bits that its
            own configuration names, else as they are; "float32" leaves them so. What
            the endpoint computes in is another thing: `option.dtype`, and without it
            16 bits on a graphics card, float32 on a processor.
        say: gets what it will take, and whether weights were rounded.

    Returns:
        `archive`.

    Raises:
        ArtifactError: if base or adapter lack a file that serving needs, the adapter
            was tuned in another template, the disk has too little room, or notes or
            encoder cannot be used.
    """
    if encoder is not None and notes is None:
        raise ArtifactError(
            "encoder is given without notes: it would search nothing. Give notes, too."
        )
    local = Path(base) if Path(base).is_dir() else None
    if local:
        _require_base(local)
    more = packed_bytes(notes, encoder) if notes is not None else 0
    need = needed_disk(local, _there(adapter), dtype=dtype, more=more)
    require_room(need, folder, archive, say)

    def write(unfinished: Path) -> None:
        properties: dict[str, str | int] = {
            "engine": "Python",
            "option.entryPoint": "model.py",
            # Each request is handed over as it comes; the entry point gathers them.
            "option.async_mode": "true",
            "option.rolling_batch": "disable",
            "option.base_model": BASE_FOLDER if local else str(base),
        }
        if local:
            if _copy_base(local, unfinished / BASE_FOLDER, dtype):
                say(
                    f"The weights of {local.name} are packed in 16 bits, which rounds "
                    'them; dtype="float32" leaves them as they are.'
                )
        elif base_revision:
            properties["option.base_revision"] = base_revision
        if adapter is not None:
            _copy_adapter(adapter, unfinished / ADAPTER_FOLDER)
            properties["option.adapter_checkpoint"] = ADAPTER_FOLDER
            properties["option.adapter_name"] = adapter_name
        if template is not None:
            _write_template(template, unfinished)
        if notes is not None:
            properties.update(add_notes(notes, encoder, unfinished))
        _write_properties(unfinished, properties | dict(options or {}))
        copy_file(entry_point, unfinished / "model.py")

    replace_folder(folder, write)
    return pack(folder, archive)


def build_without_code(
    base: Path,
    adapters: Path | Mapping[str, Path],
    folder: Path,
    archive: Path,
    *,
    dtype: str = "float32",
    options: Mapping[str, str | int] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write an artifact with no Python file: the image's own handler serves it.

    That handler is vLLM, which batches continuously: a request joins those that are
    being answered, and does not wait for a batch to end. It knows nothing of this
    course's template: the client builds the prompt, and names `do_sample: false` for
    a greedy answer. A model that was tuned in its chat template has that beside its
    tokenizer, system prompt included, so that a server's chat route asks as trained.

    Args:
        base: the folder of a model.
        adapters: one adapter, which is merged into the base; or several by name,
            which stay beside it, so that each request can say which it wants
            (`{"inputs": …, "adapters": name}`; without it the base answers).
        folder: where the artifact is laid out; replaced if it exists.
        archive: the `model.tar.gz` to write.
        dtype: in which base and adapter are added up and saved; a shorter type halves
            the archive and rounds the sum.
        options: further lines of serving.properties, which override the usual ones.
        say: gets what it will take of disk and time, from a gigabyte on.

    Returns:
        `archive`.

    Raises:
        ArtifactError: if base or adapter lack a file that serving needs, or the disk
            has too little room.
    """
    _require_base(base)
    merged = not isinstance(adapters, Mapping)
    beside = [] if merged else list(adapters.values())
    more = sum(needed_disk(None, _there(adapter)).folder for adapter in beside)
    need = needed_disk(base, dtype=dtype, merged=merged, more=more)
    require_room(need, folder, archive, say)
    properties: dict[str, str | int] = {
        "engine": "Python",
        "option.entryPoint": VLLM_HANDLER,
        "option.async_mode": "true",
        "option.rolling_batch": "disable",
    }

    def write(unfinished: Path) -> None:
        if isinstance(adapters, Mapping):
            _copy_base(base, unfinished, dtype)
            for name, adapter in adapters.items():
                _copy_adapter(adapter, unfinished / ADAPTERS_FOLDER / name)
            _share_template(adapters.values(), unfinished)
            configs = unfinished.glob(f"{ADAPTERS_FOLDER}/*/adapter_config.json")
            ranks = [json.loads(path.read_text("utf-8"))["r"] for path in configs]
            if not 1 <= max(ranks, default=0) <= max(LORA_RANKS):
                raise ArtifactError(
                    f"The largest r of the adapters is {max(ranks, default=0)}. Give "
                    f"at least one adapter, of up to {max(LORA_RANKS)}, vLLM's limit."
                )
            properties.update(
                {
                    "option.enable_lora": "true",
                    "option.max_loras": len(adapters),
                    "option.max_lora_rank": max(8, least_rank(max(ranks))),
                }
            )
        else:
            _merge(base, adapters, unfinished, dtype)
        _let_answers_end(unfinished)
        _write_properties(unfinished, properties | dict(options or {}))

    replace_folder(folder, write)
    return pack(folder, archive)


def with_adapter(served: Path, adapter: Path, folder: Path, archive: Path) -> Path:
    """Pack an artifact of the course's entry point anew, with another adapter.

    Base, settings, notes and entry point stay as they are, byte for byte: what a new
    version changes is its adapter alone. The same input gives the same bytes.

    Args:
        served: an artifact's folder, unpacked; it stays as it is.
        adapter: what peft saved. If it does not name the template that it was tuned in,
            that is the one that the artifact names.
        folder: where the new artifact is laid out; replaced if it exists.
        archive: the `model.tar.gz` to write.

    Returns:
        `archive`.

    Raises:
        ArtifactError: if the artifact has no adapter to be replaced, or a file is
            missing in one of them.
    """
    old = served / ADAPTER_FOLDER
    for name in (
        "serving.properties",
        "model.py",
        f"{ADAPTER_FOLDER}/{ADAPTER_FILES[0]}",
    ):
        _require(served, name, "the folder of an artifact that `build` made")

    def write(unfinished: Path) -> None:
        shutil.copytree(
            served,
            unfinished,
            dirs_exist_ok=True,
            ignore=lambda path, _: [ADAPTER_FOLDER] * (Path(path) == served),
        )
        new = unfinished / ADAPTER_FOLDER
        _copy_adapter(adapter, new)
        if not (new / TEMPLATE_FILE).is_file():
            copy_files(old, new, (TEMPLATE_FILE,))

    replace_folder(folder, write)
    return pack(folder, archive)


# --- the parts of the folder ----------------------------------------------------------


def _merge(base: Path, adapter: Path, target: Path, dtype: str) -> None:
    """Add the adapter's matrices to those of the base and save the sum."""
    for name in ADAPTER_FILES:
        _require(adapter, name, "an adapter's folder, saved by peft's save_pretrained")
    _require_base(base)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=dtype)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(target)
    tokenizer = adapter if (adapter / "tokenizer.json").is_file() else base
    copy_files(tokenizer, target, TOKENIZER_FILES)
    copy_files(adapter, target, (TEMPLATE_FILE,))
    _fit_for_older_readers(target)


def _write_template(template: Template, folder: Path) -> None:
    """Say what the model was tuned in: beside the adapter, the base, or at the root.

    Raises:
        ArtifactError: if the adapter says something else.
    """
    places = (folder / ADAPTER_FOLDER, folder / BASE_FOLDER, folder)
    place = next(place for place in places if place.is_dir())
    path = place / TEMPLATE_FILE
    saved = json.loads(path.read_text("utf-8")) if path.is_file() else None
    if saved not in (None, template.describe()):
        raise ArtifactError(
            f"The adapter was tuned in another template than {template}: its "
            f"{TEMPLATE_FILE} names {saved.get('name')!r} with the system prompt "
            f"{saved.get('system_prompt')!r}. Leave `template` out to serve it so."
        )
    template.save(place)


def _share_template(adapters: Iterable[Path], folder: Path) -> None:
    """Put what all adapters were tuned in at the root, where a plain server looks.

    Raises:
        ArtifactError: if they were tuned in different ones: a server has only one.
    """
    adapters = list(adapters)
    for name in (TEMPLATE_FILE, CHAT_TEMPLATE):
        paths = [adapter / name for adapter in adapters]
        contents = {p.read_bytes() if p.is_file() else None for p in paths}
        if len(contents) > 1:
            raise ArtifactError(
                f"The adapters {', '.join(a.name for a in adapters)} differ in {name}, "
                "and the image's handler knows one template. Serve them in artifacts "
                "of their own, or tune them in one template."
            )
        if None not in contents:
            copy_files(adapters[0], folder, (name,))


def _let_answers_end(folder: Path) -> None:
    """Make the template's stops end an answer, where they are one token.

    With a handler of one's own that is its task; here the configuration says it.
    """
    from transformers import AutoTokenizer

    from utils.helpers import END_KEY

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    path, stops = folder / TEMPLATE_FILE, [END_KEY]
    if path.is_file():
        stops = json.loads(path.read_text("utf-8"))["stop"]
    found = [tokenizer(stop, add_special_tokens=False)["input_ids"] for stop in stops]
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    ends = [tokenizer.eos_token_id, *(ids[0] for ids in found if len(ids) == 1)]
    ends = list(dict.fromkeys(ends))
    settings["eos_token_id"] = [number for number in ends if number is not None]
    write_json(path, settings)


def _write_properties(folder: Path, properties: Mapping[str, str | int]) -> None:
    lines = [f"{key}={value}" for key, value in properties.items()]
    (folder / "serving.properties").write_text("\n".join(lines) + "\n", "utf-8")


def pack(folder: Path, archive: Path) -> Path:
    """Pack a folder's content, not the folder itself, with fixed times and owners."""

    def write(unfinished: Path) -> None:
        with (
            unfinished.open("wb") as raw,
            # Stored, not squeezed: weights hardly shrink, and it takes long.
            gzip.GzipFile("", "wb", compresslevel=0, fileobj=raw, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in sorted(folder.rglob("*")):
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                if path.is_dir():
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(member)
                else:
                    member.size, member.mode = path.stat().st_size, 0o644
                    with path.open("rb") as file:
                        tar.addfile(member, file)

    return write_file(archive, write)


def _copy_base(source: Path, target: Path, dtype: str | None) -> bool:
    """Copy a base, and say whether its weights were rounded."""
    _require_base(source)
    target.mkdir(exist_ok=True)
    copy_files(source, target, (*MODEL_FILES, *TOKENIZER_FILES))
    rounded = copy_weights(source, target, dtype)
    _fit_for_older_readers(target)
    return rounded


def _there(folder: Path | None) -> Path | None:
    """Return the folder, if there is one: what is missing is reported elsewhere."""
    return folder if folder is not None and folder.is_dir() else None


def _require_base(source: Path) -> None:
    _require(source, "config.json", "a model's folder")
    _require(source, "tokenizer.json", "a model's folder")
    if not any(source.glob("*.safetensors")):
        raise ArtifactError(
            f"{source.name} has no *.safetensors. Save the model with save_pretrained."
        )


def _copy_adapter(source: Path, target: Path) -> None:
    for name in ADAPTER_FILES:
        _require(source, name, "an adapter's folder, saved by peft's save_pretrained")
    target.mkdir(parents=True)
    copy_files(source, target, (*ADAPTER_FILES, *TOKENIZER_FILES))
    # peft notes the path of the base on the machine that trained: no use elsewhere.
    # Older versions warn of fields they do not know; those that say nothing are None.
    path = target / "adapter_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["base_model_name_or_path"] = BASE_FOLDER
    write_json(path, {k: v for k, v in settings.items() if v is not None})
    _fit_for_older_readers(target)


def _require(folder: Path, name: str, kind: str) -> None:
    if not (folder / name).is_file():
        raise ArtifactError(f"{folder.name}/{name} is missing. Give {kind}.")


def _fit_for_older_readers(folder: Path) -> None:
    """Add what transformers 4.56 to 4.57 look for and 5.x no longer writes.

    They know no class `TokenizersBackend`, take `extra_special_tokens` for a table of
    names, and read the rotary share from `rotary_pct` only, without which they compute
    other logits and say nothing.
    """
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        settings = json.loads(tokenizer.read_text("utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        extra = settings.get("extra_special_tokens")
        if isinstance(extra, list):
            del settings["extra_special_tokens"]
            settings["additional_special_tokens"] = extra
        write_json(tokenizer, settings)
    config = folder / "config.json"
    if config.is_file():
        settings = json.loads(config.read_text("utf-8"))
        rope = settings.get("rope_parameters") or {}
        if settings.get("model_type") == "gpt_neox" and rope:
            settings.setdefault("rotary_pct", rope.get("partial_rotary_factor", 0.25))
            settings.setdefault("rotary_emb_base", rope.get("rope_theta", 10_000))
        write_json(config, settings)


# --- showing and checking -------------------------------------------------------------


def entry_point_source(name: str, path: Path = ENTRY_POINT) -> str:
    """Return the source of one function of the entry point, to show it.

    The entry point cannot be imported here: only the container has `djl_python`.

    Raises:
        ArtifactError: if it has no such function.
    """
    source = path.read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if getattr(node, "name", None) == name:
            return textwrap.dedent(ast.get_source_segment(source, node, padded=True))
    raise ArtifactError(f"{path.name} has no function {name}. Name one that it has.")


def main(arguments: list[str] | None = None) -> int:
    """Check the artifact that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.deployment.artifact", description="Check a DJL artifact."
    )
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="say what would go wrong with it")
    check.add_argument("path", type=Path, help="folder or model.tar.gz")
    check.add_argument(
        "--load",
        action="store_true",
        help="also run it and ask it; without this nothing in it is executed",
    )
    check.add_argument(
        "--resolve",
        action="store_true",
        help="ask the package index whether a requirements.txt can be met",
    )
    options = parser.parse_args(arguments)
    try:
        report = validate(options.path, options.load, options.resolve)
    except ArtifactError as error:
        parser.exit(2, f"{error}\n")
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
