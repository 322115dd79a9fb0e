"""Sending by SMTP. What a letter says is fixed here; nothing of a person is put into it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

import aiosmtplib

from mana.domain.errors import Invalid, Unavailable

TIMEOUT_S: Final = 20.0
ADDRESS_MAX: Final = 254
_ATOM: Final = r"[\w!#$%&'*+/=?^`{|}~-]+"
_ADDRESS: Final = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@[\w-]+(?:\.[\w-]+)+")
WAITS: Final = (
    "Mana: something waits for your decision",
    (
        "An agent of yours has left something for you to decide. Open Mana to see it.\n\n"
        "This letter does not say what it is, because only your own devices can read it.\n"
        "You can switch these letters off in Mana, under Settings.\n"
    ),
)
CODE: Final = (
    "Mana: your code",
    (
        "Somebody asked Mana to write to this address when something waits for a decision.\n"
        "If that was you, enter this code in Mana, within half an hour:\n\n    {code}\n\n"
        "If it was not you, do nothing: no letter will follow.\n"
    ),
)
Send: TypeAlias = Callable[[str, tuple[str, str]], Awaitable[None]]
"""Sends subject and text to an address; raises LetterFailed."""


class LetterFailed(Unavailable):
    """The mail server did not take a letter."""

    code = "LETTER_FAILED"
    advice = "Check the address; if it is right, ask whoever runs the hub to look at its mail."


@dataclass(frozen=True, slots=True)
class Post:
    """A mail server. `security`: `tls` from the first byte, `starttls`, or `none` on this machine."""

    host: str
    port: int
    security: str
    sender: str
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def from_url(cls, url: str, sender: str) -> Post:
        """Read `smtp://` or `smtps://[user:password@]host[:port]`; raise Invalid.

        Without a user only a server on this machine is spoken to in plain.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise Invalid("MANA_SMTP_URL is no address of a mail server") from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.path.strip("/"):
            raise Invalid("MANA_SMTP_URL is smtp:// or smtps:// and the name of a host")
        if require_address(sender) != sender:
            raise Invalid("MANA_SMTP_FROM is an address, such as mana@example.org")
        security = "tls" if parts.scheme == "smtps" else "starttls"
        if security == "starttls" and _is_this_machine(parts.hostname) and not parts.username:
            security = "none"
        return cls(
            parts.hostname,
            port or (465 if security == "tls" else 25 if security == "none" else 587),
            security,
            sender,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
        )

    async def send(self, address: str, words: tuple[str, str]) -> None:
        """Send a letter; raise LetterFailed, which says nothing of the address."""
        letter = EmailMessage()
        letter["From"] = self.sender
        letter["To"] = address
        letter["Subject"], text = words
        letter["Date"] = formatdate()
        letter["Message-ID"] = make_msgid(domain=self.sender.rpartition("@")[2])
        letter["Auto-Submitted"] = "auto-generated"
        letter.set_content(text)
        try:
            await aiosmtplib.send(
                letter,
                hostname=self.host,
                port=self.port,
                username=self.user or None,
                password=self.password or None,
                use_tls=self.security == "tls",
                start_tls=self.security == "starttls",
                timeout=TIMEOUT_S,
            )
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ValueError):
            raise LetterFailed("the mail server did not take the letter") from None


def require_address(text: str) -> str:
    """Return an address that a letter can be sent to; raise Invalid."""
    address = text.strip()
    # No encoded word: a header would decode it, and the letter go elsewhere.
    is_one = len(address) <= ADDRESS_MAX and _ADDRESS.fullmatch(address) and "=?" not in address
    if not is_one:
        raise Invalid("that is no address for letters, such as ada@example.org")
    return address


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
