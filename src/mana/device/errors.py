"""What a device refuses or cannot do, beyond what the hub says."""

from __future__ import annotations

from mana.domain.errors import Conflict, ManaError, Unauthenticated, Unavailable


class Offline(Unavailable):
    """The hub cannot be reached; what was written is kept and sent later."""

    code = "OFFLINE"
    advice = "Check the connection and that the hub runs; what you wrote is kept."


class Locked(Unauthenticated):
    """The account's keys are not in memory."""

    code = "LOCKED"
    advice = "Unlock with the password."


class WrongPassword(Unauthenticated):
    """The password does not open this account's vault."""

    code = "WRONG_PASSWORD"
    advice = "Check the password; upper and lower case count."


class AccountKnown(Conflict):
    """This account is on this device already."""

    code = "ACCOUNT_KNOWN"
    advice = "Unlock it instead."


class ChangeRefused(Conflict):
    """The hub refused a change; `detail` names the change and the hub's reason."""

    code = "CHANGE_REFUSED"
    advice = "Load the current state and try again."


class ReplicaBroken(ManaError):
    """The local database cannot be read or written."""

    code = "REPLICA_BROKEN"
    advice = "Check the disk, then start the device again."


class ReplicaTooNew(ReplicaBroken):
    """The local database was written by a newer version of Mana."""

    code = "REPLICA_TOO_NEW"
    advice = "Update Mana on this machine."
