"""Errors as the page shows them: what happened, what was kept, what to do, the code small."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar, Final

from mana.domain.errors import (
    Conflict,
    CryptoFailed,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from mana.domain.spaces import WORDS
from mana.web.words import t

_STATUSES: Final[tuple[tuple[type[ManaError], int], ...]] = (
    (TooLarge, 413),
    (Invalid, 400),
    (NotFound, 404),
    (Conflict, 409),
    (Forbidden, 403),
    (Unauthenticated, 401),
    (Unavailable, 503),
    (CryptoFailed, 422),
)
_TITLES: Final[tuple[tuple[type[ManaError], str], ...]] = (
    (Invalid, "That cannot be taken as it is"),
    (NotFound, "This is not here"),
    (Conflict, "That is no longer possible"),
    (Forbidden, "You may not do this"),
    (Unauthenticated, "That was not accepted"),
    (Unavailable, "Not reachable at the moment"),
    (CryptoFailed, "This cannot be opened"),
)
_OWN_TITLES: Final = {
    "DEMO_LINK_USED": "This link has been used",
    "INVITATION_ENDED": "This invitation does not hold",
    "INVITATION_USED": "This invitation has been used",
    "LINK_MALFORMED": "This is not a whole link",
    "OFFLINE": "This needs the hub",
    "ALREADY_MEMBER": "You are in this space already",
    "HUB_DISTRUSTED": "The hub is not believed",
    "FOREIGN_REQUEST": "This page is not current any more",
}


class SignedOut(Unauthenticated):
    """No account is open at this browser."""

    code: ClassVar[str] = "SIGNED_OUT"


class ForeignRequest(Forbidden):
    """The request did not come from a page of this device."""

    code: ClassVar[str] = "FOREIGN_REQUEST"
    advice: ClassVar[str] = "Do it once more; if that does not help, load the page again."


class ForeignHost(Forbidden):
    """The address by which the page was asked for is not one of this device."""

    code: ClassVar[str] = "FOREIGN_HOST"
    advice: ClassVar[str] = "Open the page by the address that Mana printed."


class DemoLinkUsed(Forbidden):
    """The demo's link was used before, or is of an earlier start."""

    code: ClassVar[str] = "DEMO_LINK_USED"
    advice: ClassVar[str] = "Start the demo from the first page, or use the newest link."


class PortTaken(Conflict):
    """Another program listens at the page's address."""

    code: ClassVar[str] = "PORT_TAKEN"
    advice: ClassVar[str] = "Set MANA_DEVICE_PORT to a free port."


@dataclass(frozen=True, slots=True)
class Problem:
    """An error in words."""

    status: int
    title: str
    happened: str
    kept: str
    advice: str
    code: str


def problem_of(error: Exception) -> Problem:
    """Return what to say about an error; of an unknown one, nothing that it carries."""
    if not isinstance(error, ManaError):
        return Problem(
            500,
            t("Something went wrong inside Mana"),
            t("It was not your doing."),
            t("What you had saved before is kept."),
            t("Try again. If it stays, look at the log of the device."),
            "INTERNAL",
        )
    title = _OWN_TITLES.get(error.code) or next(
        (text for kind, text in _TITLES if isinstance(error, kind)), "That did not work"
    )
    reason = str(error.detail.get("reason")) if error.code == "MEMBERSHIP_REFUSED" else ""
    return Problem(
        status_of(error),
        t(title),
        _sentence(t(WORDS[reason]) if reason in WORDS else error.message),
        t("Nothing was changed by this; what you saved before is kept."),
        error.advice,
        error.code,
    )


def problem_of_status(status: int) -> Problem:
    """Return what to say about an answer that came from no route."""
    if status == 404:
        title = t("There is no such page")
        advice = t("Go back, or choose from the menu.")
    else:
        title = t(HTTPStatus(status).phrase)
        advice = t("Go back and try again.")
    return Problem(status, title, "", "", advice, f"HTTP_{status}")


def status_of(error: ManaError) -> int:
    """Return the HTTP status of an error; the most exact class counts."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def _sentence(message: str) -> str:
    text = message.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
