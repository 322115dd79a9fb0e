"""What a device refuses or cannot do, beyond what the hub says."""

from __future__ import annotations

from mana.domain.errors import Conflict, Forbidden, ManaError, Unauthenticated, Unavailable


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


class PasswordAsked(Unauthenticated):
    """The account was opened without its password, and this needs it."""

    code = "PASSWORD_ASKED"
    advice = "Enter the password once; the account stays open."


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


class SpaceLeft(Forbidden):
    """The account is no longer in the space: what is here can be read, and nothing written."""

    code = "SPACE_LEFT"
    advice = "Copy what you need into another space, or remove the space from this device."


class ReadOnlyHere(Forbidden):
    """The account's role in the space does not let it write."""

    code = "READ_ONLY_HERE"
    advice = "Ask an owner or admin of the space to make you a member."


class ManagersOnly(Forbidden):
    """Only owners and admins of the space write this."""

    code = "MANAGERS_ONLY"
    advice = "Ask an owner or admin of the space."


class ModuleNotHeld(Forbidden):
    """A space of this type does not hold this kind of record."""

    code = "MODULE_NOT_HELD"
    advice = "Keep it in your personal space, or in a space of another type."


class PrivateKeyMissing(Conflict):
    """The account has no key for private records in this space yet."""

    code = "PRIVATE_KEY_MISSING"
    advice = "Connect to the hub once; the key is made then."


class SpaceKeyMissing(Conflict):
    """The key of the space that this account was given is not the one that the space uses."""

    code = "SPACE_KEY_MISSING"
    advice = "Ask an owner or admin to change the key, by removing whoever gave it out; one's own private records are not concerned."


class FieldsClosed(Conflict):
    """A value of the record cannot be opened on this device, and so not be sealed anew."""

    code = "FIELDS_CLOSED"
    advice = "Do it on a device that shows the whole record."


class NotYourRecord(Forbidden):
    """Only who made a record decides who may see it."""

    code = "NOT_YOUR_RECORD"
    advice = "Ask the person who made it."


class VisibilityFixed(Conflict):
    """Records of this kind, or in this space, are not made private or shared."""

    code = "VISIBILITY_FIXED"
    advice = "Everything in your own spaces is yours alone already; agents and missions are always shared."


class StorageFull(ReplicaBroken):
    """The disk of this machine takes no more; the last write was not made."""

    code = "STORAGE_FULL"
    advice = "Free some space on this machine's disk, then repeat it. What was kept before is safe."
