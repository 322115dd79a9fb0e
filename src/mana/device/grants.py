"""Grants as the device makes them: exactly what was shown, sealed for exactly that runner.

The hub writes the header; the device believes none of it. Each member is compared with what
was asked, and the runner's key is the one whose fingerprint the consent showed.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from mana.crypto.grants import seal_grant
from mana.crypto.primitives import b64, unb64
from mana.crypto.runners import RunnerPublicKey
from mana.device.consent import consent_lines
from mana.device.hub_news import HubNews, model_views
from mana.device.opened import InputPrivate, Opened
from mana.device.records import RecordBook
from mana.device.trust import Trust
from mana.device.views import Cited, Consent, GrantView, ModelView
from mana.device.writing import Write
from mana.domain.agents import AGENT_MEMORY, AGENTS
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import DRIFT_MS_MAX, parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, CryptoFailed, Invalid, ManaError, NotFound
from mana.domain.grants import (
    LIFE_MS_MAX,
    SUITES,
    GrantHeader,
    check_scope,
    clamp_life,
    header_from_wire,
)
from mana.domain.ids import RecordId
from mana.domain.missions import MISSIONS, InputRef, Mission
from mana.protocol.messages import (
    GrantCompletion,
    GrantInfo,
    GrantRequest,
    RunnerInfo,
    Signature,
)

DAY_MS: Final = 24 * 60 * 60 * 1_000
DAYS_MAX: Final = LIFE_MS_MAX // DAY_MS
SUITE: Final = SUITES[0]


class ConsentStale(Conflict):
    """Runner, models, agent, records or life are not those that the consent showed."""

    code: ClassVar[str] = "CONSENT_STALE"
    advice: ClassVar[str] = "Read the consent again; something in it has changed."


class HeaderRefused(CryptoFailed):
    """The hub answered with a grant that is not the one that was asked for."""

    code: ClassVar[str] = "GRANT_HEADER_REFUSED"
    advice: ClassVar[str] = "Nothing was granted. Ask whoever runs the hub."


class NothingToGrant(Invalid):
    """The mission looks at no record that can be granted."""

    code: ClassVar[str] = "NOTHING_TO_GRANT"
    advice: ClassVar[str] = "Choose at least one record as the mission's input."


class InputGone(Conflict):
    """An input of the mission was deleted, or cannot be read on this device."""

    code: ClassVar[str] = "INPUT_GONE"
    advice: ClassVar[str] = "Take it off the mission's inputs, or restore it."


@dataclass(frozen=True, slots=True)
class Shown:
    """What a consent said, as facts to compare a grant with."""

    agent_id: str
    record_ids: tuple[str, ...]
    endpoints: tuple[str, ...]
    runner_key_id: str
    life_ms: int


@dataclass(frozen=True, slots=True)
class _Hand:
    """This device's signature for a grant; the key itself stays in the vault."""

    book: RecordBook

    def sign(self, purpose: str, *parts: str | bytes) -> bytes:
        """Sign a statement: 64 bytes."""
        return unb64(self.book.sign(purpose, *parts).value)


class Grants:
    """The grants of the account's missions."""

    def __init__(self, opened: Opened, news: HubNews, trust: Trust) -> None:
        self._opened = opened
        self._news = news
        self._trust = trust
        self._shown: dict[str, Shown] = {}

    async def consent(
        self, mission_id: str, *, inputs: Sequence[InputRef] | None = None, days: int = 7
    ) -> Consent:
        """Return the consent of a grant; what it shows is what `grant` is held to."""
        mission = await self._opened.mission(mission_id)
        self._opened.book.require_writable(MISSIONS, mission_id)
        agent = await self._opened.agent(mission.agent_id)
        life_ms = _life(days)
        refs = _distinct(mission.inputs if inputs is None else inputs)
        records = await self._cited(refs)
        runner, info = await self._runner()
        models = model_views(info)
        self._shown[mission_id] = _shown(mission, refs, models, runner.key_id(), life_ms)
        return Consent(
            mission_id=mission.id,
            mission_title=mission.title,
            agent_name=agent.name,
            records=records,
            runner_fingerprint=runner.fingerprint(),
            models=models,
            days=days,
            lines=consent_lines(
                mission_title=mission.title,
                agent_name=agent.name,
                records=records,
                fingerprint=runner.fingerprint(),
                models=models,
                days=days,
                mode=self._opened.mode,
                new_runner=await self._is_new(runner.key_id()),
                shared=self._opened.book.keys.shared,
            ),
        )

    async def grant(self, mission_id: str, *, days: int = 7) -> GrantView:
        """Grant the mission's inputs.

        Raises ConsentStale if anything is not as the last consent showed it, HeaderRefused if
        the hub's header is not what was asked, InputGone and NothingToGrant.
        """
        opened = self._opened
        mission = await opened.mission(mission_id)
        opened.book.require_writable(MISSIONS, mission_id)
        agent = await opened.agent(mission.agent_id)
        life_ms = _life(days)
        refs = _distinct(mission.inputs)
        await self._cited(refs)
        runner, info = await self._runner()
        asked = _shown(mission, refs, model_views(info), runner.key_id(), life_ms)
        shown = self._shown.get(mission_id)
        if shown is None and await self._is_new(runner.key_id()):
            raise ConsentStale("the runner is another, and no consent showed it")
        if shown is not None and not _within(asked, shown):
            raise ConsentStale("the consent showed something else")
        await self._ensure_memory(agent.id)
        # The hub grants for a mission that it has, as it is here.
        await opened.book.sync_now()
        answer = await opened.hub.request_grant(
            GrantRequest(
                mission_id=mission.id,
                tables=_tables(asked.record_ids),
                record_ids=builtins.list(asked.record_ids),
                endpoints=builtins.list(asked.endpoints),
                ttl_ms=life_ms,
                space_id=opened.space,
                agent_id=agent.id,
                suite=SUITE,
            )
        )
        header = self.verified_header(answer, mission_id, asked)
        payload = await self._payload(header, refs)
        sealed = seal_grant(
            header.canonical(),
            header.mission_id,
            payload,
            runner=runner.wrap_key(header.suite),
            device=_Hand(opened.book),
        )
        # Remembered before it counts: a run of it must be verifiable however this ends.
        await self._trust.remember(header, runner)
        await opened.hub.complete_grant(
            header.grant_id,
            GrantCompletion(
                wrapped_key=b64(sealed.wrapped_key),
                sealed_keys=sealed.sealed_keys,
                signature=Signature(signer=opened.device_id, value=b64(sealed.signature)),
            ),
        )
        change = Change(
            MISSIONS.name, RecordId(mission.id), ChangeKind.UPDATE, {"grantId": header.grant_id}
        )
        await opened.book.commit([Write(change, opened.person)])
        self._shown.pop(mission_id, None)
        self._news.moved()
        made = GrantInfo(header=header.to_wire(), state="active")
        return await self._view(made, header, asked.endpoints, asked.runner_key_id)

    async def revoke(self, grant_id: str) -> None:
        """End a grant for ever; the hub must be reached, because it is the one that reads."""
        await self._opened.hub.revoke_grant(grant_id)
        self._news.moved()
        if not self._opened.book.may_write:
            return  # A viewer ends what they granted as a member; the hub holds the mission.
        for view in await self._opened.book.views(MISSIONS.name):
            if view.values.get("grantId") == grant_id:
                change = Change(MISSIONS.name, view.id, ChangeKind.UPDATE, {"grantId": None})
                await self._opened.book.commit([Write(change, self._opened.person)])

    async def revoke_for(self, mission_id: str) -> None:
        """End the active grants of a mission that is about to go."""
        for grant in await self.list():
            if grant.mission_id == mission_id and grant.state in ("active", "stale", "pending"):
                await self.revoke(grant.grant_id)

    async def list(self) -> builtins.list[GrantView]:
        """Return the grants of this space, newest first, those of other members too.

        Pending ones, which grant nothing, are left out.
        """
        infos = await self._news.grants()
        runner = await self._news.runner()
        endpoints = tuple(sorted(one.endpoint for one in runner.models)) if runner else None
        shown: builtins.list[GrantView] = []
        for info in infos:
            if info.state == "pending":
                continue
            try:
                header = header_from_wire(info.header)
            except Invalid:
                continue
            if header.space_id != self._opened.space:
                continue
            shown.append(
                await self._view(info, header, endpoints, runner.key_id if runner else None)
            )
        return shown

    async def of_mission(self, mission_id: str) -> GrantView | None:
        """Return the newest grant of a mission, whatever its state; None if it never had one."""
        return (await self.by_mission()).get(mission_id)

    async def by_mission(self) -> dict[str, GrantView]:
        """Return by mission the grant that is in force, else the newest."""
        found: dict[str, GrantView] = {}
        for grant in await self.list():
            known = found.get(grant.mission_id)
            better = known is not None and known.state not in ("active", "stale")
            if known is None or (better and grant.state in ("active", "stale")):
                found[grant.mission_id] = grant
        return found

    def verified_header(self, header: GrantHeader, mission_id: str, asked: Shown) -> GrantHeader:
        """Return the header if it is exactly what was asked for; raise HeaderRefused."""
        opened = self._opened
        issued_ms, expires_ms = parse_iso_ms(header.issued_at), parse_iso_ms(header.expires_at)
        facts: tuple[tuple[str, object, object], ...] = (
            ("accountId", header.account_id, opened.account_id),
            ("spaceId", header.space_id, opened.space),
            ("missionId", header.mission_id, mission_id),
            ("agentId", header.agent_id, asked.agent_id),
            ("recordIds", header.record_ids, asked.record_ids),
            ("tables", header.tables, tuple(_tables(asked.record_ids))),
            ("endpoints", header.endpoints, asked.endpoints),
            ("runnerKeyId", header.runner_key_id, asked.runner_key_id),
            ("suite", header.suite, SUITE),
        )
        for name, found, wanted in facts:
            if found != wanted:
                raise HeaderRefused("the hub's header is another", detail={"member": name})
        late_ms = opened.now_ms() + asked.life_ms + DRIFT_MS_MAX
        if expires_ms - issued_ms > asked.life_ms or expires_ms > late_ms:
            raise HeaderRefused("the hub's header lives longer", detail={"member": "expiresAt"})
        return header

    async def _payload(self, header: GrantHeader, refs: Sequence[InputRef]) -> dict[str, Json]:
        """Return the keys that the grant hands over: these records, and what runs them."""
        book = self._opened.book
        records: dict[str, Json] = {ref.key: await self._secret(ref.table, ref.id) for ref in refs}
        support: dict[str, Json] = {
            f"{MISSIONS.name}:{header.mission_id}": await self._secret(
                MISSIONS.name, header.mission_id
            ),
            f"{AGENTS.name}:{header.agent_id}": await self._secret(AGENTS.name, header.agent_id),
            f"{AGENT_MEMORY.name}:{header.agent_id}": await self._secret(
                AGENT_MEMORY.name, header.agent_id
            ),
        }
        key, version = await book.mission_secret(header.mission_id)
        return {
            "records": records,
            "support": support,
            "iterationKey": {"k": b64(key), "e": version},
        }

    async def _ensure_memory(self, agent_id: str) -> None:
        """Write an empty memory where there is none, so that the grant covers a later one."""
        if await self._opened.book.view(AGENT_MEMORY.name, agent_id) is None:
            values: dict[str, Json] = {"agentId": agent_id, "content": ""}
            change = Change(AGENT_MEMORY.name, RecordId(agent_id), ChangeKind.CREATE, values)
            await self._opened.book.commit([Write(change, self._opened.person)])

    async def _secret(self, table: str, record_id: str) -> Json:
        key, version = await self._opened.book.record_secret(table, record_id)
        return {"k": b64(key), "e": version}

    async def _cited(self, refs: Sequence[InputRef]) -> tuple[Cited, ...]:
        if not refs:
            raise NothingToGrant("the mission has no inputs")
        check_scope(_tables([ref.key for ref in refs]), [ref.key for ref in refs])
        found: builtins.list[Cited] = []
        for ref in refs:
            view = await self._opened.find(ref.table, ref.id)
            if view is None or view.deleted:
                raise InputGone("an input of the mission is gone", detail={"input": ref.key})
            if not self._opened.may_be_input(view):
                raise InputPrivate("an input of the mission is private", detail={"input": ref.key})
            found.append(Cited(ref.table, ref.id, self._opened.title(view)))
        return tuple(found)

    async def _runner(self) -> tuple[RunnerPublicKey, RunnerInfo]:
        """Return the hub's runner, its key id and fingerprint taken from the key itself."""
        info = await self._opened.hub.runner()
        try:
            key = RunnerPublicKey.from_pem(info.public_key)
        except ManaError as error:
            raise HeaderRefused("the runner's key is malformed") from error
        if key.key_id() != info.key_id:
            raise HeaderRefused("the runner's key is not the one that it is called by")
        if not info.models:
            raise HeaderRefused("the runner names no model")
        return key, info

    async def _is_new(self, key_id: str) -> bool:
        """Say whether earlier grants were made, and all to another runner."""
        # What the hub lists as earlier grants is the hub's word; this is the person's memory.
        known = await self._trust.granted_to()
        return bool(known) and key_id not in known

    async def _view(
        self,
        info: GrantInfo,
        header: GrantHeader,
        endpoints: Sequence[str] | None,
        runner_key_id: str | None,
    ) -> GrantView:
        pairs = [(table, record) for table, _, record in map(_split, header.record_ids)]
        titles = await self._opened.titles(pairs)
        state, reason = info.state, ""
        title = ""
        try:
            mission = await self._opened.mission(header.mission_id)
            title = mission.title
            if state == "active":
                reason = stale_reason(mission, header, endpoints, runner_key_id)
                reason = reason or await self._sealed_since(pairs)
        except (NotFound, Invalid):
            reason = "The mission is gone." if state == "active" else ""
        expires_ms = parse_iso_ms(header.expires_at)
        if state == "active" and expires_ms <= self._opened.now_ms():
            state, reason = "expired", ""
        return GrantView(
            grant_id=header.grant_id,
            mission_id=header.mission_id,
            mission_title=title,
            titles=tuple(titles[pair] or "(not on this device)" for pair in pairs),
            endpoints=header.endpoints,
            issued_ms=parse_iso_ms(header.issued_at),
            expires_ms=expires_ms,
            state="stale" if reason else state,
            stale_reason=reason,
            account_id=header.account_id,
            own=header.account_id == self._opened.account_id,
        )

    async def _sealed_since(self, pairs: Sequence[tuple[str, str]]) -> str:
        """Return that an input was made private since it was granted; empty if none was."""
        views = [await self._opened.find(*pair) for pair in pairs]
        private = sum(view is None or not self._opened.may_be_input(view) for view in views)
        if not private:
            return ""
        count = "1 input was" if private == 1 else f"{private} inputs were"
        return f"{count} removed or made private since, and cannot be read."


def stale_reason(
    mission: Mission,
    header: GrantHeader,
    endpoints: Sequence[str] | None,
    runner_key_id: str | None,
) -> str:
    """Return why an active grant no longer fits its mission; empty if it does."""
    added = {ref.key for ref in mission.inputs} - set(header.record_ids)
    if added:
        return (
            "Inputs were added since: "
            + ("1 is" if len(added) == 1 else f"{len(added)} are")
            + (" not in the grant, and not read.")
        )
    if mission.agent_id != header.agent_id:
        return "The mission was given to another agent since."
    if runner_key_id is not None and runner_key_id != header.runner_key_id:
        return "The hub has a new runner key since."
    if endpoints is not None and not set(header.endpoints) & set(endpoints):
        return "The runner now uses another model."
    return ""


def _shown(
    mission: Mission,
    refs: Sequence[InputRef],
    models: Sequence[ModelView],
    runner_key_id: str,
    life_ms: int,
) -> Shown:
    return Shown(
        agent_id=mission.agent_id,
        record_ids=tuple(sorted(ref.key for ref in refs)),
        endpoints=tuple(sorted({model.endpoint for model in models})),
        runner_key_id=runner_key_id,
        life_ms=life_ms,
    )


def _within(asked: Shown, shown: Shown) -> bool:
    """Say whether a grant is what was shown, or a shorter one."""
    return (
        asked.agent_id == shown.agent_id
        and asked.record_ids == shown.record_ids
        and asked.endpoints == shown.endpoints
        and asked.runner_key_id == shown.runner_key_id
        and asked.life_ms <= shown.life_ms
    )


def _life(days: int) -> int:
    if not 1 <= days <= DAYS_MAX:
        raise Invalid(f"a grant lasts from 1 to {DAYS_MAX} days")
    return clamp_life(days * DAY_MS)


def _tables(record_ids: Sequence[str]) -> builtins.list[str]:
    return sorted({key.partition(":")[0] for key in record_ids})


def _split(key: str) -> tuple[str, str, str]:
    return key.partition(":")


def _distinct(refs: Sequence[InputRef]) -> tuple[InputRef, ...]:
    return tuple(dict.fromkeys(refs))
