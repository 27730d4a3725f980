"""Whether two questions ask for the same, two answers differ, and one stands alone.

Likeness of vectors cannot see a number, a name or a negation. So texts that are alike
are compared word by word as well, by rules for English.
"""

from __future__ import annotations

import re
from functools import cache

from utils.dataset.table import question_key

SAME_QUESTION = 0.9  # cosine from which one word may be replaced by a synonym
LIKE_ANSWERS = 0.75  # cosine from which two answers do not contradict by their subject
SHARED_WORDS = 0.5  # of the shorter answer, from which they do not either
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be been do does did can could may might will would "
        "shall should must i you we they it he she my your our their its me us them of "
        "to in on at for from by with and or as that this there please what which how "
        "when where who whom why if so exactly actually really just also many much "
        "have has had am",
    )
)
SYNONYMS = (
    "delete remove erase", "start begin launch", "stop end terminate", "large big",
    "buy purchase", "cost price", "make create build", "change modify edit",
    "fix repair", "choose select pick", "show display", "allowed permitted",
    "staff employees",
    "holiday vacation leave", "salary pay wage", "error fault failure", "need require",
    "use employ", "find locate", "send submit", "obtain receive get", "fast quick",
    "car vehicle", "laptop computer notebook", "doctor physician", "limit quota",
    "maximum most largest", "minimum least smallest", "ask request", "close shut",
    "often frequently", "install set-up", "log-in sign-in", "room place",
    "firm company",
    "update upgrade", "assist help", "save store keep", "kind type sort",
)  # fmt: skip
# Words that turn a question round, or ask for something else.
DIRECTIONS = frozenset(("from", "to", "into", "with", "without", "before", "after"))
NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        re.findall(
            r"\w+",
            "zero one two three four five six seven eight nine ten eleven twelve "
            "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty",
        )
    )
} | {
    **{"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70"},
    **{"eighty": "80", "ninety": "90", "hundred": "100", "thousand": "1000"},
    **{"first": "1", "second": "2", "third": "3", "fourth": "4", "fifth": "5"},
    **{"once": "1", "twice": "2", "thrice": "3"},
}
WORD = re.compile(r"[+-]?\d+(?:[.,]\d+)*(?:st|nd|rd|th)?(?![\w.])|[\w.+#-]*\w[+#]*")
ASKS = re.compile(r"\W*(?:\w+\W+){0,2}?(who|when|where|why)\b")
NEGATIONS = re.compile(
    r"\b(?:no|not|never|none|nobody|nothing|cannot|without|neither|nor)\b|n['’]t\b",
    re.IGNORECASE,
)

WHOLE = (
    r"yes|no|yep|nope|yeah|correct|true|false|right|wrong|sure|of course|absolutely"
    r"|definitely|maybe|perhaps|it depends|sometimes|never|always|both|neither|either"
    r"|all of them|none of them|all of the above|none of the above|ja|nein|oui|non|sí"
)
NEEDS_QUESTION = (
    re.compile(rf"(?:{WHOLE})\W*", re.IGNORECASE),
    re.compile(
        r"(?:yes|no|of course|sure)\W+(?:it|you|they|we|this|that|there|he|she|i)\s+"
        r"(?:does|do|can|is|are|will|may|has|have|should|must|did|was|were)"
        r"(?:\s*not|n['’]t)?\W*",
        re.IGNORECASE,
    ),
)
REFERS = re.compile(
    r"(?i)\b(?:see|as|like)\s+(?:mentioned|described|stated|explained|said|noted|listed"
    r"|shown|written)?\s*(?:above|before|earlier|previously|below)\b(?!\s+the\s+\w+)"
    r"|\bsame\s+(?:answer\s+)?as\s+(?:above|before|the\s+(?:previous|last|other)\b)"
    r"|\bthe\s+(?:previous|last|above|preceding|next|other)\s+(?:answer|question|point)\b"
    r"|\b(?:see|as\s+in|same\s+as)\s+(?:question|answer|no\.?|number|q|point)\s*#?\d+"
    r"|^\W*(?:ditto|idem|same|siehe oben|voir ci-dessus|s\.\s*o\.)\W*$"
    r"|\bas\s+(?:mentioned|stated|described|explained)\s+(?:above|before|earlier)\b"
)
PRONOUN = re.compile(
    r"(?:it|they|he|she|this|these|those|its|their|his|her)(?:['’](?:s|re|ll))?\s+\w",
    re.IGNORECASE,
)
# "It takes an hour to start": here the pronoun stands for what follows.
EXPLETIVE = re.compile(
    r"(?i)it\s+(?:takes|costs)\b.*\b(?:to|for)\b|it(?:\s+is|['’]s)\s+(?:not\s+)?(?:\w+ly\s+)?"
    r"(?:possible|impossible|best|better|good|important|necessary|recommended|advisable"
    r"|easy|hard|safe|worth|enough|allowed|forbidden|up to|the case)\b"
    r"|those\s+who\b|it\s+depends\s+on\b"
)


@cache
def _stem(word: str) -> str:
    if word in ("used", "uses", "using"):
        return "use"
    for ending in ("ies", "ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)].rstrip("e")
    return word.rstrip("e") if len(word) > 3 else word


@cache
def content_words(text: str) -> tuple[str, ...]:
    """Return the words that carry the meaning, in their order, without endings."""
    words = re.findall(WORD, question_key(text))
    words = [re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", word) for word in words]
    words = [NUMBER_WORDS.get(word, word) for word in words]
    return tuple(_stem(word) for word in words if word not in STOP_WORDS)


def _numbers(text: str) -> set[str]:
    return {
        word.replace(",", "") for word in content_words(text) if word[-1:].isdigit()
    }


def same_question(one: str, other: str, likeness: float) -> bool:
    """Return whether two questions ask for the same, word by word.

    Args:
        one: a question.
        other: another one.
        likeness: their cosine, from -1 to 1. Where it is high, one word may be
            replaced by a synonym.
    """
    first, second = content_words(one), content_words(other)
    if _numbers(one) != _numbers(other):
        return False
    if bool(NEGATIONS.search(one)) != bool(NEGATIONS.search(other)):
        return False
    asks = [
        re.match(r"\W*(?:\w+\W+){0,2}?(who|when|where|why)\b", t.casefold())
        for t in (one, other)
    ]
    if all(asks) and asks[0][1] != asks[1][1]:
        return False
    turns = [DIRECTIONS & set(text.casefold().split()) for text in (one, other)]
    if turns[0] != turns[1]:
        return False
    only_first, only_second = set(first) - set(second), set(second) - set(first)
    if not only_first and not only_second:
        return first == second or not turns[0]
    if likeness < SAME_QUESTION or len(only_first) != 1 or len(only_second) != 1:
        return False
    pair = only_first | only_second
    return any(pair <= synonyms for synonyms in _synonyms())


@cache
def _synonyms() -> list[set[str]]:
    return [{_stem(word) for word in words.split()} for words in SYNONYMS]


def differing_answers(one: str, other: str, likeness: float) -> bool:
    """Return whether two answers to one question cannot both be right.

    Args:
        one: an answer.
        other: another one.
        likeness: their cosine, from -1 to 1.
    """
    if question_key(one) == question_key(other):
        return False
    starts = [re.match(r"\W*(yes|no)\b", text, re.IGNORECASE) for text in (one, other)]
    if all(starts):
        if starts[0][1].casefold() != starts[1][1].casefold():
            return True
    elif bool(NEGATIONS.search(one)) != bool(NEGATIONS.search(other)):
        return True
    first, second = _numbers(one), _numbers(other)
    if first and second and not (first <= second or second <= first):
        return True
    words, others = set(content_words(one)), set(content_words(other))
    shared = len(words & others) / max(min(len(words), len(others)), 1)
    return likeness < LIKE_ANSWERS and shared < SHARED_WORDS


def needs_question(answer: str) -> bool:
    """Return whether an answer says nothing without its question."""
    text = answer.strip()
    if any(pattern.fullmatch(text) for pattern in NEEDS_QUESTION):
        return True
    if REFERS.search(text):
        return True
    return bool(PRONOUN.match(text)) and not EXPLETIVE.match(text)
