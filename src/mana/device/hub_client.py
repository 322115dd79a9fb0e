"""Every call to the hub, typed. Errors come back as the hub raised them; no hub is `Offline`.

The client holds an access token in memory only. A refresh token is exchanged under the session's
own lock and kept before the new pair is used, so that neither a crash nor a second process loses
the session.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from mana.crypto.primitives import b64
from mana.device.errors import Offline
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, ManaError, TooLarge, Unauthenticated, Unavailable
from mana.domain.grants import GrantHeader, header_from_wire
from mana.protocol.codec import decode, encode
from mana.protocol.errors import (
    DeviceRevoked,
    InvalidCredentials,
    RateLimited,
    SessionEnded,
    TwoFactorFailed,
    TwoFactorRequired,
)
from mana.protocol.messages import (
    AcceptInvitation,
    Account,
    AnswerLink,
    ApproveLink,
    AuditAnswer,
    CloseSpace,
    DeleteAccountRequest,
    DeviceCertificate,
    DeviceRevocation,
    DevicesAnswer,
    FactorAnswer,
    FactorInfo,
    FactorsAnswer,
    FactorSetup,
    FinishFactor,
    GrantCompletion,
    GrantHeaderAnswer,
    GrantInfo,
    GrantRequest,
    GrantsAnswer,
    InvitationInfo,
    InvitationsAnswer,
    InviteAnswer,
    KdfParameters,
    KdfRequest,
    LinkInfo,
    LinkPoll,
    LinkRequest,
    LinkReveal,
    LinksAnswer,
    LinkState,
    LinkTicket,
    LoginRequest,
    MembershipAppend,
    MissionsAnswer,
    NewFactor,
    NewInvitation,
    NewSpace,
    NotifyState,
    OccurrenceInfo,
    PrivateKeys,
    PullAnswer,
    PushAnswer,
    PushRequest,
    RecoverRequest,
    RefreshRequest,
    RemoveFactor,
    ReservedTokens,
    ReserveTokens,
    ResetAnswer,
    ResetRequest,
    RevokeGrant,
    RunnerInfo,
    SecurityEvents,
    SessionInfo,
    SessionsAnswer,
    SetNotify,
    SettleTokens,
    SetWork,
    SignedEntry,
    SignedStatement,
    SignUpRequest,
    SpaceInfo,
    SpacesAnswer,
    StateAnswer,
    Tokens,
    UsageAnswer,
    Vault,
    VaultChange,
    VaultLog,
    WorkState,
)
from mana.protocol.problems import error_of
from mana.protocol.replication import HubDistrusted

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
AUDIT_PATIENCE_S: Final = 10.0
"""A person looks at the page meanwhile; a hub that is silent for so long is not there."""
LIVE_SILENCE_S: Final = 45.0
"""The hub comments every 15 s; three of them missing mean that the stream is dead."""
LIMITED_S_MIN: Final = 60.0
LIMITED_S_MAX: Final = 60 * 60.0
_EVENT_BYTES_MAX: Final = 65_536
_LOGOUT: Final = "/api/v1/auth/logout"

_T = TypeVar("_T")


class Session(Protocol):
    """Where a session's refresh token is kept, and how to begin a new session."""

    def exclusively(self) -> AbstractAsyncContextManager[None]:
        """Keep every other process of this machine from refreshing meanwhile."""

    async def refresh_token(self) -> str | None:
        """Return the newest refresh token that was kept."""

    async def keep(self, tokens: Tokens) -> None:
        """Keep the refresh token of a new pair, durably."""

    def credentials(self) -> tuple[str, bytes] | None:
        """Return login name and login key while the account is unlocked."""


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """One event of the live stream: `hello`, `space`, `spaces`, `mission` or `bye`."""

    name: str
    data: Mapping[str, Json]


def _wait_s(limited: RateLimited) -> float:
    """Return how long the hub asks to wait, within bounds that no hub moves."""
    said = limited.detail.get("retryAfterS")
    wanted = float(said) if isinstance(said, int | float) and not isinstance(said, bool) else 0.0
    return min(max(wanted, LIMITED_S_MIN), LIMITED_S_MAX)


class HubClient:
    """The hub as one account sees it. Without a session only the open calls work.

    `on_revoked` is called when the hub says that another device revoked this one. `certificate`
    gives this device's: each session that begins is tied to it, and so ends with it.
    `device_name`: what a session that begins is called.
    """

    on_revoked: Callable[[], None] | None = None
    certificate: Callable[[], DeviceCertificate] | None = None

    def __init__(
        self,
        base_url: str,
        *,
        session: Session | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout_s: float = 30.0,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
        device_name: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._limited: tuple[RateLimited, float] | None = None
        self._session = session
        self._device_name = device_name
        self._access: str | None = None
        self._held: ManaError | None = None
        self._refused: tuple[tuple[str, bytes], type[Unauthenticated]] | None = None
        self._signing_in = asyncio.Lock()
        self._answer_bytes_max = answer_bytes_max
        self._http = httpx.AsyncClient(
            base_url=base_url,
            transport=transport,
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            follow_redirects=False,
            trust_env=False,
            headers={"user-agent": "mana-device", "accept": "application/json"},
        )

    async def close(self) -> None:
        """End all connections, and forget the session."""
        self._access = None
        self._session = None
        await self._http.aclose()

    def hold(self, error: ManaError | None) -> None:
        """Write nothing from now on and raise this instead; None: write again.

        A session can still be ended.
        """
        self._held = error

    # Accounts

    async def sign_up(self, request: SignUpRequest) -> Tokens:
        """Make an account."""
        return await self._open_call("/api/v1/auth/signup", request, Tokens)

    async def kdf(self, login: str) -> KdfParameters:
        """Return the password parameters of a login name."""
        return await self._open_call("/api/v1/auth/kdf", KdfRequest(login=login), KdfParameters)

    async def login(
        self,
        login: str,
        login_key: bytes,
        *,
        factor: FactorAnswer | None = None,
        device_name: str = "",
    ) -> Tokens:
        """Begin a session; raise InvalidCredentials, TwoFactorRequired or TwoFactorFailed."""
        request = LoginRequest(
            login=login,
            login_key=b64(login_key),
            factor=factor,
            device_name=device_name or self._device_name,
        )
        return await self._open_call("/api/v1/auth/login", request, Tokens)

    async def logout(self) -> None:
        """End the session."""
        await self._do("POST", _LOGOUT)
        self._access = None

    def use(self, tokens: Tokens) -> None:
        """Use the access token of a pair that was just made."""
        self._access = tokens.access_token

    @property
    def is_signed_in(self) -> bool:
        """Say whether a session was begun or refreshed since this client was made."""
        return self._access is not None

    async def begin(self, tokens: Tokens) -> None:
        """Keep a session that was begun elsewhere, and use it from now on."""
        if self._session is None:
            raise Unauthenticated("nobody is signed in")
        async with self._signing_in, self._session.exclusively():
            await self._tie(tokens)
            await self._session.keep(tokens)
            self._access = tokens.access_token

    async def create_invite(self) -> InviteAnswer:
        """Make an invitation; only the administrator may."""
        return await self._call("POST", "/api/v1/auth/invites", InviteAnswer)

    async def account(self) -> Account:
        """Return the signed-in account."""
        return await self._call("GET", "/api/v1/me", Account)

    async def delete_account(self, login_key: bytes) -> None:
        """Remove the account and every row of it."""
        request = DeleteAccountRequest(login_key=b64(login_key))
        await self._do("DELETE", "/api/v1/me", body=request)
        self._access = None

    async def vault(self) -> Vault:
        """Return what unlocks the account's keys."""
        return await self._call("GET", "/api/v1/me/vault", Vault)

    async def vault_log(self, after: int, upto: int) -> list[SignedStatement]:
        """Return the statements of the vault after one revision up to another, oldest first.

        Fewer if the hub gives no more.
        """
        path = "/api/v1/me/vault/log"
        found: list[SignedStatement] = []
        while len(found) < upto - after:
            query: dict[str, str | int | None] = {"after": after + len(found)}
            page = (await self._call("GET", path, VaultLog, query=query)).statements
            if not page:
                break
            found += page
        return found[: max(0, upto - after)]

    async def change_vault(self, change: VaultChange) -> None:
        """Set the vault as it is from now on; raise VaultMoved if it is another by now."""
        await self._do("PUT", "/api/v1/me/vault", body=change)

    async def recover(self, request: RecoverRequest) -> Tokens:
        """Begin a session with a recovery code; raise InvalidCredentials."""
        return await self._open_call("/api/v1/auth/recover", request, Tokens)

    async def reset(self, request: ResetRequest) -> ResetAnswer:
        """Begin a session with a token of the hub's operator, who then holds the master key."""
        return await self._open_call("/api/v1/auth/reset", request, ResetAnswer)

    async def devices(self) -> list[DeviceCertificate]:
        """Return the certificates of the account's devices."""
        return (await self._call("GET", "/api/v1/me/devices", DevicesAnswer)).devices

    async def register_device(self, certificate: DeviceCertificate) -> None:
        """Register a device of this account."""
        await self._do("POST", "/api/v1/me/devices", body=certificate)

    # Sessions, devices, second factors

    async def sessions(self) -> list[SessionInfo]:
        """Return the account's sessions that stand, newest first."""
        return (await self._call("GET", "/api/v1/me/sessions", SessionsAnswer)).sessions

    async def end_session(self, session_id: str) -> None:
        """End a session; its tokens are worth nothing from then on."""
        await self._do("DELETE", f"/api/v1/me/sessions/{_part(session_id)}")

    async def own_devices(self) -> DevicesAnswer:
        """Return the account's devices, and those that were revoked."""
        return await self._call("GET", "/api/v1/me/devices", DevicesAnswer)

    async def revoke_device(self, revocation: DeviceRevocation) -> None:
        """End a device of this account for ever."""
        path = f"/api/v1/me/devices/{_part(revocation.device_id)}/revoke"
        await self._do("POST", path, body=revocation)

    async def security_events(
        self, *, before: str | None = None, limit: int | None = None
    ) -> SecurityEvents:
        """Return what happened to keys and sessions, newest first."""
        query: dict[str, str | int | None] = {"before": before, "limit": limit}
        return await self._call("GET", "/api/v1/me/security", SecurityEvents, query=query)

    async def factors(self) -> list[FactorInfo]:
        """Return the account's second factors."""
        return (await self._call("GET", "/api/v1/me/factors", FactorsAnswer)).factors

    async def begin_factor(self, factor: NewFactor) -> FactorSetup:
        """Begin to add a second factor; it counts once it is finished."""
        return await self._call("POST", "/api/v1/me/factors", FactorSetup, body=factor)

    async def finish_factor(self, factor_id: str, answer: FactorAnswer) -> None:
        """Prove that the person has the second factor; raise FactorUnknown, TwoFactorFailed."""
        path = f"/api/v1/me/factors/{_part(factor_id)}/finish"
        await self._do("POST", path, body=FinishFactor(answer=answer))

    async def remove_factor(self, factor_id: str, removal: RemoveFactor) -> None:
        """Remove a second factor."""
        await self._do("DELETE", f"/api/v1/me/factors/{_part(factor_id)}", body=removal)

    # Links: the first three are of a device without a session

    async def begin_link(self, request: LinkRequest) -> LinkTicket:
        """Ask to be unlocked by another device; the answer is the same for any login."""
        return await self._open_call("/api/v1/auth/links", request, LinkTicket)

    async def poll_link(self, link_id: str, ticket: str) -> LinkState:
        """Ask how the link stands; what was approved is given once. Raises LinkEnded."""
        path = f"/api/v1/auth/links/{_part(link_id)}/poll"
        return await self._open_call(path, LinkPoll(ticket=ticket), LinkState)

    async def reveal_link(self, link_id: str, reveal: LinkReveal) -> None:
        """Show what was committed to, once the old device has answered."""
        path = f"/api/v1/auth/links/{_part(link_id)}/reveal"
        await self._open_do(path, reveal)

    async def links(self) -> list[LinkInfo]:
        """Return the links that wait for one of the account's devices."""
        return (await self._call("GET", "/api/v1/me/links", LinksAnswer)).links

    async def answer_link(self, link_id: str, nonce: bytes) -> None:
        """Give this device's nonce; raise LinkEnded."""
        path = f"/api/v1/me/links/{_part(link_id)}/answer"
        await self._do("POST", path, body=AnswerLink(nonce=b64(nonce)))

    async def approve_link(self, link_id: str, approval: ApproveLink) -> None:
        """Hand the account over to the new device; raise LinkEnded, ProofRefused."""
        await self._do("POST", f"/api/v1/me/links/{_part(link_id)}/approve", body=approval)

    async def refuse_link(self, link_id: str) -> None:
        """End a link."""
        await self._do("POST", f"/api/v1/me/links/{_part(link_id)}/refuse")

    # Spaces

    async def spaces(self) -> SpacesAnswer:
        """Return the account's spaces, with logs and wraps, and those that it is out of."""
        return await self._call("GET", "/api/v1/spaces", SpacesAnswer)

    async def create_space(self, founded: NewSpace) -> SpaceInfo:
        """Found a shared space."""
        return await self._call("POST", "/api/v1/spaces", SpaceInfo, body=founded)

    async def close_space(self, space_id: str, entry: SignedEntry) -> None:
        """Close a space by its last entry; everything of it is removed."""
        path = f"/api/v1/spaces/{_part(space_id)}"
        await self._do("DELETE", path, body=CloseSpace(entry=entry))

    async def append_member(self, space_id: str, append: MembershipAppend) -> SpaceInfo:
        """Append to the membership log; raise MembershipMoved if its head is another by now."""
        path = f"/api/v1/spaces/{_part(space_id)}/members"
        return await self._call("POST", path, SpaceInfo, body=append)

    async def add_private_keys(self, space_id: str, keys: PrivateKeys) -> None:
        """Keep the account's own private keys of a space, which its identity signed."""
        path = f"/api/v1/spaces/{_part(space_id)}/keys"
        await self._do("POST", path, body=keys)

    async def retire_key(self, space_id: str, key: str) -> None:
        """Forget the account's own wrap of an older key (`s1`, `p1`); Conflict if it counts."""
        await self._do("DELETE", f"/api/v1/spaces/{_part(space_id)}/keys/{_part(key)}")

    async def create_invitation(self, space_id: str, made: NewInvitation) -> InvitationInfo:
        """Let the hub know of an invitation."""
        path = f"/api/v1/spaces/{_part(space_id)}/invitations"
        return await self._call("POST", path, InvitationInfo, body=made)

    async def invitations(self, space_id: str) -> list[InvitationInfo]:
        """Return a space's invitations; only its owners and admins may."""
        path = f"/api/v1/spaces/{_part(space_id)}/invitations"
        return (await self._call("GET", path, InvitationsAnswer)).invitations

    async def withdraw_invitation(self, space_id: str, invitation_id: str) -> None:
        """End an invitation."""
        path = f"/api/v1/spaces/{_part(space_id)}/invitations/{_part(invitation_id)}"
        await self._do("DELETE", path)

    async def accept_invitation(
        self, invitation_id: str, accepted: AcceptInvitation
    ) -> InvitationInfo:
        """Accept an invitation with what only a holder of its link can make."""
        path = f"/api/v1/invitations/{_part(invitation_id)}"
        return await self._call("POST", path, InvitationInfo, body=accepted)

    async def my_invitations(self) -> list[InvitationInfo]:
        """Return the invitations that this account accepted."""
        return (await self._call("GET", "/api/v1/me/invitations", InvitationsAnswer)).invitations

    async def space_devices(self, space_id: str) -> DevicesAnswer:
        """Return the certificates of all devices of a space's members, and what was revoked."""
        return await self._call("GET", f"/api/v1/spaces/{_part(space_id)}/devices", DevicesAnswer)

    # Sync

    async def push(self, space_id: str, request: PushRequest) -> PushAnswer:
        """Push a batch of changes."""
        path = f"/api/v1/spaces/{_part(space_id)}/changes"
        return await self._call("POST", path, PushAnswer, body=request)

    async def pull(self, space_id: str, after: int, limit: int) -> PullAnswer:
        """Return the changes after a cursor."""
        path = f"/api/v1/spaces/{_part(space_id)}/changes"
        return await self._call("GET", path, PullAnswer, query={"after": after, "limit": limit})

    async def state(self, space_id: str, page: str | None = None) -> StateAnswer:
        """Return one page of a space's merged records."""
        path = f"/api/v1/spaces/{_part(space_id)}/records"
        return await self._call("GET", path, StateAnswer, query={"page": page})

    async def record_state(self, space_id: str, table: str, record_id: str) -> StateAnswer:
        """Return one merged record of a space, or none."""
        place = f"{_part(space_id)}/records/{_part(table)}/{_part(record_id)}"
        return await self._call("GET", f"/api/v1/spaces/{place}", StateAnswer)

    @asynccontextmanager
    async def live(self) -> AsyncIterator[AsyncIterator[LiveEvent]]:
        """Lend the live stream: `async with hub.live() as events`. It ends with the token."""
        token = await self._token(None)
        response = await self._begin_live(token)
        if response.status_code == 401:
            await response.aclose()
            response = await self._begin_live(await self._token(token))
        try:
            if response.status_code != 200:
                raise self._error(await self._read(response), response.status_code)
            yield _events(response)
        finally:
            await response.aclose()

    # Grants, missions, audit

    async def runner(self) -> RunnerInfo:
        """Return the runner's public keys and models."""
        return await self._call("GET", "/api/v1/runner", RunnerInfo)

    async def request_grant(self, request: GrantRequest) -> GrantHeader:
        """Ask for the header of a grant. The caller checks that it is what was asked for."""
        path = "/api/v1/me/ai-mission-grant"
        answer = await self._call("POST", path, GrantHeaderAnswer, body=request)
        return header_from_wire(answer.header)

    async def complete_grant(self, grant_id: str, completion: GrantCompletion) -> None:
        """Hand over the sealed keys of a grant."""
        path = f"/api/v1/me/ai-mission-grant/{_part(grant_id)}/complete"
        await self._do("POST", path, body=completion)

    async def grants(self) -> list[GrantInfo]:
        """Return the grants of this account, newest first."""
        return (await self._call("GET", "/api/v1/me/ai-mission-grants", GrantsAnswer)).grants

    async def end_grant(self, grant_id: str, word: RevokeGrant) -> None:
        """End a grant for ever, by a device's signed word."""
        await self._do("POST", f"/api/v1/me/ai-mission-grant/{_part(grant_id)}/revoke", body=word)

    async def revoke_grant(self, grant_id: str) -> None:
        """End a grant for ever."""
        await self._do("DELETE", f"/api/v1/me/ai-mission-grant/{_part(grant_id)}")

    async def run_mission(self, space_id: str, mission_id: str) -> OccurrenceInfo:
        """Ask for an occurrence now."""
        return await self._call("POST", f"{_mission(space_id, mission_id)}/run", OccurrenceInfo)

    async def missions(self) -> MissionsAnswer:
        """Return the schedule of the account's missions."""
        return await self._call("GET", "/api/v1/me/missions", MissionsAnswer)

    async def stop_mission(self, space_id: str, mission_id: str) -> None:
        """End the run of a mission that the hub's runner works on, if there is one."""
        await self._do("POST", f"{_mission(space_id, mission_id)}/stop")

    async def resume_mission(self, space_id: str, mission_id: str) -> None:
        """Let a mission run again that failed too often in a row."""
        await self._do("POST", f"{_mission(space_id, mission_id)}/resume")

    async def work(self) -> WorkState:
        """Return whether anything runs for the account, and its caps and use of 24 hours."""
        return await self._call("GET", "/api/v1/me/ai-work", WorkState)

    async def set_work(self, wanted: SetWork) -> WorkState:
        """Stop everything of the account or let it go on, and set its caps."""
        return await self._call("PUT", "/api/v1/me/ai-work", WorkState, body=wanted)

    async def usage(self, days: int) -> UsageAnswer:
        """Return the ledger of tokens and costs by the hour, of so many days."""
        query: dict[str, str | int | None] = {"days": days}
        return await self._call("GET", "/api/v1/me/ai-usage", UsageAnswer, query=query)

    async def reserve_tokens(
        self, space_id: str, mission_id: str, wanted: ReserveTokens
    ) -> ReservedTokens:
        """Reserve tokens for a run on this device; raise BudgetExceeded or PriceUnknown."""
        path = f"{_mission(space_id, mission_id)}/reservations"
        return await self._call("POST", path, ReservedTokens, body=wanted)

    async def settle_tokens(
        self, space_id: str, mission_id: str, reservation_id: str, used: SettleTokens
    ) -> None:
        """Replace a reservation by what was used; a second time changes nothing."""
        path = f"{_mission(space_id, mission_id)}/reservations/{_part(reservation_id)}/settle"
        await self._do("POST", path, body=used)

    async def notifications(self) -> NotifyState:
        """Return whether the hub writes letters when something waits."""
        return await self._call("GET", "/api/v1/me/notifications", NotifyState)

    async def set_notifications(self, wanted: SetNotify) -> NotifyState:
        """Give or confirm an address for letters, or switch them on or off."""
        return await self._call("PUT", "/api/v1/me/notifications", NotifyState, body=wanted)

    async def audit(
        self,
        *,
        mission_id: str | None = None,
        table: str | None = None,
        status: str | None = None,
        since: str | None = None,
        until: str | None = None,
        before: int | None = None,
        limit: int = 200,
    ) -> AuditAnswer:
        """Return the runner's readings, newest first; `since` and `until` are ISO moments."""
        query: dict[str, str | int | None] = {
            "missionId": mission_id,
            "table": table,
            "status": status,
            "since": since,
            "until": until,
            "before": before,
            "limit": limit,
        }
        try:
            async with asyncio.timeout(AUDIT_PATIENCE_S):
                return await self._call("GET", "/api/v1/me/ai-audit", AuditAnswer, query=query)
        except TimeoutError as error:
            raise Offline("the hub cannot be reached") from error

    # The transport

    async def _open_call(self, path: str, body: object, answer: type[_T]) -> _T:
        return _read_answer(await self._open_do(path, body), answer)

    async def _open_do(self, path: str, body: object) -> bytes:
        raw, status = await self._send("POST", path, body=body, query={}, token=None)
        if status >= 300:
            raise self._error(raw, status)
        return raw

    async def _call(
        self,
        method: str,
        path: str,
        answer: type[_T],
        *,
        body: object | None = None,
        query: Mapping[str, str | int | None] | None = None,
    ) -> _T:
        return _read_answer(await self._ask(method, path, body=body, query=query), answer)

    async def _do(self, method: str, path: str, *, body: object | None = None) -> None:
        await self._ask(method, path, body=body)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: object | None = None,
        query: Mapping[str, str | int | None] | None = None,
    ) -> bytes:
        if self._held is not None and method != "GET" and path != _LOGOUT:
            raise self._held
        token = await self._token(None)
        for attempt in (1, 2):
            raw, status = await self._send(method, path, body=body, query=query or {}, token=token)
            if status == 401 and attempt == 1:
                error = self._error(raw, status)
                if isinstance(error, InvalidCredentials | DeviceRevoked | TwoFactorFailed):
                    raise error  # It is not the token that was refused: not asked a second time.
                token = await self._token(token)
                continue
            if status >= 300:
                raise self._error(raw, status)
            return raw
        raise Unauthenticated("the hub takes no token of this session")

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: object | None,
        query: Mapping[str, str | int | None],
        token: str | None,
    ) -> tuple[bytes, int]:
        if token is not None and not (token.isascii() and token.isprintable()):
            raise HubDistrusted("the hub's access token is none")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        content: bytes | None = None
        if body is not None:
            content = encode(body)
            headers["content-type"] = "application/json"
        asked = {name: str(value) for name, value in query.items() if value is not None}
        request = self._http.build_request(
            method, path, params=asked or None, content=content, headers=headers
        )
        try:
            response = await self._http.send(request, stream=True)
            try:
                return await self._read(response), response.status_code
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
            raise Offline("the hub cannot be reached") from error

    def _error(self, raw: bytes, status: int) -> ManaError:
        error = error_of(raw, status)
        if isinstance(error, DeviceRevoked) and self.on_revoked is not None:
            self.on_revoked()
        return error

    async def _read(self, response: httpx.Response) -> bytes:
        """Return the body, refusing more than a device can hold."""
        out = bytearray()
        try:
            async for piece in response.aiter_bytes():
                out += piece
                if len(out) > self._answer_bytes_max:
                    raise TooLarge("the hub's answer is larger than this device takes")
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Offline("the connection to the hub broke") from error
        return bytes(out)

    async def _begin_live(self, token: str) -> httpx.Response:
        request = self._http.build_request(
            "GET",
            "/api/v1/live",
            headers={"authorization": f"Bearer {token}", "accept": "text/event-stream"},
            timeout=httpx.Timeout(10.0, read=LIVE_SILENCE_S),
        )
        try:
            return await self._http.send(request, stream=True)
        except (httpx.HTTPError, OSError) as error:
            raise Offline("the hub cannot be reached") from error

    async def _token(self, stale: str | None) -> str:
        """Return an access token other than `stale`, from a refresh or a new log-in."""
        if self._access is not None and self._access != stale:
            return self._access
        if self._session is None:
            raise Unauthenticated("nobody is signed in")
        async with self._signing_in:
            if self._access is not None and self._access != stale:
                return self._access
            async with self._session.exclusively():
                tokens = await self._new_tokens(self._session)
                # Kept before it is used: the old refresh token has ended on the hub already.
                await self._session.keep(tokens)
            self._access = tokens.access_token
            return self._access

    async def _new_tokens(self, session: Session) -> Tokens:
        kept = await session.refresh_token()
        if kept is not None:
            request = RefreshRequest(refresh_token=kept)
            try:
                return await self._open_call("/api/v1/auth/refresh", request, Tokens)
            except (Unavailable, TooLarge, DeviceRevoked):
                # A device that was revoked does not sign in anew without a person's word.
                raise
            except ManaError as error:
                if not isinstance(error, Unauthenticated | Invalid):
                    raise
        credentials = session.credentials()
        if credentials is None:
            raise SessionEnded("the session has ended")
        if self._refused is not None and credentials == self._refused[0]:
            # Each attempt counts: whoever signs in with password and factor must not wait for it.
            raise self._refused[1]("the hub has refused this login key by itself before")
        if self._limited is not None and self._monotonic() < self._limited[1]:
            # Asked again meanwhile, the limit would never end for the person either.
            raise self._limited[0]
        try:
            tokens = await self.login(*credentials)
        except RateLimited as error:
            self._limited = (error, self._monotonic() + _wait_s(error))
            raise
        except (InvalidCredentials, TwoFactorRequired) as error:
            self._refused = (credentials, type(error))
            raise
        await self._tie(tokens)
        return tokens

    async def _tie(self, tokens: Tokens) -> None:
        """Tie a session that has just begun to this device, before it is used or kept."""
        if self.certificate is None:
            return
        path, body = "/api/v1/me/devices", self.certificate()
        raw, status = await self._send("POST", path, body=body, query={}, token=tokens.access_token)
        if status < 300:
            return
        error = self._error(raw, status)
        # Else it is certified by an identity that another device has changed: it is to follow.
        if isinstance(error, DeviceRevoked | Unavailable):
            raise error


def jittered(
    attempt: int,
    *,
    first_s: float = 0.5,
    most_s: float = 60.0,
    chance: Callable[[], float] = random.random,
) -> float:
    """Return how long to wait before the next attempt, so that devices do not come at once."""
    whole: float = min(most_s, first_s * 2.0 ** min(attempt, 16))
    return whole * (0.5 + chance() / 2)


def _read_answer(raw: bytes, answer: type[_T]) -> _T:
    try:
        return decode(raw, answer)
    except Invalid as error:
        raise HubDistrusted("the hub's answer is malformed", detail=error.detail) from None


def _part(text: str) -> str:
    return quote(text, safe="")


def _mission(space_id: str, mission_id: str) -> str:
    return f"/api/v1/spaces/{_part(space_id)}/missions/{_part(mission_id)}"


async def _events(response: httpx.Response) -> AsyncIterator[LiveEvent]:
    name, data, size = "message", [], 0
    lines = response.aiter_lines()
    while True:
        try:
            line = await anext(lines, None)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Offline("the live stream broke") from error
        if line is None:
            return
        size += len(line)
        if size > _EVENT_BYTES_MAX:
            raise HubDistrusted("an event of the hub is larger than any that it sends")
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].strip())
        elif not line:
            if name != "message" or data:
                yield LiveEvent(name, _event_data("\n".join(data)))
            if name == "bye":
                return
            name, data, size = "message", [], 0
        elif line.startswith(":"):
            size = 0


def _event_data(text: str) -> dict[str, Json]:
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise HubDistrusted("an event of the hub is malformed") from None
