"""Keys, tokens and passwords in an archive, and what only looks like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.deployment.findings import Artifact
from utils.deployment.secret_checks import check_secrets

LETTERS = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0hJ3kM6"
# In pieces, so that no scanner takes them for real ones.
TEXTS = {
    "AWS key": "key = '" + "AKIA" + "ABCDEFGH01234567" + "'",
    "temporary AWS key": "ASIA" + "ABCDEFGH01234567",
    "AWS secret": "aws_secret_access_key="
    + "wJalrXUtnFEMI/K7MDENG"
    + "/bPxRfiCYEXAMPLEKEY",
    "AWS secret in JSON": '{"SecretAccessKey": "' + LETTERS + 'abcd"}',
    "Hugging Face": "login('hf" + f"_{LETTERS}')",
    "GitHub": "ghp" + f"_{LETTERS}",
    "GitLab": "glpat" + f"-{LETTERS[:20]}",
    "OpenAI": '{"key": "sk' + f'-proj-{LETTERS}"' + "}",
    "Slack": "xoxb" + f"-{LETTERS}",
    "Google": "AIza" + LETTERS[:35],
    "private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "address": "postgresql://me:" + "s3cret-word@db.example.com/faq",
    "password": "password = '" + LETTERS[:20] + "'",
    "token": "HF_TOKEN: " + LETTERS[:24],
}
FILES = [
    ".env",
    "conf/.env.production",
    "id_rsa",
    "keys/id_ed25519",
    ".netrc",
    "kaggle.json",
    "cert.p12",
    ".aws/credentials",
    ".git/config",
]
HARMLESS = {
    "model.py": "token = os.environ['HF_TOKEN']\npassword = input()\n",
    "tokenizer_config.json": '{"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}',
    "README.md": "See https://user@example.com and s3://bucket/key:1",
    "tokenizer.json": '{"vocab": {"' + "AKIA" + 'ABCDEFGH01234567": 5}}',
    ".env.example": "HF_TOKEN=\n",
    "base/config.json": '{"api_key": "none", "_commit_hash": "' + "0a" * 20 + '"}',
    "public.pem": "-----BEGIN PUBLIC KEY-----",
    "url.txt": "postgresql://user:${PASSWORD}@host/db",
}


def found_in(folder: Path, name: str, text: str) -> list:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return list(check_secrets(Artifact(folder)))


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["model.py", "data/settings.json"])
def test_a_secret_is_found_with_its_line_and_not_shown(tmp_path, name, kind) -> None:
    (found,) = found_in(tmp_path, name, f"first = 1\n{TEXTS[kind]}\n")
    assert found.where == f"{name}, line 2" and found.level == "error"
    secret = TEXTS[kind].rpartition("'")[0].rpartition("'")[2] or TEXTS[kind]
    assert secret not in str(found)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_secrets_is_found(tmp_path, name) -> None:
    (found,) = found_in(tmp_path, name, "x\n")
    assert name.startswith(found.where)


def test_a_repository_is_one_finding(tmp_path) -> None:
    found_in(tmp_path, ".git/config", "x")
    assert len(found_in(tmp_path, ".git/objects/ab/cd", "x")) == 1


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_like_one_is_left_alone(tmp_path, name) -> None:
    assert found_in(tmp_path, name, HARMLESS[name]) == []
