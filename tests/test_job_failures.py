"""What a job says when it fails, and how its hyperparameters arrive.

The failure file is all that a learner sees of a job from outside, so each kind of
trouble has its sentence in it.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.job_folder import ROWS, JobFolder, decoded
from support.tiny_artifact import save_chat_base
from utils.jobs.source import SourceError, hyperparameters, job_source

MODULES = ("train_lora", "entry_orders", "entry_data", "entry_checkpoints", "entry")
DRIVERS = Path(importlib.util.find_spec("sagemaker.train").origin).parent
ENVIRONMENT = DRIVERS / "container_drivers" / "scripts" / "environment.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_chat_base(tmp_path_factory.mktemp("base") / "plain", "plain")


@pytest.fixture(scope="module")
def entry(tmp_path_factory) -> Iterator[ModuleType]:
    """The entry script, imported beside its parts as in the source folder."""
    folder = str(job_source(tmp_path_factory.mktemp("source") / "code"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        modules = [importlib.import_module(name) for name in MODULES]
        yield modules[-1]
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def orders(entry) -> ModuleType:
    return sys.modules["entry_orders"]


@pytest.fixture
def job(base, tmp_path) -> JobFolder:
    return JobFolder(tmp_path / "ml", base)


@pytest.fixture
def start(entry, job, monkeypatch) -> Iterator[Callable[[], str]]:
    """Run the entry script in this process; return what the failure file says."""
    before = signal.getsignal(signal.SIGTERM)

    def run() -> str:
        for name, value in job.environment().items():
            monkeypatch.setenv(name, value)
        assert entry.main() == 1
        return job.failure()

    yield run
    signal.signal(signal.SIGTERM, before)


# --- each kind of trouble has its sentence ---


def no_channel(job: JobFolder) -> None:
    shutil.rmtree(job.channel("train"))


def empty_channel(job: JobFolder) -> None:
    (job.channel("train") / "train.jsonl").unlink()


def another_format(job: JobFolder) -> None:
    empty_channel(job)
    (job.channel("train") / "rows.csv").write_text("prompt,completion\n")


def empty_file(job: JobFolder) -> None:
    job.write("train", [])


def blank_lines(job: JobFolder) -> None:
    job.write("train", ["", "  "])


def no_json(job: JobFolder) -> None:
    job.write("train", [ROWS[0], "", '{"prompt": "What?'])


def one_array(job: JobFolder) -> None:
    job.write("train", [json.dumps(ROWS)])


def no_text(job: JobFolder) -> None:
    (job.channel("train") / "train.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')


def other_fields(job: JobFolder) -> None:
    job.write("validation", [ROWS[0], {"question": "What?", "answer": "This."}])


def blank_answer(job: JobFolder) -> None:
    job.write("train", [ROWS[0], {"prompt": "What?", "completion": " "}])


def lone_turn(job: JobFolder) -> None:
    job.write("train", [{"messages": [{"role": "user", "content": "What?"}]}])


def all_too_long(job: JobFolder) -> None:
    job.given["max_length"] = "3"


def no_model(job: JobFolder) -> None:
    (job.channel("model") / "config.json").unlink()


def broken_archive(job: JobFolder) -> None:
    shutil.rmtree(job.channel("model"))
    job.channel("model").mkdir()
    (job.channel("model") / "model.tar.gz").write_bytes(b"no archive")


def unknown_name(job: JobFolder) -> None:
    job.given["learning_rat"] = "0.1"


def of_the_job(job: JobFolder) -> None:
    job.given["output_dir"] = "elsewhere"


def no_number(job: JobFolder) -> None:
    job.given["rank"] = "sixteen"


def no_choice(job: JobFolder) -> None:
    job.given["lr_scheduler_type"] = "cosinus"


def no_rank(job: JobFolder) -> None:
    job.given["rank"] = "0"


def no_rate(job: JobFolder) -> None:
    job.given["learning_rate"] = "nan"


def no_epochs(job: JobFolder) -> None:
    job.given["num_train_epochs"] = "0"


def alone_on_each(job: JobFolder) -> None:
    job.resources["hosts"] = ["algo-1", "algo-2"]


def too_high_a_rate(job: JobFolder) -> None:
    job.given |= {"learning_rate": "1e30", "warmup_steps": "0"}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            no_channel,
            "The job has no channel train: add InputData(channel_name='train'",
        ),
        (
            empty_channel,
            "The channel train holds nothing, no .jsonl file: upload a file",
        ),
        (another_format, "The channel train holds rows.csv, no .jsonl file: upload"),
        (empty_file, "train.jsonl of the channel train is empty: upload a file"),
        (blank_lines, "train.jsonl has no rows, only blank lines"),
        (no_json, "Line 3 of train.jsonl is no JSON (Unterminated string"),
        (one_array, "Line 1 of train.jsonl is a list, no object: each row needs"),
        (no_text, "train.jsonl is no text in UTF-8 (invalid continuation byte at byte"),
        (other_fields, "Line 2 of validation.jsonl has no prompt, found only question"),
        (blank_answer, "Line 2 of train.jsonl has no completion, found ' '"),
        (lone_turn, "Line 1 of train.jsonl has messages without"),
        (all_too_long, "fits: shorten them, or raise --max_length"),
        (
            no_model,
            "The channel model is no model folder: it holds chat_template.jinja",
        ),
        (broken_archive, "model.tar.gz of the channel model cannot be unpacked"),
        (
            unknown_name,
            "There is no hyperparameter 'learning_rat': did you mean learning",
        ),
        (of_the_job, "The hyperparameter 'output_dir' is set by the job itself"),
        (
            no_number,
            "The hyperparameter 'rank' cannot be used: invalid int value: 'six",
        ),
        (no_choice, "'lr_scheduler_type' cannot be used: invalid choice: 'cosinus'"),
        (no_rank, "The hyperparameter 'rank' cannot be used: found 0, and it must be"),
        (no_rate, "The hyperparameter 'learning_rate' cannot be used: found nan"),
        (no_epochs, "The hyperparameter 'num_train_epochs' cannot be used: found 0"),
        (alone_on_each, "The job has 2 instances, but each was started alone: pass"),
        (too_high_a_rate, "which is no number: the learning rate of 1e+30 is too high"),
    ],
)
def test_the_failure_file_says_what_was_found_and_what_to_do(
    start, job, capsys, fault, said
) -> None:
    fault(job)
    reason = start()
    assert said in reason
    assert len(reason) <= 1024 and "Traceback" not in reason
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried …"), "Memory ran out:"),
        (MemoryError(), "Memory ran out: halve per_device_train_batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Memory ran out"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full: raise"),
        (RuntimeError("PytorchStreamWriter … file write failed"), "The disk is full"),
        (ModuleNotFoundError("No module named 'peft'"), "A package is missing or too"),
        (KeyError("x"), "KeyError: 'x'. The job's log has the traceback."),
        (ValueError("a " * 2000), "a a a"),
    ],
)
def test_what_ends_the_training_is_explained_too(
    start, monkeypatch, error, said
) -> None:
    def fail(arguments, callbacks) -> None:
        raise error

    monkeypatch.setattr(sys.modules["train_lora"], "main", fail)
    reason = start()
    assert reason.startswith(said)
    assert len(reason) <= 1024


def test_a_failure_file_that_is_there_is_not_written_over(start, job) -> None:
    no_channel(job)
    (job.root / "output").mkdir()
    (job.root / "output" / "failure").write_text("what the first worker said")
    assert start() == "what the first worker said"


# --- hyperparameters ---

VALUES = [
    *("it's", "a 'quoted' text", '"in quotes"', "line\nends", "{braces}", "$HOME `id`"),
    *("True", "true", "null", "007", "7", "1e-3", "nan", "", " ", "--rank", "a\\nb"),
    *("HuggingFaceTB/SmolLM2-135M-Instruct", "### End", "Antworte in einem Satz: ü…"),
]


def through_the_sdk(given: dict[str, str], folder: Path) -> dict[str, str]:
    """Let the SDK's own script export the hyperparameters, and a shell read them."""
    folder.mkdir()
    code = (
        f"import sys, json; sys.path.insert(0, {str(ENVIRONMENT.parent)!r})\n"
        "import environment\n"
        "hosts = {'current_host': 'a', 'current_instance_type': 'b', 'hosts': ['a'], "
        "'network_interface_name': 'c'}\n"
        f"environment.set_env(hosts, {{}}, json.loads(sys.argv[1]), 'job.env')"
    )
    run = {"cwd": folder, "capture_output": True, "text": True, "check": True}
    environment = {**os.environ, "TRAINING_JOB_NAME": "course-job"}
    subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)], env=environment, **run
    )
    shell = ["bash", "-c", 'set -e; source job.env; printf "%s" "$SM_HPS"']
    return {"SM_HPS": subprocess.run(shell, **run).stdout}


def test_values_of_all_sorts_arrive_as_they_were_sent(
    orders, tmp_path, monkeypatch
) -> None:
    """By the file that SageMaker writes, and by the SDK's script and a shell."""
    sent = {f"v{number}": value for number, value in enumerate(VALUES)}
    texts = hyperparameters(**sent)
    assert not any("\n" in text for text in texts.values())  # which the API refuses
    monkeypatch.setenv("SM_INPUT_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("SM_HPS", "not read")
    (tmp_path / "hyperparameters.json").write_text(json.dumps(texts))
    assert orders.read_hyperparameters() == sent
    (tmp_path / "hyperparameters.json").unlink()
    exported = through_the_sdk(texts, tmp_path / "sdk")
    monkeypatch.setenv("SM_HPS", exported["SM_HPS"])
    assert orders.read_hyperparameters() == sent


def test_without_our_help_apostrophes_are_lost_in_sm_hps_and_not_in_the_file(
    orders, tmp_path, monkeypatch
) -> None:
    given = {"stop": "a 'b' c"}
    exported = through_the_sdk({"stop": "a 'b'c"}, tmp_path / "sdk")["SM_HPS"]
    assert json.loads(exported) == {"stop": "a bc"}
    monkeypatch.setenv("SM_HPS", exported)
    monkeypatch.setenv("SM_INPUT_CONFIG_DIR", str(tmp_path))
    (tmp_path / "hyperparameters.json").write_text(json.dumps(given))
    assert orders.read_hyperparameters() == given


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("False", False),  # as people write it into a form
        ("false", False),  # as the SDK writes False
        ('"False"', False),  # as version 2 of the SDK writes the text
        ("0", False),
        ("True", True),
        ("true", True),
    ],
)
def test_false_is_false_in_whatever_form(orders, text, value) -> None:
    texts = {
        orders.as_text(text, layers=2),
        orders.as_text(decoded(text), layers=1),
    }
    for one in texts:
        training, _ = orders.parse(orders.to_arguments({"use_cpu": "1", "fp16": one}))
        assert training.fp16 is value


def test_lists_and_dictionaries_arrive_as_such(orders) -> None:
    texts = hyperparameters(
        label_names=["it's", "labels"], lr_scheduler_kwargs={"num_cycles": 0.5}
    )
    given = {name: orders.as_text(text, layers=2) for name, text in texts.items()}
    training, _ = orders.parse(orders.to_arguments({"use_cpu": "1", **given}))
    assert training.label_names == ["it's", "labels"]
    assert training.lr_scheduler_kwargs == {"num_cycles": 0.5}


def test_names_that_the_sdk_adds_are_left_out(orders, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SM_INPUT_CONFIG_DIR", str(tmp_path))
    given = {
        "sagemaker_program": '"entry.py"',
        "sagemaker_submit_directory": '"s3://bucket/sourcedir.tar.gz"',
        "_tuning_objective_metric": "validation:loss",
        "learning-rate": "2e-4",
        "stop": None,
    }
    monkeypatch.setenv("SM_HPS", json.dumps(given))
    assert orders.read_hyperparameters() == {"learning_rate": "2e-4"}


def test_a_value_that_a_job_would_not_take_is_refused() -> None:
    with pytest.raises(SourceError, match="'system' takes .* a job takes 2,500"):
        hyperparameters(system="word " * 600)


# --- channels ---


def test_a_channel_is_read_whatever_s3_put_into_it(entry, job, monkeypatch) -> None:
    data = sys.modules["entry_data"]
    monkeypatch.setenv("SM_CHANNEL_TRAIN", str(job.channel("train")))
    single = job.channel("train") / "train.jsonl"
    assert data.channel_file("train") == single
    (job.channel("train") / "part").touch()  # stands for a folder
    (job.channel("train") / "._train.jsonl").write_bytes(b"\0")
    assert data.channel_file("train") == single
    more = job.channel("train") / "a folder" / "more rows.JSONL"
    more.parent.mkdir()
    more.write_text("\ufeff" + json.dumps(ROWS[-1]), encoding="utf-8")
    joined = data.channel_file("train")
    assert data.check_rows(joined) == 12
    assert json.loads(joined.read_text("utf-8").splitlines()[0]) == ROWS[-1]
    shutil.rmtree(more.parent)
    single.rename(job.channel("train") / "rows")  # one object with a key of its own
    (job.channel("train") / "part").unlink()
    assert data.channel_file("train").name == "rows"


@pytest.mark.parametrize("nested", [False, True])
def test_a_base_model_comes_as_a_folder_or_packed(
    entry, job, base, monkeypatch, nested
) -> None:
    data = sys.modules["entry_data"]
    for name, value in job.environment().items():
        monkeypatch.setenv(name, value)
    digest = data.digest_of_base(data.find_base(None))
    shutil.rmtree(job.channel("model"))
    job.channel("model").mkdir()
    with tarfile.open(job.channel("model") / "model.tar.gz", "w:gz") as archive:
        archive.add(base, arcname="base" if nested else ".")
    found = data.find_base(None)
    assert (Path(found) / "config.json").is_file()
    assert data.digest_of_base(found) == digest
    (Path(found) / "config.json").write_text("{}")
    assert data.digest_of_base(found) != digest
