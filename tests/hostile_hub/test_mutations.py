"""Any answer, changed in any one place: refused with a code, or what it was, or told as closed.

Not told, and therefore left out of the law: a row that is withheld, and what no seal or signature
covers of a record that decides nothing (SECURITY.md says so).
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, TypeAlias

import pytest

from mana.device.desk import Device
from mana.testing.postgres import Cluster
from tests.hostile_hub.tools import (
    CHANGES,
    DEVICES,
    KDF,
    LOGIN,
    SPACES,
    STATE,
    VAULT,
    VAULT_LOG,
    Body,
    Mouth,
    Scene,
    book_of,
    code_of,
    picture,
    planned_mission,
    scene_on,
)

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ROUNDS: Final = int(os.environ.get("HOSTILE_ROUNDS", "40"))
SEED: Final = int(os.environ.get("HOSTILE_SEED", "11"))
FOLLOWING: Final = (
    ("GET", VAULT),
    ("GET", SPACES),
    ("POST", CHANGES),
    ("GET", CHANGES),
    ("GET", CHANGES),
    ("GET", CHANGES),
)
BEGINNING: Final = (
    ("POST", KDF),
    ("POST", LOGIN),
    ("GET", VAULT),
    ("GET", VAULT_LOG),
    ("GET", SPACES),
    ("GET", STATE),
    ("GET", DEVICES),
)
Place: TypeAlias = tuple[Any, Any]
"""A list or an object of an answer, and where in it."""


def places(body: Body) -> Iterator[Place]:
    """Yield every place of an answer that can become another."""
    if isinstance(body, dict):
        for name, value in body.items():
            yield body, name
            yield from places(value)
    elif isinstance(body, list):
        for index, value in enumerate(body):
            yield body, index
            yield from places(value)


def another(value: Any, others: list[Any], chance: random.Random) -> Any:
    """Return what a hub could say instead of a value."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return chance.choice([value + 1, value - 1, 0, -1, 2**53, 1.5])
    if isinstance(value, list):
        return chance.choice([[], value[::-1], value[1:], value + value[:1]])
    if isinstance(value, str) and value:
        at = chance.randrange(len(value))
        same = [one for one in others if isinstance(one, str) and one != value]
        flipped = value[:at] + chr((ord(value[at]) ^ 1) or 1) + value[at + 1 :]
        return chance.choice([flipped, flipped, value[:at], "", None, *same[:1]])
    return chance.choice(["", 0, {}, None])


def mutated(body: Body, chance: random.Random) -> Body:
    """Return an answer that differs in one place."""
    body = copy.deepcopy(body)
    found = list(places(body))
    if not found:
        return body
    holder, name = chance.choice(found)
    if chance.random() < 0.15 and isinstance(holder, dict):
        del holder[name]
        return body
    others = [one[at] for one, at in found]
    chance.shuffle(others)
    holder[name] = another(holder[name], others, chance)
    return body


def once(mouth: Mouth, call: tuple[str, str], chance: random.Random) -> None:
    """Have the hub change one of the next answers to a call, and no other."""
    left = [chance.randrange(3) if call == ("GET", CHANGES) else 0]

    def change(body: Body) -> Body:
        if not left or not list(places(body)):
            return body
        if left[0] > 0:
            left[0] -= 1
            return body
        left.clear()
        return mutated(body, chance)

    mouth.lie(call[1], change, method=call[0])


def require_told(
    scene: Scene, before: dict[str, Any], after: dict[str, Any], honest: dict[str, Any]
) -> None:
    """Require that nothing of what is shown is another than it was, or than it honestly is.

    A value that is neither is named as closed; a record that decides is then not obeyed.
    """
    tables = {table.name: table for table in book_of(scene.ada).catalogue.tables}
    for name, shown in after.items():
        was, became = before.get(name), honest.get(name)
        if shown in (was, became):
            continue
        assert not name.startswith(("log ", "vault", "mode", "allows")), name
        table = tables[name.split(" ")[1]]
        differs = False
        for field, value in shown["values"].items():
            known = [one["values"].get(field) for one in (was, became) if one is not None]
            if value in known:
                continue
            declared = table.by_name[field]
            # What nobody wrote is an empty collection.
            assert not (declared.sealed and value), (name, field)
            differs = True
        if table.authority and (differs or shown["closed"]):
            assert not shown["obeyed"], name


@pytest.fixture(scope="module")
async def scene(postgres: Cluster) -> AsyncIterator[Scene]:
    async with scene_on(postgres) as made:
        await planned_mission(made.ada)
        await made.ada.in_space(made.team).create("notes", {"title": "First"})
        for one in (made.ada, made.away, made.bob, made.ada):
            await one.sync_now()
        yield made


async def write(device: Device, team: str, turn: int) -> None:
    """Write something everywhere, new and old."""
    for place in (device, device.in_space(team)):
        note = await place.create("notes", {"title": f"New {turn}", "content": "Words"})
        # An older one: of a new one an edit that is withheld would show what stood before it.
        (*_, one) = await place.list("notes")
        await place.edit("notes", one.id, {"title": f"Turn {turn}", "isPinned": turn % 2 == 0})
        if turn % 3 == 0:
            await place.delete("notes", note)
    (mission, *_) = await device.missions()
    await device.edit_mission(mission.mission_id, title=f"Review {turn}")


async def test_a_device_that_follows_is_told_nothing_else(scene: Scene) -> None:
    """One place of one answer changed: a code and all as it was, or the truth, or closed."""
    chance = random.Random(SEED)
    codes: set[str] = set()
    changed = 0
    for turn in range(ROUNDS):
        await write(scene.away, scene.team, turn)
        await scene.away.sync_now()
        if turn % 2:
            await scene.ada.in_space(scene.team).create("notes", {"title": f"Mine {turn}"})
        before = await picture(scene.ada)
        once(scene.mouth, chance.choice(FOLLOWING), chance)
        codes.add(await code_of(scene.ada.sync_now()))
        changed += scene.mouth.told
        after = await picture(scene.ada)
        scene.mouth.honest()
        await code_of(scene.ada.sync_now())
        await scene.away.sync_now()
        require_told(scene, before, after, await picture(scene.away))
        if await code_of(scene.ada.sync_now()) == "HUB_BEHIND":
            for space in book_of(scene.ada).spaces():
                place = scene.ada if space.type == "user" else scene.ada.in_space(space.space_id)
                await code_of(place.reread())
        assert await code_of(scene.ada.sync_now()) == "", turn
    assert changed > ROUNDS // 2
    assert len(codes) > 1
    # Whatever was written on either of them is there in the end, and goes on being written.
    await write(scene.ada, scene.team, ROUNDS)
    assert await code_of(scene.ada.sync_now()) == ""
    assert (await scene.ada.status()).sync.waiting == 0


async def test_a_device_that_is_new_is_told_nothing_else(scene: Scene) -> None:
    """The same while it signs in: it keeps nothing, or what it shows is the truth or closed."""
    chance = random.Random(SEED + 1)
    for _ in range(max(4, ROUNDS // 3)):
        await scene.away.sync_now()
        honest = await picture(scene.away)
        place, mouth = scene.newcomer()
        once(mouth, chance.choice(BEGINNING), chance)
        _, device = await scene.signs_in(place)
        await scene.owner("delete from mana.login_attempts")
        if device is not None:
            require_told(scene, {}, await picture(device), honest)
        await place.host.close()
