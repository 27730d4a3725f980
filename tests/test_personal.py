"""What is personal or secret is found, and what only looks like it is not."""

from __future__ import annotations

import pytest

from utils.dataset.personal import emails, keys, phone_numbers

EMAILS = [
    "Write to jane.doe@corvus.no.",
    "Mail help-desk@support.example.com for more.",
    "Contact: o'brien+news@mail.co.uk, please",
    "<a.b@c.io>",
    "mailto:team@corvus.dev",
    "j_smith99@uni-köln.de hat Zeit",
    "Ask Bob (bob@corp.museum) first.",
    "ADMIN@CORVUS.NO",
    "Reply-To:info@corvus.no",
]
NO_EMAILS = [
    "The file is icon@2x.png.",
    "git@github.com:corvus/app.git",
    "Clone git@gitlab.com/corvus/app.",
    "ssh ec2-user@ec2-1-2-3-4.compute-1.amazonaws.com",
    "Run `ssh me@build.corvus.no` first.",
    "npm install @corvus/app@1.2.3",
    "pip install app@git+https://host/x",
    "Follow @corvus@mastodon.social.",
    "Use @app.route in Flask.",
    "sagemaker@latest",
    "image@sha256:4d7a",
    "user@host",
    "postgres://user:pass@db.corvus.no:5432/x",
    "root@ip-10-0-0-1.ec2.internal",
    "a @ b.com",
    "Meet @ 5.pm",
    "python@3.11",
]
PHONES = [
    "Call +1 (415) 555-2671.",
    "Call (415) 555-2671 after nine.",
    "415-555-0132 is the number.",
    "Tel. 030 1234567",
    "Ring 020 7946 0958",
    "+49 30 901820",
    "Dial 0800 123 4567 in the UK.",
    "Mobile: 07700 900123",
    "01 42 68 53 00",
    "Our office: +44 20 7946 0958.",
    "tel 1-800-555-0199",
    "WhatsApp 9876543210",
    "phone: 555-0123",
    "Reach us at 415.555.2671",
    "Text 4155552671 to stop.",
    "+47 22 86 44 00",
    "Fax +81-3-1234-5678",
]
NO_PHONES = [
    "Order 4155552671 is late.",
    "Version 535.104.05 of the driver",
    "192.168.100.200 and 10.0.0.0/16",
    "arn:aws:iam::123456789012:role/x",
    "2024-05-17 10:00 and 17.05.2024",
    "1,048,576 tokens, 2,419,200 seconds",
    "5368709120 bytes",
    "ISBN 978-3-16-148410-0",
    "ml.p4d.24xlarge and g5.48xlarge",
    "At 1700000000 seconds since 1970",
    "Account 123456789012",
    "$1,234,567.89",
    "3.14159265358",
    "2024 2025 2026",
    "port 8080, then 5432",
    "ticket 415-555-2671",
    "lines 100-200-3000",
    "A context of 131072 tokens, 4096 each",
    "UTC+02:00",
    "0x1F600 or 0b1010101010",
    "CVE-2024-12345678",
    "uuid 123e4567-e89b-12d3-a456-426614174000",
    "12/05/2024 to 30/11/2024",
    "763104351884.dkr.ecr.us-east-1.amazonaws.com/x:2.1",
    "50281 x 2560 weights",
    "Call it 20 times in 300 s.",
    "sha 8843d7f92416211de9ebb963ff4ce28125932878",
    "4111 1111 1111 1111",
]
KEYS = [
    "AKIAIOSFODNN7ABCDEFG",
    'aws_secret_access_key = "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"',
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "sk-proj-AbCdEfGhIjKlMnOpQrStUvWx",
    "sk-ant-api03-AbCdEfGhIjKlMnOpQrStUv",
    "ghp_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "github_pat_11ABCDEFG0AbCdEfGhIjKl_MnOpQrStUvWxYz0123456789",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
    "-----BEGIN PRIVATE KEY-----",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "xoxb-2345678901-AbCdEfGhIj",
    "AIzaSyA1234567890abcdefGHIJKLMNopqrstuv",
    "The password is Tr0ub4dor&3x.",
    "password: hunter2hunter2",
    "postgres://admin:s3cret9@db.corvus.no/x",
    "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
]
NO_KEYS = [
    "Set HF_TOKEN to your token.",
    "hf_hub_download(repo_id)",
    "hf_your_token_here",
    "AKIA stands before every key.",
    "Keys begin with sk- or ghp_.",
    "export OPENAI_API_KEY=sk-...",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxx",
    "AKIAIOSFODNN7EXAMPLE",
    "The password must be fourteen characters long.",
    "password=<your-password>",
    "token = os.environ['TOKEN']",
    "The token is cut into pieces.",
    "-----BEGIN CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----",
    "A task-oriented-dialogue-system-with-state",
    "risk-management-for-large-language-models",
    "sha256:179c9523d0e6a0f98a330c7562b682750a6f8c8c",
    "http://host:8080/path@2",
    "api_key: a string",
]


@pytest.mark.parametrize("text", EMAILS)
def test_an_address_is_found(text) -> None:
    assert len(emails(text)) == 1


@pytest.mark.parametrize("text", NO_EMAILS)
def test_what_only_looks_like_an_address_is_not(text) -> None:
    assert emails(text) == []


@pytest.mark.parametrize("text", PHONES)
def test_a_telephone_number_is_found(text) -> None:
    assert len(phone_numbers(text)) == 1


@pytest.mark.parametrize("text", NO_PHONES)
def test_what_only_looks_like_a_telephone_number_is_not(text) -> None:
    assert phone_numbers(text) == []


@pytest.mark.parametrize("text", KEYS)
def test_a_key_is_found(text) -> None:
    assert len(keys(text)) == 1


@pytest.mark.parametrize("text", NO_KEYS)
def test_what_only_looks_like_a_key_is_not(text) -> None:
    assert keys(text) == []
