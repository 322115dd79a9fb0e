"""A hub in memory: the real rules of sync and membership over rows that a test can hold.

What PostgreSQL gives the real one is here in a few lines: a transaction is taken in as a whole or
not at all, the space's head orders pushes, and who asks sees their own spaces only. Everything
else (what is refused, how a batch applies, which entry may follow) is the hub's own code. The
same scenario over the real hub must come to the same records: tests/simulator/test_postgres.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from mana.crypto.invitations import token_hash
from mana.crypto.primitives import unb64
from mana.crypto.signatures import VerifyKey
from mana.domain.clock import DRIFT_MS_MAX, iso_ms, parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import (
    Conflict,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    Unauthenticated,
)
from mana.domain.ids import AccountId, DeviceId, SpaceId
from mana.domain.spaces import (
    SHARED_TYPES,
    MembershipEntry,
    MembershipRefused,
    Role,
    can_manage,
)
from mana.hub.accounts.founding import (
    CheckedSpace,
    check_certificate,
    check_sign_up,
    check_space,
    identity_keys,
)
from mana.hub.http.problems import problem_for
from mana.hub.invitations.service import LIFE_MS_MAX
from mana.hub.spaces.moving import (
    Acceptance,
    Head,
    Move,
    check_invited,
    check_move,
    check_wraps,
    hash_of,
)
from mana.hub.sync.apply import Logged as KnownChange
from mana.hub.sync.apply import MergedRecord, RecordRef, apply_batch, ref_of
from mana.hub.sync.store import DeviceUnknown
from mana.hub.sync.validate import Place, Writer, WriterKind
from mana.protocol.codec import decode, encode
from mana.protocol.errors import (
    HubBehind,
    InvalidCredentials,
    SessionEnded,
    SpaceUndeletable,
)
from mana.protocol.messages import (
    AcceptInvitation,
    ChangeMessage,
    CloseSpace,
    Departure,
    DeviceCertificate,
    DevicesAnswer,
    HiddenRecord,
    InvitationInfo,
    InvitationsAnswer,
    KdfRequest,
    KeyWrap,
    LoggedChange,
    LoginRequest,
    MembershipAppend,
    NewInvitation,
    NewSpace,
    PrivateKeys,
    PullAnswer,
    PushAnswer,
    PushRequest,
    RefreshRequest,
    SignedEntry,
    SignUpRequest,
    SpaceInfo,
    SpacesAnswer,
    StateAnswer,
    StateField,
    StateRecord,
    Tokens,
    Vault,
)
from mana.registry.catalogue import Catalogue
from mana.testing.accounts import CHEAP
from mana.testing.simulator.network import HubAnswer, HubRequest

TOKEN_MS: Final = 15 * 60 * 1_000
GRACE_MS: Final = 30 * 1_000


@dataclass
class _Account:
    request: SignUpRequest
    devices: dict[str, DeviceCertificate] = field(default_factory=dict)
    role: str = "member"


@dataclass
class _Session:
    account: str
    ended: bool = False


@dataclass
class _Refresh:
    """A refresh token: what it came of, when it was used, and whether another took its place."""

    session: _Session
    parent: str
    used_ms: int | None = None
    replaced: bool = False


@dataclass
class Logged:
    """A row of the log: the change, its place, and whose device pushed it."""

    seq: int
    change: ChangeMessage
    device_id: str
    account: str


@dataclass
class Space:
    """The rows of one space."""

    space_id: SpaceId
    type: str
    log: list[SignedEntry]
    entries: list[MembershipEntry]
    wraps: dict[tuple[str, str, int], str]
    head: int = 0
    changes: list[Logged] = field(default_factory=list)
    records: dict[RecordRef, MergedRecord] = field(default_factory=dict)
    hidden: dict[RecordRef, tuple[str, int]] = field(default_factory=dict)
    invitations: dict[str, InvitationInfo] = field(default_factory=dict)
    hash_by_invitation: dict[str, str] = field(default_factory=dict)

    def role(self, account: str) -> Role | None:
        """Return the account's role by the newest entry; None for who is no member."""
        member = self.entries[-1].member(account)
        return None if member is None else member.role

    def require_role(self, account: str) -> Role:
        """Return the account's role; raise NotFound for who is no member."""
        role = self.role(account)
        if role is None:
            raise NotFound("there is no such space here")
        return role

    @property
    def newest(self) -> Head:
        """Return where the membership log ends."""
        return Head(len(self.log), self.entries[-1], hash_of(self.log[-1]))

    def acceptances(self) -> list[Acceptance]:
        """Return who may join."""
        return [
            Acceptance(
                one.invitation_id,
                one.account_id,
                one.role,
                str(one.signing_key),
                str(one.hpke_key),
            )
            for one in self.invitations.values()
            if one.state == "accepted" and one.account_id is not None
        ]

    def after(self, move: Move, append: MembershipAppend, used: Sequence[str]) -> Space:
        """Return the rows after a move: its entry, its wraps, and what it ends."""
        wraps = {
            name: wrapped
            for name, wrapped in self.wraps.items()
            if name[0] not in move.gone or name[1] == "p"
        }
        if self.entries[-1].member(move.entry.author_id) and move.entry.member(
            move.entry.author_id
        ):
            wraps |= {(one.account_id, "s", one.version): one.wrapped for one in append.wraps}
        stays, owners = set(move.without("owner", "admin")), set(move.without("owner"))
        invitations = dict(self.invitations)
        for name, one in self.invitations.items():
            ends = one.created_by in stays or (one.created_by in owners and one.role == "admin")
            if name in used:
                invitations[name] = msgspec.structs.replace(one, state="joined")
            elif ends and one.state in ("open", "accepted"):
                invitations[name] = msgspec.structs.replace(one, state="withdrawn")
        return replace(
            self,
            log=[*self.log, _stored(append.entry)],
            entries=[*self.entries, move.entry],
            wraps=wraps,
            invitations=invitations,
        )

    def sees(self, account: str, ref: RecordRef) -> bool:
        """Say whether a record that stands is this account's to see."""
        record = self.records[ref].record
        return record.visibility == "space" or record.author_id == account


@dataclass(frozen=True)
class Limits:
    """How the hub cuts its answers; small ones cut them in odd places."""

    pull: int = 1_000
    state: int = 500


@dataclass
class _Call:
    """One request under way: who asks, what, and what will be written if it commits."""

    path: tuple[str, ...]
    query: Mapping[str, str]
    body: bytes
    account: str
    writes: list[Callable[[], None]] = field(default_factory=list)

    def message(self, shape: type[Any]) -> Any:
        return decode(self.body, shape)


class ModelHub:
    """The hub's rows, and the door to them."""

    def __init__(
        self, catalogue: Catalogue, now_ms: Callable[[], int], *, limits: Limits | None = None
    ) -> None:
        self.tables = {table.name: table for table in catalogue.tables}
        self.now_ms = now_ms
        self.limits = limits or Limits()
        self.accounts: dict[str, _Account] = {}
        self.spaces: dict[str, Space] = {}
        self._departures: dict[tuple[str, str], Departure] = {}
        self._refreshes: dict[str, _Refresh] = {}
        self._tokens: dict[str, tuple[_Session, int]] = {}
        self._numbers = itertools.count(1)

    def handle(self, request: HubRequest, *, crash: bool = False) -> HubAnswer | None:
        """Answer a request; what it writes is written as a whole or, with `crash`, not at all."""
        url = urlsplit(request.target)
        path = tuple(unquote(part) for part in url.path.split("/")[3:])
        query = {name: found[0] for name, found in parse_qs(url.query).items()}
        call = _Call(path, query, request.body, "")
        try:
            route = self._route(request.method, path)
            if path[0] != "auth":
                call.account = self._authenticate(request.token)
            reply = route(call)
        except ManaError as error:
            if crash:
                return None
            problem = problem_for(error)
            return HubAnswer(problem.status, encode(problem))
        if crash:
            return None
        for write in call.writes:
            write()
        return HubAnswer(200, b"" if reply is None else encode(reply))

    def _route(self, method: str, path: tuple[str, ...]) -> Callable[[_Call], object]:
        match method, *path:
            case "POST", "auth", "signup":
                return self._sign_up
            case "POST", "auth", "kdf":
                return self._kdf
            case "POST", "auth", "login":
                return self._log_in
            case "POST", "auth", "refresh":
                return self._refresh
            case "GET", "me", "vault":
                return self._vault
            case "GET", "me", "devices":
                return self._own_devices
            case "POST", "me", "devices":
                return self._add_device
            case "GET", "me", "invitations":
                return self._my_invitations
            case "GET", "spaces":
                return self._spaces
            case "POST", "spaces":
                return self._create_space
            case "DELETE", "spaces", _:
                return self._close
            case "GET", "spaces", _, "devices":
                return self._devices
            case "POST", "spaces", _, "members":
                return self._append
            case "POST", "spaces", _, "keys":
                return self._private_keys
            case "POST", "spaces", _, "invitations":
                return self._invite
            case "GET", "spaces", _, "invitations":
                return self._invitations
            case "DELETE", "spaces", _, "invitations", _:
                return self._withdraw
            case "POST", "invitations", _:
                return self._accept
            case "POST", "spaces", _, "changes":
                return self._push
            case "GET", "spaces", _, "changes":
                return self._pull
            case "GET", "spaces", _, "records":
                return self._state
            case "GET", "spaces", _, "records", _, _:
                return self._record
        raise NotFound("there is no such path")

    # Accounts

    def _authenticate(self, token: str) -> str:
        session, until_ms = self._tokens.get(token, (None, 0))
        if session is None or session.ended or self.now_ms() > until_ms:
            raise Unauthenticated("no valid access token")
        return session.account

    def _tokens_of(self, call: _Call, session: _Session, parent: str = "") -> Tokens:
        access, refresh = f"access-{next(self._numbers)}", f"refresh-{next(self._numbers)}"
        until_ms = self.now_ms() + TOKEN_MS
        call.writes.append(lambda: self._tokens.update({access: (session, until_ms)}))
        call.writes.append(lambda: self._refreshes.update({refresh: _Refresh(session, parent)}))
        return Tokens(
            account_id=session.account,
            access_token=access,
            refresh_token=refresh,
            expires_in=TOKEN_MS // 1_000,
        )

    def _sign_up(self, call: _Call) -> Tokens:
        checked = check_sign_up(call.message(SignUpRequest), floor=CHEAP)
        if checked.account in self.accounts:
            raise Conflict("this account exists")
        made = _Account(checked.request, {checked.request.device.device_id: checked.request.device})
        spaces = [_founded(found) for found in checked.spaces]
        call.writes.append(lambda: self.accounts.update({checked.account: made}))
        call.writes.append(lambda: self.spaces.update({one.space_id: one for one in spaces}))
        return self._tokens_of(call, _Session(checked.account))

    def _of_login(self, login: str) -> _Account:
        for account in self.accounts.values():
            if account.request.login == login:
                return account
        raise InvalidCredentials("login or password is wrong")

    def _kdf(self, call: _Call) -> object:
        return self._of_login(call.message(KdfRequest).login).request.kdf

    def _log_in(self, call: _Call) -> Tokens:
        request = call.message(LoginRequest)
        account = self._of_login(request.login)
        if account.request.login_key != request.login_key:
            raise InvalidCredentials("login or password is wrong")
        return self._tokens_of(call, _Session(account.request.account_id))

    def _refresh(self, call: _Call) -> Tokens:
        given, now_ms = call.message(RefreshRequest).refresh_token, self.now_ms()
        held = self._refreshes.get(given)
        if held is None or held.session.ended:
            raise SessionEnded("the session has ended")
        children = [one for one in self._refreshes.values() if one.parent == given]
        if held.used_ms is None and not held.replaced:
            call.writes.append(lambda: setattr(held, "used_ms", now_ms))
        elif (
            held.replaced
            or held.used_ms is None
            or held.used_ms <= now_ms - GRACE_MS
            or any(one.used_ms is not None for one in children)
        ):
            held.session.ended = True  # it stands although the call fails
            raise SessionEnded("the session has ended")
        else:
            for child in children:
                call.writes.append(partial(setattr, child, "replaced", True))
        return self._tokens_of(call, held.session, given)

    def _vault(self, call: _Call) -> Vault:
        request = self.accounts[call.account].request
        return Vault(
            account_id=request.account_id,
            login=request.login,
            mode=request.mode,
            role="member",
            kdf=request.kdf,
            master_wrap=request.master_wrap,
            master_check=request.master_check,
            identity=request.identity,
        )

    def _own_devices(self, call: _Call) -> DevicesAnswer:
        return DevicesAnswer(devices=list(self.accounts[call.account].devices.values()))

    def _add_device(self, call: _Call) -> DeviceCertificate:
        certificate: DeviceCertificate = call.message(DeviceCertificate)
        account = self.accounts[call.account]
        key, _ = identity_keys(account.request.identity)
        device = check_certificate(certificate, AccountId(call.account), key)
        known = [one for one in self.accounts.values() if device in one.devices]
        if any(one is not account or one.devices[device] != certificate for one in known):
            raise Conflict("a device with this id exists")
        call.writes.append(lambda: account.devices.update({device: certificate}))
        return certificate

    # Spaces

    def _member_space(self, call: _Call) -> Space:
        space = self.spaces.get(call.path[1])
        if space is None:
            raise NotFound("there is no such space here")
        space.require_role(call.account)
        return space

    def _managed(self, call: _Call) -> Space:
        space = self._member_space(call)
        if not can_manage(space.require_role(call.account)):
            raise Forbidden("only owners and admins invite")
        return space

    def _info(self, space: Space, account: str) -> SpaceInfo:
        return SpaceInfo(
            space_id=space.space_id,
            type=space.type,
            role=str(space.role(account)),
            log=list(space.log),
            wraps=[
                KeyWrap(kind=kind, version=version, wrapped=wrapped)
                for (owner, kind, version), wrapped in sorted(space.wraps.items())
                if owner == account
            ],
        )

    def _spaces(self, call: _Call) -> SpacesAnswer:
        account = call.account
        mine = [one for one in self.spaces.values() if one.role(account) is not None]
        return SpacesAnswer(
            spaces=[self._info(one, account) for one in mine],
            departed=[gone for (who, _), gone in self._departures.items() if who == account],
        )

    def _create_space(self, call: _Call) -> SpaceInfo:
        identity = self.accounts[call.account].request.identity
        new: NewSpace = call.message(NewSpace)
        account = AccountId(call.account)
        checked = check_space(new, account, identity.signing_key, identity.hpke_key)
        if checked.entry.space_type not in SHARED_TYPES:
            raise Invalid("an account has one personal space and one user scope")
        standing = self.spaces.get(checked.space_id)
        if standing is not None:
            return self._info(standing, call.account)
        if (call.account, checked.space_id) in self._departures:
            raise _AlreadyExists("this space was there before")
        space = _founded(checked)
        call.writes.append(lambda: self.spaces.update({space.space_id: space}))
        return self._info(space, call.account)

    def _close(self, call: _Call) -> None:
        space = self._member_space(call)
        if space.type not in SHARED_TYPES:
            raise SpaceUndeletable("a space of one person is never closed")
        signed: SignedEntry = call.message(CloseSpace).entry
        move = check_move(space.space_id, space.newest, signed, AccountId(call.account))
        if move.accounts:
            raise _closing()
        self._depart(call, space, move)
        call.writes.append(lambda: self.spaces.__delitem__(space.space_id))

    def _depart(self, call: _Call, space: Space, move: Move) -> None:
        log = [*space.log, _stored(move.signed)]
        gone: dict[tuple[str, str], Departure] = {
            (name, space.space_id): Departure(space_id=space.space_id, log=log)
            for name in move.gone
        }
        call.writes.append(lambda: self._departures.update(gone))

    def _return(self, name: tuple[str, str]) -> None:
        self._departures.pop(name, None)

    def _append(self, call: _Call) -> SpaceInfo:
        space = self._member_space(call)
        append: MembershipAppend = call.message(MembershipAppend)
        if hash_of(append.entry) == space.newest.hash:
            return self._info(space, call.account)
        move = check_move(space.space_id, space.newest, append.entry, AccountId(call.account))
        if not move.accounts:
            raise _closing()
        used = check_invited(move, space.acceptances()) if move.added else []
        check_wraps(move, append.wraps)
        self._depart(call, space, move)
        after = space.after(move, append, used)
        for member in move.added:
            name = (member.account_id, space.space_id)
            call.writes.append(partial(self._return, name))
        call.writes.append(lambda: self.spaces.update({space.space_id: after}))
        if after.role(call.account) is None:
            return SpaceInfo(space_id=space.space_id, type=space.type, role="", log=[], wraps=[])
        return self._info(after, call.account)

    def _private_keys(self, call: _Call) -> None:
        space = self._member_space(call)
        keys: PrivateKeys = call.message(PrivateKeys)
        owned = [v for owner, kind, v in space.wraps if owner == call.account and kind == "p"]
        for number, wrap in enumerate(keys.wraps, max(owned, default=0) + 1):
            if wrap.kind != "p" or wrap.version > number:
                raise Invalid("only the next private keys are an account's own to add")
            if wrap.version < number:
                raise _AlreadyExists("another device made this version")
        given = {(call.account, "p", wrap.version): wrap.wrapped for wrap in keys.wraps}
        call.writes.append(lambda: space.wraps.update(given))

    def _devices(self, call: _Call) -> DevicesAnswer:
        space = self._member_space(call)
        return DevicesAnswer(
            devices=[
                certificate
                for member in space.entries[-1].members
                for certificate in self.accounts[member.account_id].devices.values()
            ]
        )

    # Invitations

    def _standing(self, invitation: InvitationInfo) -> InvitationInfo:
        if invitation.state == "open" and parse_iso_ms(invitation.expires_at) <= self.now_ms():
            return msgspec.structs.replace(invitation, state="expired")
        return invitation

    def _invite(self, call: _Call) -> InvitationInfo:
        space = self._managed(call)
        made: NewInvitation = call.message(NewInvitation)
        if space.type not in SHARED_TYPES:
            raise SpaceUndeletable("a space of one person is never shared")
        if made.role == "admin" and space.role(call.account) != "owner":
            raise Forbidden("the role may not invite to this role")
        now_ms, expires_ms = self.now_ms(), parse_iso_ms(made.expires_at)
        if not now_ms < expires_ms <= now_ms + LIFE_MS_MAX + DRIFT_MS_MAX:
            raise Invalid("an invitation ends within 30 days")
        held = space.invitations.get(made.invitation_id)
        if held is not None:
            return self._standing(held)
        info = InvitationInfo(
            invitation_id=made.invitation_id,
            space_id=space.space_id,
            role=made.role,
            state="open",
            created_by=call.account,
            expires_at=iso_ms(min(expires_ms, now_ms + LIFE_MS_MAX)),
        )
        call.writes.append(lambda: space.invitations.update({made.invitation_id: info}))
        call.writes.append(
            lambda: space.hash_by_invitation.update({made.invitation_id: made.token_hash})
        )
        return info

    def _invitations(self, call: _Call) -> InvitationsAnswer:
        space = self._managed(call)
        found = [self._standing(one) for one in space.invitations.values()]
        return InvitationsAnswer(invitations=list(reversed(found)))

    def _withdraw(self, call: _Call) -> None:
        space = self._managed(call)
        found = space.invitations.get(call.path[3])
        if found is None:
            raise NotFound("there is no such invitation")
        gone = msgspec.structs.replace(found, state="withdrawn")
        if found.state == "joined":
            raise Conflict("somebody joined by this invitation")
        if found.state != "withdrawn":
            call.writes.append(lambda: space.invitations.update({found.invitation_id: gone}))

    def _accept(self, call: _Call) -> InvitationInfo:
        accepted: AcceptInvitation = call.message(AcceptInvitation)
        space = self.spaces.get(accepted.space_id)
        found = space.invitations.get(call.path[1]) if space is not None else None
        if space is None or found is None:
            raise NotFound("there is no such invitation")
        found = self._standing(found)
        if found.state == "joined" and found.account_id == call.account:
            return found
        if token_hash(unb64(accepted.token)) != space.hash_by_invitation[found.invitation_id]:
            raise NotFound("there is no such invitation")
        if found.account_id not in (None, call.account):
            raise _AlreadyExists("another account was first")
        if found.state not in ("open", "accepted"):
            raise NotFound("there is no such invitation")
        if space.role(call.account) is not None:
            raise _AlreadyMember("the account is a member already")
        identity = self.accounts[call.account].request.identity
        taken = msgspec.structs.replace(
            found,
            state="accepted",
            account_id=call.account,
            signing_key=identity.signing_key,
            hpke_key=identity.hpke_key,
            mac=accepted.mac,
        )
        call.writes.append(lambda: space.invitations.update({found.invitation_id: taken}))
        return taken

    def _my_invitations(self, call: _Call) -> InvitationsAnswer:
        return InvitationsAnswer(
            invitations=[
                self._standing(one)
                for space in self.spaces.values()
                for one in space.invitations.values()
                if one.account_id == call.account
            ]
        )

    # Sync

    def _push(self, call: _Call) -> PushAnswer:
        request: PushRequest = call.message(PushRequest)
        space = self._member_space(call)
        account = self.accounts[call.account]
        certificate = account.devices.get(request.device_id)
        _require_seen(space.head, request.heads.get(space.space_id, 0))
        if certificate is None:
            raise DeviceUnknown("this device is not registered to the account")
        now_ms = self.now_ms()
        writer = Writer(WriterKind.DEVICE, AccountId(call.account), DeviceId(request.device_id))
        place = Place(
            space_id=space.space_id,
            type=space.type,
            key_version=space.entries[-1].key_version,
            role=space.require_role(call.account),
            device_key=VerifyKey(unb64(certificate.public_key)),
            now_ms=now_ms,
        )
        refs = {ref_of(change) for change in request.changes} & set(space.records)
        ids = {change.change_id for change in request.changes}
        batch = apply_batch(
            request.changes,
            tables=self.tables,
            writer=writer,
            place=place,
            head=space.head,
            known=self._known(space, call.account, ids),
            standing={ref: space.records[ref] for ref in refs if space.sees(call.account, ref)},
            taken=frozenset(ref for ref in refs if not space.sees(call.account, ref)),
        )

        def write() -> None:
            for accepted in batch.accepted:
                space.changes.append(
                    Logged(accepted.seq, accepted.change, request.device_id, call.account)
                )
            for ref, merged in batch.records.items():
                space.records[ref] = merged
                if merged.flipped:
                    space.hidden.pop(ref, None)
                if merged.flipped and merged.record.visibility == "private":
                    space.hidden[ref] = (merged.record.author_id, merged.flipped)
            space.head = batch.head

        call.writes.append(write)
        return PushAnswer(results=list(batch.results), cursor=batch.head, hub_time=iso_ms(now_ms))

    def _known(self, space: Space, account: str, ids: set[str]) -> dict[str, KnownChange]:
        """Return which of these change ids the log has, as far as the account sees it."""
        found: dict[str, KnownChange] = {}
        for row in space.changes:
            own = row.account == account
            if row.change.change_id not in ids or not (own or self._is_shown(space, account, row)):
                continue
            if own or row.change.change_id not in found:
                ref = ref_of(row.change)
                found[row.change.change_id] = KnownChange(row.seq, ref, own=own)
        return found

    def _pull(self, call: _Call) -> PullAnswer:
        space = self._member_space(call)
        after, limit = int(call.query["after"]), int(call.query.get("limit", "1000"))
        _require_seen(space.head, after)
        limit = min(limit, self.limits.pull)
        rows = [row for row in space.changes[after:] if self._is_shown(space, call.account, row)]
        more = len(rows) > limit
        shown = rows[:limit]
        cursor = shown[-1].seq if more else space.head
        hidden = sorted(
            (seq, ref)
            for ref, (author, seq) in space.hidden.items()
            if author != call.account and after < seq <= cursor
        )
        if len(hidden) > limit:
            more, cursor = True, hidden[limit - 1][0]
        return PullAnswer(
            changes=[
                LoggedChange(seq=row.seq, change=row.change, device_id=row.device_id)
                for row in shown
                if row.seq <= cursor
            ],
            cursor=cursor,
            hub_time=iso_ms(self.now_ms()),
            more=more,
            hidden=[
                HiddenRecord(seq=seq, table=ref[0], id=ref[1])
                for seq, ref in hidden
                if seq <= cursor
            ],
        )

    def _is_shown(self, space: Space, account: str, row: Logged) -> bool:
        change = row.change
        if change.visibility == "private" and change.author_id != account:
            return False
        return space.sees(account, ref_of(change))

    def _state(self, call: _Call) -> StateAnswer:
        space = self._member_space(call)
        table, _, record_id = call.query.get("page", "").partition("~")
        refs = sorted(
            ref
            for ref in space.records
            if ref > (table, record_id) and space.sees(call.account, ref)
        )
        shown = refs[: self.limits.state]
        last = shown[-1] if len(refs) > len(shown) else None
        return StateAnswer(
            records=[_state_of(space.records[ref]) for ref in shown],
            head=space.head,
            hub_time=iso_ms(self.now_ms()),
            next=None if last is None else f"{last[0]}~{last[1]}",
        )

    def _record(self, call: _Call) -> StateAnswer:
        space = self._member_space(call)
        ref = (call.path[3], call.path[4])
        is_seen = ref in space.records and space.sees(call.account, ref)
        return StateAnswer(
            records=[_state_of(space.records[ref])] if is_seen else [],
            head=space.head,
            hub_time=iso_ms(self.now_ms()),
        )


def _state_of(merged: MergedRecord) -> StateRecord:
    record = merged.record
    return StateRecord(
        table=record.table,
        id=record.id,
        author_id=record.author_id,
        visibility=record.visibility,
        seq=merged.seq,
        fields={
            path: StateField(
                value=entry.value,
                at=entry.at,
                actor={name: str(member) for name, member in entry.actor.to_wire().items()},
                origin=entry.origin,
                change_id=entry.change_id,
            )
            for path, entry in record.entries.items()
        },
        proofs=dict(merged.proofs),
    )


def _stored(signed: SignedEntry) -> SignedEntry:
    """Return an entry as the database gives it back: the same, with its names in another order."""

    def ordered(value: Json) -> Json:
        if isinstance(value, list):
            return [ordered(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            name: ordered(value[name]) for name in sorted(value, key=lambda one: (len(one), one))
        }

    return msgspec.structs.replace(signed, entry=ordered(signed.entry))


def _founded(found: CheckedSpace) -> Space:
    owner = found.entry.author_id
    wraps = {(owner, wrap.kind, wrap.version): wrap.wrapped for wrap in found.new.wraps}
    return Space(
        found.space_id, found.entry.space_type, [_stored(found.new.first)], [found.entry], wraps
    )


def _closing() -> MembershipRefused:
    return MembershipRefused("a space is closed by its own call", detail={"reason": "closing"})


class _AlreadyExists(Conflict):
    code = "ALREADY_EXISTS"


class _AlreadyMember(Conflict):
    code = "ALREADY_MEMBER"


def _require_seen(head: int, seen: int) -> None:
    if seen > head:
        raise HubBehind(
            "the log of the space ends before what was seen of it",
            detail={"head": head, "seen": seen},
        )
