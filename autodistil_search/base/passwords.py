"""Removal of passwords from user input before it is shown or written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
"""Replacement of a password."""

_SHOWN_PARAMETERS = {
    *("application_name", "charset", "check_same_thread", "client_encoding", "connect_timeout", "dbname", "host"),
    *("hostaddr", "keepalives", "mode", "port", "sslmode", "sslrootcert", "target_session_attrs", "timeout", "uri"),
    "user",
}
"""Parameters of a database URL that may be shown."""

_URL = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*)?://")
_SCHEDULER = re.compile(r"(?:tcp|tls|ucx|wss?)://(?!\S*@)")
"""Begin of the address of a Dask scheduler or worker, which never has a password."""
_PORT = re.compile(r"\d*([/?#,\s].*)?", re.DOTALL)
_SECRET_KEY = re.compile(r"pass|pwd|secret|token|key|auth|sig", re.IGNORECASE)
_SETTING = re.compile(r"[\w%]*(?:pass(?:word|wd|file|phrase)?|pwd)\s*=(?!\s*\*\*\*)\s*(.+)", re.IGNORECASE | re.DOTALL)
"""Password in a string such as `host=db password=...`; the end of the value is unknown."""
_WITHOUT_SCHEME = re.compile(r"(?:--storage=)?[\w.%+-]+:(?!//|\*\*\*@)(.+)@[\w.-]+(?::\d+)?(?:/.*)?", re.DOTALL)

_DATABASE_NAME = re.compile(r"://|(^|\s)(host|hostaddr|user|password|dbname|service)\s*=|^[^/\s]*:.*@", re.DOTALL)


def names_database(storage: str) -> bool:
    """Return True if a storage's name is a database, as a URL or in another form, and not a path."""
    return _DATABASE_NAME.search(storage) is not None


def without_password(text: str) -> str:
    """Return `text`, a database URL or a message that holds one, without the password.

    In doubt more than the password is removed, because an `@`, a blank or a slash in it may be unescaped. A text whose
    password was removed before is unchanged.
    """
    done, at = "", 0
    for start, end in _secret_spans(text):
        done += text[at:start] + HIDDEN
        at = end
    return done + text[at:]


def conceal(text: str, url: str) -> str:
    """Return the message of a driver about `url` without the password and without any part of it."""
    for secret in sorted(set(_secrets(url)), key=len, reverse=True):
        if len(secret) > 2:
            text = text.replace(secret, HIDDEN)
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return without_password(text)


def _secrets(url: str) -> Iterator[str]:
    """Yield the secrets of `url` in every form that drivers may show: decoded, quoted, whole or in parts."""
    for start, end in _secret_spans(url):
        hidden = url[start:end]
        for text in (hidden, unquote(hidden), unquote_plus(hidden)):
            for shown in (text, repr(text)[1:-1]):
                yield from (part for part in (shown, *re.split(r"[@/:?#&=;,\s'\"\\]+", shown)) if part)


def _secret_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each secret in `text`, in order."""
    if (match := _WITHOUT_SCHEME.fullmatch(text)) is not None:
        yield match.span(1)
        return
    at = 0
    while (match := _URL.search(text, at)) is not None:
        at, is_page = match.end(), (match["scheme"] or "").lower() in ("http", "https")
        if _SCHEDULER.match(text, match.start()):
            continue
        if (login := _login(text, at, is_page)) is not None:
            if login[0] < login[1]:
                yield login
            at = login[1]
        following = _URL.search(text, at)
        if (value := _secret_parameter(text, at, following.start() if following else len(text), is_page)) is not None:
            yield value, len(text)
            return
    if (match := _SETTING.search(text, at)) is not None:
        yield match.span(1)


def _login(text: str, begin: int, is_page: bool) -> tuple[int, int] | None:
    """Return the start and end of the password before the host of a URL; equal if it was removed before."""
    colon = text.find(":", begin)
    name = text[begin:colon]
    if colon < 0 or "?" in name or (is_page and "/" in name):
        return None
    start, at = colon + 1, text.rfind("@")
    if text.startswith(f"{HIDDEN}@", start):
        host = re.compile(r"[^/?\s]*").match(text, start + len(HIDDEN) + 1)
        more = host[0].rfind("@") if host else -1
        return (start, host.start() + more) if host and more >= 0 else (start + len(HIDDEN), start + len(HIDDEN))
    if at >= start:  # equal: an empty password, usual for servers on a local socket
        return start, at
    # This may be the first part of a password with a blank.
    rest = start < len(text) and not is_page and "/" not in name and not _PORT.fullmatch(text, start)
    return (start, len(text)) if rest else None


def _secret_parameter(text: str, begin: int, end: int, is_page: bool) -> int | None:
    """Return the start of the value of the first URL parameter that may be secret; None if there is none."""
    mark = text.find("?", begin, end)
    if mark < 0:
        return None
    for match in re.compile(r"(?:(?<=[?&;]))([^=&;]*)=([^&;]*)").finditer(text, mark + 1):
        key = unquote_plus(match[1]).strip().lower()
        secret = _SECRET_KEY.search(key) if is_page else key not in _SHOWN_PARAMETERS
        if secret:
            is_left_out = re.match(r"\*\*\*(?:$|[\s,:'\")])", match[2]) and text[match.end() : match.end() + 1] != "&"
            return None if is_left_out else match.start(2)
    return None
