"""Messages between device, hub and runner, as they are on the wire.

Normative: docs/protocol/sync.md and docs/protocol/grants.md. Names are camelCase on the wire;
members that are absent are left out. Unknown members are refused in requests and ignored in
answers, so that a newer hub can add one.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

SCHEMA_VERSION: Final = 1
BATCH_CHANGES_MAX: Final = 500
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
CHANGE_FIELDS_MAX: Final = 200
CHANGE_BYTES_MAX: Final = 512 * 1024
PULL_LIMIT_MAX: Final = 1_000
STATE_PAGE: Final = 1_000

Json: TypeAlias = Any
"""A JSON value; the codec accepts any, and the domain checks what it may be."""

Short = Annotated[str, Meta(min_length=1, max_length=128)]
Long = Annotated[str, Meta(max_length=524_288)]


class Request(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A message that the hub checks strictly."""


class Answer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A message from the hub, or part of one."""


class FieldWrite(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """One written path: the wire value (sealed or plain) and its stamp."""

    value: Json
    at: Annotated[str, Meta(min_length=66, max_length=66)]


class Signature(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Who signed, and 64 bytes in base64. `signer`: a device id, or `runner:<key id>`."""

    signer: Short
    value: Annotated[str, Meta(min_length=88, max_length=88)]


class ChangeMessage(
    msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """One record's written fields. `op` is informative, except `reseal` and `flip` (sync.md, 3).

    `guards` maps a guarded path to the value that must stand on the hub for this change to be
    accepted; the new value is in `fields`. `group`: accepted or refused as a whole. `seen`: how
    far in the space's log its writer had read; nothing is decided by it but what a person is told.
    """

    change_id: Short
    table: Short
    id: Short
    op: Annotated[str, Meta(pattern="^(insert|update|delete|reseal|flip)$")]
    fields: dict[str, FieldWrite]
    actor: dict[str, str]
    origin: Annotated[str, Meta(pattern="^(user|agent|system|migration)$")]
    author_id: Short
    visibility: Annotated[str, Meta(pattern="^(space|private)$")] = "space"
    group: Short | None = None
    guards: dict[str, Json] = msgspec.field(default_factory=dict)
    signature: Signature | None = None
    seen: int | None = None


class PushRequest(Request, frozen=True):
    """An ordered batch of changes from one device.

    `heads`: by space id, how far the device has seen its log; a hub that ends before that was
    rolled back, and says so.
    """

    device_id: Short
    changes: Annotated[list[ChangeMessage], Meta(max_length=BATCH_CHANGES_MAX)]
    schema_version: int = SCHEMA_VERSION
    heads: dict[str, int] = msgspec.field(default_factory=dict)


class PushResult(Answer, frozen=True):
    """The hub's word on one change: `accepted | duplicate | refused` and why."""

    change_id: str
    status: str
    seq: int | None = None
    code: str | None = None


class PushAnswer(Answer, frozen=True):
    """One result per change, in order; `hub_time` is ISO with milliseconds."""

    results: list[PushResult]
    cursor: int
    hub_time: str


class LoggedChange(Answer, frozen=True):
    """A change as the log holds it, with its place and its device."""

    seq: int
    change: ChangeMessage
    device_id: str


class HiddenRecord(Answer, frozen=True):
    """A record that became private to another member, with the place of that in the log."""

    seq: int
    table: str
    id: str


class PullAnswer(Answer, frozen=True):
    """Changes after a cursor, in order without gaps. Ask again until `more` is false."""

    changes: list[LoggedChange]
    cursor: int
    hub_time: str
    more: bool = False
    hidden: list[HiddenRecord] = msgspec.field(default_factory=list)


class StateField(Answer, frozen=True):
    """One path of a merged record."""

    value: Json
    at: str
    actor: dict[str, str]
    origin: str
    change_id: str


class Proof(Answer, frozen=True):
    """A signature over one change, kept while a path of the record still stems from it.

    `entries` maps each path of that change to `[at, hex sha256 of the canonical value]`.
    `reseal`: the change only brought the values under a newer key.
    """

    signature: Signature
    actor: dict[str, str]
    origin: str
    entries: dict[str, list[str]]
    reseal: bool = False


class StateRecord(Answer, frozen=True):
    """A merged record. `proofs` by change id, for tables that decide (authority)."""

    table: str
    id: str
    author_id: str
    visibility: str
    seq: int
    fields: dict[str, StateField]
    proofs: dict[str, Proof] = msgspec.field(default_factory=dict)


class StateAnswer(Answer, frozen=True):
    """One page of a space's state. `head` is the cursor from which deltas continue.

    The head of the first page counts: it was read before any record of the state.
    """

    records: list[StateRecord]
    head: int
    hub_time: str
    next: str | None = None


class KdfParameters(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Argon2id parameters of an account; the salt is 16 bytes in base64."""

    salt: str
    t: int
    m_kib: int
    p: int


class DeviceCertificate(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A device's public key, signed by the account's identity key."""

    account_id: Short
    device_id: Short
    public_key: Short
    created_at: Short
    signature: Short
    version: str = "v1"


class SignedEntry(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A membership entry in its wire form, and the author's identity signature (base64)."""

    entry: dict[str, Json]
    signature: Short


class KeyWrap(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A space key (`s`) or private key (`p`) of one version, wrapped for one account."""

    kind: Annotated[str, Meta(pattern="^[sp]$")]
    version: int
    wrapped: Long


class NewSpace(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A space as its creator founds it: the first log entry and the creator's wraps."""

    first: SignedEntry
    wraps: list[KeyWrap]


class Identity(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """An account's public keys (base64) and its private halves, sealed under the master key."""

    signing_key: Short
    hpke_key: Long
    sealed_private: Long


class SignUpRequest(Request, frozen=True):
    """Everything that makes an account, in one transaction.

    `master_key` (base64) is sent in standard mode only; the hub wraps it under its KEK.
    """

    account_id: Short
    login: Annotated[str, Meta(min_length=1, max_length=80)]
    mode: Annotated[str, Meta(pattern="^(standard|zero-knowledge)$")]
    kdf: KdfParameters
    login_key: Short
    master_wrap: Long
    master_check: Short
    identity: Identity
    device: DeviceCertificate
    spaces: list[NewSpace]
    master_key: str | None = None
    invite: str | None = None
    demo: bool = False


class KdfRequest(Request, frozen=True):
    """Ask for the key derivation parameters of a login name."""

    login: Annotated[str, Meta(min_length=1, max_length=80)]


class LoginRequest(Request, frozen=True):
    """Log in with the login key (base64), never the password."""

    login: Annotated[str, Meta(min_length=1, max_length=80)]
    login_key: Short


class RefreshRequest(Request, frozen=True):
    """Exchange a refresh token for a new pair; the old one ends."""

    refresh_token: Short


class Tokens(Answer, frozen=True):
    """An access token (EdDSA JWT, 15 minutes) and the next refresh token."""

    account_id: str
    access_token: str
    refresh_token: str
    expires_in: int


class Vault(Answer, frozen=True):
    """What a device needs to unlock an account's keys with the password."""

    account_id: str
    login: str
    mode: str
    role: str
    kdf: KdfParameters
    master_wrap: str
    master_check: str
    identity: Identity


class SpaceInfo(Answer, frozen=True):
    """A space of the account: its log, and the account's own key wraps."""

    space_id: str
    type: str
    role: str
    log: list[SignedEntry]
    wraps: list[KeyWrap]


class Departure(Answer, frozen=True):
    """A space that the account is no longer in, with the log up to the entry that says so."""

    space_id: str
    log: list[SignedEntry]


class SpacesAnswer(Answer, frozen=True):
    """The spaces of the account, and those that it is no longer in."""

    spaces: list[SpaceInfo]
    departed: list[Departure] = msgspec.field(default_factory=list)


class MemberWrap(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A space key of one version, wrapped for one member."""

    account_id: Short
    version: int
    wrapped: Long


class MembershipAppend(Request, frozen=True):
    """The next entry of a membership log, with the key wraps that it needs."""

    entry: SignedEntry
    wraps: Annotated[list[MemberWrap], Meta(max_length=20_000)] = msgspec.field(
        default_factory=list
    )


class CloseSpace(Request, frozen=True):
    """The closing entry of a space."""

    entry: SignedEntry


class PrivateKeys(Request, frozen=True):
    """The account's own private keys of a space, kind `p`."""

    wraps: Annotated[list[KeyWrap], Meta(max_length=100)]


class NewInvitation(Request, frozen=True):
    """An invitation that was made on a device. `token_hash`: hex; `expires_at`: ISO."""

    invitation_id: Short
    role: Annotated[str, Meta(pattern="^(admin|member|viewer)$")]
    token_hash: Annotated[str, Meta(min_length=64, max_length=64)]
    expires_at: Short


class AcceptInvitation(Request, frozen=True):
    """The proof that the account holds the link; token and mac in base64."""

    space_id: Short
    token: Short
    mac: Short


class InvitationInfo(Answer, frozen=True):
    """An invitation: `open`, `accepted` (a device of the inviter is awaited), `joined`,
    `withdrawn` or `expired`. The last four members are set once somebody accepted.
    """

    invitation_id: str
    space_id: str
    role: str
    state: str
    created_by: str
    expires_at: str
    account_id: str | None = None
    signing_key: str | None = None
    hpke_key: str | None = None
    mac: str | None = None


class InvitationsAnswer(Answer, frozen=True):
    """Invitations, newest first."""

    invitations: list[InvitationInfo]


class DevicesAnswer(Answer, frozen=True):
    """Certificates of devices: the account's own, or those of a space's members."""

    devices: list[DeviceCertificate]


class ModelInfo(Answer, frozen=True):
    """A model endpoint: its stable name, the model, and where the text goes, in words."""

    endpoint: str
    model: str
    description: str
    local: bool


class RunnerInfo(Answer, frozen=True):
    """The runner's public keys and the models it uses.

    `public_key` is the runner's bundle in PEM; `key_id` its hash; `models` the endpoints that
    it may send granted text to, each with a name and what it is.
    """

    key_id: str
    fingerprint: str
    public_key: str
    models: list[ModelInfo]


class GrantRequest(Request, frozen=True):
    """Ask for the header of a grant; nothing is granted until it is completed."""

    mission_id: Short
    tables: Annotated[list[Short], Meta(max_length=100)]
    record_ids: Annotated[list[Annotated[str, Meta(max_length=260)]], Meta(max_length=1_000)]
    endpoints: Annotated[list[Annotated[str, Meta(max_length=500)]], Meta(max_length=8)]
    ttl_ms: int | None = None
    space_id: str | None = None
    agent_id: str | None = None
    suite: str | None = None


class GrantHeaderAnswer(Answer, frozen=True):
    """The header that the device is to seal and sign."""

    header: dict[str, Json]


class GrantCompletion(Request, frozen=True):
    """The sealed keys of a grant and the device's signature over header and hashes."""

    wrapped_key: Long
    sealed_keys: Annotated[str, Meta(max_length=4 * 1024 * 1024)]
    signature: Signature


class GrantInfo(Answer, frozen=True):
    """A grant as the register holds it, without its sealed material."""

    header: dict[str, Json]
    state: str
    ended_at: str | None = None


class GrantsAnswer(Answer, frozen=True):
    """Grants, newest first."""

    grants: list[GrantInfo]


class OccurrenceInfo(Answer, frozen=True):
    """One line of a mission's run ledger."""

    occurrence_id: str
    mission_id: str
    scheduled_for: str
    kind: str
    state: str
    reason: str | None = None
    iteration_id: str | None = None
    tokens: int = 0
    started_at: str | None = None
    finished_at: str | None = None
    phase: str | None = None


class MissionStatus(Answer, frozen=True):
    """What the hub knows of a mission: when it is due next, what holds it, its last runs."""

    mission_id: str
    space_id: str
    next_run_at: str | None
    hold: str | None
    occurrences: list[OccurrenceInfo]


class MissionsAnswer(Answer, frozen=True):
    """The schedule of the account's missions and today's use of tokens by agent id."""

    missions: list[MissionStatus]
    tokens_today: dict[str, int]


class AuditRow(Answer, frozen=True):
    """One reading by the runner. Its hash covers the row and the hash before it."""

    seq: int
    mission_id: str
    iteration_id: str | None
    grant_id: str | None
    table_name: str
    record_id: str
    status: str
    reason: str | None
    endpoint: str | None
    runner_key_id: str
    ts: str
    previous: str
    hash: str


class AuditAnswer(Answer, frozen=True):
    """Audit rows, newest first, and the head of the account's chain."""

    rows: list[AuditRow]
    head_seq: int
    head_hash: str
    more: bool = False


class Account(Answer, frozen=True):
    """The signed-in account."""

    account_id: str
    login: str
    mode: str
    role: str
    created_at: str


class DeleteAccountRequest(Request, frozen=True):
    """Remove the account and all its rows; the login key proves that it is the person."""

    login_key: Short


class InviteAnswer(Answer, frozen=True):
    """A one-time invitation to sign up."""

    invite: str


class Problem(Answer, frozen=True):
    """An error as `application/problem+json` (RFC 9457) with a stable `code`."""

    code: str
    title: str
    status: int
    advice: str = ""
    detail: dict[str, Json] = msgspec.field(default_factory=dict)
