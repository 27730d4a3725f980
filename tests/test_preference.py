"""Votes to pairs, reason by reason; and DPO on them, measured before and after."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from support.machines import LAPTOP
from support.tiny_models import (
    tiny_chat_tokenizer,
    tiny_gpt_neox,
    tiny_llama,
    tiny_tokenizer,
)
from utils.helpers import END_KEY
from utils.jobs.dpo import pair_rows, prefer, sampled_answers
from utils.jobs.preference import (
    MOST_OF_ONE_VOTER,
    AnswerPair,
    PreferenceError,
    pairs,
    read_votes,
    simulated_votes,
    write_votes,
)
from utils.jobs.preference_measured import (
    Measured,
    changes,
    changes_table,
    log_probabilities,
    measure,
)
from utils.templates import chat_template, instruction_template
from utils.web.service.records import Records

QUESTION = "How long are logs kept?"
RIGHT, WRONG, OTHER = "Logs are kept for 30 days.", "For 3 days.", "For ever."
REFERENCE = [{"instruction": QUESTION, "response": RIGHT}]


def vote(thumb: str | None, answer: str = RIGHT, **given: Any) -> dict[str, Any]:
    """A record as the table holds it; each is a request and a voter of its own."""
    vote.number += 1
    record = {"request_id": f"r{vote.number}", "version": "tuned", "status": 200}
    record |= {"question": QUESTION, "answer": answer}
    record |= {"feedback_at": f"2026-01-01T00:00:{vote.number:05d}"}
    return record | ({"thumb": thumb} if thumb else {}) | given


vote.number = 0


def said(found) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in found]


# --- which votes make which pairs ---


def test_an_answer_voted_up_is_paired_with_one_voted_down() -> None:
    found = pairs([vote("up", version="tuned"), vote("down", WRONG, version="base")])
    assert list(found) == [AnswerPair(QUESTION, RIGHT, WRONG, "votes", 2)]
    assert not found.left_out
    assert found.voters is None
    assert "1 pair of 2 votes: 1 with the better from the votes" in repr(found)
    assert "no vote names its voter" in repr(found)


def test_where_nothing_is_liked_the_data_sets_answer_is_the_better() -> None:
    found = pairs([vote("down", WRONG)], REFERENCE)
    assert list(found) == [AnswerPair(QUESTION, RIGHT, WRONG, "data set", 1)]


def test_a_liked_answer_goes_before_the_data_sets() -> None:
    found = pairs([vote("down", WRONG), vote("up", OTHER)], REFERENCE)
    assert said(found) == [(OTHER, WRONG)]


def test_each_disliked_answer_meets_the_best_liked() -> None:
    votes = [vote("up", OTHER), *[vote("up") for _ in range(3)]]
    votes += [vote("down", WRONG), vote("down", "No.")]
    found = pairs(votes)
    assert said(found) == [(RIGHT, WRONG), (RIGHT, "No.")]
    assert found.left_out == {"another answer is liked better": 1}
    assert [pair.votes for pair in found] == [4, 1]


def test_of_equally_liked_answers_the_shorter_is_taught() -> None:
    found = pairs([vote("up", RIGHT * 3), vote("up", OTHER), vote("down", WRONG)])
    assert said(found) == [(OTHER, WRONG)]


@pytest.mark.parametrize(
    ("votes", "references", "reason", "count"),
    [
        ([vote("up")], REFERENCE, "nothing worse is known", 1),
        ([vote("down", WRONG)], [], "nothing better is known", 1),
        (
            [vote("down", "logs are kept for 30 days")],
            REFERENCE,
            "voted down, but it is the data set's answer",
            1,
        ),
        ([vote(None)], [], "no vote", 1),
        ([vote("up", status=503)], [], "the answer broke off", 1),
        (
            [vote("up", answer=None), vote("down", question=" ")],
            [],
            "question or answer was not kept",
            2,
        ),
        (
            [vote("up", "Ask jane.doe@firm.com."), vote("up", "Call +1 212 555 0123.")],
            [],
            "personal data: an address or a number",
            2,
        ),
        (
            [vote("down", question="My key is AKIAIOSFODNN7ABCDEFG, why?")],
            [],
            "holds an AWS access key",
            1,
        ),
        (
            [vote("up"), vote("down")],
            [],
            "as many for as against the same answer",
            2,
        ),
        (
            [vote("up"), vote("up"), vote("down", "Logs are kept for 30 days")],
            [],
            "outvoted on the same answer",
            1,
        ),
    ],
)
def test_what_makes_no_pair_is_counted_with_its_reason(
    votes, references, reason, count
) -> None:
    found = pairs(votes, references)
    assert len(found) == 0
    assert found.left_out[reason] == count
    assert found.left_out.total() == len(votes)
    assert f"{count:4d} left out: {reason}" in repr(found)


def test_questions_of_the_test_teach_nothing() -> None:
    votes = [vote("up"), vote("down", WRONG)]
    found = pairs(votes, without=["how long are logs kept"])
    assert len(found) == 0
    assert found.left_out == {"the question tests the model": 2}


def test_a_comment_is_no_text_that_is_learned() -> None:
    record = vote("up", comment="Write to jane.doe@firm.com")
    found = pairs([record, vote("down", WRONG)])
    assert "jane" not in json.dumps(pair_rows(found, instruction()))


# --- one voter, one vote ---


def test_the_latest_vote_of_a_voter_on_an_answer_counts() -> None:
    votes = [vote("down", voter="a"), vote("up", voter="a"), vote("down", WRONG)]
    found = pairs(reversed_in_time(votes, 0, 1))
    assert said(found) == []
    found = pairs(votes)
    assert said(found) == [(RIGHT, WRONG)]
    assert found.left_out == {"the same voter voted again on this answer": 1}
    assert found.voters == 2


def reversed_in_time(votes: list, one: int, other: int) -> list:
    votes = [dict(vote) for vote in votes]
    times = votes[one]["feedback_at"], votes[other]["feedback_at"]
    votes[other]["feedback_at"], votes[one]["feedback_at"] = times
    return votes


def test_one_who_votes_a_hundred_times_is_outvoted_by_two() -> None:
    loud = [vote("up", WRONG, voter="loud") for _ in range(100)]
    quiet = [vote("down", WRONG, voter=name) for name in ("b", "c")]
    found = pairs([*loud, *quiet], REFERENCE)
    assert said(found) == [(RIGHT, WRONG)]
    assert found.left_out["the same voter voted again on this answer"] == 99
    nameless = [{k: v for k, v in one.items() if k != "voter"} for one in loud]
    assert said(pairs([*nameless, *quiet], REFERENCE)) == []


def test_nobody_steers_alone() -> None:
    votes = [vote("down", f"Wrong {n}", voter="loud") for n in range(50)]
    found = pairs(votes, REFERENCE)
    assert len(found) == MOST_OF_ONE_VOTER
    assert found.left_out == {f"more than {MOST_OF_ONE_VOTER} votes by one voter": 30}


def test_the_same_record_exported_twice_counts_once() -> None:
    one = vote("up")
    found = pairs([one, one, vote("down"), vote("down", WRONG)])
    assert found.left_out["the same voter voted again on this answer"] == 1
    assert len(found) == 0  # as many for as against


def test_every_vote_is_behind_a_pair_or_has_a_reason() -> None:
    rows, judge = judged_rows()
    answers = {"a": [RIGHT, WRONG] * 20, "b": [OTHER, RIGHT] * 20}
    votes = simulated_votes(rows, answers, judge, noise=0.3, voters=7)
    found = pairs(votes + votes[:5], REFERENCE)
    behind = sum(pair.votes for pair in found)
    assert behind + found.left_out.total() == found.votes == len(votes) + 5
    assert all(found.left_out.values())


def test_a_thumb_that_is_none_is_named() -> None:
    with pytest.raises(PreferenceError, match="record 'x' is 'sideways': give 'up'"):
        pairs([vote("sideways", request_id="x")])


# --- files, and lesson 07's table ---


def test_votes_are_written_and_read(tmp_path: Path) -> None:
    votes = [vote("up"), vote(None), vote("down", "Größe\u2028zwei")]
    file = write_votes(tmp_path / "votes.jsonl", votes)
    assert read_votes(file) == [votes[0], votes[2]]


@pytest.mark.parametrize("line", ["{", "[]", '{"thumb": "up"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "votes.jsonl"
    file.write_text(json.dumps(vote("up")) + "\n" + line + "\n")
    with pytest.raises(PreferenceError, match=r"votes.jsonl, line 2 is no record"):
        read_votes(file)


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match="`write_votes` writes such a file"):
        read_votes(tmp_path / "votes.jsonl")


def test_records_of_the_table_are_votes(tmp_path: Path) -> None:
    """What the service writes is what is read here."""
    table = FakeTable()
    records = Records("votes", table, keep_texts=True)
    for number, (answer, thumb) in enumerate([(RIGHT, "up"), (WRONG, "down")]):
        put = dict(request_id=f"r{number}", version="tuned", variant="tuned")
        put |= dict(status=200, latency_ms=1.5, prompt_tokens=3, completion_tokens=4)
        records.put_answer(**put, sources=[], question=QUESTION, answer=answer)
        records.put_feedback(f"r{number}", thumb, "why not")
    found = pairs(read_votes(write_votes(tmp_path / "votes.jsonl", records.all())))
    assert said(found) == [(RIGHT, WRONG)]


class FakeTable:
    """DynamoDB, as far as `Records` asks it: items by key, set and scanned."""

    class exceptions:  # noqa: N801 - boto3's name
        class ConditionalCheckFailedException(Exception): ...

    def __init__(self) -> None:
        self.items: dict[str, dict] = {}

    def put_item(self, Item: dict, **_: Any) -> None:
        self.items[Item["request_id"]["S"]] = Item

    def update_item(self, Key: dict, **given: Any) -> dict:
        item = self.items[Key["request_id"]["S"]]
        for name, column in given["ExpressionAttributeNames"].items():
            item[column] = given["ExpressionAttributeValues"][f":{name[1:]}"]
        return {"Attributes": item}

    def scan(self, **_: Any) -> dict:
        return {"Items": list(self.items.values())}


# --- simulated votes ---


class Knows:
    """A judge that knows the right answer."""

    def right(self, answers, rows) -> list[bool]:
        return [answer == RIGHT for answer in answers]


def judged_rows() -> tuple[list[dict], Knows]:
    return [{"instruction": f"{QUESTION} {n % 9}"} for n in range(40)], Knows()


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_simulated_readers_err_as_often_as_said(noise: float) -> None:
    rows = [{"instruction": QUESTION}] * 1000
    votes = simulated_votes(rows, {"v": [RIGHT, WRONG] * 500}, Knows(), noise)
    erred = sum((v["thumb"] == "up") != (v["answer"] == RIGHT) for v in votes)
    assert erred / 1000 == pytest.approx(noise, abs=0.04)
    assert votes == simulated_votes(rows, {"v": [RIGHT, WRONG] * 500}, Knows(), noise)


@pytest.mark.parametrize(
    ("answers", "noise", "message"),
    [({"v": [RIGHT]}, 0.1, "1 answers to 2 questions"), ({}, 0.5, "noise is 0.5")],
)
def test_simulations_that_say_nothing_are_refused(answers, noise, message) -> None:
    with pytest.raises(PreferenceError, match=message):
        simulated_votes([{"instruction": QUESTION}] * 2, answers, Knows(), noise)


# --- learning from pairs ---


def instruction():
    return instruction_template(tiny_tokenizer())


TAUGHT = [
    AnswerPair(f"{question} {n}", "It keeps features.", "It keeps nothing.", "votes", 2)
    for question in ("What does it keep?", "Which features?")
    for n in range(4)
]


@pytest.fixture(scope="module")
def tuned() -> PeftModel:
    """A base with an adapter that changes what it says; not to be changed."""
    torch.manual_seed(0)
    base = tiny_gpt_neox(len(tiny_tokenizer()))
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    lora.task_type = "CAUSAL_LM"
    model = get_peft_model(base, lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


HELD_OUT = [AnswerPair("What is kept?", TAUGHT[0].chosen, TAUGHT[0].rejected, "", 1)]
TEST_ROWS = [{"instruction": f"What is kept {n}?"} for n in range(4)]


@pytest.fixture(scope="module")
def run(tuned: PeftModel, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A step of DPO after another, on a copy; what stood before and after."""
    model, tokenizer, template = copy.deepcopy(tuned), tiny_tokenizer(), instruction()
    asked = (tokenizer, template, TEST_ROWS, Knows(), HELD_OUT, 8)
    before = measure(model, *asked)
    trainer = prefer(
        model,
        tokenizer,
        template,
        TAUGHT,
        tmp_path_factory.mktemp("dpo"),
        LAPTOP,
        max_steps=6,
        learning_rate=5e-3,
        per_device_train_batch_size=4,
    )
    after = measure(model, *asked)
    return {"model": model, "trainer": trainer, "before": before, "after": after}


def losses_of(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_reference_is_the_adapter_as_it_stood(run) -> None:
    """Model and reference agree at first: the loss is log 2, whatever the pairs."""
    losses = losses_of(run["trainer"])
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0] - 0.01


def test_with_the_base_as_reference_the_first_loss_is_another(tuned, tmp_path) -> None:
    """So the test above can fail: TRL's copy matters."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(0)
    base = tiny_gpt_neox(len(tiny_tokenizer()))  # as in `tuned`
    how = dict(max_steps=1, logging_steps=1, use_cpu=True, bf16=False, report_to="none")
    trainer = DPOTrainer(
        copy.deepcopy(tuned),
        ref_model=base,
        args=DPOConfig(str(tmp_path), save_strategy="no", disable_tqdm=True, **how),
        train_dataset=Dataset.from_list(pair_rows(TAUGHT, instruction())),
        processing_class=copy.deepcopy(tiny_tokenizer()),
    )
    trainer.train()
    assert abs(losses_of(trainer)[0] - math.log(2)) > 1e-3


def test_only_the_tuned_adapter_is_trained_and_left(run, tuned) -> None:
    assert list(run["model"].peft_config) == ["default"]
    assert run["model"].active_adapter == "default"
    assert "forward" not in vars(run["model"].get_base_model())
    before = dict(tuned.named_parameters())
    changed = {
        name
        for name, weight in run["model"].named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert changed
    assert all("lora_" in name for name in changed)


def test_the_margin_of_held_out_pairs_grows(run) -> None:
    found = changes(run["before"], run["after"])
    assert found["margin, nats"].difference.value > 0.1
    table = changes_table(found)
    assert table.loc["margin, nats", "difference"] == pytest.approx(
        table.loc["log p of the chosen", "difference"]
        - table.loc["log p of the rejected", "difference"]
    )


def test_answers_end_as_they_were_taught_and_with_nothing_more(run) -> None:
    trained = run["trainer"].train_dataset[0]
    tokenizer = tiny_tokenizer()
    for name in ("chosen_ids", "rejected_ids"):
        text = tokenizer.decode(trained[name])
        assert text.count(END_KEY) == 1
        assert text.endswith(END_KEY)
    assert tokenizer.eos_token != END_KEY  # the caller's is as it was


def test_a_chat_templates_answers_end_once_as_well(tmp_path) -> None:
    tokenizer = tiny_chat_tokenizer()
    template = chat_template(copy.deepcopy(tokenizer), "Be brief.")
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(tokenizer=tokenizer), lora)
    trainer = prefer(
        model, tokenizer, template, TAUGHT[:2], tmp_path, LAPTOP, max_steps=1
    )
    row = trainer.train_dataset[0]
    assert tokenizer.decode(row["prompt_ids"]) == template.prompt(TAUGHT[0].question)
    assert tokenizer.decode(row["chosen_ids"]) == "It keeps features.<|im_end|>"
    assert losses_of(trainer)[0] == pytest.approx(math.log(2), abs=1e-5)


def test_drawn_answers_differ_and_come_again_with_their_seed(tuned) -> None:
    rows = [{"instruction": f"Question {number}?"} for number in range(4)]
    drawn = [
        sampled_answers(tuned, tiny_tokenizer(), instruction(), rows, 2, 8, seed)
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0].keys() == {"sample 0", "sample 1"}
    assert all(len(some) == len(rows) for some in drawn[0].values())
    assert drawn[0]["sample 0"] != drawn[0]["sample 1"] == drawn[2]["sample 0"]


def test_no_pairs_no_training(tuned, tmp_path) -> None:
    with pytest.raises(PreferenceError, match="There are no pairs to learn from"):
        prefer(tuned, tiny_tokenizer(), instruction(), pairs([]), tmp_path, LAPTOP)


# --- measuring ---


def test_log_probabilities_are_those_of_the_answers_tokens(tuned) -> None:
    tokenizer, template = tiny_tokenizer(), instruction()
    made = template.add_text({"instruction": QUESTION, "response": RIGHT})
    prompt = tokenizer(made["prompt"])["input_ids"]
    ids = prompt + tokenizer(made["completion"])["input_ids"]
    with torch.no_grad():
        logits = tuned.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    places = range(len(prompt), len(ids))
    by_hand = sum(logits[place - 1, ids[place]].item() for place in places)
    texts = [(QUESTION, RIGHT), (QUESTION, OTHER)]
    found = log_probabilities(tuned, tokenizer, template, texts)
    assert found[0] == pytest.approx(by_hand, rel=1e-4)
    assert found[1] != found[0]
    assert log_probabilities(tuned, tokenizer, template, []) == []


def test_changes_are_paired_and_say_whether_they_are_seen() -> None:
    before = Measured(["a"] * 40, [False] * 20 + [True] * 20, [5] * 40, [], [])
    after = Measured(
        ["b"] * 40, [True] * 18 + [False] * 2 + [True] * 20, [9] * 40, [], []
    )
    found = changes(before, after, groups=range(40))
    assert found["right"].difference.value == pytest.approx(0.45)
    assert found["right"].seen
    assert found["tokens of an answer"].difference.value == 4
    assert found.keys() == {"right", "tokens of an answer"}
    same = changes(before, before)
    assert not same["right"].seen
