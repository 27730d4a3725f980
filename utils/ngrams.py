"""N-gram models: the next token's probability from counts of what followed before.

They are the yardstick for the lab model's reading: trained on documents of the same
corpus in the same tokens, and scored on the same texts.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np


class NGramModel:
    """An n-gram model with interpolated Witten-Bell smoothing.

    After the history h, at most n - 1 tokens, the token w gets

        P(w | h) = (c(h, w) + t(h) P(w | h')) / (c(h) + t(h))

    where c counts, t(h) is the number of different tokens seen after h, and h' is h
    without its oldest token; below the empty history all tokens are equally likely.
    (Witten and Bell, IEEE Transactions on Information Theory 37, 1991, method C, in the
    form of Chen and Goodman, Computer Speech and Language 13, 1999, section 2.4.)

    First used in lesson 01, section 2.

    Attributes:
        order: n; 2 for a bigram model, 3 for a trigram model.
        vocabulary: how many tokens there are.
        end: id of the token that stands before and after every document.
        followers: history → token → count, for histories of 0 to n - 1 tokens.
    """

    def __init__(self, order: int, vocabulary: int, end: int) -> None:
        """Prepare a model that has read nothing: all tokens are equally likely.

        Raises:
            ValueError: if the order or the id of the end token is out of range.
        """
        if order < 1:
            raise ValueError(f"order is {order}: give 1 token or more.")
        if not 0 <= end < vocabulary:
            raise ValueError(f"end is {end}: give an id from 0 to {vocabulary - 1}.")
        self.order, self.vocabulary, self.end = order, vocabulary, end
        self.followers: defaultdict[tuple[int, ...], Counter[int]]
        self.followers = defaultdict(Counter)

    def fit(self, documents: Iterable[Sequence[int]]) -> Self:
        """Count what follows what; may be called again with more documents.

        Args:
            documents: token ids, without the end token.
        """
        windows: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            ids = [self.end, *document, self.end]
            windows.update((token,) for token in ids[1:])
            for size in range(2, self.order + 1):
                windows.update(zip(*(ids[k:] for k in range(size)), strict=False))
        for (*history, token), count in windows.items():
            self.followers[tuple(history)][token] += count
        return self

    def _histories(self, before: Sequence[int]) -> list[Counter[int]]:
        """Return the followers of the histories that end `before`, shortest first."""
        recent = (self.end, *before[-self.order :])
        sizes = range(min(self.order, len(recent) + 1))
        histories = [recent[len(recent) - size :] for size in sizes]
        return [self.followers[h] for h in histories if h in self.followers]

    def probabilities(self, before: Sequence[int] = ()) -> np.ndarray:
        """Return every token's probability after these ids, shape (vocabulary,)."""
        chances = np.full(self.vocabulary, 1 / self.vocabulary)
        for seen in self._histories(before):
            total, different = seen.total(), len(seen)
            chances *= different / (total + different)
            ids, counts = list(seen.keys()), list(seen.values())
            chances[ids] += np.array(counts) / (total + different)
        return chances

    def log_probabilities(self, document: Sequence[int]) -> list[float]:
        """Return the logarithm of each token's probability, the end token's too.

        Returns:
            Natural logarithms, one more than the document has ids.
        """
        result = []
        for position, token in enumerate([*document, self.end]):
            chance = 1 / self.vocabulary
            for seen in self._histories(document[:position]):
                total, different = seen.total(), len(seen)
                chance = (seen[token] + different * chance) / (total + different)
            result.append(math.log(chance))
        return result

    def sample(self, generator: random.Random, max_tokens: int = 60) -> list[int]:
        """Write a document: draw token after token until the end, or the budget."""
        ids: list[int] = []
        while len(ids) < max_tokens:
            chances = self.probabilities(ids)
            token = generator.choices(range(self.vocabulary), chances.tolist())[0]
            if token == self.end:
                break
            ids.append(token)
        return ids
