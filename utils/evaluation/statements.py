"""What a text states, and what it denies: words, numbers and negations.

An answer is right if it states a value, whatever the words around it. So a text is cut
into words here in a way that spellings do not matter ("fifteen", "15"; "5GB",
"5 gigabytes"; "a day", "24 hours") and that other values do ("5 GB" is neither in
"15 GB" nor in "2.5 GB"; "C++" is not "C", "-5" is not "5"). `mentions` then tells
whether a phrase is affirmed or denied. Its rules are for English and know the common
constructions; data/judged_answers.csv says how often they are right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache


def _singular(word: str) -> str:
    """Return a word without the ending of its plural, and with American -ize."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) > 3 and word.isalpha():
        if word.endswith("ies"):
            word = word[:-3] + "y"
        elif word.endswith(("sses", "shes", "ches", "xes")):
            word = word[:-2]
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
            word = word[:-1]
        return re.sub(r"is(e|ed|ing|ation)$", r"iz\1", word)
    return word


def _all(words: str) -> frozenset[str]:
    """Return a set of words as `words` spells them."""
    return frozenset(map(_singular, words.split()))


IRREGULAR = {
    **{"hrs": "hr", "mins": "min", "secs": "sec", "caches": "cache"},
    **{"gpus": "gpu", "cpus": "cpu", "vcpus": "vcpu"},
}

# --- words ---

SPELLED_OUT = (  # before anything else, in lower case
    (r"\be\.\s?g\.", "for example"),
    (r"\bi\.\s?e\.", "that is"),
    (r"\betc\.", "and so on"),
    (r"\bvs\.?(?=\s)", "versus"),
    (r"\bper cent\b", "percent"),
    (r"\bcan(?:'?t|not)\b", "can not"),
    (r"\bwon'?t\b", "will not"),
    (r"\bain't\b", "is not"),
    (r"\b(is|are|was|were|do|does|did|has|have|had)n'?t\b", r"\1 not"),
    (r"\b(\w+)n't\b", r"\1 not"),
    (r"\b(it|that|there|here|what|he|she|who)'s\b", r"\1 is"),
    (r"'re\b", " are"),
    (r"'ll\b", " will"),
    (r"'ve\b", " have"),
    (r"'m\b", " am"),
    (r"'d\b", " would"),
    (r"(?<=\w)'s?(?!\w)", ""),  # possessive
    (r"\bno one\b", "nobody"),
    (r"(?:us)?\$\s?(\d[\d.,]*\d|\d)", r"\1 usd "),
    (r"€\s?(\d[\d.,]*\d|\d)", r"\1 eur "),
    (r"\b(usd|eur)\s?(\d[\d.,]*\d|\d)", r"\2 \1 "),
    (r"(?<=\d)\s?\$", " usd "),
    (r"(?<=\d)\s?€", " eur "),
    (r"(?<![\d.,-])(\d[\d.,]*)\s?-\s?(?=\d+(?![\d-]))", r"\1 to "),  # no date
    (r"&", " and "),
)
TOKEN = re.compile(
    r"""
    (?P<name>
        (?<![\w/])/(?:[\w.-]+/)*[\w-]+(?:\.\w+)*      # a path
      | [\w.+-]+@[\w-]+(?:\.[\w-]+)+                  # an e-mail address
      | \d{4}-\d\d-\d\d | \d{1,2}:\d\d | \d+(?:\.\d+){2,}  # date, time, version
      | [^\W\d_]\w*(?:-\w+)*-\d\w*(?:[.]\w+)*         # us-east-1
    )
  | (?P<number>
        (?:(?<![\w.)%-])[-+](?=\d))?
        (?:\d{1,3}(?:,\d{3})+(?![\d]) | \d+)(?:[.,]\d+)?
    )(?P<suffix>[^\W\d_]\w*)?
  | (?P<word>\.net\b | [^\W\d]\w*(?:[.:]\w+)*(?:\+\+|\#)?)
  | (?P<percent>%)
  | (?P<dash>\s-+\s | --+)
  | (?P<mark>[.!?;:,()\n])
    """,
    re.VERBOSE,
)
ARTICLES = {"a", "an", "the"}
BREAKS = {".": "stop", "!": "stop", "\n": "stop", "?": "ask", ",": "comma"}

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
)
SMALL = {word: Decimal(value) for value, word in enumerate(ONES.split())}
TENTHS = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS = {word: Decimal(10 * i) for i, word in enumerate(TENTHS.split(), start=2)}
MULTIPLIERS = {
    "dozen": Decimal(12),
    "hundred": Decimal(100),
    "k": Decimal(1000),
    "thousand": Decimal(1000),
    "million": Decimal(10**6),
    "billion": Decimal(10**9),
}
NO_NUMBER_BEFORE = _all("the this that each every which any another other new")
NO_NUMBER_AFTER = _all("of that who another or by")
TIMES = {
    "ms millisecond": ("second", "0.001"),
    "s sec second": ("second", "1"),
    "min minute": ("second", "60"),
    "h hr hour": ("second", "3600"),
    "d day": ("second", "86400"),
    "w wk week": ("second", "604800"),
    "mo month": ("month", "1"),
    "y yr year": ("month", "12"),
}
FULL_NAMES = {name: names.split()[-1] for names in TIMES for name in names.split()}
SIZES = ("byte", *(f"{size}{kind}b" for kind in ("", "i") for size in "kmgtp"))
SIZE_NAMES = {
    f"{start}{'bi' if binary else ''}byte": f"{start[0]}{'i' if binary else ''}b"
    for binary, starts in (
        (False, ("kilo", "mega", "giga", "tera", "peta")),
        (True, ("ki", "me", "gi", "te", "pe")),
    )
    for start in starts
}
UNITS = {
    **{name: unit for names, unit in TIMES.items() for name in names.split()},
    **{name: (name, "1") for name in (*SIZES, "percent", "usd", "eur", "vcpu", "gpu")},
    **{name: (unit, "1") for name, unit in SIZE_NAMES.items()},
    **{"dollar": ("usd", "1"), "euro": ("eur", "1"), "gig": ("gb", "1")},
}
# Units of one letter are letters of something else unless they stick to a number.
STUCK_ONLY = {"d", "w", "y", "k", "mo"}
ONE_OF_IT = _all(  # after these, "a day" is one day, and no rate
    "after within for of least most than exceed to is in every about last take up over "
    "under only by just once be until roughly around nearly"
)


@dataclass(frozen=True)
class Word:
    """One word, number with its unit, or mark of a text.

    Attributes:
        key: what is compared, such as "2419200 second"; "" for marks.
        text: how a number with its unit was written, such as "28 day".
        mark: "stop", "ask", "half" (a colon, a dash, a bracket) or "comma"; "" for
            words.
    """

    key: str
    text: str = field(default="", compare=False)
    mark: str = ""

    @property
    def is_number(self) -> bool:
        """Whether it is a number, with or without a unit."""
        return self.key[:1].isdigit() or self.key[:1] in {"-", "+"}


@lru_cache(maxsize=8192)
def words(text: str) -> tuple[Word, ...]:
    """Cut a text into words and marks, with numbers and units in one spelling.

    Case, articles, plurals, white space, Markdown's stars and quotation marks do not
    count. Lengths of time are compared in seconds or months, so "two weeks" is
    "14 days"; sizes are not converted, and "GiB" is not "GB".
    """
    raw = list(_raw(text))
    found: list[Word] = []
    place = 0
    while place < len(raw):
        kind, value = raw[place]
        if kind == "mark":
            found.append(Word("", mark=value))
            place += 1
            continue
        number = _number(raw, place)
        if number is None:
            if not (value in ARTICLES and len(raw) > 1):
                found.append(Word(_singular(value)))
            place += 1
            continue
        amount, place = number
        place, quantity = _with_unit(raw, place, amount)
        found.append(quantity)
    return tuple(_joined(found))


def _raw(text: str) -> Iterator[tuple[str, str]]:
    """Yield kind ("word", "number", "stuck", "mark") and text of each token."""
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)\s?½", ".5", text).replace("½", "0.5")
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"[\u2018\u2019\u02bc`´](?=\w)", "'", text)
    text = re.sub(r"[–−‐‑]", "-", re.sub(r"\s*[—―]\s*", " - ", text))
    text = re.sub(r"\*+|`|(?<!\w)_+|_+(?!\w)|[\"“”«»]", "", text)
    text = re.sub(r"^\s*(?:[-•]|\d+[.)])\s+", "\n", text, flags=re.MULTILINE)
    # A capital A inside a sentence or alone is a name ("plan A"), and no article.
    text = re.sub(r"(?<=[a-z] )A\b|^A(?=[.):]|$)", "a_", text.strip())
    text = re.sub(r"(?<=[a-z0-9])\.(?=[A-Z][a-z]+\s)", ". ", text).lower()
    # The parts of an address or of "and/or" are words; a path stays whole.
    text = re.sub(r"(?<![^\s(])(?![/(])\S*\w/\S*", _parts, text)
    for pattern, instead in SPELLED_OUT:
        text = re.sub(pattern, instead, text)
    for match in TOKEN.finditer(text):
        kind = match.lastgroup
        if kind in ("mark", "dash"):
            yield "mark", BREAKS.get(match["mark"] or "", "half")
        elif match["number"]:
            suffix = match["suffix"]
            if suffix and not (suffix in MULTIPLIERS or _singular(suffix) in UNITS):
                yield "word", match[0]  # 4xlarge, 3rd
                continue
            yield "number", match["number"]
            if suffix:
                yield "stuck", suffix
        elif match["percent"]:
            yield "word", "percent"
        else:
            yield "word", match[0]


def _parts(chunk: re.Match[str]) -> str:
    scheme, found, rest = chunk[0].partition("://")
    if found:
        return f"{scheme} : " + rest.replace("/", " : ")
    return chunk[0].replace("/", " or ")


def _decimal(text: str) -> Decimal:
    text = re.sub(r",(?=\d{3}(?!\d))", "", text).replace(",", ".")
    return Decimal(text)


def _number(raw: Sequence[tuple[str, str]], place: int) -> tuple[Decimal, int] | None:
    """Read a number in digits or words; returns it and where it ends."""

    def word(at: int) -> str:
        return raw[at][1] if 0 <= at < len(raw) and raw[at][0] != "mark" else ""

    kind, first = raw[place]
    if kind == "stuck":
        return None
    if kind == "number":
        value, place = _decimal(first), place + 1
        while word(place) in MULTIPLIERS and word(place) != "dozen":
            value, place = value * MULTIPLIERS[word(place)], place + 1
        return _and_a_half(value, place, word)
    if first == "half" and word(place + 1) in ARTICLES and _unit(raw, place + 2):
        return Decimal("0.5"), place + 2
    if first in {"a", "an"}:
        if word(place + 1) in MULTIPLIERS and word(place + 1) != "k":
            place += 1
            value = MULTIPLIERS[word(place)]
            return _and_a_half(value, place + 1, word)
        half = [word(place + i) for i in (2, 3, 4)] == ["and", "a", "half"]
        single = half or not place or _singular(word(place - 1)) in ONE_OF_IT
        return (Decimal(1), place + 1) if single and _unit(raw, place + 1) else None
    if first not in SMALL and first not in TENS:
        return None
    if first == "one" and (
        word(place - 1) in NO_NUMBER_BEFORE or word(place + 1) in NO_NUMBER_AFTER
    ):
        return None
    total = current = Decimal(0)
    last = ""
    while True:
        this = word(place)
        opens = last in {"", "hundred", "thousand", "million"}
        if this in SMALL and (opens or (last in TENS and 0 < SMALL[this] < 10)):
            current += SMALL[this]
        elif this in TENS and opens:
            current += TENS[this]
        elif this == "hundred" and last:
            current *= 100
        elif this in {"dozen"} and last:
            current *= 12
        elif this in {"thousand", "million", "billion"} and last:
            total, current = total + current * MULTIPLIERS[this], Decimal(0)
        elif this == "and" and last in {"hundred", "thousand"}:
            if word(place + 1) not in SMALL | TENS:
                break
            place += 1
            continue
        else:
            break
        last, place = this, place + 1
    value = total + current
    if word(place) == "point" and word(place + 1) in SMALL:
        value += SMALL[word(place + 1)] / 10
        place += 2
    return _and_a_half(value, place, word)


def _and_a_half(value: Decimal, place: int, word: object) -> tuple[Decimal, int]:
    if [word(place), word(place + 1), word(place + 2)] == ["and", "a", "half"]:
        return value + Decimal("0.5"), place + 3
    return value, place


def _unit(raw: Sequence[tuple[str, str]], place: int) -> tuple[str, str] | None:
    if place >= len(raw) or raw[place][0] == "mark":
        return None
    kind, word = raw[place]
    word = _singular(word)
    return UNITS.get(word) if kind == "stuck" or word not in STUCK_ONLY else None


def _with_unit(
    raw: Sequence[tuple[str, str]], place: int, amount: Decimal
) -> tuple[int, Word]:
    """Return where a number with its unit ends, and the word that it makes."""
    unit = _unit(raw, place)
    if unit is None:
        return place, Word(_plain(amount))
    name = _singular(raw[place][1])
    after = [value for _, value in raw[place + 1 : place + 4]]
    place += 1
    if after == ["and", "a", "half"]:  # an hour and a half
        amount, place = amount + Decimal("0.5"), place + 3
    base, factor = unit
    text = f"{_plain(amount)} {FULL_NAMES.get(name, base)}"
    return place, Word(f"{_plain(amount * Decimal(factor))} {base}", text)


def _plain(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _joined(found: Sequence[Word]) -> Iterator[Word]:
    """Join "1 hour (and) 30 minutes" to one length of time."""
    waiting: list[Word] = []
    for word in found:
        if word.key.endswith(" second") and waiting:
            whole, part = _seconds(waiting[0]), _seconds(word)
            if whole > part and (whole % 60 == 0 and part < 86400):
                yield Word(f"{_plain(whole + part)} second")
                waiting = []
                continue
        if word.key == "and" and len(waiting) == 1:
            waiting.append(word)
            continue
        yield from waiting
        waiting = []
        if word.key.endswith(" second"):
            waiting = [word]
        else:
            yield word
    yield from waiting


def _seconds(word: Word) -> Decimal:
    return Decimal(word.key.split()[0])


# --- where a phrase stands ---


def phrase_words(phrase: str) -> tuple[Word, ...]:
    """Return the words of a phrase, without its marks."""
    return tuple(word for word in words(phrase) if not word.mark)


def occurrences(
    phrase: Sequence[Word],
    text: Sequence[Word],
    units: frozenset[str] = frozenset(),
) -> list[tuple[int, int]]:
    """Return start and end of each place where a text has a phrase, word for word.

    "Real-time" and "realtime" are the same; marks may only interrupt a phrase where
    a bracket or a comma stands. A number without a unit, such as "28", is one of
    another thing in "28 GB", unless "gb" is among `units`.
    """
    if not phrase:
        return []
    ends = ((start, _end_of(phrase, text, start, units)) for start in range(len(text)))
    return [(start, end) for start, end in ends if end is not None]


def _end_of(
    phrase: Sequence[Word], text: Sequence[Word], start: int, units: frozenset[str]
) -> int | None:
    """Return where a phrase that starts here ends; None if it is not here."""
    place = number = 0
    while number < len(phrase):
        at = start + place
        if number and at < len(text) and text[at].mark in {"half", "comma"}:
            at, place = at + 1, place + 1
        if at >= len(text) or text[at].mark:
            return None
        if _fits(text[at], phrase[number].key, units):
            number, place = number + 1, place + 1
        elif _glued(phrase[number : number + 2], text[at]):
            number, place = number + 2, place + 1
        elif _glued(text[at : at + 2], phrase[number]):
            number, place = number + 1, place + 2
        else:
            return None
    return start + place


def _fits(word: Word, wanted: str, units: frozenset[str]) -> bool:
    """Whether a word is the wanted one, or a path that goes on from it or holds it."""
    if word.key == wanted:
        return True
    if word.text and wanted == word.text.split()[0]:
        return word.text.split()[1] in units
    return word.key.startswith("/") and (
        word.key.startswith(f"{wanted}/") or wanted in word.key.split("/")
    )


def _glued(parts: Sequence[Word], whole: Word) -> bool:
    """Whether two words are one that is written together."""
    keys = [word.key for word in parts]
    return len(keys) == 2 and all(map(str.isalpha, keys)) and "".join(keys) == whole.key


# --- what is said of it ---

AFFIRMED, DENIED, PAST, REPORTED = "affirmed", "denied", "past", "reported"
"""What a text may say of a phrase. "past": so it was once. "reported": others say so,
or it is asked."""

BE = _all("is are was were be been being am")
AUXILIARY = BE | _all(
    "can could may might must shall should will would do does did has have had"
)
PRONOUNS = _all("it you they we he she there i this these those")
# A clause of its own begins with these; a negation before does not reach behind.
CLAUSE = _all(
    "but however because since if when whenever while whereas although though which "
    "who where so unless until till then yet except beyond exceed than"
)
LIMITS = _all("over above past before after")  # the same before a number
LISTED = {"or", "and", "nor"}
EMPTY_NOT = _all("only just merely simply solely forget fail hesitate mention")
EMPTY_NO = _all("doubt wonder matter problem worry question")
STRONG = {"not", "never", "neither", "nor", "hardly"}
NONE = {"no", "none", "nothing", "nobody", "nowhere", "without"}
ASIDE = {  # what stands beside the thing said; the last word, and those before it
    "than": {"rather"},
    "of": {"instead", "free", "place"},
    "to": {"opposed", "contrast", "contrary", "unable", "refuse", "fail"},
    "from": {"free", "apart"},
    "for": {"except", "substitute"},
    "except": set(),
    "unlike": set(),
    "excluding": set(),
    "lack": set(),
    "lacking": set(),
}
FALSE = _all(
    "wrong incorrect false untrue impossible unsupported outdated obsolete excluded "
    "myth mistake"
)
NOT_SO = FALSE | _all(
    "right correct true case it limit maximum minimum answer what supported possible "
    "allowed available used required needed included who target audience intended "
    "meant value default offered permitted accepted valid apply work count exist hold "
    "belong be enough"
)
FORMER = _all("formerly previously originally old former previous")
CHANGED = _all(
    "raised increased changed lowered reduced extended went renamed moved switched "
    "rose grew cut dropped"
)
OTHERS = _all("some many people other commonly often sometimes widely")
SAY = _all("think believe claim assume expect say assumed believed thought said")
PREPOSITIONS = _all("for in on at by with within during from under via through")
ASIDES = _all("as contrary despite")


def stances(text: Sequence[Word], places: Sequence[tuple[int, int]]) -> list[str]:
    """Return for each place of a phrase what the text says of it."""
    return [_stance(text, start, end) for start, end in places]


def _stance(text: Sequence[Word], start: int, end: int) -> str:
    if _asked(text, end):
        return REPORTED
    if _denied_before(text, start, end) or _denied_behind(text, end):
        return DENIED
    clause = _clause_before(text, start)
    keys = [word.key for word in clause]
    if FORMER & set(keys[-6:]) or any(
        one == "used" and other == "to"
        for one, other in zip(keys, keys[1:], strict=False)
    ):
        return PAST
    if keys[-1:] == ["from"] and CHANGED & set(keys[-6:]):
        return PAST
    if OTHERS & set(keys) and SAY & set(keys):
        return REPORTED
    return AFFIRMED


def _asked(text: Sequence[Word], end: int) -> bool:
    """Whether the sentence is a question."""
    for word in text[end:]:
        if word.mark in {"stop", "ask"}:
            return word.mark == "ask"
    return False


def _clause_before(text: Sequence[Word], start: int) -> list[Word]:
    """Return the words since the last mark or "but"."""
    clause: list[Word] = []
    for word in reversed(text[:start]):
        if word.mark or word.key in {"but", "however", "now"}:
            break
        clause.append(word)
    return clause[::-1]


def _denied_before(text: Sequence[Word], start: int, end: int) -> bool:
    """Whether a negation before a phrase reaches it."""

    def key(at: int) -> str:
        return text[at].key if 0 <= at < len(text) else ""

    number = text[start].is_number
    listed = end >= len(text) or bool(text[end].mark) or text[end].key in LISTED
    crossed = False
    for place in range(start - 1, -1, -1):
        word = text[place]
        between = [w.key for w in text[place + 1 : start]]
        if word.mark == "comma":
            # Across a comma only in a list ("not for analysts, clerks or managers"),
            # or around an aside ("not, as many think, 5 days").
            aside = key(place + 1) in ASIDES or any(
                w.mark == "comma" and key(i + 1) in ASIDES
                for i, w in enumerate(text[:place])
            )
            if not listed or (number and not aside):
                return False
            if set(between) & (PRONOUNS | AUXILIARY):
                return False
            crossed = True
            continue
        if word.mark:
            return False
        this = word.key
        if this in ASIDE and (not ASIDE[this] or key(place - 1) in ASIDE[this]):
            if crossed or set(between) & (PRONOUNS | AUXILIARY - {"being"}):
                return False
            return not _strong_before(text, place)
        if this == "than" and key(place - 1) == "other":
            return not _strong_before(text, place)
        if this == "that" and key(place - 1) in FALSE:
            return not _strong_before(text, place)
        limit = number and this in LIMITS and key(place - 1) != "even"
        if this in CLAUSE or limit:
            return False
        if this == "and" and (
            key(place + 1) in PRONOUNS | AUXILIARY | {"instead", "then"}
            or (number and between)
        ):
            return False
        told = not listed and {"that", "which", "who"} & {
            key(place - i) for i in (1, 2, 3)
        }
        if number and told and (this in STRONG or this in NONE):
            return False  # "a job that has not ended within 5 days is stopped"
        if this in STRONG or (this == "no" and key(place + 1) == "longer"):
            if this == "not" and key(place + 1) in EMPTY_NOT:
                return False
            if this == "not" and key(place - 1) in {"or", "if", "why"}:
                continue
            return True
        if this in NONE:
            if place + 1 < len(text) and text[place + 1].mark:
                return False  # "No, …" answers; it denies what was asked
            if key(place + 1) in EMPTY_NO or crossed:
                return False
            if key(place + 1) == "need" or this == "nothing":
                return True
            verb = set(between) & AUXILIARY
            if set(between) & PREPOSITIONS and not verb:
                return False
            if this == "without" and len(between) > 3:
                return False
            return not (this == "without" and _strong_before(text, place))
    return False


def _strong_before(text: Sequence[Word], place: int) -> bool:
    """Whether another negation stands before one, in its clause: "not without"."""
    for word in reversed(text[:place]):
        if word.mark or word.key in CLAUSE:
            return False
        if word.key in STRONG | NONE:
            return True
    return False


def _denied_behind(text: Sequence[Word], end: int) -> bool:
    """Whether the words behind a phrase deny it: "5 days is wrong"."""
    rest = [word.key for word in text[end : end + 5]]
    rest = rest[: rest.index("")] if "" in rest else rest
    if rest[:1] and rest[0] in AUXILIARY:
        if rest[1:2] and rest[1] in FALSE:
            return True
        if rest[1:2] == ["not"]:
            return len(rest) == 2 or rest[2] in NOT_SO
        if rest[1:3] == ["no", "longer"]:
            return len(rest) == 3 or rest[3] in NOT_SO
    return rest[:2] == ["no", "longer"] and len(rest) > 2 and rest[2] in NOT_SO


# --- whether a text states a phrase ---

NEGATIONS = {"not", "no", "never", "without", "none", "neither", "nothing"}


@dataclass(frozen=True)
class Mention:
    """One place where a text has a phrase, and what it says of it there."""

    start: int
    end: int
    stance: str


def mentions(
    phrase: str, text: Sequence[Word], units: frozenset[str] = frozenset()
) -> list[Mention]:
    """Return each place where a text has a phrase, with what it says of it.

    A phrase with a negation of its own ("not billed", "no charge") is affirmed where
    its remainder is denied, whichever way ("you are never billed"). A bare "yes" or
    "no" counts as an answer alone, not in "no longer".

    Args:
        phrase: what is looked for.
        text: as `words` cuts it.
        units: that a number without a unit may have in the text; see `units_of`.
    """
    wanted = phrase_words(phrase)
    places = occurrences(wanted, text, units)
    if len(wanted) == 1 and wanted[0].key in {"yes", "no"}:
        places = [(s, e) for s, e in places if _answers(text, s, e)]
        return [Mention(start, end, AFFIRMED) for start, end in places]
    found = [
        Mention(start, end, stance)
        for (start, end), stance in zip(places, stances(text, places), strict=True)
    ]
    cues = [i for i, word in enumerate(wanted) if word.key in NEGATIONS]
    if cues:
        core = list(wanted[cues[-1] + 1 :])
        while core and core[0].key in BE | {"any"}:
            core = core[1:]
        covered = {m.end for m in found}
        places = [p for p in occurrences(core, text) if p[1] not in covered]
        for (start, end), stance in zip(places, stances(text, places), strict=True):
            turned = {DENIED: AFFIRMED, AFFIRMED: DENIED}.get(stance, stance)
            found.append(Mention(start, end, turned))
    return found


def _answers(text: Sequence[Word], start: int, end: int) -> bool:
    """Whether "yes" or "no" stands alone: before a mark, a pronoun or the end."""
    if end >= len(text) or text[end].mark:
        return not (end < len(text) and text[end].mark == "ask")
    return (not start or bool(text[start - 1].mark)) and text[end].key in PRONOUNS


def units_of(text: str) -> frozenset[str]:
    """Return the units in which a text counts, such as "day" and "gb"."""
    return frozenset(word.text.split()[1] for word in words(text) if word.text)
