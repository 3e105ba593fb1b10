"""Logs that are kept hold no secrets and no codes of a terminal."""

import pytest

from milcore.runtime.redaction import plain, redact

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "ourkeyid0",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "RAY_AUTH_TOKEN": "0123456789abcdef",
    "RAY_AUTH_TOKEN_PATH": "/run/token-file",
    "OTHER_SECRET": "/alrXUtnFEMI/K7MDENG",
    "MY_PASSWORD": "short",
    "AWS_ENDPOINT_URL": "http://store:9000",
}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("key wJalrXUtnFEMI/K7MDENG of ourkeyid0", "key *** of ***"),
        ("token 0123456789abcdef, file /run/token-file", "token ***, file /run/token-file"),
        ("a short line to http://store:9000", "a short line to http://store:9000"),
        ("GET https://b.s3/a.svs?X-Amz-Date=1&X-Amz-Signature=abc&x=1 200", "GET https://b.s3/a.svs?*** 200"),
        ("https://b.s3/a?AWSAccessKeyId=AKIDX&Expires=1", "https://b.s3/a?***"),
        ("https://a.blob/c?sv=2024&sig=ab%2F", "https://a.blob/c?***"),
        ("http://host/list?prefix=a&design=1", "http://host/list?prefix=a&design=1"),
        ("Authorization: Bearer eyJhbGciOi.x-y_z", "Authorization: Bearer ***"),
        ("http://user:geheim@host/x", "http://***@host/x"),
        ("id AKIAIOSFODNN7EXAMPLE", "id ***"),
        ('{"secret_key": "abc/def", "n": 1}', '{"secret_key": "***", "n": 1}'),
        (r"{\"secret_key\": \"abc/def\"}", r'{\"secret_key\": \"***"}'),
        ("secret: b'abc'", "secret: b'***'"),
        ("password='two words'", "password='***'"),
        ("AccountKey=abc==;x", "AccountKey=***;x"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("Credential=ourid/20260801/eu/s3", "Credential=***/20260801/eu/s3"),
        ("key /alrXUtnFEMI/K7MDENG", "key ***"),
        ("basic training: tokens: 5 of 7", "basic training: tokens: 5 of 7"),
        ("epoch 3/9: train_loss 0.1, 3 tokens", "epoch 3/9: train_loss 0.1, 3 tokens"),
    ],
)
def test_what_is_secret_is_hidden_and_nothing_else(line: str, expected: str) -> None:
    assert redact(line, ENVIRONMENT) == expected


def test_colours_titles_and_control_characters_go() -> None:
    assert plain("\x1b[1;32m✓\x1b[0m done\r\x07\t\x1b]0;title\x07.\x1bM\x9b") == "✓ done\t."


@pytest.mark.parametrize("part", ["?", "secret", "a://", "bearer ", "Authorization: "])
def test_a_line_of_any_length_is_redacted(part: str) -> None:
    """Patterns that look ahead from each of these would take hours."""
    line = part * (1 << 17)
    assert redact(line, ENVIRONMENT) == line
