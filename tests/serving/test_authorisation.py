"""A service that other machines reach has a token, which is in no argument."""

from hashlib import sha256
from pathlib import Path

import pytest

from milcore.config import ServeConfig
from milcore.errors import InputError
from milcore.serving.authorisation import TOKEN, check_token, token_digest
from milcore.serving.request_error import RequestError

SECRET = "0123456789abcdef" * 2
DIGEST = sha256(SECRET.encode()).hexdigest()


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)


def test_the_token_is_in_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    assert token_digest(ServeConfig(token_file=tmp_path / "token")) == DIGEST
    monkeypatch.setenv(TOKEN, SECRET)
    assert token_digest(ServeConfig()) == DIGEST
    monkeypatch.setenv(TOKEN, "f" * 32)
    assert token_digest(ServeConfig(token_file=tmp_path / "token")) == DIGEST


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_this_machine_alone_needs_none(host: str) -> None:
    assert token_digest(ServeConfig(host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "milcore.example"])  # noqa: S104 - none is bound
def test_other_machines_need_one_unless_it_is_said(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"host: expected a token beside an address that other machines reach, got"):
        token_digest(ServeConfig(host=host))
    assert token_digest(ServeConfig(host=host, allow_anonymous=True)) is None
    monkeypatch.setenv(TOKEN, SECRET)
    assert token_digest(ServeConfig(host=host, allow_anonymous=True)) == DIGEST


@pytest.mark.parametrize("token", ["", "short", "0123456789abcdef 0123456789abcdef", "é" * 32, "a" * 5000])
def test_a_token_that_is_none_is_refused_and_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(InputError, match="MILCORE_TOKEN: expected a token of 22 to 4,096 letters") as raised:
        token_digest(ServeConfig())
    assert not token or token not in str(raised.value)


def test_a_file_that_is_absent_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token_file: expected a file with the token, got nothing at"):
        token_digest(ServeConfig(token_file=tmp_path / "none"))


@pytest.mark.parametrize("header", [f"Bearer {SECRET}", f"bearer {SECRET}", f"BEARER  {SECRET} "])
def test_a_request_with_the_token_passes(header: str) -> None:
    check_token(DIGEST, header)


@pytest.mark.parametrize(
    ("header", "got"),
    [
        (None, "none"), ("", "none"), ("Bearer", "another"), ("Bearer ", "another"), (SECRET, "another"),
        (f"Basic {SECRET}", "another"), (f"Bearer {SECRET}0", "another"), (f"Bearer {SECRET[:-1]}", "another"),
        (f"Bearer {DIGEST}", "another"), ("Bearer \N{SNOWMAN}", "another"),
    ],
)  # fmt: skip
def test_others_do_not(header: str | None, got: str) -> None:
    with pytest.raises(RequestError, match=f"expected Bearer and the service's token, got {got}$") as raised:
        check_token(DIGEST, header)
    assert (raised.value.status, raised.value.headers) == (401, {"WWW-Authenticate": "Bearer"})
    check_token(None, header)
