"""Which runs are to be obeyed: those of a runner that this person's devices granted to.

The hub lists grants, so it could list one that nobody made, for a runner of its own. A runner's
key therefore counts only if a device of this account sealed a grant for it: the ids of such keys
are kept in the person's own sealed settings, where the hub can neither read nor write them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mana.crypto.runners import RunnerPublicKey
from mana.device.editing import Editing
from mana.device.hub_news import HubNews
from mana.device.opened import Opened
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, ManaError, NotFound, Unauthenticated, Unavailable
from mana.domain.grants import GrantHeader, header_from_wire
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.records import View
from mana.domain.settings import SETTINGS, SETTINGS_ID

HEADERS: Final = "grant-headers"
RUNNERS: Final = "runner-keys"
GRANTED: Final = "granted-runners"
HEADERS_MAX: Final = 200
RUNNERS_MAX: Final = 6
_WORDS: Final = {
    "withheld": "A part of it is missing on the hub.",
    "record-withheld": "A part of it is missing on the hub.",
    "signer-unknown": "The device that signed it is not known here yet.",
    "signer-revoked": "The device that signed it was revoked before.",
    "signature-rejected": "Its signature does not hold.",
    "not-a-member": "Whoever signed it may not write in this space.",
    "no-grant": "The grant that it names is not known here.",
    "runner-unknown": "It was written by a runner that you did not grant to.",
    "foreign-agent": "It is signed for another mission or agent.",
    "foreign-grant": "Another member granted it: they approve it; only their devices know its runner.",
}


@dataclass(slots=True)
class Memory:
    """What the account remembers of grants and runners, the same in each of its spaces.

    None until it was read.
    """

    headers: dict[str, GrantHeader] | None = None
    runners: dict[str, RunnerPublicKey] | None = None


class Trust:
    """Verifies iterations; a verified one stays so until it or one of its steps is touched."""

    def __init__(
        self, opened: Opened, editing: Editing, news: HubNews, memory: Memory | None = None
    ) -> None:
        self._opened = opened
        self._editing = editing
        self._news = news
        self._memory = memory or Memory()
        self._verified: dict[str, tuple[int | None, ...]] = {}

    async def remember(self, header: GrantHeader, runner: RunnerPublicKey) -> None:
        """Keep a grant that this device sealed, and that its runner is one of this person's."""
        headers, runners = await self._known()
        headers[header.grant_id] = header
        runners[runner.key_id()] = runner
        await self._keep(headers, runners)
        granted = await self.granted_to()
        if runner.key_id() not in granted:
            granted = [*granted[1 - RUNNERS_MAX :], runner.key_id()]
            await self._opened.book.keep(GRANTED, [*granted])
        kept = await self.settings()
        shared = kept.get("runners")
        if not isinstance(shared, list) or runner.key_id() not in shared:
            await self._editing.write_settings({"auditHead": {**kept, "runners": [*granted]}})

    async def settings(self) -> dict[str, Json]:
        """Return what the person's devices remember together of runner and audit."""
        view = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        kept = view.values.get("auditHead") if view is not None else None
        return dict(kept) if isinstance(kept, dict) else {}

    async def verify(self, iteration: View) -> tuple[bool, str]:
        """Say whether a run is to be obeyed, else why not, as a sentence."""
        # Read first: what is touched while it is verified is looked at again.
        named = iteration.values.get("stepIds")
        steps = [(STEPS.name, str(one)) for one in (named if isinstance(named, list) else [])]
        marks = await self._opened.book.marks([(ITERATIONS.name, iteration.id), *steps])
        if self._verified.get(iteration.id) == marks:
            return True, ""
        if iteration.text("source") == "device":
            reason = await self._verify_own(iteration)
        else:
            reason = await self._verify_hub(iteration)
        if reason:
            self._verified.pop(iteration.id, None)
            return False, _WORDS.get(reason, f"Not verified: {reason}.")
        self._verified[iteration.id] = marks
        return True, ""

    async def _verify_own(self, iteration: View) -> str:
        book = self._opened.book
        if not await book.is_verified(ITERATIONS.name, iteration.id):
            return "signature-rejected"
        named = iteration.values.get("stepIds")
        for step_id in named if isinstance(named, list) else []:
            if not await book.is_verified(STEPS.name, str(step_id)):
                return "signature-rejected"
        return ""

    async def _verify_hub(self, iteration: View) -> str:
        proof = iteration.values.get("proof")
        if not isinstance(proof, dict):
            return "signature-rejected"
        grant_id, key_id = str(proof.get("grantId")), str(proof.get("keyId"))
        header = await self._header(grant_id)
        if header is None:
            return "no-grant"
        if header.account_id != self._opened.account_id:
            # A runner counts only where this person's devices sealed a grant for its key.
            return "foreign-grant"
        if header.runner_key_id != key_id or header.space_id != self._opened.space:
            return "foreign-agent"
        if header.mission_id != iteration.text("missionId"):
            return "foreign-agent"
        if key_id not in await self.granted_to():
            return "runner-unknown"
        runner = await self._runner(key_id)
        if runner is None:
            return "runner-unknown"
        verified, reason = await self._opened.book.iteration_verified(
            iteration.id, headers={grant_id: header}, runners={key_id: runner}
        )
        return "" if verified else reason or "signature-rejected"

    async def _header(self, grant_id: str) -> GrantHeader | None:
        headers, runners = await self._known()
        if grant_id not in headers:
            added = False
            for info in await self._news.grants():
                try:
                    header = header_from_wire(info.header)
                except Invalid:
                    continue
                added = added or header.grant_id not in headers
                headers.setdefault(header.grant_id, header)
            if added:
                await self._keep(headers, runners)
        return headers.get(grant_id)

    async def _runner(self, key_id: str) -> RunnerPublicKey | None:
        headers, runners = await self._known()
        if key_id not in runners:
            try:
                info = await self._opened.hub.runner()
                key = RunnerPublicKey.from_pem(info.public_key)
            except (Unavailable, Unauthenticated, NotFound):
                return None
            except ManaError:
                return None
            runners[key.key_id()] = key
            await self._keep(headers, runners)
        return runners.get(key_id)

    async def granted_to(self) -> list[str]:
        """Return the key ids of the runners that this person's devices granted to.

        What was once known here stays so: another device that had not read the settings yet, or
        was kept from them by the hub, may have written them without.
        """
        named, kept = (await self.settings()).get("runners"), await self._opened.book.kept(GRANTED)
        own = [str(key_id) for key_id in kept] if isinstance(kept, list) else []
        shared = [str(key_id) for key_id in named] if isinstance(named, list) else []
        granted = [*own, *(key_id for key_id in shared if key_id not in own)][-RUNNERS_MAX:]
        if granted != own:
            await self._opened.book.keep(GRANTED, [*granted])
        return granted

    async def _known(self) -> tuple[dict[str, GrantHeader], dict[str, RunnerPublicKey]]:
        memory = self._memory
        if memory.headers is None or memory.runners is None:
            headers: dict[str, GrantHeader] = {}
            kept = await self._opened.book.kept(HEADERS)
            for wire in kept if isinstance(kept, list) else []:
                try:
                    header = header_from_wire(wire)
                except Invalid:
                    continue
                headers[header.grant_id] = header
            runners: dict[str, RunnerPublicKey] = {}
            pems = await self._opened.book.kept(RUNNERS)
            for pem in pems if isinstance(pems, list) else []:
                try:
                    key = RunnerPublicKey.from_pem(str(pem))
                except ManaError:
                    continue
                runners[key.key_id()] = key
            memory.headers, memory.runners = headers, runners
        return memory.headers, memory.runners

    async def _keep(
        self, headers: dict[str, GrantHeader], runners: dict[str, RunnerPublicKey]
    ) -> None:
        newest = sorted(headers.values(), key=lambda header: header.issued_at)[-HEADERS_MAX:]
        await self._opened.book.keep(HEADERS, [header.to_wire() for header in newest])
        await self._opened.book.keep(RUNNERS, [key.to_pem() for key in runners.values()])
