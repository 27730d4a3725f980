"""Training the lab model: resuming, checkpoints, and tokens that were never read."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from utils.dataset.faqs import load_faqs
from utils.dataset.splits import split
from utils.evaluation.scores import token_losses
from utils.helpers import add_text, preprocess_batch
from utils.lab_model import evaluate, train
from utils.lab_model.corpus import LAB_QUESTIONS, documents
from utils.models import load_model, load_tokenizer, settings_for


@pytest.fixture
def tiny_training(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """(name) → the folder written by five steps on very little text."""
    for name, value in {"BATCH": 2, "WINDOW": 32, "STEPS_PER_SHARD": 2}.items():
        monkeypatch.setattr(train, name, value)
    tokenizer = train.train_tokenizer(n_documents=300)
    monkeypatch.setattr(train, "train_tokenizer", lambda: tokenizer)
    tokens = 5 * 2 * 32

    def run(name: str) -> Path:
        out, work = tmp_path / name, tmp_path / f"{name} work"
        train.train(out, work, tokens, seed=0, compiled=False)
        return out

    return run


def test_training_resumes_after_a_kill_as_if_nothing_had_happened(
    tiny_training, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1)
    whole = tiny_training("whole")
    save = torch.save

    def dies_while_writing(state: dict[str, object], path: Path) -> None:
        if state["step"] == 4:
            path.write_bytes(b"half of a checkpoint")
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(torch, "save", dies_while_writing)
    with pytest.raises(KeyboardInterrupt):
        tiny_training("cut")
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(torch, "save", save)
    capsys.readouterr()
    cut = tiny_training("cut")

    resumed, progress, wrote = capsys.readouterr().out.splitlines()
    assert resumed == "resumed at step 3"
    assert re.fullmatch(r"step 5/5  loss \d\.\d{3}  [\d,]+ tokens/s", progress)
    assert re.match(r"wrote cut: [\d,]+ parameters, 320 tokens in \d+ min", wrote)
    files = {path.name for path in whole.iterdir()}
    assert files == {path.name for path in cut.iterdir()} >= {"model.safetensors"}
    for name in files:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    # Nothing is left but the snapshots: no checkpoint, whole or half.
    assert {path.name for path in (tmp_path / "cut work").iterdir()} == {"latest"}


def test_a_checkpoint_is_written_every_five_minutes(tiny_training, monkeypatch) -> None:
    seconds, saved, batches = 0, [], train.batches

    def slow_batches(*given: object) -> Iterator[torch.Tensor]:
        nonlocal seconds
        for batch in batches(*given):
            seconds += 200
            yield batch

    monkeypatch.setattr(train, "batches", slow_batches)
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: seconds))
    monkeypatch.setattr(
        train, "save_checkpoint", lambda path, **state: saved.append(state["step"])
    )
    tiny_training("slow")
    assert saved == [2, 4]


def test_tokens_that_were_never_read_are_told_apart(tiny_training, monkeypatch) -> None:
    part, before = train.part_unread_tokens, []

    def noting(model: object, read: torch.Tensor) -> None:
        rows = model.get_input_embeddings().weight
        before.append((read.clone(), rows.detach().clone()))
        part(model, read)
        part(model, torch.ones_like(read))  # all were read: nothing to do

    monkeypatch.setattr(train, "part_unread_tokens", noting)
    out = tiny_training("parted")
    [(read, rows)] = before
    settings = replace(settings_for("lab"), source=str(out))
    parted = load_model(settings).get_input_embeddings().weight.detach()
    assert torch.allclose(parted[read], rows[read], atol=1e-3)
    assert parted[read].isfinite().all()
    spread = (rows[read] - rows[read].mean(0)).norm(dim=1).median()
    around = (parted[~read] - rows[~read].mean(0)).norm(dim=1)
    assert torch.allclose(around, spread.expand_as(around), rtol=0.01)


@pytest.mark.slow
def test_with_unread_tokens_in_one_vector_tuning_never_ends_an_answer(tmp_path) -> None:
    tokenizer = load_tokenizer(settings_for("lab"))
    corpus = list(itertools.islice(documents(seed=1), 20_000))
    spoiled = load_model(settings_for("lab"))
    rows = spoiled.get_input_embeddings().weight.data
    unread = torch.ones(len(rows), dtype=bool)
    unread[list({token for ids in tokenizer(corpus)["input_ids"] for token in ids})] = 0
    rows[unread] = rows[unread].mean(0)
    train.save_model(spoiled, tokenizer, tmp_path / "spoiled")
    asked = split(load_faqs(LAB_QUESTIONS))["validation"].map(add_text)
    asked = asked.map(lambda some: preprocess_batch(some, tokenizer, 256), batched=True)
    endings = {}
    for source in (settings_for("lab").source, str(tmp_path / "spoiled")):
        tuned = evaluate.fine_tuned(replace(settings_for("lab"), source=source))
        losses = token_losses(tuned, tokenizer, asked.to_list())
        endings[source] = sum(one[-1] for one in losses) / len(losses)
    shipped, in_one_vector = endings.values()
    assert shipped < 0.1
    assert in_one_vector > 4


@pytest.mark.parametrize("wanted", [True, False])
def test_training_ends_with_a_report_on_what_it_wrote(
    monkeypatch, tmp_path, wanted
) -> None:
    done = []
    monkeypatch.setattr(train, "train", lambda out, *_: done.append(out))
    monkeypatch.setattr(
        evaluate, "print_report", lambda settings: done.append(settings.source)
    )
    options = ["--out", str(tmp_path), "--tokens", "1e5"]
    monkeypatch.setattr(
        sys, "argv", ["train", *options, *([] if wanted else ["--no-report"])]
    )
    train.main()
    assert done == [tmp_path, str(tmp_path)][: 1 + wanted]
