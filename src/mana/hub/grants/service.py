"""Grants, run ledger and audit as the hub's people see them.

A header is made by the hub, completed by a device, countersigned here. Everything that the
runner will check again is checked here first, so that a person hears of it at once.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from mana.crypto.envelope import parse_json
from mana.crypto.errors import Malformed
from mana.crypto.grants import (
    GrantHashes,
    SealedGrant,
    countersign_grant,
    verify_grant,
    verify_grant_ended,
)
from mana.crypto.primitives import b64, unb64
from mana.crypto.runners import RunnerPublicKey
from mana.crypto.signatures import SigningKey
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, CryptoFailed, Forbidden, Invalid, NotFound, Unavailable
from mana.domain.grants import (
    SUITES,
    GrantCaps,
    GrantHeader,
    check_scope,
    clamp_life,
    header_from_wire,
)
from mana.domain.ids import (
    AccountId,
    AgentId,
    GrantId,
    MissionId,
    SpaceId,
    require_record_id,
    require_space_id,
    require_uuid,
)
from mana.domain.occurrences import ERRORED
from mana.hub.accounts.store import device_key
from mana.hub.grants.store import GrantStore, Register
from mana.hub.http.endpoints import Call
from mana.hub.runner import audit, scheduling
from mana.hub.runner.keys import CHAIN_FILE, read_chain, succession_to_wire
from mana.hub.runner.ledger import MissionSnapshot, RegisteredGrant
from mana.hub.runner.queue import status_of
from mana.hub.tenants import Tenant
from mana.hub.work.store import Place, Work
from mana.models.addresses import OwnModels, check_own_origin
from mana.protocol.errors import MissionErrored, RateLimited, WorkStopped, ZeroKnowledgeActive
from mana.protocol.messages import (
    AuditAnswer,
    GrantCompletion,
    GrantHeaderAnswer,
    GrantInfo,
    GrantRequest,
    GrantsAnswer,
    MissionsAnswer,
    MissionStatus,
    ModelInfo,
    OccurrenceInfo,
    RevokeGrant,
    RunnerInfo,
    RunnerSuccession,
    Signature,
)

GRANTS_MAX: Final = 500
LEDGER_MAX: Final = 20
WAITING_MAX: Final = 16
"""How many runs of one mission may be asked for by hand before the first of them begins."""
PENDING_MS_MAX: Final = 60 * 60 * 1_000


class GrantNotConfigured(Unavailable):
    """There is no runner to grant to."""

    code: ClassVar[str] = "GRANT_NOT_CONFIGURED"
    advice: ClassVar[str] = "Start `mana runner` once, or set MANA_AI_PUBLIC_KEY_PEM."


class VaultNotInitialised(NotFound):
    """The account has no personal space yet, so there is nothing to grant."""

    code: ClassVar[str] = "VAULT_NOT_INITIALISED"
    advice: ClassVar[str] = "Sign up on a device first."


class EndpointUnknown(Invalid):
    """An endpoint is not one that this hub's runner sends text to."""

    code: ClassVar[str] = "ENDPOINT_UNKNOWN"
    advice: ClassVar[str] = "Choose one of the models that the runner names."


class GrantRefused(Invalid):
    """What the device completed does not verify."""

    code: ClassVar[str] = "GRANT_REFUSED"
    advice: ClassVar[str] = "Ask for a new header and complete it with a registered device."


class GrantEnded(Conflict):
    """The grant is not pending any more."""

    code: ClassVar[str] = "GRANT_ENDED"
    advice: ClassVar[str] = "Ask for a new header."


class RunnerKeyFile:
    """The runner's public bundle: from the settings, or files that the runner leaves."""

    def __init__(self, path: Path, *, pem: str = "") -> None:
        self._path = path
        self._pem = pem.replace("\\n", "\n")
        self._seen: tuple[int, int, int] | None = None
        self._key: RunnerPublicKey | None = None

    def current(self) -> RunnerPublicKey:
        """Return the bundle, read again when the file changed; raise GrantNotConfigured."""
        try:
            if self._pem:
                if self._key is None:
                    self._key = RunnerPublicKey.from_pem(self._pem)
                return self._key
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if self._key is None or seen != self._seen:
                self._key = RunnerPublicKey.from_pem(self._path.read_text(encoding="ascii"))
                self._seen = seen
        except (OSError, UnicodeDecodeError, CryptoFailed):
            self._key = None
            raise GrantNotConfigured("no runner has left its public key") from None
        return self._key

    def before(self) -> list[RunnerSuccession]:
        """Return the keys that lead to the current one, newest first, as the runner left them."""
        if self._pem:
            return []
        return [succession_to_wire(word) for word in read_chain(self._path.with_name(CHAIN_FILE))]


@dataclass(frozen=True, slots=True)
class GrantService:
    """Makes, completes, lists and ends grants; answers for missions and the audit."""

    store: GrantStore
    runner: RunnerKeyFile
    hub_key: SigningKey = field(repr=False)
    models: tuple[ModelInfo, ...] = ()
    own_models: OwnModels = "off"
    place: Place = field(default_factory=Place)

    async def runner_info(self) -> RunnerInfo:
        """Return the runner's public keys and models; raise GrantNotConfigured without one."""
        key = self.runner.current()
        return RunnerInfo(
            key_id=key.key_id(),
            fingerprint=key.fingerprint(),
            public_key=key.to_pem(),
            models=list(self.models),
            succeeds=self.runner.before(),
            own_models=self.own_models != "off",
        )

    async def request(self, tenant: Tenant, asked: GrantRequest) -> GrantHeaderAnswer:
        """Return the header that a device may complete within an hour."""
        mission = require_record_id(asked.mission_id)
        if asked.space_id is not None:
            require_space_id(asked.space_id)
        if len(set(asked.record_ids)) != len(asked.record_ids):
            raise Invalid("a grant names each record once")
        check_scope(asked.tables, asked.record_ids)
        suite = asked.suite or SUITES[0]
        if suite not in SUITES:
            raise Invalid("grant suite is not known")
        endpoints = sorted(set(asked.endpoints))
        if not endpoints:
            raise Invalid("a grant names at least one model endpoint")
        self._check_endpoints(endpoints)
        async with self.store.register(tenant) as register:
            facts = await register.facts(asked.space_id)
            if facts is None:
                if asked.space_id is None:
                    raise VaultNotInitialised("the account has no personal space")
                raise NotFound("there is no such space")
            if not facts.grants:
                raise ZeroKnowledgeActive("the person allows no grants from this vault")
            if facts.role == "viewer" or facts.type == "user":
                raise Forbidden("the role may not grant in this space")
            key = self.runner.current()
            agent = await self._agent(register, facts.space_id, mission, asked.agent_id)
            records = sorted(asked.record_ids)
            pairs = [(name.partition(":")[0], name.partition(":")[2]) for name in records]
            if len(await register.standing(facts.space_id, pairs)) != len(records):
                raise NotFound("a record of the grant is not in this space")
            issued_ms = await register.now_ms()
            expires_ms = issued_ms + clamp_life(asked.ttl_ms)
            header = GrantHeader(
                grant_id=str(uuid.uuid4()),
                account_id=tenant.account,
                space_id=facts.space_id,
                mission_id=mission,
                agent_id=agent,
                tables=tuple(sorted(set(asked.tables))),
                record_ids=tuple(records),
                endpoints=tuple(endpoints),
                issued_at=iso_ms(issued_ms),
                expires_at=iso_ms(expires_ms),
                suite=suite,
                runner_key_id=key.key_id(),
                caps=None
                if asked.caps is None
                else GrantCaps(*msgspec.structs.astuple(asked.caps)),
            )
            header_from_wire(header.to_wire())
            await register.add(_pending(header, tenant.account, issued_ms, expires_ms))
        return GrantHeaderAnswer(header=header.to_wire())

    def _check_endpoints(self, endpoints: Sequence[str]) -> None:
        """Refuse endpoints that are not the runner's, but for one of the person's own."""
        theirs = {model.endpoint for model in self.models}
        others = [endpoint for endpoint in endpoints if endpoint not in theirs]
        if len(others) > 1 or (others and self.own_models == "off"):
            raise EndpointUnknown("an endpoint is not one of the runner's")
        for origin in others:
            check_own_origin(origin, self.own_models)

    async def _agent(
        self, register: Register, space: SpaceId, mission: str, asked: str | None
    ) -> str:
        """Return the agent of a mission; both must stand in this space."""
        found = (await register.standing(space, [("aiMissions", mission)])).get(
            ("aiMissions", mission)
        )
        if found is None or found.deleted:
            raise NotFound("there is no such mission in this space")
        agent = asked or found.agent_id
        if agent is None or (found.agent_id is not None and agent != found.agent_id):
            raise Invalid("the mission has no such agent")
        require_record_id(agent)
        standing = (await register.standing(space, [("agents", agent)])).get(("agents", agent))
        if standing is None or standing.deleted:
            raise NotFound("there is no such agent in this space")
        return agent

    async def complete(self, tenant: Tenant, grant_id: str, done: GrantCompletion) -> GrantInfo:
        """Verify what a device made of a header, countersign it, and schedule the mission."""
        require_uuid(grant_id, "grant id")
        async with self.store.register(tenant) as register:
            grant = await register.one_locked(grant_id)
            if grant is None or grant.account_id != tenant.account:
                raise NotFound("there is no such grant")
            now_ms = await register.now_ms()
            if grant.state != "pending" or now_ms - grant.created_ms > PENDING_MS_MAX:
                raise GrantEnded("the grant is not pending")
            role = await register.role(grant.space_id)
            if role is None or role == "viewer":
                raise Forbidden("the role may not grant in this space")
            if grant.runner_key_id != self.runner.current().key_id():
                raise GrantEnded("the runner has another key by now")
            sealed, hub_signature = await self._verified(register, grant, done)
            if done.replaces is not None:
                active = await register.active_grant(grant.space_id, grant.mission_id)
                if active != done.replaces:
                    raise GrantEnded("the mission has another grant by now")
            await register.activate(
                grant,
                wrapped_key=done.wrapped_key,
                sealed_keys=done.sealed_keys,
                signer=done.signature.signer,
                signature=done.signature.value,
                hub_signature=hub_signature,
                hashes=GrantHashes.of(sealed),
            )
            await scheduling.granted(
                register.ledger, grant.space_id, grant.mission_id, tenant.account
            )
            completed = await register.one_locked(grant_id)
        return _info(completed or grant)

    async def _verified(
        self, register: Register, grant: RegisteredGrant, done: GrantCompletion
    ) -> tuple[SealedGrant, str]:
        """Return a grant that a certified device made, and the hub's signature over it."""
        try:
            if not done.sealed_keys.startswith("gk:2:"):
                raise Malformed("not the form of sealed keys")
            sealed = SealedGrant(
                unb64(done.wrapped_key), done.sealed_keys, unb64(done.signature.value)
            )
            device = await device_key(register.tx, done.signature.signer, grant.account_id)
            header = grant.header.encode("utf-8")
            verify_grant(header, sealed, device=device)
            return sealed, b64(countersign_grant(self.hub_key, header, sealed))
        except CryptoFailed as error:
            raise GrantRefused("the grant does not verify", detail={"cause": error.code}) from None

    async def grants(self, tenant: Tenant) -> GrantsAnswer:
        """Return the grants of the account's spaces, newest first."""
        async with self.store.register(tenant) as register:
            await register.expire_seen()
            found = await register.visible(GRANTS_MAX)
        return GrantsAnswer(grants=[_info(grant) for grant in found])

    async def revoke(self, tenant: Tenant, grant_id: str, word: RevokeGrant | None = None) -> None:
        """End a grant for ever; one that has ended stays as it is, but takes the first signed word.

        Raises GrantRefused where the word is not signed by a device of this account.
        """
        require_uuid(grant_id, "grant id")
        async with self.store.register(tenant) as register:
            grant = await register.one_locked(grant_id)
            if grant is None:
                raise NotFound("there is no such grant")
            if grant.account_id != tenant.account:
                role = await register.role(grant.space_id)
                if role not in ("owner", "admin"):
                    raise Forbidden("the grant is another member's")
            if word is not None:
                await self._verify_word(register, tenant.account, grant, word)
            if grant.state in ("pending", "active"):
                await register.revoke(grant_id)
            if grant.state == "active":
                await scheduling.hold(register.ledger, grant.space_id, grant.mission_id, "revoked")
                await register.ledger.wake()
            if word is not None:
                signed = word.signature
                await register.add_revocation(grant_id, signer=signed.signer, value=signed.value)

    async def _verify_word(
        self, register: Register, account: AccountId, grant: RegisteredGrant, word: RevokeGrant
    ) -> None:
        """Raise GrantRefused unless a device of this account signed that this grant has ended."""
        try:
            device = await device_key(register.tx, word.signature.signer, account)
            header, value = grant.header.encode("utf-8"), unb64(word.signature.value)
            verify_grant_ended(grant.grant_id, header, value, device=device)
        except CryptoFailed as error:
            raise GrantRefused("the word does not verify", detail={"cause": error.code}) from None

    async def missions(self, tenant: Tenant) -> MissionsAnswer:
        """Return the schedules of the account's missions and today's use of tokens and money."""
        async with self.store.register(tenant) as register:
            await register.expire_seen()
            ledger = register.ledger
            spent = await ledger.spent_today()
            return MissionsAnswer(
                missions=await ledger.statuses(LEDGER_MAX),
                tokens_today={agent: one.tokens for agent, one in spent.items()},
                cost_today={agent: one.cost for agent, one in spent.items()},
                unconfirmed_tokens_today={
                    agent: one.unconfirmed_tokens for agent, one in spent.items()
                },
                unconfirmed_cost_today={
                    agent: one.unconfirmed_cost for agent, one in spent.items()
                },
                work=await Work(register.tx, self.place).state(),
            )

    async def run_now(self, tenant: Tenant, space_id: str, mission_id: str) -> OccurrenceInfo:
        """Queue an occurrence of this moment, once however often it is asked in a millisecond.

        Raises RateLimited where many wait already: who asks need not be who pays.
        """
        async with self._mission(tenant, space_id, mission_id) as (register, mission):
            ledger = register.ledger
            if not mission.runs_here:
                raise Conflict("the mission is not active on the hub")
            if mission.hold == ERRORED:
                raise MissionErrored("the mission failed too often in a row")
            work = await Work(register.tx, self.place).state()
            if work.hub_stopped or work.stopped_at is not None:
                raise WorkStopped("no mission runs while the work is stopped")
            if await register.waiting_by_hand(*mission.key) >= WAITING_MAX:
                raise RateLimited("as many runs of the mission as may wait have been asked for")
            now_ms = await ledger.now_ms()
            await ledger.enqueue(mission, now_ms, "manual")
            found = await ledger.occurrence_at(*mission.key, now_ms)
        if found is None:
            raise NotFound("there is no such occurrence")
        return found

    async def stop(self, tenant: Tenant, space_id: str, mission_id: str) -> MissionStatus:
        """Stop what runs of a mission now, and what waits by hand or for a retry."""
        async with self._mission(tenant, space_id, mission_id) as (register, mission):
            await register.ledger.stop_mission(*mission.key)
            return await self._status(register, mission)

    async def resume(self, tenant: Tenant, space_id: str, mission_id: str) -> MissionStatus:
        """Forget a mission's failures; one that they held is scheduled again."""
        async with self._mission(tenant, space_id, mission_id) as (register, mission):
            await scheduling.resume(register.ledger, mission)
            return await self._status(register, mission)

    async def _status(self, register: Register, before: MissionSnapshot) -> MissionStatus:
        ledger = register.ledger
        mission = await ledger.mission(*before.key) or before
        return status_of(mission, await ledger.occurrences(*mission.key, LEDGER_MAX))

    @contextlib.asynccontextmanager
    async def _mission(
        self, tenant: Tenant, space_id: str, mission_id: str
    ) -> AsyncIterator[tuple[Register, MissionSnapshot]]:
        """Lend a mission that nobody else changes meanwhile; raise NotFound or Forbidden."""
        space, key = require_space_id(space_id), MissionId(require_record_id(mission_id))
        async with self.store.register(tenant) as register:
            mission = await register.ledger.mission(space, key, lock=True)
            role = await register.role(space)
            if mission is None or mission.deleted or role is None:
                raise NotFound("there is no such mission in this space")
            if role == "viewer":
                raise Forbidden("the role may not run missions in this space")
            yield register, mission

    async def audit(self, call: Call) -> AuditAnswer:
        """Return the page of the account's audit that a call asks for, newest first."""
        account = call.tenant.account
        async with self.store.ledger(account) as ledger:
            return await audit.answer(ledger, account, call)


def _pending(
    header: GrantHeader, account: AccountId, issued_ms: int, expires_ms: int
) -> RegisteredGrant:
    return RegisteredGrant(
        grant_id=GrantId(header.grant_id),
        account_id=account,
        space_id=SpaceId(header.space_id),
        mission_id=MissionId(header.mission_id),
        agent_id=AgentId(header.agent_id),
        header=header.canonical().decode("utf-8"),
        suite=header.suite,
        runner_key_id=header.runner_key_id,
        state="pending",
        expired=False,
        expires_ms=expires_ms,
        created_ms=issued_ms,
    )


def _info(grant: RegisteredGrant) -> GrantInfo:
    return GrantInfo(
        header=_header(grant),
        state=grant.state,
        ended_at=None if grant.ended_ms is None else iso_ms(grant.ended_ms),
        signature=_signature(grant.signer, grant.signature),
        wrapped_key_hash=grant.wrapped_key_hash,
        sealed_keys_hash=grant.sealed_keys_hash,
        revocation=_signature(grant.revoker, grant.revocation),
    )


def _signature(signer: str | None, value: str | None) -> Signature | None:
    return None if signer is None or value is None else Signature(signer=signer, value=value)


def _header(grant: RegisteredGrant) -> dict[str, Json]:
    value = parse_json(grant.header.encode("utf-8"))
    if not isinstance(value, dict):
        raise Invalid("the header of a grant is an object")
    return value
