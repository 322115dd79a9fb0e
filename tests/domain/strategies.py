"""Hypothesis strategies for domain values."""

from __future__ import annotations

import uuid

from hypothesis import strategies as st

from mana.domain.actors import Actor
from mana.domain.clock import Stamp
from mana.domain.ids import DeviceId
from mana.domain.records import Entry

DEVICES = [DeviceId(str(uuid.UUID(int=n + 1))) for n in range(3)]

stamps = st.builds(
    Stamp,
    st.integers(min_value=0, max_value=4_102_444_800_000),
    st.integers(min_value=0, max_value=0xFFFF),
    st.sampled_from(DEVICES),
)
# Few moments, so that equal stamps with different values really meet.
close_stamps = st.builds(
    Stamp, st.integers(min_value=1_000, max_value=1_002), st.just(0), st.sampled_from(DEVICES)
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**53), max_value=2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
wire_values = st.one_of(
    st.none(),
    st.integers(min_value=0, max_value=3),
    st.sampled_from(["enc:2:s1:a.b", "enc:2:s2:a.b", "enc:2:s10:a.b", "text"]),
)
actors = st.sampled_from([Actor("user", "u1"), Actor("user", "u2"), Actor("ai", "a", "m", "i")])
entries = st.builds(
    Entry,
    wire_values,
    close_stamps.map(str),
    actors,
    st.sampled_from(["user", "agent"]),
    st.sampled_from(["c1", "c2"]),
)
entry_maps = st.dictionaries(st.sampled_from(["title", "notes", "tags/x"]), entries, max_size=3)
