"""Words on their way out of this program: without secrets, without control characters, and not without end."""

_secrets: set[str] = set()


def keep_secret(secret: str) -> None:
    """Have clean() replace this from now on."""
    _secrets.add(secret)


def clean(text: str, most: int | None = None) -> str:
    """Return text in one line that may be shown to anyone, cut to `most` characters."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***") if len(secret) > 3 else text  # noqa: PLR2004
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return text if most is None else text[:most]
