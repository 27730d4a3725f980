"""Find what is wrong with a DJL artifact before it costs money.

`validate` knows the traps that end in "did not pass the ping health check", or in an
endpoint that never leaves `Creating`, and says for each what to do. What the server
itself refuses stands in `utils.djl_python.layout`; everything else is checked in the
rooms whose names end in `_checks`, one subject each.

To add a check, write a function there that takes the artifact, or one model of it, and
yields a `Finding` for each fault, and add its name to `ARCHIVE_CHECKS` or
`MODEL_CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from utils.deployment.archive_checks import (
    check_files,
    check_foreign_layouts,
    check_layout,
    check_links,
    check_members,
)
from utils.deployment.code_checks import (
    check_asynchronous,
    check_calls,
    check_entry_point,
    check_handler,
    check_imports,
    is_of_image,
)
from utils.deployment.findings import (
    VLLM_HANDLER,
    Artifact,
    ArtifactError,
    Finding,
    LoadError,
    Report,
    ServedModel,
    adapter_of,
    adapters_of,
    layout,
    packed_base,
    temporary_folder,
    unpack,
)
from utils.deployment.model_checks import (
    check_adapter,
    check_base,
    check_fit,
    check_json,
    check_quantised,
    check_saved,
    check_template,
    check_tokenizer,
)
from utils.deployment.no_code_checks import check_adapters, check_lora, check_no_code
from utils.deployment.notes_checks import check_note_search, check_notes
from utils.deployment.properties_checks import (
    check_model_id,
    check_properties,
    check_properties_file,
    check_sizes,
    check_trust,
)
from utils.deployment.requirements_checks import check_requirements, check_resolution
from utils.deployment.secret_checks import check_secrets


def validate(path: Path, load: bool = False, resolve: bool = False) -> Report:
    """Check an artifact under the server's own rules.

    Nothing in the artifact is executed unless `load` asks for it.

    Args:
        path: a folder, or a `model.tar.gz`.
        load: also load it as the server would, in a process of its own without this
            machine's keys and tokens, if nothing was found that would stop it, and
            see that its answers depend on its adapter. It runs the archive's code,
            and takes as long as loading takes.
        resolve: also ask pip whether a requirements.txt can be met; nothing is
            installed, but the package index is asked.

    Returns:
        a report; nothing is raised for what is wrong with the artifact.

    Raises:
        ArtifactError: if there is nothing at `path`.
    """
    path = Path(path)
    report = Report(path.name)
    if not path.exists():
        raise ArtifactError(f"{path.name} is missing. Build the artifact first.")
    with temporary_folder() as temporary:
        store = path
        if path.is_file():
            report.collect(check_members(path))
            if not report.ok:
                report.unchecked.append("what is inside, since nothing was unpacked")
                return report
            try:
                store = unpack(path, temporary)
            except LoadError as broken:
                report.collect([broken.finding])
                return report
        artifact = Artifact(store)
        report.files = artifact.files
        for check in ARCHIVE_CHECKS:
            report.collect(check(artifact))
        for model in filter(_has_engine, artifact.models):
            for check in MODEL_CHECKS:
                report.collect(check(model))
            if resolve:
                report.collect(check_resolution(model))
        loads = load and report.ok and not any(map(is_of_image, artifact.models))
        if loads:
            report.collect(_try_artifact(artifact, temporary / "trial"))
        report.unchecked += _unchecked(artifact, load, loads)
    return report


def _unchecked(artifact: Artifact, asked: bool, loaded: bool) -> Iterator[str]:
    """Say what `validate` did not look at."""
    if loaded:
        pass
    elif asked:
        yield "whether it loads and answers: it was not loaded, for what is said above"
    else:
        yield "whether it loads and answers with its adapter: nothing was executed"
    for model in artifact.models:
        base = model.options.get("base_model") or model.options.get("model_id")
        if base and not (model.folder / base).is_dir():
            yield f"the base {base}, which is not in the archive, and what must fit it"
        if model.entry_point == VLLM_HANDLER:
            yield "vLLM itself, in whose place transformers answers here"
    yield "GPU memory, the instance's driver, the account's role and quotas"


def _has_engine(model: ServedModel) -> bool:
    """Return whether there is a model to look at; `check_layout` reports if not."""
    try:
        return bool(model.engine)
    except LoadError:
        return False


def _try_artifact(artifact: Artifact, trial: Path) -> Iterator[Finding]:
    """Load a copy of the artifact and ask it; see `utils.deployment.trial`."""
    from utils.deployment.trial import try_to_load

    adapters: dict[str, Path] = {}
    base = None
    for model in artifact.models:  # an artifact without an error has one at most
        if model.entry_point == VLLM_HANDLER:
            # Where lora is off, `check_adapters` says so.
            adapters = {folder.name: folder for folder in adapters_of(model)}
            base = None if "model_id" in model.options else model.folder
        elif adapter := adapter_of(model):
            adapters = {model.options.get("adapter_name") or "adapter": adapter}
            base = packed_base(model)
    yield from try_to_load(artifact.store, trial, adapters, base)


# --- the list ---

ARCHIVE_CHECKS: tuple[Callable[[Artifact], Iterator[Finding]], ...] = (
    check_links,
    check_files,
    check_layout,
    check_foreign_layouts,
    check_secrets,
)
MODEL_CHECKS: tuple[Callable[[ServedModel], Iterator[Finding]], ...] = (
    check_properties_file,
    check_properties,
    layout.whole_numbers,
    check_sizes,
    check_model_id,
    check_trust,
    layout.known_engine,
    check_entry_point,
    check_imports,
    check_calls,
    check_handler,
    check_asynchronous,
    check_no_code,
    check_adapters,
    check_lora,
    layout.no_requirements,
    check_requirements,
    check_base,
    check_adapter,
    check_json,
    check_saved,
    check_tokenizer,
    check_template,
    check_fit,
    check_quantised,
    check_notes,
    check_note_search,
    layout.readable_description,
)
