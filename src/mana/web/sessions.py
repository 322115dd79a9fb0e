"""Who sits at which browser: sessions in memory, gone when the device stops.

A session holds ids, what to say next, what was decided a moment ago and what is half done; keys
and texts stay in the device. Its id is drawn anew at every sign-in, so one that was planted before is worth
nothing afterwards.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from mana.device.desk import Device
    from mana.device.links import PendingLink
    from mana.device.sessions import PasskeySetup, TotpSetup
    from mana.domain.encoding import Json

ASKING_MS_MAX: Final = 5 * 60 * 1_000
"""How long a password waits for the second factor that belongs to it."""
SESSIONS_MAX: Final = 1_000
SAID_MAX: Final = 8
DECIDED_MAX: Final = 50


@dataclass(frozen=True, slots=True)
class Said:
    """One sentence to be shown once, with the post that undoes what it tells."""

    text: Markup
    undo: str = ""
    values: tuple[tuple[str, str], ...] = ()
    trouble: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class Asking:
    """A sign-in whose password was right and that waits for a second factor, until `until_ms`.

    `passkey`: what the browser needs to use one. `follows`: the account is open, and its vault
    is the one that another device has changed.
    """

    login: str
    password: str = field(repr=False)
    kinds: Sequence[str]
    passkey: Mapping[str, Json] | None
    back: str
    until_ms: int
    follows: bool = False


@dataclass(slots=True)
class Session:
    """One browser. `decided` maps steps decided here to the moment, newest last.

    `locked`: its account was locked; it stays so for this browser, whoever opens it elsewhere.
    `asking`, `linking`, `adding`: what is half done at this browser: a sign-in, a new device
    that another one is to unlock, a second factor.
    """

    id: str
    csrf: str
    account_id: str | None = None
    said: list[Said] = field(default_factory=list)
    decided: OrderedDict[str, int] = field(default_factory=OrderedDict)
    locked: bool = False
    asking: Asking | None = field(default=None, repr=False)
    linking: PendingLink[Device] | None = field(default=None, repr=False)
    adding: TotpSetup | PasskeySetup | None = field(default=None, repr=False)

    def say(self, said: Said) -> None:
        """Keep a sentence for the next page."""
        self.said = [*self.said, said][-SAID_MAX:]

    def take_said(self) -> list[Said]:
        """Return what is to be said, once."""
        said, self.said = self.said, []
        return said

    def asked(self, now_ms: int) -> Asking | None:
        """Return the sign-in that waits for a second factor; one that waited too long is gone."""
        if self.asking is not None and now_ms > self.asking.until_ms:
            self.asking = None
        return self.asking

    def decide(self, step_id: str, at_ms: int) -> None:
        """Remember that a step was decided at this browser."""
        self.decided[step_id] = at_ms
        self.decided.move_to_end(step_id)
        while len(self.decided) > DECIDED_MAX:
            self.decided.popitem(last=False)

    def holds(self, token: str) -> bool:
        """Say whether a form came from a page of this session."""
        return hmac.compare_digest(self.csrf.encode(), token.encode())


class Sessions:
    """The sessions of one device process; the longest unused ones give way."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Session] = OrderedDict()

    def find(self, session_id: str | None) -> Session | None:
        """Return the session of a cookie."""
        found = self._by_id.get(session_id or "")
        if found is not None:
            self._by_id.move_to_end(found.id)
        return found

    def open(self, account_id: str | None = None, *, after: Session | None = None) -> Session:
        """Return a new session; `after` ends, and what it had to say goes on."""
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), account_id)
        if after is not None:
            session.said = after.take_said()
            self.end(after)
        self._by_id[session.id] = session
        while len(self._by_id) > SESSIONS_MAX:
            self._by_id.popitem(last=False)
        return session

    def end(self, session: Session) -> None:
        """Forget a session."""
        self._by_id.pop(session.id, None)

    def lock(self, account_id: str) -> None:
        """Let every session of an account ask for the password, and forget what it had to say."""
        for session in self._by_id.values():
            if session.account_id == account_id:
                session.locked = True
                session.said.clear()
                session.decided.clear()
                session.asking = session.adding = None

    def leave(self, account_id: str) -> None:
        """Forget every session of an account, when it leaves this device."""
        for session in [one for one in self._by_id.values() if one.account_id == account_id]:
            self.end(session)
