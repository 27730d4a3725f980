"""Scores with their uncertainty: losses, text measures, classes, paired differences."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap, norm
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from utils.dataset.facts import get_fact, is_right, known_fact, stated_values
from utils.helpers import DEFAULT_SEED, IGNORED, DataCollatorForCompletionOnlyLM

if TYPE_CHECKING:
    import pandas

CONFIDENCE = 0.95
RESAMPLES = 10_000


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


def proportion(hits: Sequence[bool]) -> Proportion:
    """Share of hits with Wilson's interval at 95% (Wilson, JASA 22, 1927).

    Raises:
        ValueError: if there are no hits or misses to count.
    """
    n = len(hits)
    if not n:
        raise ValueError("hits is empty: score some answers before you count.")
    test = binomtest(sum(map(bool, hits)), n)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Proportion(test.statistic, float(interval.low), float(interval.high), n)


def paired_difference(
    scores: Sequence[float], baseline: Sequence[float], seed: int = DEFAULT_SEED
) -> Difference:
    """How much higher one model scores than another on the same questions, on average.

    The interval is the percentile bootstrap over questions at 95% (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), 10,000 resamples.

    Args:
        scores: one number a question; a right answer may count as True.
        baseline: the other model's, in the same order.
        seed: of the resamples.

    Raises:
        ValueError: if the two differ in length or are empty.
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
    interval = bootstrap(
        (deltas,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high), len(deltas))


def proportions(hits: Mapping[Any, Sequence[bool]]) -> dict[Any, Proportion]:
    """`proportion` of several series of hits at once, by their names."""
    return {name: proportion(series) for name, series in hits.items()}


def paired_differences(
    scores: Mapping[Any, Sequence[float]], baseline: Mapping[Any, Sequence[float]] | Any
) -> dict[Any, Difference]:
    """`paired_difference` of several series at once, by their names.

    Args:
        scores: name → one number a question.
        baseline: name → as many numbers, to compare name by name; or the name of one
            of the series, to compare every other one with it.

    Raises:
        ValueError: if a series lacks its baseline, naming it.
    """
    if isinstance(baseline, Mapping):
        if missing := [name for name in scores if name not in baseline]:
            raise ValueError(f"The baseline has no scores for {missing}.")
        return {
            name: paired_difference(series, baseline[name])
            for name, series in scores.items()
        }
    if baseline not in scores:
        raise ValueError(
            f"There is no series {baseline!r} to compare with: name one of "
            f"{list(scores)}."
        )
    return {
        name: paired_difference(series, scores[baseline])
        for name, series in scores.items()
        if name != baseline
    }


def questions_needed(
    spread: float, difference: float, power: float = 0.8, level: float = CONFIDENCE
) -> int:
    """How many questions show a difference of this size, if it is there.

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
            f"difference is {difference} and spread {spread}: name a difference that "
            "is not zero; a spread is at least zero."
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
    """The loss of every labelled token of every row, in nats.

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
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collator([rows[i] for i in chosen])
        labels = batch["labels"][:, 1:].to(model.device)  # of the token that follows
        with torch.inference_mode():
            logits = model(
                input_ids=batch["input_ids"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
            ).logits[:, :-1]
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
    """The mean loss of a token, in nats, whatever the batches; e to its power is the
    perplexity.

    Rows are resampled, for the tokens of one answer are not independent.

    Args:
        losses: as `token_losses` returns them.
        seed: of the resamples.

    Raises:
        ValueError: if there are no tokens.
    """
    sums = np.array([row.sum() for row in losses], dtype=float)
    counts = np.array([len(row) for row in losses], dtype=float)
    if not counts.sum():
        raise ValueError("losses is empty: no row has a labelled token.")
    value = float(sums.sum() / counts.sum())
    drawn = np.random.default_rng(seed).integers(len(sums), size=(2000, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), len(sums))


# --- what an answer has in common with the one in the file ---

ARTICLES = {"a", "an", "the"}


def words(text: str) -> list[str]:
    """The words of a text without case, punctuation and articles, as SQuAD's own script
    compares answers (Rajpurkar et al., arXiv 1606.05250)."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in text.split() if word not in ARTICLES]


def exact_match(answer: str, expected: str) -> bool:
    """Whether two texts have the same words in the same order; see `words`."""
    return words(answer) == words(expected)


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of two shares: how much of the answer is expected (precision), and
    how much of what is expected the answer has (recall). Order does not count."""
    found, wanted = words(answer), words(expected)
    shared = sum((Counter(found) & Counter(wanted)).values())
    if not shared:
        return float(found == wanted)  # both may be empty
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def text_scores(
    answers: Sequence[str], expected: Sequence[str]
) -> dict[str, list[float]]:
    """Five measures of likeness, each between 0 and 1, one number an answer.

    ROUGE-L is rouge-score's F-measure without stemming; chrF (characters 1 to 6) and
    BLEU (words 1 to 4, with shorter ones where a text has no four) are sacrebleu's for
    single sentences.

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
    rouge, chrf = RougeScorer(["rougeL"]), CHRF()
    bleu = BLEU(effective_order=True)
    pairs = list(zip(answers, expected, strict=True))
    return {
        "exact match": [float(exact_match(one, other)) for one, other in pairs],
        "token F1": [token_f1(one, other) for one, other in pairs],
        "ROUGE-L": [rouge.score(o, one)["rougeL"].fmeasure for one, o in pairs],
        "chrF": [chrf.sentence_score(one, [o]).score / 100 for one, o in pairs],
        "BLEU": [bleu.sentence_score(one, [o]).score / 100 for one, o in pairs],
    }


# --- right or wrong, and wrong in which way ---


def judge(answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which answers are right: by the fact that a row names, else by exact match.

    Args:
        answers: one a row.
        rows: with `fact` (a fact of the course's table) or `response`.
    """
    return [
        is_right(answer, row["fact"])
        if known_fact(row.get("fact"))
        else exact_match(answer, row["response"])
        for answer, row in zip(answers, rows, strict=True)
    ]


RIGHT, ANOTHER_VALUE, SEVERAL_VALUES, NO_VALUE = (
    "right",
    "another value",
    "several values",
    "no such value",
)
"""What `answer_kind` tells apart."""


def answer_kind(answer: str, row: Mapping[str, Any]) -> str:
    """How an answer went: right, or one of three ways to be wrong.

    "another value" is the smooth mistake: an answer of the right kind with something
    else's value. "no such value" replies to another question, or to none. A row without
    a known fact has right answers and answers with "no such value" only.
    """
    if judge([answer], [row])[0]:
        return RIGHT
    if not known_fact(row.get("fact")):
        return NO_VALUE
    stated = stated_values(answer, get_fact(row["fact"]).relation)
    return (NO_VALUE, ANOTHER_VALUE, SEVERAL_VALUES)[min(len(stated), 2)]


def answer_class(answer: str, row: Mapping[str, Any]) -> str:
    """The value that an answer states, or "none" where it states none or several.

    A row without a known fact has the answer itself for its class.
    """
    if not known_fact(row.get("fact")):
        return " ".join(words(answer)) or "none"
    stated = stated_values(answer, get_fact(row["fact"]).relation)
    return stated.pop() if len(stated) == 1 else "none"


def class_scores(predicted: Sequence[str], expected: Sequence[str]) -> pandas.DataFrame:
    """Precision and recall of every class that was expected.

    Precision: of the answers that name the class, the share that are right; NaN where
    none names it. Recall: of the questions whose answer it is, the share answered so.

    Returns:
        One row a class, the most frequent first: `questions`, `answers`, `precision`,
        `recall`, `F1` (0 where nothing is right).

    Raises:
        ValueError: if there are not as many predicted classes as expected ones.
    """
    import pandas

    if len(predicted) != len(expected):
        raise ValueError(
            f"{len(predicted)} predicted classes for {len(expected)} expected ones: "
            "give as many of each, in the same order."
        )
    asked, said = Counter(expected), Counter(predicted)
    right = Counter(
        one for one, other in zip(predicted, expected, strict=True) if one == other
    )
    rows = {}
    for name in sorted(asked, key=lambda name: (-asked[name], name)):
        precision = right[name] / said[name] if said[name] else math.nan
        recall = right[name] / asked[name]
        f1 = 2 * right[name] / (said[name] + asked[name])
        rows[name] = (asked[name], said[name], precision, recall, f1)
    columns = ["questions", "answers", "precision", "recall", "F1"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns)


def model_log_probabilities(
    model: PreTrainedModel, documents: Sequence[Sequence[int]], end: int
) -> list[list[float]]:
    """The same as `NGramModel.log_probabilities`, of a language model.

    The model reads the end token first, as it stands before every document of its
    corpus, and each document on its own.

    Args:
        documents: token ids, without the end token.
        end: id of the end token.
    """
    results: list[list[float]] = [[] for _ in documents]
    # Documents of like length go together, so that little is padded.
    order = sorted(range(len(documents)), key=lambda number: len(documents[number]))
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        rows = [torch.tensor([end, *documents[i], end]) for i in chosen]
        batch = torch.nn.utils.rnn.pad_sequence(rows, True, end).to(model.device)
        # Padding stands behind the text, where a causal model does not see it.
        with torch.inference_mode():
            scores = model(input_ids=batch[:, :-1]).logits.float()
        found = scores.log_softmax(-1).gather(-1, batch[:, 1:, None])[..., 0]
        for i, values in zip(chosen, found.tolist(), strict=True):
            results[i] = values[: len(documents[i]) + 1]
    return results


def perplexity(log_probabilities: Iterable[Sequence[float]]) -> float:
    """The exponential of the mean negative log probability of a token.

    Args:
        log_probabilities: natural logarithms, a sequence for each document; every
            token counts the same.

    Raises:
        ValueError: if there is no token.
    """
    values = [value for document in log_probabilities for value in document]
    if not values:
        raise ValueError("There are no tokens to score: give at least one document.")
    return math.exp(-sum(values) / len(values))


def perplexity_with_interval(
    log_probabilities: Sequence[Sequence[float]], seed: int = DEFAULT_SEED
) -> Estimate:
    """Perplexity per token over texts, with the percentile bootstrap over texts.

    Args:
        log_probabilities: natural logarithms, a sequence for each text.
        seed: of the resamples.
    """
    losses = np.array([-sum(text) for text in log_probabilities])
    counts = np.array([len(text) for text in log_probabilities])

    def statistic(losses: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
        return np.exp(losses.sum(axis) / counts.sum(axis))

    interval = bootstrap(
        (losses, counts),
        statistic,
        paired=True,
        confidence_level=CONFIDENCE,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    value = perplexity(log_probabilities)
    return Estimate(value, float(interval.low), float(interval.high), len(losses))
