"""What a hub refuses about accounts, as both sides name it."""

from __future__ import annotations

from mana.domain.errors import Conflict, Forbidden, Invalid, ManaError, Unauthenticated


class InvalidCredentials(Unauthenticated):
    """The login or the password is not right; which of them is never said."""

    code = "INVALID_CREDENTIALS"
    advice = "Check the login name and the password."


class SessionEnded(Unauthenticated):
    """The session was ended, or its refresh token was used twice."""

    code = "SESSION_ENDED"
    advice = "Sign in again."


class RateLimited(ManaError):
    """Too many attempts; `detail.retryAfterS` says when the next one counts."""

    code = "RATE_LIMITED"
    advice = "Wait a while and try again."


class HubBehind(Conflict):
    """The hub's log of a space ends before what this device has seen of it."""

    code = "HUB_BEHIND"
    advice = "The hub was rolled back, as to an old backup; ask whoever runs it. Nothing is sent."


class LoginTaken(Conflict):
    """Another account has this login name."""

    code = "LOGIN_TAKEN"
    advice = "Choose another login name."


class AccountExists(Conflict):
    """An account, device or space with this id exists."""

    code = "ACCOUNT_EXISTS"
    advice = "Start the sign-up again."


class InviteNeeded(Forbidden):
    """This hub takes new accounts by invitation only, and the invitation does not hold."""

    code = "INVITE_NEEDED"
    advice = "Ask the administrator of this hub for an invitation."


class SignupClosed(Forbidden):
    """This hub takes no new accounts."""

    code = "SIGNUP_CLOSED"
    advice = "Ask the administrator of this hub."


class MembershipMoved(Conflict):
    """Somebody else changed who is in the space meanwhile."""

    code = "MEMBERSHIP_MOVED"
    advice = "Look at the members again, then repeat it."


class SpaceUndeletable(Forbidden):
    """A personal space and the scope of a person are never deleted, left or shared."""

    code = "SPACE_PERSONAL_UNDELETABLE"
    advice = "To share, found a space for it; to leave for good, delete the account."


class AlreadyMember(Conflict):
    """The account belongs to the space that it is invited to."""

    code = "ALREADY_MEMBER"
    advice = "Open the space; the invitation is left for somebody else."


class InvitationsFull(Conflict):
    """The space has as many open invitations as it can have."""

    code = "INVITATIONS_FULL"
    advice = "Withdraw invitations that nobody needs any more."


class UpgradeNeeded(Invalid):
    """This path is for a WebSocket, and the request asks for none."""

    code = "UPGRADE_NEEDED"
    advice = "Open it as a WebSocket, or listen at /api/v1/live."
