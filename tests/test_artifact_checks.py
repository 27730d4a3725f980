"""Finding what is wrong with an artifact before it is deployed."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.deployment import (
    archive_checks,
    artifact,
    async_checks,
    code_checks,
    model_checks,
    no_code_checks,
    notes_checks,
    properties_checks,
    requirements_checks,
    secret_checks,
)
from utils.deployment import checks as artifact_checks
from utils.deployment.trial import try_to_load
from utils.djl_python import layout
from utils.djl_python.layout import LoadError
from utils.djl_python.server import Server

RECORDED = Path(__file__).parent / "data" / "djl_conformance.json"
SCENARIOS = json.loads(RECORDED.read_text("utf-8"))
Change = Callable[[Path], None]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_recorded_artifacts_that_do_not_start_are_found(scenario, tmp_path) -> None:
    for name, text in scenario["files"].items():
        path = tmp_path / "artifact" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "artifact").mkdir(exist_ok=True)
    report = artifact.validate(tmp_path / "artifact", load=True)
    answers = [step.get("got") for step in scenario["steps"]]
    # It starts, and does not answer who asks as SageMaker does, or all who ask at once.
    of_no_use = any(
        text in json.dumps(answers)
        for text in ("model_name is required", "Batch output size mismatch, expected")
        if text.startswith("model") or "async" in scenario["name"]
    )
    assert report.ok is (scenario["starts"] and not of_no_use), str(report)


def test_a_good_artifact_has_no_findings(built) -> None:
    report = artifact.validate(built / "model.tar.gz", load=True)
    assert report.ok and report.findings == []
    assert "can be deployed" in str(report)


def edit(folder: Path, name: str, change: Callable[[str], str]) -> None:
    """Change the text of a file."""
    path = folder / name
    path.write_text(change(path.read_text("utf-8")), encoding="utf-8")


def line(old: str, new: str) -> Change:
    """Replace a text in serving.properties."""

    def change(folder: Path) -> None:
        edit(folder, "serving.properties", lambda text: text.replace(old, new))

    return change


def put(name: str, text: str) -> Change:
    """Write a file."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def remove(*names: str) -> Change:
    """Delete files or folders."""

    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def nest(folder: Path) -> None:
    """Move the model into a folder and put a file beside it."""
    inner = folder / "lora_model"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path != inner:
            path.rename(inner / path.name)
    (folder / "README.md").write_text("hello")


def two_models(folder: Path) -> None:
    """Make two folders of the model."""
    nest(folder)
    (folder / "README.md").unlink()
    shutil.copytree(folder / "lora_model", folder / "other")


def other_base(folder: Path) -> None:
    """Replace the base by a wider one."""
    config = json.loads((folder / "base" / "config.json").read_text())
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from support.tiny_models import tiny_gpt_neox

    wider = {**tiny_gpt_neox().config.to_dict(), "hidden_size": 64}
    GPTNeoXForCausalLM(GPTNeoXConfig(**wider)).save_pretrained(folder / "base")
    assert config["hidden_size"] == 32


def more(text: str) -> Change:
    """Add lines at the end of serving.properties."""
    return lambda folder: edit(folder, "serving.properties", lambda old: old + text)


def as_json(name: str, **changes: object) -> Change:
    """Change values in a JSON file."""

    def change(folder: Path) -> None:
        value = json.loads((folder / name).read_text("utf-8")) | changes
        (folder / name).write_text(json.dumps(value))

    return change


def both(*changes: Change) -> Change:
    """Make several changes."""

    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def cut(name: str, count: int) -> Change:
    """Take bytes off the end of a file."""

    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-count])

    return change


def link(name: str, target: str) -> Change:
    """Make a link."""
    return lambda folder: (folder / name).symlink_to(target)


def asynchronous(reply: str, piece: str = "yield", batch_size: int = 1) -> Change:
    """Replace the handler by an asynchronous one of one line, and a stream of one."""
    source = (
        "from djl_python import Output\n"
        "from djl_python.async_utils import create_non_stream_output\n"
        "from djl_python.async_utils import create_stream_chunk_output\n"
        f"async def handle(inputs):\n    if inputs.is_empty(): return\n    {reply}\n"
        f"async def pieces():\n    {piece}\n"
    )
    return both(
        more(f"batch_size={batch_size}\n"),
        put("model.py", source),
    )


# In two pieces each, so that no scanner takes them for real ones.
AWS_KEY = "AKIA" + "IOSFODNN7EXAMPLE"
HF_TOKEN = "hf_" + "abcdefghij0123456789ABCDEFGHIJ0123"
INDEX = '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
BROKEN = {
    "file beside the folder": (nest, "hides it"),
    "two folders": (two_models, "model_name is required"),
    "empty": (
        remove("base", "adapter", "model.py", "serving.properties"),
        "every request gets 400",
    ),
    "engine in lower case": (line("engine=Python", "engine=python"), "engine=Python"),
    "unknown engine": (line("engine=Python", "engine=DeepSpeed"), "'DeepSpeed'"),
    "mpi": (line("engine=Python", "engine=MPI"), "mpirun"),
    "trailing space": (line("engine=Python", "engine=Python "), "trailing space"),
    "quotes": (line("=base", '="base"'), "quotes are part of the value"),
    "no number": (more("batch_size=eight\n"), "whole number"),
    "bad escape": (line("engine=Python", r"engine=\uzzzz"), "Unicode escape"),
    "entry point missing": (remove("model.py"), "model.py is not in the archive"),
    "other entry point": (line("=model.py", "=serve.py"), "serve.py is not in"),
    "syntax": (put("model.py", "def handle(inputs:"), "does not parse"),
    "foreign import": (put("model.py", "import nosuch\n"), "`nosuch`"),
    "import of the course": (
        put("model.py", "from utils.helpers import PROMPT\n"),
        "imports `utils`",
    ),
    "no handler": (put("model.py", "x = 1\n"), "has no function `handle`"),
    "other handler": (
        line("engine=Python", "engine=Python\noption.handler=predict"),
        "has no function `predict`",
    ),
    "asynchronous handler": (
        line("option.async_mode=true\n", ""),
        "needs option.async_mode",
    ),
    "asynchronous mode": (
        put("model.py", "def handle(inputs):\n    return None\n"),
        "never gets ready",
    ),
    "config.json at the root": (
        both(
            lambda folder: shutil.copy(folder / "base" / "config.json", folder),
            line("option.async_mode=true\noption.rolling_batch=disable\n", ""),
            put("model.py", "def handle(inputs):\n    return None\n"),
        ),
        "never gets ready",
    ),
    "base missing": (remove("base"), "is no folder of the archive"),
    "base without weights": (remove("base/model.safetensors"), "has no *.safetensors"),
    "base without configuration": (remove("base/config.json"), "has no config.json"),
    "adapter missing": (remove("adapter"), "would answer untuned"),
    "adapter without weights": (
        remove("adapter/adapter_model.safetensors"),
        "adapter_model.safetensors",
    ),
    "no tokenizer": (
        remove("adapter/tokenizer.json", "base/tokenizer.json"),
        "neither with the base nor with the adapter",
    ),
    "another base": (other_base, "does not fit the base"),
    "cut weights": (
        put("adapter/adapter_model.safetensors", "cut"),
        "cannot be read as safetensors",
    ),
    "byte-order mark": (
        lambda folder: edit(folder, "serving.properties", lambda t: "\ufeff" + t),
        "byte-order mark",
    ),
    "other name of the properties": (
        lambda folder: (folder / "serving.properties").rename(
            folder / "serving.property"
        ),
        "the server looks for serving.properties",
    ),
    "batches of none": (more("batch_size=0\n"), "0 is too small"),
    "more workers than allowed": (
        more("minWorkers=3\nmaxWorkers=2\n"),
        "3 is more than maxWorkers=2",
    ),
    "more than 32 bits": (more("batch_size=99999999999\n"), "found '99999999999'"),
    "degree that is none": (
        more("option.tensor_parallel_degree=all\n"),
        "option.tensor_parallel_degree: expected a whole number",
    ),
    "other case of the properties": (
        lambda folder: (folder / "serving.properties").rename(
            folder / "Serving.Properties"
        ),
        "Serving.Properties: is not read",
    ),
    "asynchronous mode against the option": (
        both(
            line("=true\noption.rolling_batch=disable\n", "=false\n"),
            put("config.json", '{"auto_map": {"AutoModelForCausalLM": "x.Y"}}'),
            put("model.py", "def handle(given):\n    return None\n"),
        ),
        "a config.json at the root, whatever option.async_mode=false says,",
    ),
    "description that is none": (
        put("adapter_config.json", "[]"),
        "ends the server, which reads it whatever the handler does",
    ),
    "classes that are no list": (
        put("config.json", '{"architectures": "GPTNeoXForCausalLM"}'),
        "the config.json at the root is no JSON object",
    ),
    "module that is nowhere": (
        line("=model.py", "=nosuch.handler"),
        "nosuch.handler is not in the archive",
    ),
    "link": (link("weights", "/models/base"), "is a link to /models/base"),
    "adapter's settings cut": (
        cut("adapter/adapter_config.json", 10),
        "is no JSON",
    ),
    "configuration that is a list": (
        put("base/config.json", "[]"),
        "holds a list where an object was expected",
    ),
    "part of the weights missing": (
        put("base/model.safetensors.index.json", INDEX),
        "is named by model.safetensors.index.json",
    ),
    "upload cut": (
        cut("base/model.safetensors", 100),
        "100 bytes are missing at its end",
    ),
    "file that hides a package": (
        put("transformers.py", "VERSION = 1\n"),
        "would find the artifact's own transformers",
    ),
    "handler without argument": (
        put("model.py", "def handle():\n    return None\n"),
        "`handle` takes 0 arguments",
    ),
    "batches in asynchronous mode": (
        asynchronous("return create_non_stream_output({})", batch_size=8),
        "Batch output size mismatch",
    ),
    "reply that ends the worker": (
        asynchronous("return Output().add_as_json({'a': 1})"),
        "line 6 replies with a plain Output, which ends the worker",
    ),
    "generator as a handler": (
        asynchronous("yield create_stream_chunk_output({}, True)"),
        "gives a generator, which cannot be awaited",
    ),
    "stream of plain outputs": (
        asynchronous("return pieces()", "yield Output().add_as_json({})"),
        "yields a plain Output",
    ),
    "secret file": (put(".env", "MODE=test\n"), ".env: is a file of environment"),
    "private key": (
        put("notes.txt", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n"),
        "notes.txt, line 1: looks like a private key",
    ),
    "key in the code": (
        lambda folder: edit(folder, "model.py", lambda t: t + f"\nKEY = '{AWS_KEY}'\n"),
        "looks like an AWS key",
    ),
    "token in the options": (
        more(f"option.adapter_name={HF_TOKEN}\n"),
        "looks like a token of Hugging Face",
    ),
    "adapter's option misspelt": (
        line("adapter_checkpoint=", "adapter_chekpoint="),
        "option.adapter_checkpoint does not name",
    ),
    "a second adapter": (
        lambda folder: shutil.copytree(folder / "adapter", folder / "older"),
        "option.adapter_checkpoint does not name",
    ),
    "base outside": (line("=base\n", "=../base\n"), "leads out of the archive"),
    "warm-up that raises": (
        put(
            "model.py",
            "async def handle(inputs):\n    raise OSError('weights are gone')\n",
        ),
        "weights are gone",
    ),
}
WARNED = {
    "no base": (line("option.base_model=base\n", ""), "is missing beside option.adap"),
    "key twice": (more("option.base_model=base\n"), "is there twice"),
    "space in an unread value": (
        more("option.mine=padded \n"),
        "'padded ' keeps its trailing space",
    ),
    "misspelt option": (more("option.predict_timeuot=9\n"), "mean predict_timeout"),
    "time-out that is none": (
        more("option.predict_timeout=2m\n"),
        "the server takes its own limit",
    ),
    "letters beyond Latin-1": (
        more("option.adapter_name=größe\n"),
        "Java reads the file as Latin-1",
    ),
    "import of what is only here": (
        lambda folder: edit(folder, "model.py", lambda t: t + "\nimport pytest\n"),
        "imports `pytest`, which the image is not known to have",
    ),
    "module of the image": (
        line("=model.py", "=djl_python.huggingface"),
        "djl_python.huggingface is a module of the image",
    ),
    "prefix too many": (more("option.minWorkers=1\n"), "Write minWorkers, without"),
    "option.adapters": (more("option.adapters=a\n"), "option.enable_lora=true"),
    "requirement that is none": (
        put("requirements.txt", "transformers=4.57.6\n"),
        "is no requirement",
    ),
    "requirements that clash": (
        put("requirements.txt", "numpy>=2\nNumPy==1.26.4  # old\n"),
        "cannot both be met",
    ),
    "requirement older than the image": (
        put("requirements.txt", "transformers==4.27.4\npeft\n"),
        "is older than the image's transformers",
    ),
    "wheel that is not packed": (
        put("requirements.txt", "./mine-1.0-py3-none-any.whl\n"),
        "whl is not in the archive",
    ),
    "loading at import": (
        lambda folder: edit(
            folder, "model.py", lambda t: t + "\nmodel = Auto.from_pretrained('x')\n"
        ),
        "which happens three times",
    ),
    "ending the process": (
        lambda folder: edit(
            folder, "model.py", lambda t: t + "\ndef end():\n    os._exit(1)\n"
        ),
        "leaves the model FAILED for good",
    ),
    "no rotary share for older readers": (
        lambda folder: edit(
            folder, "base/config.json", lambda t: t.replace('"rotary_pct"', '"other"')
        ),
        "has no rotary_pct",
    ),
    "tokenizer of version 5 only": (
        as_json("adapter/tokenizer_config.json", tokenizer_class="TokenizersBackend"),
        "a class that transformers 4 does not have",
    ),
    "adapter that is no LoRA": (
        as_json("adapter/adapter_config.json", peft_type="IA3"),
        "peft_type IA3 is not LORA",
    ),
    "pickled weights": (put("adapter/adapter_model.bin", "x"), "run code"),
    "requirements": (put("requirements.txt", "transformers==4.27.4\n"), "only logged"),
    "unknown option": (
        line("engine=Python", "engine=Python\noption.adpater=x"),
        "nothing here reads",
    ),
    "missing prefix": (
        line("option.base_model=base", "option.base_model=base\nhandler=handle"),
        "Write option.handler",
    ),
    "model_id": (
        line("engine=Python", "engine=Python\noption.model_id=base"),
        "asynchronous mode",
    ),
    "dot files": (put("._model.py", "x"), "macOS"),
    "code from the hub": (more("option.trust_remote_code=true\n"), "runs the Python"),
    "layout of the toolkit": (
        put("code/inference.py", "def model_fn(model_dir):\n    return None\n"),
        "Hugging Face and PyTorch containers: this container never reads it",
    ),
    "archive of TorchServe": (put("model.mar", "x"), "is laid out for TorchServe"),
    "repository of Triton": (
        put("text/config.pbtxt", 'name: "text"\n'),
        "is laid out for Triton Inference Server",
    ),
    "handler of Inference Endpoints": (
        put("handler.py", "class EndpointHandler:\n    pass\n"),
        "is laid out for Hugging Face's Inference Endpoints",
    ),
    "quantised base": (
        as_json("base/config.json", quantization_config={"quant_method": "awq"}),
        "the base is quantised by awq",
    ),
    "stream without a try": (
        asynchronous("return pieces()", "yield create_stream_chunk_output({}, True)"),
        "`pieces` (line 7) has no try of its own",
    ),
}


BY_LOADING = "warm-up that raises"
reports: dict[str, artifact.Report] = {}


@pytest.fixture
def report_on(built: Path, tmp_path: Path) -> Callable[[str], artifact.Report]:
    """Return a function that checks a copy with one mistake, each only once."""

    def check(name: str) -> artifact.Report:
        if name not in reports:
            folder = Path(shutil.copytree(built / "artifact", tmp_path / name))
            (BROKEN | WARNED)[name][0](folder)
            reports[name] = artifact.validate(folder, load=name == BY_LOADING)
            shutil.rmtree(folder)
        return reports[name]

    return check


@pytest.mark.parametrize("name", BROKEN)
def test_broken_artifact_is_found(report_on, name) -> None:
    report = report_on(name)
    assert not report.ok
    assert any(BROKEN[name][1] in str(finding) for finding in report.errors), report
    assert all(finding.remedy for finding in report.findings)


@pytest.mark.parametrize("name", WARNED)
def test_doubtful_artifact_is_warned_of(report_on, name) -> None:
    report = report_on(name)
    assert report.ok
    assert any(WARNED[name][1] in str(finding) for finding in report.findings), report
    assert "| warning |" in report._repr_markdown_()


def test_broken_artifacts_are_all_told_apart(report_on) -> None:
    """No two mistakes get the same message, and each names its place and remedy."""
    assert len(BROKEN) >= 55
    texts: list[str] = []
    for table in (BROKEN, WARNED):
        for name, (_, hint) in table.items():
            found = [f for f in report_on(name).findings if hint in str(f)]
            assert len(found) == 1, f"{name}: {report_on(name)}"
            assert found[0].where and found[0].what and found[0].remedy
            texts.append(str(found[0]))
    assert len(set(texts)) == len(texts), [t for t in texts if texts.count(t) > 1]


def test_a_secret_is_named_and_not_shown(report_on) -> None:
    for name in ("key in the code", "token in the options"):
        report = report_on(name)
        assert "must not be uploaded" in str(report)
        assert AWS_KEY not in str(report) and HF_TOKEN not in str(report)
        assert AWS_KEY not in report._repr_markdown_()


def test_the_report_says_what_was_not_checked(built, copied) -> None:
    assert "not checked: whether it loads" in str(artifact.validate(copied))
    line("=base\n", "=owner/name\n")(copied)
    report = artifact.validate(copied)
    assert "not checked: the base owner/name, which is not in the" in str(report)
    assert "Not checked: " in report._repr_markdown_()


def add_member(tar: tarfile.TarFile, name: str, **attributes: object) -> None:
    """Add a file of one byte to an archive, or another kind of member."""
    member = tarfile.TarInfo(name)
    data = b"x"
    member.size = len(data)
    for key, value in attributes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data if member.isreg() else b""))


@pytest.mark.parametrize(
    ("name", "attributes", "hint"),
    [
        ("../evil.py", {}, "leaves the archive"),
        ("/etc/evil.py", {}, "leaves the archive"),
        (
            "link",
            {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
            "link",
        ),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "model.py", "size": 0}, "link"),
        ("pipe", {"type": tarfile.FIFOTYPE, "size": 0}, "neither file nor folder"),
    ],
)
def test_members_that_leave_the_archive(
    built, tmp_path, name, attributes, hint
) -> None:
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(built / "artifact", arcname=".")
        add_member(tar, name, **attributes)
    report = artifact.validate(archive, load=False)
    assert hint in str(report) and not report.ok


def plain_tar() -> bytes:
    """Return a tar that is not gzipped."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add_member(tar, "model.py")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "the file is empty"),
        (b"no archive", "is no gzipped tar ("),
        (b"\x1f\x8b\x08cut", "cut off or damaged"),
        (b"PK\x03\x04zipped", "is a zip archive"),
        (plain_tar(), "is a tar that is not gzipped"),
    ],
)
def test_what_is_no_archive(tmp_path, content, hint) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(content)
    report = artifact.validate(path)
    assert hint in str(report) and not report.ok


def test_file_over_the_limit_and_file_packed_twice(
    built, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(archive_checks, "FILE_LIMIT", 30_000)
    path = Path(shutil.copytree(built / "artifact", tmp_path / "artifact"))
    (path / "notes.txt").write_bytes(bytes(40_000))
    assert "notes.txt: has 0.0 GiB" in str(artifact.validate(path, load=False))
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(path, arcname=".")
        add_member(tar, "./model.py")
    report = str(artifact.validate(archive, load=False))
    assert "notes.txt: has 0.0 GiB" in report
    assert "model.py: is in the archive twice" in report


def test_adapter_on_the_wrong_base_would_not_load_either(built, copied) -> None:
    """The check by shapes agrees with what happens when it is loaded."""
    other_base(copied)
    (found,) = try_to_load(copied, copied.parent / "trial", {}, None)
    assert "size mismatch" in found.what


@pytest.mark.parametrize(
    ("text", "ok"),
    [("engine=Python\n", True), ("batch_size=4\n", False), (r"a=\uzz", False)],
)
def test_misnamed_properties_are_a_loss_or_not(tmp_path, text, ok) -> None:
    put("model.py", "def handle(inputs):\n    return None\n")(tmp_path)
    put("serving.propertys", text)(tmp_path)
    report = artifact.validate(tmp_path, load=False)
    assert report.ok is ok
    assert "serving.propertys: is not read" in str(report)


# What the server itself refuses: the same sentences, whoever says them.
RULES = {
    "engine": {"serving.properties": "engine=python\n"},
    "hardware": {"serving.properties": "engine=MPI\n"},
    "no engine": {"model.py": None, "notes.txt": "mine"},
    "number": {"serving.properties": "maxWorkers=two\n"},
    "escape": {"serving.properties": "engine=Python\na=\\uzz\n"},
    "description": {"config.json": "[]"},
    "asynchronous mode": {"serving.properties": "option.async_mode=true\n"},
}


@pytest.mark.parametrize("files", RULES.values(), ids=RULES)
def test_server_and_validate_speak_with_one_voice(
    tmp_path: Path, files: dict[str, str | None]
) -> None:
    put("model.py", "def handle(inputs):\n    return None\n")(tmp_path)
    for name, text in files.items():
        remove(name)(tmp_path) if text is None else put(name, text)(tmp_path)
    (found,) = artifact.validate(tmp_path, load=False).findings
    with pytest.raises(LoadError) as refusal:
        Server(tmp_path).load(give_up_after=1)
    assert str(refusal.value).startswith(found.sentences)


ROOMS = (
    archive_checks,
    async_checks,
    code_checks,
    model_checks,
    no_code_checks,
    notes_checks,
    properties_checks,
    requirements_checks,
    secret_checks,
)


def test_every_check_is_listed() -> None:
    """Of the functions named check_…, two are called on their own: see `validate`."""
    listed = {*artifact_checks.ARCHIVE_CHECKS, *artifact_checks.MODEL_CHECKS}
    named = {
        value
        for room in ROOMS
        for name, value in vars(room).items()
        if name.startswith("check_") and value.__module__ == room.__name__
    }
    apart = {archive_checks.check_members, requirements_checks.check_resolution}
    assert named - listed == apart
    assert set(layout.STARTING_RULES) <= listed


def test_base_outside_the_archive_is_an_error_and_no_crash(
    copied: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(copied / "base", tmp_path / "elsewhere"))
    put("config.json", "[]")(base)
    line("option.base_model=base", f"option.base_model={base}")(copied)
    report = artifact.validate(copied, load=False)
    assert f"{base}/config.json: holds a list" in str(report)


def test_requirements_are_described_alike(tmp_path: Path) -> None:
    put("model.py", "def handle(inputs):\n    return None\n")(tmp_path)
    put("requirements.txt", "numpy\n")(tmp_path)
    (found,) = artifact.validate(tmp_path, load=False).findings
    with pytest.raises(LoadError) as refusal:
        Server(tmp_path).load()
    assert str(refusal.value).startswith(found.sentences.removesuffix("."))
    assert "--allow-requirements" in str(refusal.value)


def test_continued_line_is_no_repeated_key(tmp_path: Path) -> None:
    put("model.py", "def handle(inputs):\n    return None\n")(tmp_path)
    text = "# \x85 é\nengine=Python\noption.entryPoint=\\\n  model.py\n"
    put("serving.properties", text)(tmp_path)
    assert artifact.validate(tmp_path, load=False).findings == []
    put("serving.properties", text + "option.dtype=é\n")(tmp_path)
    (found,) = artifact.validate(tmp_path, load=False).findings
    assert found.where == "serving.properties, line 5"


def test_entry_point_without_a_statement(tmp_path: Path) -> None:
    put("model.py", "# to be written\n")(tmp_path)
    (found,) = artifact.validate(tmp_path, load=False).findings
    assert found.what == "has no function `handle`"


def test_entry_point_by_its_module_name(copied) -> None:
    line("=model.py", "=model")(copied)
    assert artifact.validate(copied, load=True).findings == []
    put("model.py", "def handle():\n    return None\n")(copied)
    assert "takes 0 arguments" in str(artifact.validate(copied))


def test_what_only_the_image_can_load_is_not_tried(copied, monkeypatch) -> None:
    line("=model.py", "=djl_python.huggingface")(copied)
    monkeypatch.setattr(artifact_checks, "_try_artifact", pytest.fail)
    assert artifact.validate(copied, load=True).ok


def test_pip_is_asked_on_demand_only(copied, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    put("requirements.txt", "pip>=20\n")(copied)
    report = artifact.validate(copied, load=False, resolve=True)
    assert report.ok and "cannot meet" not in str(report)
    put("requirements.txt", "nosuchpackage==1.0\n")(copied)
    assert "cannot meet" not in str(artifact.validate(copied, load=False))
    report = artifact.validate(copied, load=False, resolve=True)
    assert report.ok
    assert "nosuchpackage==1.0" in str(report) and "cannot meet it" in str(report)
