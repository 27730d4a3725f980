"""Save and load LoRA adapters, each with its tokenizer and the base it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.course import FAQS_DATA, ROOT, RunConfig, portable_name
from utils.files import replace_folder
from utils.helpers import encode_prompts
from utils.models import ModelError
from utils.templates import (
    TEMPLATE_FILE,
    TemplateError,
    has_chat_template,
    instruction_template,
    read_description,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from utils.models import ModelSettings
    from utils.templates import Template

SHIPPED = {"smollm2": ROOT / "data" / "smollm2_adapter"}  # model → its adapter
BASE_SAMPLE = 32  # numbers of the base's embeddings that an adapter's file remembers
BASE_KEY = "base"


def save_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    template: Template | None = None,
) -> Path:
    """Write adapter and tokenizer, all or nothing, in place of what was there.

    The template that it was tuned in goes with it, so that whoever serves it asks in
    the same: in course_template.json and, for plain servers, in the tokenizer.

    First used in lesson 04, section 6.

    Args:
        model: base and adapter.
        tokenizer: of the model.
        folder: to write.
        template: what the model was tuned in; by default the instruction template.

    Returns:
        The folder: adapter_config.json, adapter_model.safetensors, the tokenizer and
        course_template.json.

    Raises:
        ModelError: if no template is given and the tokenizer has one of its own.
        FileError: if the disk is full or may not be written; what was there stays.
    """
    if template is None:
        if has_chat_template(tokenizer):
            raise ModelError(
                "The tokenizer has a chat template: say in which the adapter was tuned "
                "with `template=template_for(settings, tokenizer)`."
            )
        template = instruction_template(tokenizer)

    def write(target: Path) -> None:
        # No token was added, so the base's embeddings need no copy in the adapter.
        model.save_pretrained(target, save_embedding_layers=False)
        tokenizer.save_pretrained(target)
        template.save(target)
        (target / "README.md").unlink(missing_ok=True)  # peft's form, not filled in
        file = target / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        base = Path(config["base_model_name_or_path"] or "")
        if base.is_absolute():  # which would mean nothing where the adapter is served
            config["base_model_name_or_path"] = portable_name(base)
        if isinstance(config["target_modules"], list):  # a set in peft: any order
            config["target_modules"].sort()
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = target / "adapter_model.safetensors"
        # One entry only: several would be written in any order, and the same adapter
        # would not always be the same file.
        remembered = {BASE_KEY: json.dumps(base_sample(model))}
        save_file(load_file(weights), weights, metadata=remembered)
        weights.chmod(0o644)  # safetensors makes files that nobody else may read

    from safetensors.torch import load_file, save_file

    return replace_folder(folder, write)


def ship_adapter(source: str | Path, folder: str | Path) -> Path:
    """Write a saved adapter in 16 bits and without the base's tokenizer, to hand it on.

    Half the size: float16 keeps ten bits of each number. Whoever loads it has the base,
    and the tokenizer with it.

    Args:
        source: as `save_adapter` wrote it.
        folder: to write.

    Returns:
        The folder: the adapter's two files and course_template.json.

    Raises:
        FileError: if the disk is full or may not be written; what was there stays.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    source = Path(source)

    def write(target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for name in ("adapter_config.json", TEMPLATE_FILE):
            (target / name).write_bytes((source / name).read_bytes())
        with safe_open(source / "adapter_model.safetensors", "pt") as file:
            short = {key: file.get_tensor(key).half() for key in sorted(file.keys())}
            weights = target / "adapter_model.safetensors"
            save_file(short, weights, metadata=file.metadata())
        weights.chmod(0o644)

    return replace_folder(folder, write)


def adapter_for(config: RunConfig, settings: ModelSettings) -> tuple[Path, str]:
    """Return the adapter to go on with: one's own, else the one that is shipped.

    First used in lesson 05, section 1.

    Args:
        config: of the run; one's own adapter lies in its build folder.
        settings: of the model.

    Returns:
        The folder, and a sentence to show where it is not one's own; else "".

    Raises:
        ModelError: if there is neither.
    """
    own, shipped = config.build / "adapter", SHIPPED.get(settings.name)
    if not (shipped and (shipped / "adapter_config.json").is_file()):
        shipped = None
    exists = (own / "adapter_config.json").is_file()
    if exists and (shipped is None or _names_base(own, settings)):
        return own, ""
    if shipped is None:
        raise ModelError(
            f"There is no adapter for {settings.name} in {config.build.name}/adapter: "
            "run 04_lora_training.ipynb."
        )
    why = "belongs to another model" if exists else "is not there"
    note = (
        f"Your own adapter {why}, so the one that the course ships is taken: "
        f"{portable_name(shipped)}."
    )
    if config.data != FAQS_DATA:
        note += f" It was tuned on {portable_name(FAQS_DATA)}, not on your file."
    return shipped, f"{note} To tune your own, run 04_lora_training.ipynb."


def adapter_file(config: RunConfig, settings: ModelSettings) -> Path:
    """Return what `preflight(files=…)` is to look for: the folder of `adapter_for`.

    First used in lesson 05, before section 1.

    Where there is none, it is the place where lesson 04 would write one.
    """
    try:
        folder, _ = adapter_for(config, settings)
    except ModelError:
        return Path("build/adapter")
    own = config.build / "adapter"
    return Path("build/adapter") if folder == own else folder


def _names_base(folder: Path, settings: ModelSettings) -> bool:
    """Return whether an adapter says that it was trained on this model."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        named = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return True  # damaged: `load_adapter` says so
    source = Path(settings.source)
    here = portable_name(source) if source.is_absolute() else settings.source
    return not named or named == here


def load_adapter(
    base: PreTrainedModel, folder: str | Path, template: Template | None = None
) -> PeftModel:
    """Put a saved adapter on the base that it was trained on, ready to answer.

    Args:
        base: what it was trained on.
        folder: as `save_adapter` wrote it.
        template: what it is going to be asked in; `load_template(folder, tokenizer)`
            gives the one that it was tuned in.

    Raises:
        ModelError: if there is none in the folder, or it belongs to another base: one
            with another name, other shapes, or, under the same name, other weights.
        TemplateError: if the adapter was tuned in another template than is given, or
            what names it is damaged.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    folder = Path(folder)
    _require_template(folder, template)
    weights = folder / "adapter_model.safetensors"
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        with safe_open(weights, "pt") as file:
            remembered = json.loads((file.metadata() or {}).get(BASE_KEY, "null"))
            names = set(file.keys())
    except Exception as error:
        raise ModelError(
            f"{folder.name} holds no adapter that can be read ({error}): run "
            "04_lora_training.ipynb, or save the adapter again with save_adapter."
        ) from error
    trained_on = config.get("base_model_name_or_path") or ""
    here = portable_name(Path(base.name_or_path))
    here = here if Path(base.name_or_path).is_absolute() else base.name_or_path
    if trained_on and here and trained_on != here:
        reason = f"it was trained on {trained_on}"
    elif remembered and not _alike(remembered, base_sample(base)):
        reason = "it was trained on other weights of that name"
    else:
        try:
            model = PeftModel.from_pretrained(base, folder).eval()
            found = get_peft_model_state_dict(model, save_embedding_layers=False)
            if names == set(found):
                return model
            reason = "it has matrices for other layers"
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".:")
    raise ModelError(
        f"The adapter in {folder.name} does not belong to {here or 'this base'}: "
        f"{reason}. Run 04_lora_training.ipynb with this COURSE_MODEL, or set "
        "COURSE_MODEL to the base that it was trained on."
    )


def _require_template(folder: Path, template: Template | None) -> None:
    if template is None and not (folder / TEMPLATE_FILE).is_file():
        return  # another program saved it; the artifact's checks say what that means
    saved = read_description(folder)
    if template is None or saved == template.describe():
        return
    raise TemplateError(
        f"The adapter in {folder.name} was tuned in the template {saved['name']!r} "
        f"with the system prompt {saved['system_prompt']!r}, and is going to be asked "
        f"in {template}: take `load_template(folder, tokenizer)`, or train it anew."
    )


def base_sample(model: torch.nn.Module) -> list[float]:
    """Take a few numbers of the embeddings, which neither 8 bits nor LoRA change."""
    weights = model.get_input_embeddings().weight.detach().flatten()
    last = len(weights) - 1
    # In 32 bits the last place of a large matrix (over 2^24) is rounded up.
    places = torch.linspace(0, last, BASE_SAMPLE).long().clamp(max=last)
    return weights[places.to(weights.device)].float().tolist()


def _alike(one: list[float], other: list[float]) -> bool:
    """Return whether two lists are equal but for rounding to 16 bits."""
    return torch.allclose(torch.tensor(one), torch.tensor(other), rtol=0.01, atol=1e-5)


def require_same_tokenizer(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None = None,
) -> None:
    """Raise unless this tokenizer, in this template, makes the ids that the rows hold.

    First used in lesson 04, section 1.

    Args:
        rows: of the data set; the first one is looked at.
        tokenizer: of the model.
        template: what the model is tuned or asked in, to be checked as well.

    Raises:
        ModelError: if the data set was made for another model, or in another template.
    """
    row = rows[0]
    asked = template and template.prompt(row["instruction"], row.get("context"))
    if template and row["prompt"] != asked:
        raise ModelError(
            f"The data set was made in another template than {template}: run "
            "03_dataset_templating.ipynb again. Its first prompt begins "
            f"{row['prompt'][:60]!r}."
        )
    prompt = encode_prompts([row["prompt"]], tokenizer)[0]
    if list(row["input_ids"][: len(prompt)]) != prompt:
        raise ModelError(
            "The data set was tokenised for another model than COURSE_MODEL names now: "
            "run 03_dataset_templating.ipynb again."
        )
