"""All work of an account, stopped or not: the person's word, and that the hub has the same.

The word is a sealed setting in the person's own scope, so it holds on every device after its sync,
and offline on this one at once. The hub is told as soon as it can be reached, and told again when it
says something else. What the person does themselves goes on: approving, rejecting, editing.

What lets more happen on the hub is signed by this device, with all that holds from then on; the
newest such word that was seen is kept, and what the hub says is held against it. A stop by a session
alone is obeyed here, and stays until the person lets work go on at a device.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypedDict

import msgspec

from mana.crypto.authority import SignerUnknown
from mana.crypto.errors import Malformed
from mana.crypto.primitives import unb64
from mana.crypto.work import (
    PURPOSE,
    REVISIONS_AHEAD_MAX,
    Limits,
    WorkWord,
    is_hub_id,
    verify_work,
)
from mana.device.budgets import PATIENCE_S, Budgets
from mana.device.editing import Editing
from mana.device.hub_news import HubNews
from mana.device.known_hub import SHARED_HUB, KnownHub
from mana.device.opened import Opened
from mana.device.views import WorkView
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import (
    CryptoFailed,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.protocol.errors import WorkMoved, WorkStopped, WorkWordRefused
from mana.protocol.messages import SetWork, SignedWork, WorkState
from mana.protocol.replication import HubDistrusted

STOPPED_AT: Final = "workStoppedAt"
KEPT_WORD: Final = "work-word"
SHARED_WORD: Final = "workWord"
KEPT_LIFTED: Final = "work-lifted"
"""Since when work was stopped at the hub, as it says, where the person has let that go on."""
_ROUNDS: Final = 3
"""How often the hub is told in a row while it or the person's word moves."""


class Caps(TypedDict, total=False):
    """Caps of the account for a day; None removes one."""

    tokens_per_day_max: int | None
    cost_per_day_max: int | None


class Work:
    """Whether anything runs by itself for the account."""

    def __init__(
        self,
        opened: Opened,
        records: Editing,
        news: HubNews,
        budgets: Budgets,
    ) -> None:
        self._opened = opened
        self._records = records
        self._news = news
        self._budgets = budgets
        self._hub = KnownHub(opened, records)
        self._telling = asyncio.Lock()
        self._told: bool | None = None
        self._differs = False

    async def stopped_ms(self) -> int | None:
        """Return since when all work is stopped; None if it goes on."""
        own_ms = await self._own_ms()
        return own_ms if own_ms is not None else await self._braked_ms(await self._budgets.work())

    async def _own_ms(self) -> int | None:
        """Return since when the person has stopped all work by a word of their own."""
        view = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        said = view.text(STOPPED_AT) if view is not None else ""
        return _moment(said) if said else None

    async def require_going(self) -> None:
        """Raise WorkStopped while all work is stopped."""
        if await self.stopped_ms() is not None:
            raise WorkStopped("all work is stopped")

    async def stop(self) -> WorkView:
        """Stop all work, here at once and everywhere else as soon as they hear of it."""
        if await self._own_ms() is None:
            await self._records.write_settings({STOPPED_AT: self._opened.now_iso()})
        await self.tell()
        return await self.state()

    async def start(self) -> WorkView:
        """Let work go on, here and everywhere."""
        if await self._own_ms() is not None:
            await self._records.write_settings({STOPPED_AT: None})
        # Whoever stopped it at the hub: the person has seen that, and goes on.
        await self._opened.book.keep(KEPT_LIFTED, (await self._budgets.work()).stopped_at)
        await self.tell()
        return await self.state()

    async def set_caps(self, caps: Caps) -> WorkView:
        """Sign the named caps of the account, None to remove.

        Raises Offline without the hub, and HubChanged for another than was met before.
        """
        for cap in (caps.get("tokens_per_day_max"), caps.get("cost_per_day_max")):
            if cap is not None and cap < 0:
                raise Invalid("a cap is a whole number from 0, or none")
        async with self._telling:
            with contextlib.suppress(ManaError):
                # What another device signed holds in full, so it is read before it is replaced.
                await self._opened.book.sync_now()
            for left in reversed(range(_ROUNDS)):
                said = await self._opened.hub.work()
                word = await self._signed(said, lambda held: replace(held, **caps))
                if await self._braked_ms(said) is not None:
                    # What is signed now holds in full, so that stop becomes the person's own.
                    await self._records.write_settings({STOPPED_AT: said.stopped_at})
                try:
                    await self._heard(await self._opened.hub.set_work(word))
                    break
                except WorkMoved:
                    if not left:
                        raise
            await self._share()
        return await self.state()

    async def accept_hub(self, named: str) -> WorkView:
        """Take the hub for another from now on, by the beginning of its id; raise Offline, Invalid."""
        said = await self._opened.hub.work()
        await self._hub.accept(said.hub, named)
        await self.tell()
        self._news.moved()
        return await self.state()

    async def state(self) -> WorkView:
        """Return whether work goes on, what the hub says of it, and what was used."""
        said = await self._news.work()
        known = await (self._judged(said) if said is not None else self._budgets.work())
        stopped_ms = await self.stopped_ms()
        told = self._told
        if told is None and said is not None:
            told = said.stopped_at is not None
        used = await self._budgets.unreported_today()
        named = said.hub if said is not None and is_hub_id(said.hub) else ""
        return WorkView(
            stopped_ms=stopped_ms,
            hub_told=told is not None and told == (stopped_ms is not None),
            hub_stopped=known.hub_stopped,
            currency=known.currency,
            tokens_today=known.tokens_today + sum(held.counted for held in used),
            cost_today=known.cost_today + sum(held.cost_counted for held in used),
            unconfirmed_tokens_today=known.unconfirmed_tokens_today
            + sum(held.unconfirmed.total for held in used),
            unconfirmed_cost_today=known.unconfirmed_cost_today
            + sum(held.cost_unconfirmed for held in used),
            tokens_per_day_max=known.tokens_per_day_max,
            cost_per_day_max=known.cost_per_day_max,
            hub_tokens_per_day_max=known.hub_tokens_per_day_max,
            hub_cost_per_day_max=known.hub_cost_per_day_max,
            differs=self._differs,
            hub_known=await self._hub.known(),
            hub_said=named,
            hub_unnamed=said is not None and not named,
        )

    async def tell(self) -> None:
        """Tell the hub the person's word if it has another; nothing happens without the hub.

        It is asked before the newest settings are fetched: what it was told by another device was
        in the settings by then, so neither undoes what the other said.
        """
        async with self._telling:
            with contextlib.suppress(TimeoutError, Unavailable, Unauthenticated, NotFound):
                for _ in range(_ROUNDS):
                    async with asyncio.timeout(PATIENCE_S):
                        said = await self._opened.hub.work()
                    await self._heard(said)
                    await self._share()
                    if not await self._hub.meet(said.hub):
                        await self._brake(said)
                        return
                    if await self._is_told(said):
                        return
                    await self._opened.book.sync_now()
                    if await self._is_told(said):
                        return
                    stopped = await self._own_ms() is not None
                    async with asyncio.timeout(PATIENCE_S):
                        await self._say(said, stopped=stopped)

    async def _say(self, said: WorkState, *, stopped: bool) -> None:
        """Sign whether work goes on, and hand that to the hub; a stop holds also unsigned."""
        hub = self._opened.hub
        try:
            word = await self._signed(said, lambda held: replace(held, stopped=stopped))
            await hub.set_work(word)
        except WorkMoved:
            return  # It is asked again.
        except (WorkWordRefused, Forbidden):
            if not stopped:
                raise Unavailable("the hub takes no word of this device") from None
            await hub.set_work(SetWork(stopped=True))

    async def _brake(self, said: WorkState) -> None:
        """Stop, where the person has, the work of a hub that gets no word of theirs."""
        if said.stopped_at is None and await self._own_ms() is not None:
            await self._opened.hub.set_work(SetWork(stopped=True))
            self._told = True

    async def _share(self) -> None:
        """Let the person's other devices know of their hub and of the newest word, sealed.

        What they share is read first, for what is written here comes over it. Where a note waits or
        the hub refused one, none is written: there is one at most. What cannot be shared now is
        shared later, and keeps nobody from telling the hub.
        """
        with contextlib.suppress(ManaError):
            if (
                await self._unshared()
                and not await self._is_note_untaken()
                and await self._opened.book.is_read(SETTINGS.name)
                and not await self._is_note_untaken()
            ):
                notes = await self._unshared()
                if notes:
                    await self._records.write_settings(notes)

    async def _unshared(self) -> dict[str, Json]:
        """Return the notes that the person's settings do not have, or have older."""
        notes = await self._hub.unshared()
        known, shared = await self._kept_word(), await self._shared_word()
        if known is not None and (shared is None or shared.revision < known.revision):
            notes[SHARED_WORD] = known.to_wire()
        return notes

    async def _is_note_untaken(self) -> bool:
        """Say whether a note of this device waits, or was refused by the hub and is parked."""
        rows = await self._opened.book.untaken(SETTINGS.name, SETTINGS_ID)
        return any({SHARED_HUB, SHARED_WORD} & set(row.message.fields) for row in rows)

    async def _is_told(self, said: WorkState) -> bool:
        """Say whether the hub has the person's word, and what was signed of its caps."""
        stopped = await self._own_ms() is not None
        if stopped != (said.stopped_at is not None):
            return not stopped and await self._braked_ms(said) is not None
        return not self._differs or await self._is_unknown(said.signed)

    async def _braked_ms(self, said: WorkState) -> int | None:
        """Return since when a session alone has stopped work at the hub; None if none has.

        A stop that the person was shown and let go on from here is none any more.
        """
        is_signed = said.signed is not None and said.signed.word.get("stopped") is True
        if said.stopped_at is None or is_signed:
            return None
        # By its moment: a later one is another stop, whatever the hub counts by then.
        lifted = await self._opened.book.kept(KEPT_LIFTED)
        return None if lifted == said.stopped_at else _moment(said.stopped_at)

    async def _heard(self, said: WorkState) -> None:
        self._told = said.stopped_at is not None
        if said.signed is not None:
            book = self._opened.book
            with contextlib.suppress(Unavailable, Unauthenticated):
                await book.inner().syncer.meet(book.space, [said.signed.signature.signer])
        await self._judged(said)
        self._news.moved()

    # What was signed

    async def _judged(self, said: WorkState) -> WorkState:
        """Keep what the hub says, and return it no looser than the newest word that was seen."""
        limits = _limits(said)
        before = await self._known()
        if before is not None:
            await self._hub.meet(before.hub)
        is_met = await self._hub.meet(said.hub)
        try:
            word = None if said.signed is None else self._verified(said.signed)
        except CryptoFailed:
            word, known = None, await self._known()
            self._differs = True
        else:
            known = await self._newest(word)
            self._differs = known is not None and (
                word != known
                or known.hub != said.hub
                # Each change by a session changes a limit too. A runner that knows a newer word, of
                # a device that is gone, asks so for one above it.
                or (said.revision > known.revision and _limits(said) == known.limits)
            )
        self._differs = self._differs or not is_met
        if known is not None:
            self._differs = self._differs or not known.limits.covers(limits)
            limits = known.limits.within(limits)
        found = msgspec.structs.replace(
            said,
            tokens_per_day_max=limits.tokens_per_day_max,
            cost_per_day_max=limits.cost_per_day_max,
        )
        await self._budgets.note_work(found)
        return found

    def _verified(self, signed: SignedWork) -> WorkWord:
        """Return a word of this account; raise CryptoFailed unless one of its devices signed it."""
        word = WorkWord.from_wire(signed.word)
        book = self._opened.book
        authority = book.inner().syncer.authority(book.space)
        try:
            account, key = authority.signer(signed.signature.signer, newest=word.at)
        except Forbidden as error:
            raise Malformed("no device of the account signed this") from error
        if account != self._opened.account_id or word.account_id != account:
            raise Malformed("a word of another account")
        verify_work(key, word, unb64(signed.signature.value))
        return word

    async def _is_unknown(self, signed: SignedWork | None) -> bool:
        """Say whether a device signed this whose certificate is not known here yet.

        Nothing is signed against it: it may be the person's newest word, by their newest device.
        """
        try:
            if signed is not None:
                self._verified(signed)
        except Malformed as error:
            return isinstance(error.__cause__, SignerUnknown)
        except CryptoFailed:
            return False
        return False

    async def _known(self) -> WorkWord | None:
        """Return the newest word that a device of the person has seen, which was verified then.

        Another device's counts too: the hub may keep it from this one.
        """
        kept, shared = await self._kept_word(), await self._shared_word()
        if kept is None or (shared is not None and shared.revision > kept.revision):
            return shared
        return kept

    async def _kept_word(self) -> WorkWord | None:
        return _word(await self._opened.book.kept(KEPT_WORD))

    async def _shared_word(self) -> WorkWord | None:
        view = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        word = _word(view.values.get(SHARED_WORD)) if view is not None else None
        is_own = word is not None and word.account_id == self._opened.account_id
        return word if is_own else None

    async def _newest(self, word: WorkWord | None) -> WorkWord | None:
        """Return the newer of a word and the one that is known, and keep that."""
        known = await self._known()
        if word is not None and (known is None or word.revision > known.revision):
            known = word
        if known is not None and known != await self._kept_word():
            await self._opened.book.keep(KEPT_WORD, known.to_wire())
        return known

    async def _signed(self, said: WorkState, change: Callable[[Limits], Limits]) -> SetWork:
        """Return a signed word: what the hub says, no looser than was signed, and what changes.

        Raises HubDistrusted for a revision that nobody gets to: signed, nothing could follow it; and
        HubChanged for another hub than the one that was met.
        """
        held = _limits(await self._judged(said))
        await self._hub.require(said.hub)
        known = await self._known()
        before = known.revision if known is not None else 0
        if said.revision - before > REVISIONS_AHEAD_MAX:
            raise HubDistrusted("the hub says that the account's work moved more often than can be")
        if known is not None:
            held = replace(held, stopped=held.stopped or known.limits.stopped)
        word = WorkWord(
            self._opened.account_id,
            said.hub,
            max(said.revision, before) + 1,
            change(held),
            self._opened.now_iso(),
        )
        signature = self._opened.book.sign(PURPOSE, word.canonical())
        return SetWork(signed=SignedWork(word.to_wire(), signature), seen=said.revision)


def _word(wire: Json) -> WorkWord | None:
    """Return a word in the form in which it is kept; None if there is none, or it is malformed."""
    try:
        return WorkWord.from_wire(wire) if isinstance(wire, dict) else None
    except Malformed:
        return None


def _limits(said: WorkState) -> Limits:
    return Limits(said.stopped_at is not None, said.tokens_per_day_max, said.cost_per_day_max)


def _moment(said: str) -> int:
    try:
        return parse_iso_ms(said)
    except Invalid:
        return 0  # It cannot be read when; that it was said is enough.
