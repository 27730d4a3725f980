"""E-mail addresses, telephone numbers and keys in texts, and not what looks like them.

A model repeats what it was trained on. Telephone numbers are found by phonenumbers,
Google's library; the rules here decide what of the rest is a look-alike.
"""

from __future__ import annotations

import re

EMAIL = re.compile(
    r"(?<![\w.@/+-])(?:mailto:)?"
    r"(?P<local>[^\W_][\w.+'-]{0,63})@(?P<domain>(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+)"
    r"(?P<top>[^\W\d_]{2,24})(?![\w@]|-\w|:[\w/])"
)
# After "@" and a dot, these end a file's name or an address that only machines use.
NO_TOP_DOMAIN = {
    *(
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "pdf",
        "py",
        "js",
        "ts",
        "tsx",
    ),
    *(
        "json",
        "css",
        "html",
        "txt",
        "md",
        "csv",
        "tsv",
        "gz",
        "zip",
        "tar",
        "whl",
        "so",
    ),
    *("yaml", "yml", "toml", "sh", "ipynb", "exe", "dll", "mp4", "mp3", "log", "cfg"),
    *("internal", "local", "localhost", "localdomain", "lan", "svc", "service"),
    *("compute", "route", "get", "post"),
}
MACHINE_USERS = {"git", "hg", "svn", "root", "ec2-user", "ubuntu", "admin@", "x-access"}
MACHINE_DOMAINS = ("compute.amazonaws", "compute-1.amazonaws", "ec2.internal")
# Behind these it is the name at a machine, or a password in an address.
LEADING = re.compile(r"(?:ssh|scp|sftp|rsync)\s[^\n]{0,40}$|://\S*$")

KEYS = {
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"),
    "an AWS secret key": re.compile(
        r"(?i)aws_?secret_?(?:access_?)?key\W{1,6}[\"']?[A-Za-z0-9/+]{40}(?![\w/+])"
    ),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "an OpenAI or Anthropic key": re.compile(r"\bsk-(?:[a-z]+-){0,2}[\w-]{20,}"),
    "a GitHub token": re.compile(
        r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,})"
    ),
    "a GitLab token": re.compile(r"\bglpat-[\w-]{20,}"),
    "a Slack token": re.compile(r"\bxox[abeprs]-[\w-]{10,}"),
    "a Google key": re.compile(r"\bAIza[\w-]{35}\b"),
    "a Stripe key": re.compile(r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    "a PyPI token": re.compile(r"\bpypi-[\w-]{50,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    "a password": re.compile(
        r"(?i)\b(?:password|passwort|passwd|pwd|secret|api[_ -]?key|token)\b"
        r"\s*(?:=|:|is)\s*[\"'`]?(?=[^\s\"'`]*\d)(?=[^\s\"'`]*[A-Za-z])"
        r"[^\s\"'`<>{}$()\[\]]{8,}"
    ),
    "a password in an address": re.compile(
        r"\b\w+://[^\s:/@<{]+:[^\s:/@<{*]{3,}@[\w.-]+"
    ),
}
# A key in which one character goes on and on, or these words, is an example of one.
PLACEHOLDER = re.compile(
    r"(?i)(?:([a-z0-9*])\1{7}|example|your|placeholder|redacted|changeme|…|\.\.\.)"
)

REGIONS = (None, "US", "GB", "DE", "FR")  # None: numbers with + and a country code
CUE = re.compile(
    r"(?i)\b(?:call|phone|tel|telephone|telefon|mobile|cell|fax|ring|dial|whatsapp|sms"
    r"|text|hotline|reach\s+\w+|extension|mobil|handy|rufen|ruf|appele[zr]?)\b"
    r"\.?[^\d\n]{0,25}$"
)
CUED = re.compile(r"(?<![\w.+/-])\+?\(?\d[\d ()./-]{5,18}\d(?![\w/-]|\.\d|,\d)")
WRITTEN = re.compile(
    r"(?<![\w.+/:-])(?:\+\d{1,3}[ .-]?(?:\(0\))?(?:[ .-]?\(?\d{1,5}\)?){2,6}"
    r"|(?:\+?1[ .-])?(?:\(\d{3}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-.]\d{4})"
    r"(?![\w-]|\.\d|,\d)"
)
OTHER_NUMBER = re.compile(
    r"(?i)\b(?:order|ticket|invoice|case|ids?|isbn|part|serial|ref|reference|version"
    r"|account|iban|sku|article|item|build|job|request|port|utc|gmt)\b"
    r"(?:\W{0,3}(?:number|no|nr|id))?\W{0,3}$"
)
CONTEXT = 45  # characters before a number that may say what it is


def emails(text: str) -> list[str]:
    """Return the e-mail addresses in a text.

    `icon@2x.png`, `git@host:path`, `ssh root@host.name`, decorators, packages with a
    version and addresses of a fediverse (`@name@host.social`) are none.
    """
    found = []
    for match in EMAIL.finditer(text):
        domain = match["domain"] + match["top"]
        if match["top"].casefold() in NO_TOP_DOMAIN:
            continue
        if match["local"].casefold() in MACHINE_USERS:
            continue
        if any(name in domain.casefold() for name in MACHINE_DOMAINS):
            continue
        if LEADING.search(text[: match.start()]):
            continue
        found.append(f"{match['local']}@{domain}")
    return found


def keys(text: str) -> list[str]:
    """Return which kinds of keys and passwords a text holds, as in "a GitHub token"."""
    return [
        kind
        for kind, pattern in KEYS.items()
        if any(not PLACEHOLDER.search(match[0]) for match in pattern.finditer(text))
    ]


def phone_numbers(text: str) -> list[str]:
    """Return the telephone numbers in a text.

    A number counts if it is valid in its country and written with + or with
    separators, or if a word such as "call" stands before it. Dates, versions,
    addresses of the internet, amounts and numbers of orders do not.
    """
    from phonenumbers import Leniency, PhoneNumberMatcher

    if sum(character.isdigit() for character in text) < 7:
        return []
    spans: dict[tuple[int, int], str] = {}
    for region in REGIONS:
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
            spans[match.start, match.end] = match.raw_string
    for match in WRITTEN.finditer(text):
        if sum(character.isdigit() for character in match[0]) >= 8:
            spans.setdefault(match.span(), match[0].strip())
    for match in CUED.finditer(text):
        digits = sum(character.isdigit() for character in match[0])
        if 7 <= digits <= 15 and CUE.search(_before(text, match.start())):
            spans.setdefault(match.span(), match[0].strip())
    found: list[str] = []
    end = 0
    for (start, stop), number in sorted(spans.items()):
        if start >= end and _is_phone(text, start, stop, number):
            found.append(number)
            end = stop
    return found


def _before(text: str, place: int) -> str:
    return text[max(0, place - CONTEXT) : place]


def _is_phone(text: str, start: int, stop: int, number: str) -> bool:
    before, after = _before(text, start), text[stop : stop + 2]
    stuck = re.search(r"[\w.,:/=#$€£%-]$", before.rstrip("("))
    if stuck and not number.startswith("+") and not re.search(r"[a-z][.:]$", before):
        return False
    if re.match(r"[.,:]\d|[%/\w]", after) or OTHER_NUMBER.search(before):
        return False
    if re.fullmatch(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}.*|(?:\d{1,3}\.){3}\d{1,3}", number):
        return False
    separated = number.startswith("+") or re.search(r"[\s()./-]", number)
    return bool(separated or CUE.search(before))
