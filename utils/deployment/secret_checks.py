"""Checks for secrets: whoever may read the archive, or the container's disk, has them.

A finding names file, line and kind, never the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from utils.deployment.findings import Artifact, Finding, Leak

LARGEST_TEXT = 2 * 2**20  # bytes; larger files are data
# Large tables of pieces of words, in which any letters may stand.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
BINARY = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".model", ".npz")

# Files that hold secrets by their nature: a pattern of the name → what they are.
SECRET_FILES = {
    ".env": "a file of environment variables",
    ".env.*": "a file of environment variables",
    ".netrc": "passwords for servers",
    "_netrc": "passwords for servers",
    ".pypirc": "a password for a package index",
    ".git-credentials": "a password for a git server",
    ".htpasswd": "passwords for a web server",
    "id_rsa": "a private key",
    "id_dsa": "a private key",
    "id_ecdsa": "a private key",
    "id_ed25519": "a private key",
    "*.p12": "a private key",
    "*.pfx": "a private key",
    "*.jks": "a private key",
    "kaggle.json": "a key for Kaggle",
    "terraform.tfstate": "Terraform's state, with what it created",
}
# Files in folders of these names, wherever they lie.
SECRET_FOLDERS = {
    ".aws": "a folder of AWS's keys",
    ".ssh": "a folder of keys for SSH",
    ".docker": "a folder of passwords for registries",
    ".git": "a git repository, with its history and settings",
}
SAMPLES = (".env.example", ".env.sample", ".env.template")

# What secrets look like in a text → what they are. The prefixes are those that the
# issuers document (AWS: "Understanding unique ID prefixes"; GitHub: "About
# authentication"; others their own).
SECRET_TEXTS = {
    re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"): "a private key",
    re.compile(
        r"""(?ix)secret_?access_?key["']?\s*[:=]\s*["']?[a-z0-9/+]{40}(?![a-z0-9/+])"""
    ): "a secret access key of AWS",
    re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"): "an AWS key",
    re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{30,}"): (
        "a token of Hugging Face"
    ),
    re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,})"): (
        "a token of GitHub"
    ),
    re.compile(r"(?<![A-Za-z0-9])glpat-[\w-]{20}"): "a token of GitLab",
    re.compile(r"(?<![A-Za-z0-9-])sk-(?:proj-|ant-|or-)?[\w-]{32,}"): (
        "a key for a model's API"
    ),
    re.compile(r"(?<![A-Za-z0-9])xox[abprs]-[\w-]{20,}"): "a token of Slack",
    re.compile(r"(?<![A-Za-z0-9])AIza[\w-]{35}"): "a key of Google",
    re.compile(r"(?<![a-z])[a-z][a-z0-9+]*://[^\s/:@\"']+:[^\s/:@\"'{}$<>]{4,}@"): (
        "a password in an address"
    ),
    re.compile(
        r"""(?ix)(?:password|passwd|api_?key|client_?secret|(?:auth|access|hf|hub)_?token)
        ["'\]]*\s*[:=]\s*["']?(?=[\w+/.-]*[0-9])(?=[\w+/.-]*[a-z])[\w+/.-]{16,}"""
    ): "a password or key",
}


def check_secrets(artifact: Artifact) -> Iterator[Finding]:
    """Find keys, tokens and passwords: one finding for each place."""
    told: set[str] = set()
    for name in artifact.files:
        place, kind = _secret_file(PurePosixPath(name))
        if kind and place not in told:
            told.add(place)
            yield Leak(
                place,
                f"is {kind}, for everyone who may read the archive",
                "Leave it out; if it was uploaded, make what it holds invalid",
            )
        if kind:
            continue
        for line, kind in _secrets_in(artifact.store / name):
            yield Leak(
                f"{name}, line {line}",
                f"looks like {kind}, for everyone who may read the archive",
                "Delete it, make it invalid, and take it from AWS Secrets Manager or "
                "the model's environment",
            )


def _secret_file(path: PurePosixPath) -> tuple[str, str | None]:
    """Return the file or folder to name, and what it is if that is a secret."""
    for folder in path.parents:
        if folder.name in SECRET_FOLDERS:
            return folder.as_posix(), SECRET_FOLDERS[folder.name]
    kinds = (kind for name, kind in SECRET_FILES.items() if path.match(name))
    return path.as_posix(), None if path.name in SAMPLES else next(kinds, None)


def _secrets_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and kind of what looks like a secret in a file of text."""
    if path.name in VOCABULARIES or path.suffix in BINARY:
        return
    if path.stat().st_size > LARGEST_TEXT:
        return
    text = path.read_bytes().decode("utf-8", "replace")
    if "\0" in text:
        return
    told: set[int] = set()  # lines: one secret can look like two kinds
    for pattern, kind in SECRET_TEXTS.items():
        for found in pattern.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            if line not in told:
                told.add(line)
                yield line, kind
