"""Grants as the device makes them: exactly what was shown, sealed for exactly that runner.

The hub writes the header; the device believes none of it. Each member is compared with what
was asked, and the runner's key is the one whose fingerprint the consent showed.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from mana.crypto.envelope import is_envelope, parse_envelope
from mana.crypto.grants import GrantHashes, end_grant, seal_grant
from mana.crypto.primitives import b64, unb64
from mana.crypto.runners import RunnerPublicKey
from mana.device.caps import caps_agreed, caps_as_set, caps_raised, granted_caps
from mana.device.consent import consent_lines
from mana.device.granted_models import GrantedModels, granted_models
from mana.device.hub_news import HubNews
from mana.device.models import own_model
from mana.device.opened import InputPrivate, Opened, stamp_ms
from mana.device.records import RecordBook
from mana.device.trust import Trust
from mana.device.views import Cited, Consent, GrantView
from mana.device.writing import Write
from mana.domain.agents import AGENT_MEMORY, AGENTS, OWN_MODEL, Agent
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import DRIFT_MS_MAX, parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import (
    Conflict,
    CryptoFailed,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from mana.domain.grants import (
    LIFE_MS_MAX,
    LIFE_MS_MIN,
    SUITES,
    GrantCaps,
    GrantHeader,
    check_scope,
    clamp_life,
    header_from_wire,
)
from mana.domain.ids import RecordId
from mana.domain.missions import MISSIONS, InputRef, Mission
from mana.domain.settings import MODELS
from mana.models.addresses import OwnEndpointRefused
from mana.models.choose import ModelUnknown
from mana.protocol.errors import ZeroKnowledgeActive
from mana.protocol.messages import (
    GrantCompletion,
    GrantInfo,
    GrantRequest,
    RevokeGrant,
    RunnerInfo,
    Signature,
)

DAY_MS: Final = 24 * 60 * 60 * 1_000
DAYS_MAX: Final = LIFE_MS_MAX // DAY_MS
RENEWED_MS_SHORTER: Final = 1_000
"""How much sooner than the old one a grant that is minted anew ends, at least."""
BEGUN: Final = "grants-begun"
KEYS: Final = "grant-keys"
OWN_MODELS: Final = "grant-models"
KEYS_MAX: Final = 500
UNVERIFIED: Final = "No device of its grantor is known to have signed it. Nothing of it is obeyed."
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
    model_digest: str = ""
    """Of the person's own model, whose key goes along; empty without one."""
    caps: GrantCaps | None = None
    """What may be spent in a day, whatever other members set; None where there are none."""
    until_ms: int | None = None
    """The latest end, where a grant is minted anew; else the life alone bounds it."""


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
        """Return the consent of a grant; what it shows is what `grant` is held to.

        Raises ZeroKnowledgeActive where the person allows no grants from this vault.
        """
        mission = await self._opened.mission(mission_id)
        self._opened.book.require_writable(MISSIONS, mission_id)
        self._require_allowed()
        agent = await self._opened.agent(mission.agent_id)
        life_ms = _life(days)
        refs = _distinct(mission.inputs if inputs is None else inputs)
        records = await self._cited(refs)
        runner, info = await self._runner()
        granted = await self._models(agent, info)
        models = granted.views
        caps = self._caps(mission, agent)
        self._shown[mission_id] = _shown(mission, refs, granted, runner.key_id(), life_ms, caps)
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
                new_runner=await self._trust.succession(runner, info) is None,
                successor=bool(await self._trust.succession(runner, info)),
                shared=self._opened.book.keys.shared,
                caps=caps,
                currency=await self._news.currency(),
            ),
        )

    async def grant(self, mission_id: str, *, days: int = 7) -> GrantView:
        """Grant the mission's inputs.

        Raises ConsentStale if anything is not as the last consent showed it, HeaderRefused if
        the hub's header is not what was asked, InputGone and NothingToGrant, and
        ZeroKnowledgeActive where the person allows no grants from this vault.
        """
        opened = self._opened
        mission = await opened.mission(mission_id)
        opened.book.require_writable(MISSIONS, mission_id)
        agent = await opened.agent(mission.agent_id)
        life_ms = _life(days)
        refs = _distinct(mission.inputs)
        await self._cited(refs)
        runner, info = await self._runner()
        granted = await self._models(agent, info)
        caps = self._caps(mission, agent)
        asked = _shown(mission, refs, granted, runner.key_id(), life_ms, caps)
        shown = self._shown.get(mission_id)
        if shown is None and await self._trust.succession(runner, info) is None:
            raise ConsentStale("the runner is another, and no consent showed it")
        if shown is not None and not _within(asked, shown):
            raise ConsentStale("the consent showed something else")
        await self._ensure_memory(agent.id)
        # The hub grants for a mission that it has, as it is here.
        await opened.book.sync_now()
        if self._caps(await opened.mission(mission_id), await opened.agent(agent.id)) != caps:
            raise ConsentStale("a limit of a day is another by now")
        header = await self._header(mission_id, asked)
        made = await self._complete(mission, header, runner, granted)
        self._shown.pop(mission_id, None)
        return await self._view(made, header, info)

    async def mint_anew(self) -> int:
        """Mint anew, as far as nobody needs to be asked, what a change of keys made stale.

        The runner's key, where one that this person granted to signed the new one, or the space's
        key, once everything of the grant stands under it; also a cap that the person raised
        themselves. Same mission, records and endpoints, to an end that is no later. Returns how
        many were minted.
        """
        opened, count = self._opened, 0
        missions = await opened.book.views(MISSIONS.name) if opened.book.may_write else []
        named = {view.text("grantId") for view in missions} - {""}
        if not named or not self._is_allowed():
            return 0
        runner, info = await self._runner()
        succession = await self._trust.succession(runner, info)
        if succession is None:
            return 0
        if succession:
            await self._trust.remember_runners(succession)
        begun = await self._begun()
        named |= {begun[one] for one in named & set(begun)}
        for grant in await self._news.grants():
            try:
                header = header_from_wire(grant.header)
            except Invalid:
                continue
            is_own = (header.account_id, header.space_id) == (opened.account_id, opened.space)
            if grant.state != "active" or not is_own or header.grant_id not in named:
                continue
            if not await self._trust.verified(grant, header) or self._trust.ended(grant, header):
                continue
            count += await self._renewed(header, runner, info)
        return count

    async def _renewed(self, old: GrantHeader, runner: RunnerPublicKey, info: RunnerInfo) -> bool:
        """Mint one grant anew if its keys are not those of now; say whether that was done."""
        try:
            mission = await self._opened.mission(old.mission_id)
            agent = await self._opened.agent(mission.agent_id)
            granted = await self._models(agent, info)
            caps = (
                None
                if old.caps is None
                else await caps_agreed(self._opened, mission, agent, old.caps)
            )
            is_raised = caps is not None and old.caps is not None and caps.within(old.caps) != caps
            if not is_raised and not await self._is_outdated(old, runner, granted):
                return False
            refs = [ref for ref in _distinct(mission.inputs) if ref.key in set(old.record_ids)]
            await self._cited(refs)
        except (NotFound, Conflict, Invalid):
            return False  # ModelUnknown and OwnEndpointRefused among them: the person is asked.
        fits = (
            old.grant_id in (mission.grant_id, (await self._begun()).get(mission.grant_id or ""))
            and mission.agent_id == old.agent_id
            and {ref.key for ref in refs} == set(old.record_ids)
            and set(old.endpoints) == set(granted.endpoints)
        )
        until_ms = parse_iso_ms(old.expires_at) - RENEWED_MS_SHORTER
        left_ms = until_ms - self._opened.now_ms()
        if not fits or left_ms < LIFE_MS_MIN:
            return False
        asked = Shown(
            old.agent_id,
            old.record_ids,
            old.endpoints,
            runner.key_id(),
            left_ms,
            caps=caps,
            until_ms=until_ms,
        )
        try:
            header = await self._header(mission.id, asked)
        except HeaderRefused:
            # The hub's clock is ahead of this one's: what is left, by its own.
            hub_ms = await self._hub_ms(mission.id, asked)
            asked = replace(asked, life_ms=min(left_ms, until_ms - hub_ms - RENEWED_MS_SHORTER))
            if asked.life_ms < LIFE_MS_MIN:
                return False
            header = await self._header(mission.id, asked)
        # A crash may leave the mission naming what was never completed: then this goes on.
        await self._opened.book.keep(BEGUN, {**await self._begun(), header.grant_id: old.grant_id})
        try:
            await self._complete(mission, header, runner, granted, replaces=old.grant_id)
        except Conflict:
            return False  # Something else was granted or revoked meanwhile, and stands.
        begun = await self._begun()
        await self._opened.book.keep(
            BEGUN, {new: before for new, before in begun.items() if before != old.grant_id}
        )
        return True

    async def _begun(self) -> dict[str, str]:
        """Return what was to replace which grant and is not known to have done so."""
        kept = await self._opened.book.kept(BEGUN)
        return {new: str(old) for new, old in kept.items()} if isinstance(kept, dict) else {}

    async def _standing(self, since: GrantHeader) -> str | None:
        """Return the grant of the same mission that is in force, this one or a later one."""
        for info in await self._news.grants():
            try:
                header = header_from_wire(info.header)
            except Invalid:
                continue
            is_its = (header.space_id, header.mission_id) == (since.space_id, since.mission_id)
            is_older = parse_iso_ms(header.issued_at) < parse_iso_ms(since.issued_at)
            if info.state != "active" or not is_its or is_older:
                continue
            if await self._trust.verified(info, header):
                return header.grant_id
        return None

    async def _header(self, mission_id: str, asked: Shown) -> GrantHeader:
        """Ask for a header and return it if it is exactly that; raise HeaderRefused."""
        answer = await self._opened.hub.request_grant(self._request(mission_id, asked))
        return self.verified_header(answer, mission_id, asked)

    async def _hub_ms(self, mission_id: str, asked: Shown) -> int:
        """Return the clock by which the hub dates a grant."""
        shorter = replace(asked, life_ms=LIFE_MS_MIN)
        answer = await self._opened.hub.request_grant(self._request(mission_id, shorter))
        return parse_iso_ms(answer.issued_at)

    def _request(self, mission_id: str, asked: Shown) -> GrantRequest:
        return GrantRequest(
            mission_id=mission_id,
            tables=_tables(asked.record_ids),
            record_ids=builtins.list(asked.record_ids),
            endpoints=builtins.list(asked.endpoints),
            ttl_ms=asked.life_ms,
            space_id=self._opened.space,
            agent_id=asked.agent_id,
            suite=SUITE,
            caps=None if asked.caps is None else granted_caps(asked.caps),
        )

    def _caps(self, mission: Mission, agent: Agent) -> GrantCaps | None:
        """Return what a grant says of caps: where others may set them, what they are now."""
        return caps_as_set(mission, agent) if self._opened.book.keys.shared else None

    async def _complete(
        self,
        mission: Mission,
        header: GrantHeader,
        runner: RunnerPublicKey,
        granted: GrantedModels,
        *,
        replaces: str | None = None,
    ) -> GrantInfo:
        """Seal a grant, let the mission name it, and complete it.

        The mission names it first, because the runner opens none that its record does not name.
        If the hub refuses it, the record names again what it named before.
        """
        opened = self._opened
        self._require_allowed()
        payload = await self._payload(header)
        if granted.own is not None:
            payload["model"] = granted.own.to_wire()
        sealed = seal_grant(
            header.canonical(),
            header.mission_id,
            payload,
            runner=runner.wrap_key(header.suite),
            device=_Hand(opened.book),
        )
        # Remembered before it counts: a run of it must be verifiable however this ends.
        await self._trust.remember(header, runner)
        _, version = await opened.book.mission_secret(header.mission_id)
        await self._remember(KEYS, header.grant_id, version)
        if granted.own is not None:
            await self._remember(OWN_MODELS, header.grant_id, granted.digest)
        await self._name(mission.id, header.grant_id)
        try:
            await opened.book.sync_now()
            done = GrantCompletion(
                wrapped_key=b64(sealed.wrapped_key),
                sealed_keys=sealed.sealed_keys,
                signature=Signature(signer=opened.device_id, value=b64(sealed.signature)),
                replaces=replaces,
            )
            await opened.hub.complete_grant(header.grant_id, done)
        except (Conflict, Invalid, Forbidden, NotFound):
            await self._name_again(mission, header)
            raise
        self._news.moved()
        hashes = GrantHashes.of(sealed)
        return GrantInfo(
            header=header.to_wire(),
            state="active",
            signature=done.signature,
            wrapped_key_hash=hashes.wrapped_key,
            sealed_keys_hash=hashes.sealed_keys,
        )

    def _is_allowed(self) -> bool:
        """Say whether the vault, as this device holds it, lets keys be granted."""
        return self._opened.book.inner().keeper.standing.grants

    def _require_allowed(self) -> None:
        # Not left to the hub, which would be the one to gain by it.
        if not self._is_allowed():
            raise ZeroKnowledgeActive("the person allows no grants from this vault")

    async def _name_again(self, mission: Mission, header: GrantHeader) -> None:
        """Let a mission name what is in force, after a grant that it names came to nothing.

        What somebody else let it name meanwhile stays.
        """
        self._news.moved()
        with contextlib.suppress(Unavailable, Unauthenticated):
            await self._opened.book.sync_now()
        if (await self._opened.mission(mission.id)).grant_id == header.grant_id:
            before = await self._listed(mission.grant_id) if mission.grant_id else None
            standing = await self._standing(before or header)
            await self._name(mission.id, standing or mission.grant_id)
            with contextlib.suppress(Unavailable, Unauthenticated):
                await self._opened.book.sync_now()

    async def _name(self, mission_id: str, grant_id: str | None) -> None:
        """Let a mission's record name its grant."""
        values: dict[str, Json] = {"grantId": grant_id}
        change = Change(MISSIONS.name, RecordId(mission_id), ChangeKind.UPDATE, values)
        await self._opened.book.commit([Write(change, self._opened.person)])

    async def _models(self, agent: Agent, info: RunnerInfo) -> GrantedModels:
        return granted_models(agent.model, info, await own_model(self._opened, agent.model))

    async def _model_trouble(self, header: GrantHeader, info: RunnerInfo) -> str:
        """Return why an active grant does not fit the agent's model; empty if it does."""
        agent = await self._opened.agent_or_none(header.agent_id)
        is_own = header.account_id == self._opened.account_id
        if agent is None or (agent.model.startswith(OWN_MODEL) and not is_own):
            return ""  # Which model another member brought, only their devices know.
        try:
            granted = await self._models(agent, info)
        except (ModelUnknown, OwnEndpointRefused):
            return "The agent's model is not one that the runner may call any more."
        if granted.views[0].endpoint not in header.endpoints:
            return "The agent or the runner now uses another model."
        if await self._has_moved(header, granted):
            return "Your own model was edited since; the runner still has it as it was."
        return ""

    async def _has_moved(self, header: GrantHeader, granted: GrantedModels) -> bool:
        """Say whether the person's own model is another than the one that a grant carries.

        Where another device made the grant: whether the model was edited since.
        """
        if granted.own is None:
            return False
        kept = await self._opened.book.kept(OWN_MODELS)
        known = kept.get(header.grant_id) if isinstance(kept, dict) else None
        if isinstance(known, str):
            return known != granted.digest
        view = await self._opened.book.view(MODELS.name, granted.own.id)
        return view is None or stamp_ms(view.written_at) > parse_iso_ms(header.issued_at)

    async def _is_outdated(
        self, header: GrantHeader, runner: RunnerPublicKey, granted: GrantedModels
    ) -> bool:
        """Say whether what a grant hands over is not that of now, and that of now is all there."""
        version = await self._key_version(header)
        _, current = await self._opened.book.mission_secret(header.mission_id)
        if version == current:
            moved = await self._has_moved(header, granted)
            return moved or header.runner_key_id != runner.key_id()
        names = [
            *header.record_ids,
            f"{MISSIONS.name}:{header.mission_id}",
            f"{AGENTS.name}:{header.agent_id}",
            f"{AGENT_MEMORY.name}:{header.agent_id}",
        ]
        for name in names:
            table, _, record_id = name.partition(":")
            if not await self._is_under_newest(table, record_id):
                return False  # Re-sealing goes on; the grant is minted when it has come by.
        return True

    async def _is_under_newest(self, table: str, record_id: str) -> bool:
        """Say whether everything sealed of a record stands under the key that a grant hands over."""
        book = self._opened.book
        space = book.space_of(table)
        held = await book.inner().replica.read(lambda tx: tx.held(space, table, record_id))
        if held is None:
            return True
        _, opens = await book.record_secret(table, record_id)
        sealed = [
            parse_envelope(entry.value)
            for entry in held.record.entries.values()
            if isinstance(entry.value, str) and is_envelope(entry.value)
        ]
        return all(f"{one.cls}{one.version}" == opens for one in sealed)

    async def _key_version(self, header: GrantHeader) -> str:
        """Return the version of the space's key that a grant hands over, such as `m1`.

        Where another device made it: the one that was newest when it was issued.
        """
        kept = await self._opened.book.kept(KEYS)
        known = kept.get(header.grant_id) if isinstance(kept, dict) else None
        if isinstance(known, str):
            return known
        entries = self._opened.book.keys.entries
        issued_ms = parse_iso_ms(header.issued_at)
        before = [one for one in entries if parse_iso_ms(one.created_at) <= issued_ms]
        return f"m{(before or entries)[-1].key_version}"

    async def _remember(self, name: str, grant_id: str, value: str) -> None:
        kept = await self._opened.book.kept(name)
        known = {**kept, grant_id: value} if isinstance(kept, dict) else {grant_id: value}
        newest = builtins.list(known.items())[-KEYS_MAX:]
        await self._opened.book.keep(name, dict(newest))

    async def revoke(self, grant_id: str) -> None:
        """End a grant for ever; the hub must be reached, because it is the one that reads.

        The word is signed, so that nobody can take it back; only where the hub lists no such grant
        is it asked without.
        """
        header = await self._listed(grant_id)
        if header is None:
            await self._opened.hub.revoke_grant(grant_id)
        else:
            value = end_grant(_Hand(self._opened.book), grant_id, header.canonical())
            word = Signature(signer=self._opened.device_id, value=b64(value))
            await self._opened.hub.end_grant(grant_id, RevokeGrant(word))
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
        runner = await self._news.runner_info()
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
            shown.append(await self._view(info, header, runner))
        return shown

    async def _listed(self, grant_id: str) -> GrantHeader | None:
        """Return the header of a grant that the hub lists, as it is signed."""
        for info in await self._news.grants():
            try:
                header = header_from_wire(info.header)
            except Invalid:
                continue
            if header.grant_id == grant_id:
                return header
        return None

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
            ("caps", header.caps, asked.caps),
        )
        for name, found, wanted in facts:
            if found != wanted:
                raise HeaderRefused("the hub's header is another", detail={"member": name})
        late_ms = opened.now_ms() + asked.life_ms + DRIFT_MS_MAX
        if asked.until_ms is not None:
            late_ms = min(late_ms, asked.until_ms)
        if expires_ms - issued_ms > asked.life_ms or expires_ms > late_ms:
            raise HeaderRefused("the hub's header lives longer", detail={"member": "expiresAt"})
        return header

    async def _payload(self, header: GrantHeader) -> dict[str, Json]:
        """Return the keys that the grant hands over: its records, and what runs them."""
        book = self._opened.book
        records: dict[str, Json] = {}
        for name in header.record_ids:
            table, _, record_id = name.partition(":")
            records[name] = await self._secret(table, record_id)
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

    async def _view(
        self,
        info: GrantInfo,
        header: GrantHeader,
        runner: RunnerInfo | None,
    ) -> GrantView:
        pairs = [(table, record) for table, _, record in map(_split, header.record_ids)]
        titles = await self._opened.titles(pairs)
        state, reason = info.state, ""
        title, lower = "", ""
        if state == "active" and self._trust.ended(info, header):
            state = "revoked"
        if state == "active" and not await self._trust.verified(info, header):
            state, reason = "unverified", UNVERIFIED
        try:
            mission = await self._opened.mission(header.mission_id)
            title = mission.title
            if state == "active":
                reason = _other_name(mission, header)
                key_id = runner.key_id if runner is not None else None
                reason = reason or stale_reason(mission, header, key_id)
                if runner is not None:
                    reason = reason or await self._model_trouble(header, runner)
                reason = reason or await self._sealed_since(pairs)
                lower = await self._raised(mission, header)
        except (NotFound, Invalid):
            reason = "The mission is gone." if state == "active" else reason
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
            state="stale" if reason and state == "active" else state,
            stale_reason=reason or (lower if state == "active" else ""),
            account_id=header.account_id,
            own=header.account_id == self._opened.account_id,
        )

    async def _raised(self, mission: Mission, header: GrantHeader) -> str:
        """Return that another member raised a cap since; empty if nobody did."""
        agent = await self._opened.agent_or_none(header.agent_id)
        if agent is None or header.caps is None or header.account_id != self._opened.account_id:
            return ""
        name = await caps_raised(self._opened, mission, agent, header.caps)
        if name is None:
            return ""
        return (
            f"{name or 'Another member'} raised a limit of a day since. "
            "The one that you granted holds until you grant again."
        )

    async def _sealed_since(self, pairs: Sequence[tuple[str, str]]) -> str:
        """Return that an input was made private since it was granted; empty if none was."""
        views = [await self._opened.find(*pair) for pair in pairs]
        private = sum(view is None or not self._opened.may_be_input(view) for view in views)
        if not private:
            return ""
        count = "1 input was" if private == 1 else f"{private} inputs were"
        return f"{count} removed or made private since, and cannot be read."


def _other_name(mission: Mission, header: GrantHeader) -> str:
    """Return that a mission names another grant, which is the only one that opens."""
    if mission.grant_id == header.grant_id:
        return ""
    return "The mission names another grant, and this one is not opened."


def stale_reason(
    mission: Mission,
    header: GrantHeader,
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
    return ""


def _shown(
    mission: Mission,
    refs: Sequence[InputRef],
    granted: GrantedModels,
    runner_key_id: str,
    life_ms: int,
    caps: GrantCaps | None,
) -> Shown:
    return Shown(
        agent_id=mission.agent_id,
        record_ids=tuple(sorted(ref.key for ref in refs)),
        endpoints=granted.endpoints,
        runner_key_id=runner_key_id,
        life_ms=life_ms,
        model_digest=granted.digest,
        caps=caps,
    )


def _within(asked: Shown, shown: Shown) -> bool:
    """Say whether a grant is what was shown, or a shorter one."""
    return (
        asked.agent_id == shown.agent_id
        and asked.record_ids == shown.record_ids
        and asked.endpoints == shown.endpoints
        and asked.runner_key_id == shown.runner_key_id
        and asked.model_digest == shown.model_digest
        and asked.caps == shown.caps
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
