"""Scores with their uncertainty: losses, text measures, classes, paired differences."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap, norm
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from utils.helpers import DEFAULT_SEED, IGNORED, DataCollatorForCompletionOnlyLM
from utils.models import batches_by_length

CONFIDENCE = 0.95
RESAMPLES = 10_000
LOSS_RESAMPLES = 2_000


# --- shares and differences, with intervals ---


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 95% interval and the sample size behind it."""

    value: float
    low: float
    high: float
    n: int

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.value:.3f}, low={self.low:.3f}, "
            f"high={self.high:.3f}, n={self.n})"
        )


class Proportion(Estimate):
    """A share of right answers, between 0 and 1; see `proportion`."""


class Difference(Estimate):
    """A difference of two means on the same questions; see `paired_difference`."""


def proportion(
    hits: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    seed: int = DEFAULT_SEED,
) -> Proportion:
    """Return the share of hits with Wilson's interval at 95% (Wilson, JASA 22, 1927).

    Where several questions ask for one thing, they stand and fall together, and
    Wilson's interval would be too narrow. With `groups` it is the percentile bootstrap
    over groups, drawn whole (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 3.8). The bootstrap cannot vary a clean sweep: if all
    groups have the same share, the interval is Wilson's for as many hits as there are
    groups.

    First used in lesson 02, section 2.

    Args:
        hits: whether each answer is right.
        groups: what each question belongs to, such as its fact; None if each stands
            for itself.
        seed: of the resamples.

    Raises:
        ValueError: if there are no hits or misses to count, or not as many groups.
    """
    n = len(hits)
    if not n:
        raise ValueError("hits is empty: score some answers before you count.")
    if groups is not None:
        sums, counts = _by_group(np.asarray(hits, bool).astype(float), groups)
        share, right = float(sums.sum() / n), round(len(sums) * sums.sum() / n)
        if np.ptp(sums / counts):
            low, high = _bootstrap_interval(_mean_of, (sums, counts), RESAMPLES, seed)
        else:
            alike = proportion([True] * right + [False] * (len(sums) - right))
            low, high = min(share, alike.low), max(share, alike.high)
        return Proportion(share, low, high, n)
    test = binomtest(sum(map(bool, hits)), n)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Proportion(test.statistic, float(interval.low), float(interval.high), n)


def paired_difference(
    scores: Sequence[float],
    baseline: Sequence[float],
    seed: int = DEFAULT_SEED,
    groups: Sequence[Hashable] | None = None,
) -> Difference:
    """Return how much higher one model scores than another on the same questions.

    The value is the mean over questions. The interval is the percentile bootstrap over
    questions at 95% (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13), 10,000 resamples.

    First used in lesson 02, section 3.

    Args:
        scores: one number a question; a right answer may count as True.
        baseline: the other model's, in the same order.
        seed: of the resamples.
        groups: what each question belongs to, such as its fact; groups are then drawn
            whole. None if each stands for itself.

    Raises:
        ValueError: if the two differ in length or are empty, or groups do.
    """
    if len(scores) != len(baseline) or not len(scores):
        raise ValueError(
            f"{len(scores)} answers against {len(baseline)}: a paired comparison needs "
            "the same questions, in the same order, and at least one."
        )
    deltas = np.asarray(scores, float) - np.asarray(baseline, float)
    mean = float(deltas.mean())
    if np.all(deltas == deltas[0]):  # resampling cannot vary, and scipy returns nan
        return Difference(mean, mean, mean, len(deltas))
    if groups is None:
        low, high = _bootstrap_interval(np.mean, (deltas,), RESAMPLES, seed)
        return Difference(mean, low, high, len(deltas))
    sums, counts = _by_group(deltas, groups)
    if not np.ptp(sums / counts):  # as above
        return Difference(mean, mean, mean, len(deltas))
    low, high = _bootstrap_interval(_mean_of, (sums, counts), RESAMPLES, seed)
    return Difference(mean, low, high, len(deltas))


def _by_group(
    values: np.ndarray, groups: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of the values of each group."""
    if len(groups) != len(values):
        raise ValueError(
            f"{len(groups)} groups for {len(values)} answers: name one for each, in "
            "the same order."
        )
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    places = [number[group] for group in groups]
    return np.bincount(places, weights=values), np.bincount(places).astype(float)


def _mean_of(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean of values from the sums and sizes of their groups."""
    return sums.sum(axis) / counts.sum(axis)


def _bootstrap_interval(
    statistic: Callable[..., np.ndarray],
    columns: tuple[np.ndarray, ...],
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Return the percentile bootstrap's bounds of a statistic of a table's columns.

    Rows are drawn whole. `statistic` takes the columns and the axis to reduce.
    """
    interval = bootstrap(
        columns,
        statistic,
        paired=True,
        confidence_level=CONFIDENCE,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def proportions(hits: Mapping[Any, Sequence[bool]]) -> dict[Any, Proportion]:
    """Return the `proportion` of several series of hits at once, by their names.

    First used in lesson 02, section 2.
    """
    return {name: proportion(series) for name, series in hits.items()}


def same(said: Iterable[Any], wanted: Iterable[Any]) -> list[bool]:
    """Return which answers equal those that were wanted, one by one.

    First used in lesson 02, section 2.

    Raises:
        ValueError: if there are not as many of each.
    """
    return [one == other for one, other in zip(said, wanted, strict=True)]


def questions_needed(
    spread: float, difference: float, power: float = 0.8, level: float = CONFIDENCE
) -> int:
    """Return how many questions show a difference of this size, if it is there.

    First used in experiment 05_statistics, section 6.

    n = ((z(1 - α/2) + z(power)) · spread / difference)², for a two-sided test of a mean
    of paired differences (Miller, Adding Error Bars to Evals, arXiv 2411.00640).

    Args:
        spread: standard deviation of the differences from question to question; for
            two independent samples instead of pairs, the root of the summed variances.
        difference: the smallest mean difference worth finding, in the same unit.
        power: how often it should be found.
        level: of the interval that must exclude zero.

    Raises:
        ValueError: if the difference is zero or the spread negative.
    """
    if not difference or spread < 0:
        raise ValueError(
            f"difference is {difference} and spread {spread}: give a difference that "
            "is not zero, and a spread of at least zero."
        )
    quantiles = norm.ppf(1 - (1 - level) / 2) + norm.ppf(power)
    return max(1, math.ceil((quantiles * spread / difference) ** 2))


# --- how likely a model finds the answers of the file ---


def token_losses(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 16,
) -> list[np.ndarray]:
    """Return the loss of every labelled token of every row, in nats.

    First used in lesson 04, section 4.

    Args:
        model: a causal language model.
        tokenizer: gives the padding token.
        rows: with `input_ids` and `labels`, as `preprocess_batch` makes them.
        batch_size: rows computed together; it changes no result.

    Returns:
        For each row, in their order, an array of one loss a labelled token.
    """
    collator = DataCollatorForCompletionOnlyLM(tokenizer)
    columns = ("input_ids", "attention_mask", "labels")
    rows = [{name: row[name] for name in columns if name in row} for row in rows]
    return _losses_of_rows(model, rows, collator, batch_size)


def model_log_probabilities(
    model: PreTrainedModel, documents: Sequence[Sequence[int]], end: int
) -> list[list[float]]:
    """Return the log probability that a model gives each token, as `NGramModel` does.

    The model reads the end token first, as it stands before every document of its
    corpus, and each document on its own.

    Args:
        model: a causal language model.
        documents: token ids, without the end token.
        end: id of the end token.
    """

    def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        # Padding stands behind the text, where a causal model does not see it.
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        return {
            "input_ids": pad_sequence(ids, True, end),
            "labels": pad_sequence(ids, True, IGNORED),
        }

    rows = [{"input_ids": [end, *document, end]} for document in documents]
    losses = _losses_of_rows(model, rows, collate, batch_size=32)
    return [(-row).tolist() for row in losses]


def _losses_of_rows(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Mapping[str, Any]]], dict[str, torch.Tensor]],
    batch_size: int,
) -> list[np.ndarray]:
    """Return the loss of every labelled token of every row, in nats.

    Args:
        model: a causal language model.
        rows: with `input_ids` and what `collate` needs.
        collate: makes a batch of rows: the model's inputs, and `labels`.
        batch_size: rows computed together.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    for chosen in batches_by_length(lengths, batch_size):
        batch = collate([rows[i] for i in chosen])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")[:, 1:]  # of the token that follows
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1]
            losses = cross_entropy(
                logits.float().transpose(1, 2),
                labels,
                ignore_index=IGNORED,
                reduction="none",
            )
        for i, row, kept in zip(chosen, losses, labels != IGNORED, strict=True):
            found[i] = row[kept].cpu().numpy()
    return found


def held_out_loss(losses: Sequence[np.ndarray], seed: int = DEFAULT_SEED) -> Estimate:
    """Return the mean loss of a token, in nats, whatever the batches were.

    The interval is the percentile bootstrap over rows at 95%, 2,000 resamples: the
    tokens of one answer are not independent. With one row it has no width.

    First used in lesson 05, section 5.

    Args:
        losses: as `token_losses` returns them.
        seed: of the resamples.

    Raises:
        ValueError: if there are no tokens.
    """
    sums = np.array([np.sum(row) for row in losses], dtype=float)
    counts = np.array([len(row) for row in losses], dtype=float)
    if not counts.sum():
        raise ValueError(
            "There are no tokens to score: give texts, or rows with labelled tokens."
        )

    low = high = value = float(_mean_of(sums, counts))
    if len(sums) > 1:
        low, high = _bootstrap_interval(_mean_of, (sums, counts), LOSS_RESAMPLES, seed)
    return Estimate(value, low, high, len(sums))


def perplexity_with_interval(
    log_probabilities: Sequence[Sequence[float]], seed: int = DEFAULT_SEED
) -> Estimate:
    """Return the perplexity of a token: e to the power of its mean loss.

    Args:
        log_probabilities: natural logarithms, a sequence for each text.
        seed: of the resamples; see `held_out_loss`.

    Raises:
        ValueError: if there are no tokens.
    """
    loss = held_out_loss([-np.array(text, float) for text in log_probabilities], seed)
    value, low, high = np.exp([loss.value, loss.low, loss.high]).tolist()
    return Estimate(value, low, high, loss.n)


# --- what an answer has in common with the one in the file ---

ARTICLES = {"a", "an", "the"}
# Other ways to write an apostrophe, a hyphen, and a minus.
PLAIN = str.maketrans("\u2018\u2019\u02bc\u00b4`\u2010\u2011\u2212", "'''''---")
MONEY = "$\u20ac\u00a3\u00a5"
# Scripts without spaces between words, of which each character counts as a word: Thai,
# Lao, Burmese, Khmer, kana, and Chinese characters.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
)
# What punctuation leaves standing: numbers with sign, decimals, and what parts of a
# date or time are joined by; names such as C++, C#, and .NET.
MEANT = re.compile(
    rf"""
    (?P<number>
        (?:(?<![\w.,)%\]])[-+](?=[.]?\d))?
        (?: \d{{1,3}}(?:,\d{{3}})+(?!\d) | \d+ | (?<![\w.])[.]\d+ )
        (?:[.,:/]\d+)*
    )
    (?P<more>\+(?!\w))?
  | (?P<range>(?<=\d)[-\u2013\u2014](?=\d))
  | (?P<name>(?<=\w)(?:\+\+|\+|\#)(?!\w) | (?<!\w)[.](?=net\b))
  | (?P<sign>
        (?<=\d)\s*[%\u2030{MONEY}]
      | [{MONEY}](?=\s*[-+.]?\d)
      | (?<![\w.,)%\]])[-+](?=[{MONEY}]\s*[.]?\d)
      | (?:<=|>=|!=|==|[<>\u2264\u2265\u2260=~\u2248])(?=\s*[-+.{MONEY}]*\d)
    )
    """,
    re.VERBOSE,
)


def words(text: str) -> list[str]:
    """Return the words of a text without case, punctuation and articles.

    SQuAD's own script compares answers so (Rajpurkar et al., arXiv 1606.05250), in
    English. Here signs and decimals of numbers stay ("-5", "2.5"), as do "C++", "%" and
    "$"; any script's punctuation goes; composed letters equal composing ones; and where
    a script has no spaces, each character is a word.
    """
    found = _words(text, joint="")
    return [word for word in found if word not in ARTICLES] or found


def _words(text: str, joint: str) -> list[str]:
    """Return the words of a text.

    Args:
        text: to be cut.
        joint: what takes the place of an ASCII punctuation mark: "" makes "in-house"
            one word, " " makes it two.
    """
    text = unicodedata.normalize("NFC", text).casefold().translate(PLAIN)
    parts, place = [], 0
    for match in MEANT.finditer(text):
        parts += [_unpunctuated(text[place : match.start()], joint), _meant(match)]
        place = match.end()
    parts.append(_unpunctuated(text[place:], joint))
    found = _spaced("".join(parts)).split()
    # A text of punctuation alone, such as "+", is its own word.
    return found or text.split()


def _meant(match: re.Match[str]) -> str:
    """Return one spelling of something that `MEANT` found."""
    kind = match.lastgroup
    if kind in ("number", "more"):
        number = re.sub(r",(?=\d{3}(?!\d))", "", match["number"])
        number = re.sub(r"^([-+]?)[.]", r"\g<1>0.", number.replace(",", "."))
        return number + (match["more"] or "")
    if kind == "range":
        return " "
    return f" {match[0].strip()} " if kind == "sign" else match[0]


def _unpunctuated(text: str, joint: str) -> str:
    """Return a text without punctuation, and without characters that are not seen."""
    kept = []
    for character in text:
        kind = unicodedata.category(character)
        if character in string.punctuation:
            kept.append(joint)
        elif kind[0] == "P":  # a dash, or another script's full stop
            kept.append(" ")
        elif kind != "Cf":
            kept.append(character)
    return "".join(kept)


def _spaced(text: str) -> str:
    """Put a space on both sides of each character that is a word of its own.

    Marks that belong to the character before, such as vowels of Thai, stay with it.
    """
    spaced: list[str] = []
    for character in text:
        is_mark = unicodedata.category(character)[0] == "M"
        if is_mark and spaced and spaced[-1].strip():
            end = " " * spaced[-1].endswith(" ")
            spaced[-1] = spaced[-1].rstrip() + character + end
        elif UNSPACED.match(character):
            spaced.append(f" {character} ")
        else:
            spaced.append(character)
    return "".join(spaced)


def exact_match(answer: str, expected: str) -> bool:
    """Return whether two texts have the same words in the same order; see `words`.

    First used in lesson 05, section 2.
    """
    return words(answer) == words(expected)


def token_f1(answer: str, expected: str) -> float:
    """Return the harmonic mean of precision and recall, counted in words.

    First used in experiment 05_statistics, section 7.

    Precision: how much of the answer is expected. Recall: how much of what is expected
    the answer has. The order of words does not count.
    """
    found, wanted = words(answer), words(expected)
    shared = sum((Counter(found) & Counter(wanted)).values())
    if not shared:
        return float(found == wanted)  # both may be empty
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def text_scores(
    answers: Sequence[str], expected: Sequence[str]
) -> dict[str, list[float]]:
    """Return five measures of likeness, each between 0 and 1, one number an answer.

    ROUGE-L is rouge-score's F-measure without stemming, of words that may be in any
    script; chrF (characters 1 to 6) and BLEU (words 1 to 4, with shorter ones where a
    text has no four) are sacrebleu's for single sentences. See `words` for what counts
    as a word where a script has no spaces.

    First used in lesson 05, section 3.

    Raises:
        ValueError: if there are not as many answers as expected ones.
    """
    import logging

    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    if len(answers) != len(expected):
        raise ValueError(
            f"{len(answers)} answers for {len(expected)} expected ones: give as many "
            "of each, in the same order."
        )
    logging.getLogger("absl").setLevel(logging.WARNING)
    rouge, chrf = RougeScorer(["rougeL"], tokenizer=_RougeWords()), CHRF()
    bleu = BLEU(effective_order=True)
    pairs = list(zip(answers, expected, strict=True))
    composed = [[unicodedata.normalize("NFC", one) for one in pair] for pair in pairs]
    spaced = [[_spaced(one) for one in pair] for pair in composed]
    return {
        "exact match": [float(exact_match(one, other)) for one, other in pairs],
        "token F1": [token_f1(one, other) for one, other in pairs],
        "ROUGE-L": [rouge.score(o, one)["rougeL"].fmeasure for one, o in pairs],
        "chrF": [chrf.sentence_score(one, [o]).score / 100 for one, o in composed],
        "BLEU": [bleu.sentence_score(one, [o]).score / 100 for one, o in spaced],
    }


class _RougeWords:
    """What rouge-score asks for words; its own ones are made of a-z and 0-9 alone."""

    def tokenize(self, text: str) -> list[str]:
        return _words(text, joint=" ")


# --- wrong in which way ---
