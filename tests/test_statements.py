"""What a text states and what it denies: numbers, units, names, negations."""

from __future__ import annotations

import pytest

from utils.evaluation.statements import mentions, phrase_words, words


def stances(phrase: str, text: str) -> set[str]:
    return {mention.stance for mention in mentions(phrase, words(text))}


# --- words and numbers ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("fifteen", "15"),
        ("twenty-eight days", "28 days"),
        ("Twenty Eight days", "28-day"),
        ("one hundred and twenty-eight", "128"),
        ("two thousand twenty-four", "2,024"),
        ("a dozen", "12"),
        ("a hundred", "100"),
        ("1.5 million", "1,500,000"),
        ("200k", "200,000"),
        ("2\u00a0500", "2500"),
        ("two and a half hours", "2.5 hours"),
        ("2½ hours", "150 minutes"),
        ("an hour and a half", "90 minutes"),
        ("1 hour and 30 minutes", "5,400 s"),
        ("half an hour", "30 min"),
        ("for an hour", "for 60 minutes"),
        ("two weeks", "14 days"),
        ("1 day", "24h"),
        ("one year", "12 months"),
        ("5GB", "5 gigabytes"),
        ("5 GiB", "five gibibytes"),
        ("60s", "60 seconds"),
        ("80%", "eighty per cent"),
        ("80 percent", "80 %"),
        ("$0.05", "0.05 dollars"),
        ("USD 5", "5 USD"),
        ("€1.20", "1.2 euros"),
        ("2,5 GB", "2.5 GB"),
        ("−5", "-5"),
        ("Notebook instances", "the notebook instance"),
        ("**Canvas**", "canvas"),
        ("organisations", "organization"),
        ("it isn’t", "it isn't"),
        ("can't", "cannot"),
        ("two point five", "2.5"),
    ],
)
def test_one_thing_in_two_spellings(one, other) -> None:
    assert [w.key for w in phrase_words(one)] == [w.key for w in phrase_words(other)]


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("5 GB", "It has 15 GB."),
        ("5 GB", "It has 2.5 GB."),
        ("5 GB", "It has 5 GiB."),
        ("5 GB", "It has 5 MB."),
        ("5 GB", "It has 50 GB."),
        ("5 GB", "It has 5,000 GB."),
        ("8 days", "It runs for 28 days."),
        ("8 days", "It runs for twenty-eight days."),
        ("5", "It costs 0.5 dollars."),
        ("5", "It is -5 degrees."),
        ("3.1", "Python 3.11"),
        ("500", "2,500 features"),
        ("no", "Everyone knows it."),
        ("yes", "It was yesterday."),
        ("C", "It is written in C++."),
        ("C", "It is written in C#."),
        ("C++", "It is written in C."),
        ("spot", "The hotspot is on."),
        ("m5", "Use an ml.m5.xlarge."),
        ("ml.g5.xlarge", "Use an ml.g5.2xlarge."),
        ("us-east-1", "It runs in us-east-2."),
        ("us-east-1", "It runs in us-east-10."),
        ("1", "It runs in us-east-1."),
        ("/opt/ml/code", "It lies in /opt/ml/model/code."),
        ("/opt/ml/mod", "It lies in /opt/ml/model/code."),
        ("28", "It has 28 GB."),
        ("every hour", "It runs every 9 hours."),
        ("a minute", "It takes 60 hours, or five minutes."),
        ("plan A", "You are on plan B."),
        ("3", "It is the 3rd one."),
        ("1", "No one asked, and one of them left."),
        ("1 day", "It runs five times a day."),
        ("2024", "On 2024-12-03."),
    ],
)
def test_whole_words_and_whole_numbers_alone_count(phrase, text) -> None:
    assert stances(phrase, text) == set()


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("C++", "It is C++, of course."),
        ("real-time", "Use realtime endpoints."),
        ("multi-model endpoints", "A multimodel endpoint holds several."),
        ("a realtime endpoint", "Real-time endpoints answer at once."),
        ("kestrel-artifacts", "See `s3://kestrel-artifacts/team/`."),
        ("/opt/ml/model", "It lies in /opt/ml/model."),
        ("/opt/ml/model", "It lies in /opt/ml/model/code."),
        ("config.json", "See /opt/ml/model/config.json."),
        ("a minute", "It takes at most a minute."),
        ("a minute", "A minute."),
        ("us-east-1", "It runs in us-east-1."),
        ("10 GB", "Choose 5-10 GB."),
        ("plan A", "You are on plan A."),
        ("A", "A."),
        ("Asia Pacific (Tokyo)", "It is in Asia Pacific, Tokyo."),
        ("CPU", "Choose CPU/GPU."),
        ("6 GB", "It has a 6GB disk.It is fast."),
        ("ML storage volume", "…the *ML storage volume*…"),
        ("GPU", "GPUs"),
        ("batch", "two batches"),
    ],
)
def test_a_phrase_is_found_however_it_is_set(phrase, text) -> None:
    assert stances(phrase, text) == {"affirmed"}


def numbers(text: str) -> set[str]:
    return {word.key for word in words(text) if word.is_number}


def test_numbers_are_compared_with_their_units() -> None:
    assert numbers("28 days and 5 GB") == numbers("four weeks, and five gigabytes")
    assert numbers("no numbers here") == set()


@pytest.mark.parametrize("text", ["", " ", "…", "???", "\ufeff", "🙂", "-", "a", "½"])
def test_odd_texts_are_read_without_a_stumble(text) -> None:
    assert all(word.key or word.mark for word in words(text))
    assert stances("5 days", text) == set()
    assert mentions(text, words("5 days")) == []


# --- negation ---


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("business analysts", "It is not made for business analysts."),
        ("business analysts", "It isn't made for business analysts."),
        ("business analysts", "It was never made for business analysts."),
        ("managers", "It is not for analysts, clerks or managers."),
        ("managers", "It is made neither for analysts nor for managers."),
        ("5 days", "28 days, not 5 days."),
        ("5 days", "28 days rather than 5 days."),
        ("5 days", "28 days instead of 5 days."),
        ("5 days", "It is no longer 5 days."),
        ("5 days", "It is not, as many think, 5 days."),
        ("5 days", "I do not think that it is 5 days."),
        ("5 days", "5 days is wrong."),
        ("5 days", "5 days is not the limit."),
        ("5 days", "It is false that the limit is 5 days."),
        ("5 days", "It is never deleted, not even after 5 days."),
        ("S3", "Unlike S3, it forgets nothing."),
        ("S3", "It needs no S3."),
        ("S3", "It works without S3."),
        ("S3", "None of it is stored on S3."),
        ("S3", "It cannot be stored on S3."),
        ("S3", "It can store anything except S3."),
        ("S3", "S3 is no longer supported."),
        ("spot", "Spot cannot be used."),
        ("billed", "You won't be billed for it."),
    ],
)
def test_what_is_denied(phrase, text) -> None:
    assert stances(phrase, text) == {"denied"}


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("5 days", "There is no need to worry: 5 days."),
        ("5 days", "There is no need to worry, it takes 5 days."),
        ("5 days", "It cannot exceed 5 days."),
        ("5 days", "It takes no more than 5 days."),
        ("5 days", "It takes not more than five days."),
        ("5 days", "It can't run for longer than 5 days."),
        ("5 days", "It is not stopped before 5 days have passed."),
        ("5 days", "No, it is 5 days."),
        ("5 days", "Not 28 days but 5 days."),
        ("5 days", "It isn't 28 days; it is 5 days."),
        ("5 days", "It does not take long because the limit is 5 days."),
        ("5 days", "No doubt it takes 5 days."),
        ("5 days", "Nothing is kept longer than 5 days."),
        ("5 days", "Unlike training jobs, processing jobs run 5 days."),
        ("EFS", "It uses not only S3 but also EFS."),
        ("S3", "It uses not only S3 but also EFS."),
        ("EFS", "Instead of S3 it uses EFS."),
        ("EFS", "It does not use S3. It uses EFS."),
        ("VPC", "It does not work without a VPC."),
        ("role", "Do not forget to attach a role."),
        ("role", "You are not charged unless you attach a role."),
        ("5 days", "A job that is not finished within 5 days fails."),
        ("5 months", "Artifacts that no endpoint has loaded for 5 months are moved."),
        ("5 hours", "Resources without a tag get a grace period of 5 hours."),
        ("SageMaker AI", "The service was renamed from SageMaker to SageMaker AI."),
    ],
)
def test_what_is_affirmed_for_all_its_negations(phrase, text) -> None:
    assert stances(phrase, text) == {"affirmed"}


@pytest.mark.parametrize(
    ("phrase", "text", "stance"),
    [
        ("5 days", "Is it 5 days? No, it is 28 days.", "reported"),
        ("5 days", "Many people think it is 5 days.", "reported"),
        ("5 days", "It used to be 5 days.", "past"),
        ("5 days", "The limit was raised from 5 days to 28 days.", "past"),
        ("SageMaker", "SageMaker AI, formerly SageMaker", "past"),
    ],
)
def test_what_others_say_and_what_was_once(phrase, text, stance) -> None:
    assert stance in stances(phrase, text)


@pytest.mark.parametrize(
    ("phrase", "text", "stance"),
    [
        ("not billed", "You are never billed.", "affirmed"),
        ("not billed", "You won't be billed.", "affirmed"),
        ("not billed", "You are billed.", "denied"),
        ("no charge", "There is no charge.", "affirmed"),
        ("no charge", "There isn't any charge.", "affirmed"),
        ("without a VPC", "It needs no VPC.", "affirmed"),
        ("isn't supported", "Spot is not supported.", "affirmed"),
    ],
)
def test_a_phrase_may_be_a_negation_itself(phrase, text, stance) -> None:
    assert stances(phrase, text) == {stance}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("No.", True),
        ("No, it does not.", True),
        ("No it does not", True),
        ("The answer is no.", True),
        ("No limit applies.", False),
        ("It is no longer there.", False),
        ("No?", False),
    ],
)
def test_a_bare_no_is_an_answer_and_no_article(text, found) -> None:
    assert bool(stances("no", text)) is found
