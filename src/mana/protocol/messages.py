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
    device_name: Annotated[str, Meta(max_length=80)] = ""


class KdfRequest(Request, frozen=True):
    """Ask for the key derivation parameters of a login name."""

    login: Annotated[str, Meta(min_length=1, max_length=80)]


class FactorAnswer(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The second factor of a log-in: a TOTP code, or a passkey's answer to `challenge`.

    `passkey`: the credential as the browser gives it (`PublicKeyCredential.toJSON()`).
    """

    totp: Annotated[str, Meta(max_length=16)] | None = None
    passkey: dict[str, Json] | None = None


class LoginRequest(Request, frozen=True):
    """Log in with the login key (base64), never the password."""

    login: Annotated[str, Meta(min_length=1, max_length=80)]
    login_key: Short
    factor: FactorAnswer | None = None
    device_name: Annotated[str, Meta(max_length=80)] = ""


class RefreshRequest(Request, frozen=True):
    """Exchange a refresh token for a new pair; the old one ends."""

    refresh_token: Short


class Tokens(Answer, frozen=True):
    """An access token (EdDSA JWT, 15 minutes) and the next refresh token."""

    account_id: str
    access_token: str
    refresh_token: str
    expires_in: int


class FormerMaster(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A former master key by its check value, sealed under the one in force."""

    check: Short
    sealed: Long


class FormerIdentity(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A former identity: public halves, and the private ones sealed under the master key."""

    signing_key: Short
    hpke_key: Long
    sealed_private: Long


class Formers(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What an account's keys were before, newest first, until nothing counts on them."""

    masters: Annotated[list[FormerMaster], Meta(max_length=16)] = msgspec.field(
        default_factory=list
    )
    identities: Annotated[list[FormerIdentity], Meta(max_length=16)] = msgspec.field(
        default_factory=list
    )


class SignedStatement(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A statement of the vault (vault.md, 2) with the signature of the identity before it.

    `own_signature`: by the identity that it names, where that is a new one.
    """

    statement: dict[str, Json]
    signature: Short
    own_signature: Short | None = None


class RecoveryWrap(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The master key under the recovery code: `key_id` names the code, not its content."""

    key_id: Short
    wrapped: Long


class Vault(Answer, frozen=True):
    """What a device needs to unlock an account's keys.

    `revision` 0: as it was made at sign-up; later each change adds one and a signed statement.
    `challenge`: what the next change or proof signs. `second_factors`: kinds that are on.
    """

    account_id: str
    login: str
    mode: str
    role: str
    kdf: KdfParameters
    master_wrap: str
    master_check: str
    identity: Identity
    revision: int = 0
    challenge: str = ""
    statement: SignedStatement | None = None
    recovery: RecoveryWrap | None = None
    recovery_set_at: str | None = None
    formers: Formers = msgspec.field(default_factory=Formers)
    grants: bool = True


class VaultLog(Answer, frozen=True):
    """The statements of a vault after a revision, oldest first."""

    statements: list[SignedStatement]


class NewRecovery(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A recovery code as the hub may know it: the wrap, and the key that signs in (base64)."""

    wrap: RecoveryWrap
    login_key: Short


class VaultChange(Request, frozen=True):
    """The vault as it is from now on; every part is named by the signed statement.

    `login_key` with another password; `recovery` with a new code (absent: as it was, and gone
    if the statement names none); `master_key` (base64) whenever the mode is standard and the
    hub cannot know it: another master key, or the way back from zero-knowledge. `devices`: all
    that stand, certified by the new identity, with another identity only.
    """

    signed: SignedStatement
    kdf: KdfParameters
    master_wrap: Long
    sealed_private: Long
    formers: Formers = msgspec.field(default_factory=Formers)
    login_key: Short | None = None
    recovery: NewRecovery | None = None
    master_key: Short | None = None
    devices: Annotated[list[DeviceCertificate], Meta(max_length=1_000)] = msgspec.field(
        default_factory=list
    )


class MasterProof(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The identity's signature over an action and the hub's challenge (vault.md, 3), base64."""

    challenge: Short
    signature: Short


class RecoverRequest(Request, frozen=True):
    """Sign in with what the recovery code derives (base64)."""

    login: Annotated[str, Meta(min_length=1, max_length=80)]
    recovery_key: Short
    device_name: Annotated[str, Meta(max_length=80)] = ""


class ResetRequest(Request, frozen=True):
    """Sign in with a one-time token of the hub's operator; standard mode only."""

    login: Annotated[str, Meta(min_length=1, max_length=80)]
    token: Short
    device_name: Annotated[str, Meta(max_length=80)] = ""


class ResetAnswer(Answer, frozen=True):
    """A session, and the master key (base64) as the hub holds it in standard mode."""

    tokens: Tokens
    master_key: str


class SecurityEvent(Answer, frozen=True):
    """One line of what happened to an account's keys and sessions; `ok` false: refused."""

    at: str
    action: str
    ok: bool
    session_id: str | None = None
    detail: str = ""


class SecurityEvents(Answer, frozen=True):
    """Lines, newest first; `more`: ask again with `before` = the last `at`."""

    events: list[SecurityEvent]
    more: bool = False


class SessionInfo(Answer, frozen=True):
    """A session of the account; `name` is what its device calls itself."""

    session_id: str
    created_at: str
    seen_at: str
    current: bool
    name: str = ""
    device_id: str | None = None


class SessionsAnswer(Answer, frozen=True):
    """Sessions that stand, newest first."""

    sessions: list[SessionInfo]


class DeviceRevocation(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A device that counts no more from a moment on, signed by the account's identity."""

    account_id: Short
    device_id: Short
    revoked_at: Short
    signature: Short
    version: str = "v1"


class FactorInfo(Answer, frozen=True):
    """A second factor: kind `totp` or `passkey`."""

    factor_id: str
    kind: str
    name: str
    created_at: str
    used_at: str | None = None


class FactorsAnswer(Answer, frozen=True):
    """The second factors of the account."""

    factors: list[FactorInfo]


class NewFactor(Request, frozen=True):
    """Begin to add a second factor; `proof` over action `factor-begin`, body `{kind, name}`."""

    kind: Annotated[str, Meta(pattern="^(totp|passkey)$")]
    name: Annotated[str, Meta(min_length=1, max_length=80)]
    proof: MasterProof


class FactorSetup(Answer, frozen=True):
    """What the person's app or browser needs: a TOTP secret (base32) and its address, or options.

    It counts once it is finished, within ten minutes.
    """

    factor_id: str
    secret: str | None = None
    uri: str | None = None
    options: dict[str, Json] | None = None


class FinishFactor(Request, frozen=True):
    """The first code, or the passkey's registration, by which a factor begins to count."""

    answer: FactorAnswer


class RemoveFactor(Request, frozen=True):
    """Remove a second factor; `proof` over action `factor-remove`, body `{factorId}`."""

    proof: MasterProof


class LinkRequest(Request, frozen=True):
    """A new device asks to be unlocked by another; `commitment`: vault.md, 6 (base64).

    `link_id`: 32 hex digits that the device drew.
    """

    link_id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    login: Annotated[str, Meta(min_length=1, max_length=80)]
    name: Annotated[str, Meta(min_length=1, max_length=80)]
    commitment: Short


class LinkTicket(Answer, frozen=True):
    """The ticket by which the new device alone asks on, and when the link ends."""

    ticket: str
    expires_at: str


class LinkPoll(Request, frozen=True):
    """The new device asks how its link stands."""

    ticket: Short


class LinkReveal(Request, frozen=True):
    """What the new device had committed to; keys and nonce in base64."""

    ticket: Short
    hpke_key: Long
    device_key: Short
    device_id: Short
    nonce: Short


class LinkState(Answer, frozen=True):
    """A link as the new device sees it: `waiting | answered | revealed | approved | refused`.

    Once answered: account and the old device's nonce. Once approved: the wrapped master key
    (base64), the certificate that the old device made, and a session; they are given once.
    """

    state: str
    account_id: str | None = None
    nonce: str | None = None
    wrapped: str | None = None
    certificate: DeviceCertificate | None = None
    tokens: Tokens | None = None


class LinkInfo(Answer, frozen=True):
    """A link as a signed-in device sees it; the last four members once they are revealed."""

    link_id: str
    name: str
    state: str
    created_at: str
    expires_at: str
    commitment: str
    own_nonce: str | None = None
    hpke_key: str | None = None
    device_key: str | None = None
    device_id: str | None = None
    nonce: str | None = None


class LinksAnswer(Answer, frozen=True):
    """Links that wait for one of the account's devices."""

    links: list[LinkInfo]


class AnswerLink(Request, frozen=True):
    """The old device's nonce (base64)."""

    nonce: Short


class ApproveLink(Request, frozen=True):
    """The master key wrapped to the new device (base64), and its certificate.

    `proof` over action `link-approve`, body `{linkId, deviceId}`.
    """

    wrapped: Long
    certificate: DeviceCertificate
    proof: MasterProof


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
    """The next entry of a membership log, with the key wraps that it needs.

    `private_wraps`: the author's own private keys, wrapped anew, where they replace their keys.
    """

    entry: SignedEntry
    wraps: Annotated[list[MemberWrap], Meta(max_length=20_000)] = msgspec.field(
        default_factory=list
    )
    private_wraps: Annotated[list[KeyWrap], Meta(max_length=1_000)] = msgspec.field(
        default_factory=list
    )


class CloseSpace(Request, frozen=True):
    """The closing entry of a space."""

    entry: SignedEntry


class PrivateKeys(Request, frozen=True):
    """The account's own private keys of a space, kind `p`, signed by its identity (base64)."""

    wraps: Annotated[list[KeyWrap], Meta(max_length=100)]
    signature: Short


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
    """Certificates of devices: the account's own, or those of a space's members.

    While an account's identity changes a device has two, one by each. `revoked`: those that
    count no more.
    """

    devices: list[DeviceCertificate]
    revoked: list[DeviceRevocation] = msgspec.field(default_factory=list)


class ModelInfo(Answer, frozen=True):
    """A model endpoint: its stable name, the model, and where the text goes, in words.

    Several may have one endpoint. `fallback`: the aliases that are asked where this one fails, in
    their order. Prices are those of `money.Price`; None: nobody said what it costs.
    """

    endpoint: str
    model: str
    description: str
    local: bool
    alias: str = ""
    fallback: list[str] = msgspec.field(default_factory=list)
    prompt_price: int | None = None
    completion_price: int | None = None
    context_tokens: int = 0


class RunnerSuccession(Answer, frozen=True):
    """A runner's key before, its bundle in PEM, and its signature (base64) over the next one."""

    key_id: str
    public_key: str
    signature: str


class RunnerInfo(Answer, frozen=True):
    """The runner's public keys and the models it uses.

    `public_key` is the runner's bundle in PEM; `key_id` its hash; `models` the endpoints that
    it may send granted text to, each with a name and what it is. `succeeds`: the keys before it,
    newest first, each with its signature over the one that came after. `own_models`: the operator
    lets people bring model endpoints of their own.
    """

    key_id: str
    fingerprint: str
    public_key: str
    models: list[ModelInfo]
    succeeds: list[RunnerSuccession] = msgspec.field(default_factory=list)
    own_models: bool = False


class GrantedCaps(Request, frozen=True):
    """What the grantor pays in a day whatever other members set; None: as they set it.

    Tokens, and costs in millionths of the hub's currency.
    """

    mission_tokens: Annotated[int, Meta(ge=0, le=1_000_000_000)] | None = None
    mission_cost: Annotated[int, Meta(ge=0, le=1_000_000_000_000)] | None = None
    agent_tokens: Annotated[int, Meta(ge=0, le=1_000_000_000)] | None = None
    agent_cost: Annotated[int, Meta(ge=0, le=1_000_000_000_000)] | None = None


class GrantRequest(Request, frozen=True):
    """Ask for the header of a grant; nothing is granted until it is completed.

    `caps` stand in the header, where they are given.
    """

    mission_id: Short
    tables: Annotated[list[Short], Meta(max_length=100)]
    record_ids: Annotated[list[Annotated[str, Meta(max_length=260)]], Meta(max_length=1_000)]
    endpoints: Annotated[list[Annotated[str, Meta(max_length=500)]], Meta(max_length=8)]
    ttl_ms: int | None = None
    space_id: str | None = None
    agent_id: str | None = None
    suite: str | None = None
    caps: GrantedCaps | None = None


class GrantHeaderAnswer(Answer, frozen=True):
    """The header that the device is to seal and sign."""

    header: dict[str, Json]


class GrantCompletion(Request, frozen=True):
    """The sealed keys of a grant and the device's signature over header and hashes.

    `replaces`: where given, it counts only while this grant is the mission's active one, so that
    a device that mints a grant anew never undoes what the person did meanwhile.
    """

    wrapped_key: Long
    sealed_keys: Annotated[str, Meta(max_length=4 * 1024 * 1024)]
    signature: Signature
    replaces: Short | None = None


class GrantInfo(Answer, frozen=True):
    """A grant as the register holds it, without its sealed material.

    `signature` is the device's; with the two hashes (hex SHA-256) anybody can verify it.
    `revocation`: the signed word that it ended (grants.md, 1).
    """

    header: dict[str, Json]
    state: str
    ended_at: str | None = None
    signature: Signature | None = None
    wrapped_key_hash: str | None = None
    sealed_keys_hash: str | None = None
    revocation: Signature | None = None


class RevokeGrant(Request, frozen=True):
    """A device's signature over `mana-grant-revoked:v1`, grant id, H(header)."""

    signature: Signature


class GrantsAnswer(Answer, frozen=True):
    """Grants, newest first."""

    grants: list[GrantInfo]


class OccurrenceInfo(Answer, frozen=True):
    """One line of a mission's run ledger.

    `tokens` and `cost` are those of all tries so far; of them the unconfirmed ones are the worst case
    of calls whose model never said what it used. `round` to `heard`: how far a run is that goes on.
    """

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
    cost: int = 0
    tries: int = 0
    last_reason: str | None = None
    due_at: str | None = None
    round: int = 0
    tool_calls: int = 0
    steps: int = 0
    heard: int = 0
    unconfirmed_tokens: int = 0
    unconfirmed_cost: int = 0


class MissionStatus(Answer, frozen=True):
    """What the hub knows of a mission: when it is due next, what holds it, its last runs.

    `failures`: occurrences that failed in a row; `failure`: why the last of them did.
    """

    mission_id: str
    space_id: str
    next_run_at: str | None
    hold: str | None
    occurrences: list[OccurrenceInfo]
    failures: int = 0
    failure: str | None = None


class SignedWork(Request, frozen=True):
    """A device's signature over `mana-ai-work:v1` and `word`: a `WorkWord` on the wire."""

    word: Annotated[dict[str, Json], Meta(max_length=8)]
    signature: Signature


class WorkState(Answer, frozen=True):
    """Whether anything runs for the account, and its caps and use of 24 hours.

    Costs are millionths of `currency`. `hub_stopped`: the operator stopped all work. The caps of the
    operator for every account stand beside the person's own; the smaller counts. `revision` counts
    what moved; `signed` is the newest word that a device signed for this `hub`, and what holds is
    never looser. The unconfirmed part of the use is reserved, or a worst case.
    """

    stopped_at: str | None = None
    hub_stopped: bool = False
    currency: str = "USD"
    tokens_today: int = 0
    cost_today: int = 0
    tokens_per_day_max: int | None = None
    cost_per_day_max: int | None = None
    hub_tokens_per_day_max: int | None = None
    hub_cost_per_day_max: int | None = None
    hub: str = ""
    revision: int = 0
    signed: SignedWork | None = None
    unconfirmed_tokens_today: int = 0
    unconfirmed_cost_today: int = 0


class SetWork(Request, frozen=True):
    """Stop everything of the account or let it go on, and set its caps; a cap of -1 removes it.

    Unsigned it only tightens. `signed`: a word that a device signed, which is then all that holds;
    no other member stands beside it but `seen`, the revision that the device knew of.
    """

    stopped: bool | None = None
    tokens_per_day_max: Annotated[int, Meta(ge=-1, le=1_000_000_000)] | None = None
    cost_per_day_max: Annotated[int, Meta(ge=-1, le=1_000_000_000_000)] | None = None
    signed: SignedWork | None = None
    seen: Annotated[int, Meta(ge=0)] | None = None


class UsageLine(Answer, frozen=True):
    """What was used in one hour, under one scope: `mission`, `agent` or `account`.

    Of `tokens` and `cost` the unconfirmed ones are reserved, or the worst case of calls whose model
    never said what it used.
    """

    hour: str
    scope: str
    id: str
    tokens: int
    cost: int
    model_calls: int
    space_id: str = ""
    unconfirmed_tokens: int = 0
    unconfirmed_cost: int = 0


class UsageAnswer(Answer, frozen=True):
    """The ledger of tokens and costs by the hour, oldest first."""

    currency: str
    lines: list[UsageLine]


class ReserveTokens(Request, frozen=True):
    """Reserve tokens for a run on a device, for one call or for several while it is off line.

    Less than `tokens` may be granted, but not less than `tokens_min`. Prices are millionths of the
    currency per million tokens; none: unknown, which a cap of costs refuses. `caps`: what the person
    of the device agreed to pay, whatever the mission and the agent say.
    """

    agent_id: Short
    tokens: Annotated[int, Meta(ge=0, le=1_000_000_000)]
    tokens_min: Annotated[int, Meta(ge=0, le=1_000_000_000)]
    endpoint: Annotated[str, Meta(max_length=500)] = ""
    model: Annotated[str, Meta(max_length=200)] = ""
    prompt_price: Annotated[int, Meta(ge=0, le=1_000_000_000_000)] | None = None
    completion_price: Annotated[int, Meta(ge=0, le=1_000_000_000_000)] | None = None
    caps: GrantedCaps | None = None


class ReservedTokens(Answer, frozen=True):
    """A reservation that stands until it is settled; unsettled it counts as used."""

    reservation_id: str
    tokens: int


class SettleTokens(Request, frozen=True):
    """Replace a reservation of a device by what its calls used.

    The unconfirmed tokens are among the others: the worst case of calls whose model never said.
    """

    prompt_tokens: Annotated[int, Meta(ge=0, le=1_000_000_000)]
    completion_tokens: Annotated[int, Meta(ge=0, le=1_000_000_000)]
    model_calls: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    unconfirmed_prompt_tokens: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    unconfirmed_completion_tokens: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0


class MissionsAnswer(Answer, frozen=True):
    """The schedule of the account's missions and the use of 24 hours by agent id.

    The unconfirmed part of it is reserved, or a worst case.
    """

    missions: list[MissionStatus]
    tokens_today: dict[str, int]
    cost_today: dict[str, int] = msgspec.field(default_factory=dict)
    unconfirmed_tokens_today: dict[str, int] = msgspec.field(default_factory=dict)
    unconfirmed_cost_today: dict[str, int] = msgspec.field(default_factory=dict)
    work: WorkState | None = None


class NotifyState(Answer, frozen=True):
    """Whether the hub writes to the account when something waits; its letters hold no content.

    `available`: the operator has set up mail. `address`: as the person gave it, confirmed or not.
    """

    available: bool
    address: str = ""
    confirmed: bool = False
    enabled: bool = False


class SetNotify(Request, frozen=True):
    """Give an address (a code is sent to it), confirm it with the code, or switch letters off."""

    address: Annotated[str, Meta(max_length=254)] | None = None
    code: Annotated[str, Meta(max_length=32)] | None = None
    enabled: bool | None = None


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
