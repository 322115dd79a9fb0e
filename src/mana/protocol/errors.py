"""What a hub refuses about accounts, as both sides name it."""

from __future__ import annotations

from mana.domain.errors import (
    Conflict,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    Unauthenticated,
)


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
    advice = (
        "The hub was rolled back, as to an old backup; ask whoever runs it, then read the space"
        " anew. Nothing is sent until then."
    )


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


class VaultMoved(Conflict):
    """The account's vault was changed meanwhile, by another device."""

    code = "VAULT_MOVED"
    advice = "Enter the password again, so that this device follows; then repeat it."


class ReservationsFull(Conflict):
    """A device holds as many reservations of tokens for a mission as it may."""

    code = "RESERVATIONS_FULL"
    advice = "Settle those whose calls have ended."


class ProofRefused(Forbidden):
    """The change is not signed by the account's identity over the hub's challenge."""

    code = "PROOF_REFUSED"
    advice = "Unlock the vault and try again."


class VaultRefused(Invalid):
    """Parts of a vault do not fit each other or the signed statement."""

    code = "VAULT_REFUSED"
    advice = "Nothing was changed. Update Mana on this device, then try again."


class RecoveryWrapMissing(Invalid):
    """Zero-knowledge mode needs a recovery code, or a lost password would be lost data."""

    code = "RECOVERY_WRAP_MISSING"
    advice = "Make a recovery code first."


class ZeroKnowledgeActive(Conflict):
    """The account is in zero-knowledge mode, in which the hub cannot do this."""

    code = "ZK_ACTIVE"
    advice = "For a lost password use the recovery code; for a mission allow grants under Security."


class IdentityMoving(Conflict):
    """Some spaces still name the identity before the last one."""

    code = "IDENTITY_MOVING"
    advice = "Wait until all spaces have followed; Security shows how far it is."


class TwoFactorRequired(Unauthenticated):
    """The account asks for a second factor; `detail.kinds` names those that it has."""

    code = "TWO_FACTOR_REQUIRED"
    advice = "Enter the code of your authenticator, or use your passkey."


class TwoFactorFailed(Unauthenticated):
    """The second factor is not right, or was used before."""

    code = "TWO_FACTOR_FAILED"
    advice = "Wait for the next code and try again."


class FactorUnknown(NotFound):
    """There is no such second factor, or it was not finished in time."""

    code = "FACTOR_UNKNOWN"
    advice = "Begin to add it again."


class DeviceRevoked(Unauthenticated):
    """This device was revoked by another one of the account."""

    code = "DEVICE_REVOKED"
    advice = "Sign in anew if it is yours; what it had not sent is still here."


class LinkEnded(NotFound):
    """The link of a new device has ended, was refused, or was used."""

    code = "LINK_ENDED"
    advice = "Begin again on the new device."


class WorkStopped(Conflict):
    """The person stopped all work of the account, or the operator that of the hub."""

    code = "WORK_STOPPED"
    advice = (
        "Let the work go on first; while the operator has stopped it, ask whoever runs the hub."
    )


class WorkNotSigned(Forbidden):
    """A session alone may stop work and lower caps; what loosens them needs a device's signature."""

    code = "WORK_NOT_SIGNED"
    advice = "Do it on a device that is unlocked, which signs it."


class WorkMoved(Conflict):
    """The account's work was stopped, let go on or capped since the device looked."""

    code = "WORK_MOVED"
    advice = "Look at what holds now, and sign again."


class WorkWordRefused(Invalid):
    """What was signed on the account's work does not verify here."""

    code = "WORK_WORD_REFUSED"
    advice = "Sign it for this account and hub, with a device that is registered and not revoked."


class MissionErrored(Conflict):
    """The mission failed too often in a row, and waits for its person."""

    code = "MISSION_ERRORED"
    advice = "See why its last run failed, then resume it."
