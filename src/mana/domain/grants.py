"""Mission grants, version 2: what the runner may open, until when, sent to which models.

The header is bound into the key that opens the grant, so any change of scope, life or mission
is another key. The register on the hub is the authority; revocation is monotone.
Normative bytes: docs/protocol/grants.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import Invalid
from mana.domain.ids import require_record_id, require_space_id, require_uuid
from mana.domain.money import COST_PER_DAY_MAX, TOKENS_PER_DAY_MAX, smaller
from mana.domain.origins import require_endpoint

LIFE_MS_MIN: Final = 60 * 60 * 1_000
LIFE_MS_DEFAULT: Final = 7 * 24 * 60 * 60 * 1_000
LIFE_MS_MAX: Final = 30 * 24 * 60 * 60 * 1_000
RECORDS_MAX: Final = 1_000
ENDPOINTS_MAX: Final = 8
SUITES: Final = ("hpke-mlkem768-x25519", "rsa-oaep-2048-sha256")


@dataclass(frozen=True, slots=True)
class GrantCaps:
    """What a grantor pays of a mission and its agent in a day, whatever other members set.

    Tokens, and costs in millionths; None: as the mission or the agent says.
    """

    mission_tokens: int | None = None
    mission_cost: int | None = None
    agent_tokens: int | None = None
    agent_cost: int | None = None

    def to_wire(self) -> dict[str, Json]:
        """Return the wire form."""
        return {
            "missionTokens": self.mission_tokens,
            "missionCost": self.mission_cost,
            "agentTokens": self.agent_tokens,
            "agentCost": self.agent_cost,
        }

    def within(self, other: GrantCaps) -> GrantCaps:
        """Return the smaller of both, cap by cap."""
        return GrantCaps(
            smaller(self.mission_tokens, other.mission_tokens),
            smaller(self.mission_cost, other.mission_cost),
            smaller(self.agent_tokens, other.agent_tokens),
            smaller(self.agent_cost, other.agent_cost),
        )


@dataclass(frozen=True, slots=True)
class GrantHeader:
    """The signed scope of a grant. Times are ISO moments; `record_ids` are `table:id`.

    `caps`: in spaces of several members; None in others, and in grants of before.
    """

    grant_id: str
    account_id: str
    space_id: str
    mission_id: str
    agent_id: str
    tables: tuple[str, ...]
    record_ids: tuple[str, ...]
    endpoints: tuple[str, ...]
    issued_at: str
    expires_at: str
    suite: str
    runner_key_id: str
    caps: GrantCaps | None = None

    def to_wire(self) -> dict[str, Json]:
        """Return the wire form."""
        caps: dict[str, Json] = {} if self.caps is None else {"caps": self.caps.to_wire()}
        return {
            **caps,
            "version": "v2",
            "grantId": self.grant_id,
            "accountId": self.account_id,
            "spaceId": self.space_id,
            "missionId": self.mission_id,
            "agentId": self.agent_id,
            "tables": list(self.tables),
            "recordIds": list(self.record_ids),
            "endpoints": list(self.endpoints),
            "issuedAt": self.issued_at,
            "expiresAt": self.expires_at,
            "suite": self.suite,
            "runnerKeyId": self.runner_key_id,
        }

    def canonical(self) -> bytes:
        """Return the bytes that keys and signatures bind."""
        return canonical_json(self.to_wire())


def clamp_life(ttl_ms: int | None) -> int:
    """Return the life of a grant within 1 h and 30 d; 7 d if none is asked for."""
    if ttl_ms is None:
        return LIFE_MS_DEFAULT
    return min(max(ttl_ms, LIFE_MS_MIN), LIFE_MS_MAX)


def check_scope(tables: Sequence[str], record_ids: Sequence[str]) -> None:
    """Raise Invalid unless the record ids are `table:id` over exactly these tables."""
    if not record_ids or not tables:
        raise Invalid("a grant names at least one table and one record")
    if len(record_ids) > RECORDS_MAX:
        raise Invalid(f"a grant names at most {RECORDS_MAX} records")
    seen: set[str] = set()
    for key in record_ids:
        table, colon, record = key.partition(":")
        if not colon:
            raise Invalid("a record in a grant is named table:id")
        require_record_id(record)
        seen.add(table)
    if seen != set(tables):
        raise Invalid("the tables of a grant are those of its records")


def header_from_wire(value: object) -> GrantHeader:
    """Return the header of a wire form; raise Invalid for any other shape."""
    if not isinstance(value, dict) or value.get("version") != "v2":
        raise Invalid("grant header is not of version v2")
    lists = ("tables", "recordIds", "endpoints")
    texts = set(GrantHeader.__dataclass_fields__)
    if len(value) != len(texts) + ("caps" in value):
        raise Invalid("grant header has members that are not known")
    for name, member in value.items():
        if name == "caps":
            continue
        if name in lists:
            if not isinstance(member, list) or not all(isinstance(item, str) for item in member):
                raise Invalid("grant header lists hold strings")
            if member != sorted(set(member)):
                raise Invalid("grant header lists are sorted and without doubles")
        elif not isinstance(member, str):
            raise Invalid("grant header members are strings")
    try:
        header = GrantHeader(
            grant_id=require_uuid(value["grantId"], "grant id"),
            account_id=require_uuid(value["accountId"], "account id"),
            space_id=require_space_id(value["spaceId"]),
            mission_id=require_record_id(value["missionId"]),
            agent_id=require_record_id(value["agentId"]),
            tables=tuple(value["tables"]),
            record_ids=tuple(value["recordIds"]),
            endpoints=tuple(map(require_endpoint, value["endpoints"])),
            issued_at=value["issuedAt"],
            expires_at=value["expiresAt"],
            suite=value["suite"],
            runner_key_id=value["runnerKeyId"],
            caps=caps_from_wire(value["caps"]) if "caps" in value else None,
        )
    except KeyError as error:
        raise Invalid("grant header lacks a member") from error
    check_scope(header.tables, header.record_ids)
    if header.suite not in SUITES:
        raise Invalid("grant suite is not known")
    life_ms = parse_iso_ms(header.expires_at) - parse_iso_ms(header.issued_at)
    if not LIFE_MS_MIN <= life_ms <= LIFE_MS_MAX:
        raise Invalid("grant life is outside 1 hour and 30 days")
    if not 0 < len(header.endpoints) <= ENDPOINTS_MAX:
        raise Invalid(f"a grant names 1 to {ENDPOINTS_MAX} model endpoints")
    return header


def caps_from_wire(value: object) -> GrantCaps:
    """Return the caps of a wire form; raise Invalid for any other shape."""
    if not isinstance(value, dict) or set(value) != set(GrantCaps().to_wire()):
        raise Invalid("the caps of a grant are four, each a number or null")
    return GrantCaps(
        _cap(value["missionTokens"], TOKENS_PER_DAY_MAX),
        _cap(value["missionCost"], COST_PER_DAY_MAX),
        _cap(value["agentTokens"], TOKENS_PER_DAY_MAX),
        _cap(value["agentCost"], COST_PER_DAY_MAX),
    )


def _cap(value: object, most: int) -> int | None:
    if value is None or (type(value) is int and 0 <= value <= most):
        return value
    raise Invalid("a cap of a grant is a whole number from 0, or null")
