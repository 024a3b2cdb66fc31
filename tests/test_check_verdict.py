"""What `envoy2emon check` prints can be posted in a forum."""

import pytest

from envoy2emon.check.verdict import Report, ok

KEY = "0123456789abcdef0123456789abcdef"
SERIALS = ["SN122012345678", "12201234567O", "1220-1234-5678", "122'012345678", "1220 1234 5678"]
ALONE = ["the password {} is wrong", "{}", "it is {}.", "user:{}@", "p={}&x=1", "p=%20{}", "'\\n{}\\n'"]


def printed(capsys: pytest.CaptureFixture[str], text: str, *secrets: str) -> str:
    """Return what a line says."""
    report = Report()
    report.secrets = list(secrets)
    report.say(ok("note", text))
    return capsys.readouterr().out.removeprefix("ok    note       ").removesuffix("\n")


@pytest.mark.parametrize("value", SERIALS)
def test_a_serial_number_that_is_not_valid(capsys: pytest.CaptureFixture[str], value: str) -> None:
    """A value that does not do for ENVOY_SERIAL, or for ENPHASE_EMAIL, is not shown."""
    problem = f"ENVOY_SERIAL is {value!r}: expected the digits; LOG_LEVEL is 'LOUD': expected one"
    shown = "ENVOY_SERIAL is '***': expected the digits; LOG_LEVEL is 'LOUD': expected one"
    assert printed(capsys, problem) == shown
    problem, shown = (text.replace("ENVOY_SERIAL", "ENPHASE_EMAIL") for text in (problem, shown))
    assert printed(capsys, problem) == shown


@pytest.mark.parametrize(
    "text",
    ["envoy2emon runs: http://envoy.local is it", "sudo systemctl restart my_envoy_inv", "the envoys", "my-envoy"],
)
def test_a_password_that_is_an_ordinary_word(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Stars within a longer word, or a name of several, would tell the password: it stays as it is there."""
    assert printed(capsys, text, "envoy") == text


@pytest.mark.parametrize("text", ALONE)
@pytest.mark.parametrize("secret", ["envoy", "p+ss.word!", "!secret?", "hunter22", KEY])
def test_a_secret_that_stands_alone(capsys: pytest.CaptureFixture[str], text: str, secret: str) -> None:
    """A secret is never let through: whatever stands beside it, an escaped line's end too."""
    assert printed(capsys, text.format(secret), secret) == text.format("***")


@pytest.mark.parametrize("text", ["x{}x", "{}.json", "a-{}"])
@pytest.mark.parametrize("secret", [KEY, "p+ss.word!", "!secret?"])
def test_a_secret_that_is_no_word(capsys: pytest.CaptureFixture[str], text: str, secret: str) -> None:
    """A long secret, or one with signs, is no part of an ordinary word: it is replaced wherever it is."""
    assert printed(capsys, text.format(secret), secret) == text.format("***")
