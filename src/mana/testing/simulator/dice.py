"""One seeded source in place of the machine's randomness, for as long as a run lasts.

Ids, keys and ivs decide in which order spaces are synced and which of two equal stamps wins, so a
run repeats exactly only if they repeat too. What OpenSSL draws by itself (the encapsulation of a
wrapped key) decides nothing and is left alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
import threading
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, Final
from unittest.mock import patch

_REAL: Final = os.urandom


@contextlib.contextmanager
def seeded(seed: object) -> Iterator[random.Random]:
    """Draw every id, key and iv of this process from `seed`; lend the source."""
    source = random.Random(f"dice {seed}")
    thread = threading.current_thread()

    def draw(count: int) -> bytes:
        # A real hub runs in a thread of its own; what it draws must not move what devices draw.
        own = threading.current_thread() is thread
        return source.randbytes(count) if own else _REAL(count)

    before = random.getstate()
    random.seed(f"back-off {seed}")
    changed = [function for function in _functions() if _draws(function)]
    kept = [dict(function.__kwdefaults__ or {}) for function in changed]
    try:
        for function, defaults in zip(changed, kept, strict=True):
            function.__kwdefaults__ = {
                name: draw if value is _REAL else value for name, value in defaults.items()
            }
        # `secrets` and `uuid` draw through these two names.
        with patch.object(os, "urandom", draw), patch.object(random, "_urandom", draw):
            yield source
    finally:
        for function, defaults in zip(changed, kept, strict=True):
            function.__kwdefaults__ = defaults
        random.setstate(before)


def _draws(function: FunctionType) -> bool:
    return any(value is _REAL for value in (function.__kwdefaults__ or {}).values())


@functools.cache
def _functions() -> tuple[FunctionType, ...]:
    """Return every function of Mana whose default is the machine's randomness."""
    found: dict[int, FunctionType] = {}
    for name in sorted(sys.modules):
        if name.split(".")[0] != "mana":
            continue
        for value in _members(sys.modules[name]):
            if isinstance(value, FunctionType) and _draws(value):
                found.setdefault(id(value), value)
    return tuple(found.values())


def _members(module: ModuleType) -> Iterator[Any]:
    for value in vars(module).values():
        yield value
        if isinstance(value, type) and value.__module__ == module.__name__:
            for member in vars(value).values():
                yield getattr(member, "__func__", member)
