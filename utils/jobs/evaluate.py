"""What the pipeline's second job runs: both versions answer, and a rule decides.

usage: python -m utils.jobs.evaluate --candidate DIR --live DIR --test DIR
           --evaluation DIR --archive DIR [rules]

The job has the training job's model.tar.gz with an adapter, the archive that is in
service, and the test questions. The candidate answers on the base that the live archive
serves, so that the two differ in the adapter alone. It leaves `evaluation.json`, by
which the pipeline goes on; each question with both answers, for people; and the archive
to be served, which is the live one with the new adapter.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.course import CourseError, portable_name
from utils.deployment.artifact import ADAPTER_FOLDER, BASE_FOLDER, with_adapter
from utils.deployment.findings import TEMPLATE_FILE
from utils.files import write_json, write_text
from utils.jobs.decision import Decision, compare
from utils.jobs.source import read_json_lines, write_json_lines
from utils.temporary import temporary_folder
from utils.web.versions import digest

RESULT, ANSWERS, ARCHIVE = "evaluation.json", "answers.jsonl", "model.tar.gz"
PREFIX = "course-evaluated-"  # of the folder in which archives are unpacked


class EvaluationError(CourseError):
    """A job that cannot compare; the message says which input is wrong, and how."""


def evaluate(
    candidate: Path,
    live: Path,
    rows: Sequence[Mapping[str, Any]],
    archive: Path,
    max_new_tokens: int = 64,
    **rules: float,
) -> tuple[Decision, dict[str, str], list[dict[str, Any]]]:
    """Ask both versions, decide, and pack the new one.

    Args:
        candidate: the training job's model.tar.gz.
        live: the archive in service, as `utils.deployment.artifact.build` packs it.
        rows: the test questions, with `instruction`, `response` and what
            `utils.evaluation.answers.judge_for` judges by.
        archive: the new version's model.tar.gz, to be written.
        max_new_tokens: most tokens of an answer.
        **rules: of `utils.jobs.decision.compare`.

    Returns:
        the decision; digests by name: live, adapter, archive; and each question with
        both answers and whether they are right.

    Raises:
        EvaluationError: if an archive is not as it should be.
    """
    from utils.evaluation.answers import groups_of, judge_for

    with temporary_folder(prefix=PREFIX) as folder:
        served = unpack(live, folder / "live")
        adapter = _adapter_in(unpack(candidate, folder / "candidate"), candidate)
        with_adapter(served, adapter, folder / "new", archive)
        given = answers(
            served / BASE_FOLDER,
            {
                "live": served / ADAPTER_FOLDER,
                "new": folder / "new" / ADAPTER_FOLDER,
            },
            [str(row["instruction"]) for row in rows],
            max_new_tokens,
        )
    judge = judge_for(rows)
    right = {
        name: judge.right(said, rows, said.finished) for name, said in given.items()
    }
    decision = compare(right["live"], right["new"], groups_of(rows), **rules)
    digests = {
        "live": digest(live),
        "adapter": digest(candidate),
        "archive": digest(archive),
    }
    told = [
        {
            "question": row["instruction"],
            "expected": row["response"],
            **{name: given[name][number] for name in given},
            **{f"{name}_right": right[name][number] for name in given},
        }
        for number, row in enumerate(rows)
    ]
    return decision, digests, told


def answers(
    base: Path,
    adapters: Mapping[str, Path],
    questions: Sequence[str],
    max_new_tokens: int = 64,
) -> dict[str, Any]:
    """Return what each adapter answers on one base, by its name.

    Args:
        base: the folder of a model.
        adapters: name → folder, with its tokenizer and the template of its tuning.
        questions: to be asked in that template.
        max_new_tokens: most tokens of an answer.

    Raises:
        EvaluationError: if the base or a template is missing.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from utils.models import choose_dtype, generate, this_machine
    from utils.templates import load_template

    if not (base / "config.json").is_file():
        raise EvaluationError(
            "The live archive packs no base model: its own hub downloads it. Build it "
            "from a folder, so that both versions are compared on the same weights."
        )
    machine = this_machine(race=False)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=choose_dtype(machine))
    model.to(machine.device)
    tuned: PeftModel | None = None  # with all adapters, of which one is active
    found = {}
    for name, folder in adapters.items():
        if not (folder / TEMPLATE_FILE).is_file():
            raise EvaluationError(
                f"The {name} adapter has no {TEMPLATE_FILE}, so that nobody can tell "
                "in which words to ask it. Save it with `save_adapter`."
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        template = load_template(folder, tokenizer)
        prompts = [template.prompt(question) for question in questions]
        if tuned is None:
            tuned = PeftModel.from_pretrained(model, folder, adapter_name=name)
        else:
            tuned.load_adapter(folder, adapter_name=name)
        tuned.set_adapter(name)
        found[name] = generate(
            tuned, tokenizer, prompts, max_new_tokens, stop=template.stop
        )
    return found


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive; nothing of it may lie outside of the folder.

    Raises:
        EvaluationError: if it cannot be read.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise EvaluationError(
            f"{portable_name(archive)} cannot be unpacked ({error}): give a "
            "model.tar.gz."
        ) from error
    return folder


def _adapter_in(folder: Path, archive: Path) -> Path:
    found = sorted(path.parent for path in folder.rglob("adapter_config.json"))
    if len(found) != 1:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise EvaluationError(
            f"{portable_name(archive)} of the training job holds {len(found)} "
            f"adapters, expected one. It holds {there}."
        )
    return found[0]


def result(decision: Decision, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return what evaluation.json says.

    Conditions and messages of a pipeline read single values of it. "texts" holds what
    the registry notes of a version, each as a text that it takes.
    """
    figures = {name: f"{value:.6g}" for name, value in decision.metrics().items()}
    return {
        **decision.describe(),
        "promote": int(decision.promote),
        "digests": dict(digests),
        "texts": figures,
    }


def one_file(folder: Path, pattern: str, what: str) -> Path:
    """Return the single file of an input.

    Raises:
        EvaluationError: if there is another number of them.
    """
    found = sorted(folder.rglob(pattern)) if folder.is_dir() else [folder]
    if len(found) != 1:
        raise EvaluationError(
            f"The input {what} holds {len(found)} files {pattern}, expected one."
        )
    return found[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the job; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m utils.jobs.evaluate")
    for name in ("candidate", "live", "test", "evaluation", "archive"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name, value in (("min-gain", 0.0), ("alpha", 0.05), ("floor", 0.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--message", type=Path, help="gets the reason of a failure")
    options = parser.parse_args(arguments)
    try:
        test = one_file(options.test, "*.jsonl", "test")
        rows = read_json_lines(test.read_bytes())
        decision, digests, told = evaluate(
            one_file(options.candidate, "*.tar.gz", "candidate"),
            one_file(options.live, "*.tar.gz", "live"),
            rows,
            options.archive / ARCHIVE,
            options.max_new_tokens,
            min_gain=options.min_gain,
            alpha=options.alpha,
            floor=options.floor,
        )
    except (CourseError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if options.message is not None:
            write_text(options.message, str(error))
        return 1
    write_json_lines(options.evaluation / ANSWERS, told)
    write_json(options.evaluation / RESULT, result(decision, digests))
    print(decision.why, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
