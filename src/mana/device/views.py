"""What the page and the terminal show: opened values, ready to be put into words.

Plain dataclasses without behaviour. They hold a person's text, so they never leave the device
process except as what that person sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mana.domain.cadences import Cadence
from mana.domain.encoding import Json
from mana.domain.missions import IfMissed, InputRef
from mana.domain.policy import Decision, Policy

LinkState = Literal["online", "offline", "refused"]


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """The truth about sync. Times in ms since 1970; `waiting`: changes not yet acknowledged.

    `troubles`: by space id the code of what stands in its way; the other spaces are synced.
    """

    link: LinkState
    synced_ms: int | None
    waiting: int
    refused: int
    trouble: str = ""
    troubles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model that may work: its endpoint, name, and what it is in words."""

    endpoint: str
    model: str
    description: str
    local: bool
    alias: str = ""
    key_goes_along: bool | None = None
    """Whether the runner gets a key with a model of the person's own; None: it is not one."""
    prompt_price: int | None = None
    completion_price: int | None = None
    """Prices are those of `money.Price`; None: nobody said what it costs."""
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RunnerView:
    """The hub's runner as this device knows it; `fingerprint` is shown in the consent."""

    key_id: str
    fingerprint: str
    models: tuple[ModelView, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """The status line: account, lock, sync, runner and model."""

    account_id: str
    login: str
    display_name: str
    mode: str
    demo: bool
    locked: bool
    sync: SyncStatus
    runner: RunnerView | None
    device_model: ModelView
    next_run_ms: int | None
    to_decide: int
    to_decide_by_space: Mapping[str, int] = field(default_factory=dict)
    hub_url: str = ""


@dataclass(frozen=True, slots=True)
class FieldDiff:
    """One field before and after. `words`: spans of a word difference for long text.

    A span is `(kind, text)` with kind `same`, `gone` or `new`.
    """

    name: str
    before: Json
    after: Json
    words: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RecordDiff:
    """What one record would become, or became. `op`: insert, update or delete."""

    table: str
    record_id: str
    title: str
    op: str
    fields: tuple[FieldDiff, ...]


@dataclass(frozen=True, slots=True)
class Cited:
    """An input that an iteration read."""

    table: str
    record_id: str
    title: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """One step as the person decides on it.

    `state`: staged, planned, executing, approved, rejected, skipped, failed or expired.
    `moved`: the base changed since it was planned, and the preview was made anew.
    `verified`: the runner's signature and the grant hold; an unverified one cannot be approved.
    `for_others`: another member granted the run; they decide, or who manages the space.
    `trouble`: why it cannot be approved as it stands, or what became of it; `note`: what else is to
    be known. `edited`: sentence, parameters and differences are the person's, `proposed` what the
    agent had proposed, and `faults` what is wrong with the arguments of a preview. `tokens` and
    `cost` are those of the whole run; the cost in millionths, None where nobody can say it. `flags`:
    what is to be known of the run, by `names.FLAGS`.
    """

    step_id: str
    iteration_id: str
    mission_id: str
    mission_title: str
    agent_id: str
    agent_name: str
    agent_avatar: str
    planned_ms: int
    state: str
    tool: str
    params: Mapping[str, Json]
    sentence: str
    diffs: tuple[RecordDiff, ...]
    rationale: str
    cited: tuple[Cited, ...]
    reach: str
    model: str
    tokens: int
    expires_ms: int | None
    verified: bool
    moved: bool = False
    feedback: str = ""
    trouble: str = ""
    for_others: bool = False
    note: str = ""
    edited: bool = False
    proposed: Proposed | None = None
    faults: tuple[Fault, ...] = ()
    reject_reason: str = ""
    cost: int | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposed:
    """What an agent proposed, where the person approved, or looks at, something else."""

    sentence: str
    params: Mapping[str, Json]
    diffs: tuple[RecordDiff, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the arguments of a call. `path` names one, such as `dueDate`; or none."""

    path: str
    reason: str


ParameterKind = Literal[
    "text", "long-text", "day", "whole", "number", "choice", "yes-no", "record", "list", "other"
]


@dataclass(frozen=True, slots=True)
class ToolParameter:
    """One parameter of a tool, as a form asks for it.

    `described` is the module's own sentence. `low` and `high` are the bounds of a number,
    `length_max` those of a text, in characters, or of a list. Of the kind `record`, `table` and
    `title` say which one is named; `value` is its id. `other` is shown as JSON.
    """

    name: str
    kind: ParameterKind
    described: str
    value: Json
    required: bool
    choices: tuple[str, ...] = ()
    length_max: int | None = None
    low: float | None = None
    high: float | None = None
    table: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class EditForm:
    """What a person may change of a proposed call, in the order in which the tool declares it."""

    step_id: str
    tool: str
    described: str
    parameters: tuple[ToolParameter, ...]


@dataclass(frozen=True, slots=True)
class AcceptRate:
    """What a person decided. `edited` are among the approved; `expired` nobody decided on.

    `percent`: approved of all decided ones, None where there are none. `trend`: by how many
    points the last 30 days are above the 30 before, None where either holds no decision.
    """

    approved: int
    edited: int
    rejected: int
    expired: int
    percent: int | None
    trend: int | None


@dataclass(frozen=True, slots=True)
class ToolAcceptance:
    """How proposals of one tool fared."""

    tool: str
    rate: AcceptRate


@dataclass(frozen=True, slots=True)
class AcceptWeek:
    """Decisions of seven days that begin at `start_ms`."""

    start_ms: int
    approved: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How an agent's proposals fared: in all, by tool, and by week, the oldest first."""

    agent_id: str
    total: AcceptRate
    tools: tuple[ToolAcceptance, ...]
    weeks: tuple[AcceptWeek, ...]


@dataclass(frozen=True, slots=True)
class RejectedFor:
    """Rejections of a mission's proposals for one reason; empty: none was chosen.

    `said`: what was written with it, newest first.
    """

    reason: str
    count: int
    newest_ms: int
    said: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LiftedTool:
    """A tool that agents may use in a space without asking, and who lifted it when."""

    tool: str
    effect: str
    account_id: str
    name: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One change of a space's policy. `action`: added or removed."""

    tool: str
    action: str
    account_id: str
    name: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class SpacePolicyView:
    """What a space lets agents do without asking. `liftable`: the tools that could be lifted."""

    lifted: tuple[LiftedTool, ...]
    liftable: tuple[str, ...]
    may_change: bool
    history: tuple[PolicyChange, ...]


@dataclass(frozen=True, slots=True)
class TimelineLine:
    """One AI write, or its refusal, in a bucket. `state`: done, reverted, changed, proposed,
    rejected, refused, failed. `edited`: the person changed it before they approved it.
    """

    step_id: str
    sentence: str
    state: str
    journal_ids: tuple[str, ...]
    diffs: tuple[RecordDiff, ...]
    at_ms: int
    note: str = ""
    edited: bool = False


@dataclass(frozen=True, slots=True)
class Bucket:
    """One iteration on the timeline, newest bucket first. `feedback`: what was said of the run.

    `cost` and `flags` as of a proposal.
    """

    iteration_id: str
    mission_id: str
    mission_title: str
    agent_id: str
    agent_name: str
    agent_avatar: str
    at_ms: int
    summary: str
    source: str
    model: str
    tokens: int
    lines: tuple[TimelineLine, ...]
    revertible: bool
    reverted: bool
    feedback: str = ""
    cost: int | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """A field that revert leaves alone, and why."""

    table: str
    record_id: str
    title: str
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class RevertPreview:
    """What a revert would restore, and what it would leave."""

    target: str
    restored: tuple[RecordDiff, ...]
    conflicts: tuple[Conflict, ...]


@dataclass(frozen=True, slots=True)
class GrantView:
    """A grant, with the titles that the person granted.

    `state` as in the register, or `stale`, or `unverified`: no device of its grantor is known to
    have signed it. `stale_reason` says why; of one that is active, that a limit in it is lower than
    the one that another member set since.
    """

    grant_id: str
    mission_id: str
    mission_title: str
    titles: tuple[str, ...]
    endpoints: tuple[str, ...]
    issued_ms: int
    expires_ms: int
    state: str
    stale_reason: str = ""
    account_id: str = ""
    own: bool = True


@dataclass(frozen=True, slots=True)
class Consent:
    """The consent text of a grant, before it is made. `lines` are whole sentences, in order."""

    mission_id: str
    mission_title: str
    agent_name: str
    records: tuple[Cited, ...]
    runner_fingerprint: str
    models: tuple[ModelView, ...]
    days: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunView:
    """One line of a mission's run ledger. `cost` in millionths of the hub's currency.

    `tries`: how often it failed in a way that is tried again, `last_reason` the last such way, and
    `due_ms` when it is tried next. `round` to `heard`: how far a run is that goes on. `tokens` and
    `cost` are those of all tries so far; of them the unconfirmed ones are the worst case of calls
    whose model never said (`words.spent_words`). `started_ms`: when it began, 0 where it has not.
    `flags` as of a proposal, once it has ended.
    """

    occurrence_id: str
    scheduled_ms: int
    kind: str
    state: str
    reason: str
    reason_words: str
    iteration_id: str | None
    tokens: int
    phase: str = ""
    cost: int = 0
    tries: int = 0
    last_reason: str = ""
    last_reason_words: str = ""
    due_ms: int | None = None
    round: int = 0
    tool_calls: int = 0
    steps: int = 0
    heard: int = 0
    unconfirmed_tokens: int = 0
    unconfirmed_cost: int = 0
    started_ms: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OnChange:
    """When a mission on change runs; all in ms since 1970.

    `changed_ms`: when a person last changed one of its inputs, None if nobody did. `due_ms`: when
    the change that waits is worked on at the earliest, None if none waits. `rests_until_ms`: before
    it no change starts a run, because the last one is not long past; None: nothing holds it back.
    """

    changed_ms: int | None
    due_ms: int | None
    rests_until_ms: int | None


@dataclass(frozen=True, slots=True)
class CapWait:
    """A used-up cap that a mission waits for. `words` says whose it is.

    `scope`: mission, agent, account or hub. `unit`: tokens, or cost, of which `cap` is millionths.
    `room_ms`: from when on some of it is free again, None where that is not known or never.
    """

    scope: str
    unit: str
    cap: int
    words: str
    room_ms: int | None


@dataclass(frozen=True, slots=True)
class MissionView:
    """A mission with its schedule. `next_ms` are the next three due moments by the cadence;
    `hold_words` says why it waits, empty if it does not. `failures`: how often it failed in a row.
    `on_change`: of a mission on change. `raised_words`: that another member raised a cap, which
    this device's person has not agreed to.
    """

    mission_id: str
    title: str
    objective: str
    concept: str
    inputs: tuple[InputRef, ...]
    input_titles: tuple[Cited, ...]
    cadence: Cadence
    cadence_words: str
    zone: str
    agent_id: str
    agent_name: str
    agent_avatar: str
    state: str
    runs_on: str
    runs_here: bool
    next_ms: tuple[int, ...]
    hold: str
    hold_words: str
    grant: GrantView | None
    runs: tuple[RunView, ...]
    last_summary: str = ""
    phase: str = ""
    if_missed: IfMissed = "once"
    tokens_per_day_max: int | None = None
    cost_per_day_max: int | None = None
    failures: int = 0
    failure: str = ""
    failure_words: str = ""
    on_change: OnChange | None = None
    cap_wait: CapWait | None = None
    raised_words: str = ""


@dataclass(frozen=True, slots=True)
class AgentView:
    """An agent with its policy in words and its use of tokens in the last 24 hours.

    The unconfirmed part of that is reserved, or the worst case of calls whose model never said.
    """

    agent_id: str
    name: str
    avatar: str
    role: str
    system_prompt: str
    memory: str
    policy: Policy | None
    preset: str | None
    policy_words: str
    decisions: Mapping[str, Decision]
    state: str
    tokens_per_day_max: int | None
    tokens_today: int
    concurrent_max: int
    missions: tuple[str, ...]
    accepted: int
    rejected: int
    cost_per_day_max: int | None = None
    cost_today: int = 0
    model: str = ""
    model_words: str = ""
    unconfirmed_tokens_today: int = 0
    unconfirmed_cost_today: int = 0


@dataclass(frozen=True, slots=True)
class WorkView:
    """Whether anything runs by itself for the account, its caps, and its use of 24 hours.

    `stopped_ms`: since when the person has stopped all work, None if it goes on. `hub_told`: the
    hub has the same word; it is told as soon as it can be. Costs are millionths of `currency`; the
    caps of the hub's operator stand beside the person's own, and the smaller counts. `differs`: the
    hub says something else than the person signed last. `hub_known` is the hub that words on this
    work are for, `hub_said` what it calls itself; where they differ, it gets none. `hub_unnamed`:
    it says no name that a hub has, and gets none either. The unconfirmed part of the use is
    reserved, or the worst case of calls whose model never said.
    """

    stopped_ms: int | None
    hub_told: bool
    hub_stopped: bool
    currency: str
    tokens_today: int
    cost_today: int
    tokens_per_day_max: int | None
    cost_per_day_max: int | None
    hub_tokens_per_day_max: int | None
    hub_cost_per_day_max: int | None
    differs: bool = False
    unconfirmed_tokens_today: int = 0
    unconfirmed_cost_today: int = 0
    hub_known: str = ""
    hub_said: str = ""
    hub_unnamed: bool = False

    @property
    def hub_changed(self) -> bool:
        """Say whether the hub calls itself another than the one that was met."""
        return bool(self.hub_said) and self.hub_said != self.hub_known


@dataclass(frozen=True, slots=True)
class OwnModelView:
    """A model endpoint of the person's own. Its key is never shown; prices as in `money.Price`."""

    model_id: str
    label: str
    url: str
    host: str
    model: str
    has_key: bool
    prompt_price: int | None
    completion_price: int | None
    context_tokens: int | None
    used_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model that an agent can be given. `where`: hub, device, both, or own."""

    value: str
    label: str
    where: Literal["hub", "device", "both", "own"]


@dataclass(frozen=True, slots=True)
class UsageDay:
    """What was used on one day, `YYYY-MM-DD` in the person's zone, under one scope.

    `scope`: account, agent or mission; `name`: what the person calls it, empty where it is gone. The
    unconfirmed tokens and costs are among the others: reserved, or never said by the model.
    """

    day: str
    scope: str
    id: str
    name: str
    tokens: int
    cost: int
    model_calls: int
    unconfirmed_tokens: int = 0
    unconfirmed_cost: int = 0


@dataclass(frozen=True, slots=True)
class UsageView:
    """Use by day, oldest first. `hub_answered`: else only what this device knows is in it."""

    currency: str
    days: tuple[UsageDay, ...]
    hub_answered: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading by the runner, in words: `The runner read X for Y, at …, sent to Z.`"""

    seq: int
    at_ms: int
    sentence: str
    mission_id: str
    mission_title: str
    table: str
    record_id: str
    title: str
    status: str
    reason: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class DataAccess:
    """Readings newest first, active grants, and what the chain's check on this device says."""

    readings: tuple[Reading, ...]
    grants: tuple[GrantView, ...]
    chain_ok: bool
    chain_words: str
    entries: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class RefusedChange:
    """A change that the hub refused: parked, shown, and blocking nothing."""

    change_id: str
    table: str
    record_id: str
    title: str
    code: str
    words: str
    at_ms: int
    space_id: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a subscriber of a device hears: tables whose records changed, or a topic.

    Topics: `sync`, `missions`, `lock`, `records`, `spaces` (memberships or invitations moved),
    `conflicts`.
    """

    topic: str
    tables: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class SpaceView:
    """A space of this account. `left`: no member any more; what was here can still be read."""

    space_id: str
    type: str
    name: str
    role: str
    members: int
    left: bool = False
    closed: bool = False
    description: str = ""
    held_only: int = 0
    """How many records hold what the hub did not show when it was read anew."""


@dataclass(frozen=True, slots=True)
class HeldView:
    """A record of which this device holds what the hub did not show. No title: it is not opened."""

    table: str
    record_id: str
    title: str


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member of a space. The name is what they call themselves; the fingerprint is their key's.

    `keys_changed_at`: since when they have other keys than before in this space (ISO).
    `comparison`: own, compared, not-compared (a first meeting), or changed: to be shown as a
    warning until the person has compared the fingerprint and said so.
    """

    account_id: str
    name: str
    role: str
    fingerprint: str
    own: bool
    keys_changed_at: str | None = None
    comparison: Literal["own", "compared", "not-compared", "changed"] = "not-compared"


@dataclass(frozen=True, slots=True)
class RotationView:
    """How far a change of keys is: spaces that name the new identity, or records of one space.

    `what`: `identity` (of all spaces; `space_id` is empty), `key` of a space, or `private`, this
    account's own key there. `version` is the one to come to; of an identity, how many there were.
    `kept`: records that stay under their older key, because the runner signed them as they lie or
    only somebody else may write them; they are not part of `all`, and their key is kept for them.
    """

    space_id: str
    what: Literal["identity", "key", "private"]
    version: int
    done: int
    all: int
    kept: int = 0

    @property
    def percent(self) -> int:
        """Return how much is done, 0 to 100; 100 only if it is all."""
        return self.done * 100 // self.all if self.all else 100


@dataclass(frozen=True, slots=True)
class InvitationView:
    """An invitation that this person made or accepted. `link` only where this account made it.

    `state`: open, accepted, joined, withdrawn, expired, or refused: somebody accepted without
    the link's secret.
    """

    invitation_id: str
    space_id: str
    role: str
    state: str
    expires_ms: int
    label: str = ""
    link: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class OverwrittenField:
    """One field of a conflict: what the person had written here, and what stands now."""

    field: str
    label: str
    was: Json
    now: Json


@dataclass(frozen=True, slots=True)
class ConflictView:
    """Edits of this person on this device that something newer overwrote, by record."""

    conflict_id: str
    space_id: str
    table: str
    record_id: str
    title: str
    by: str
    at_ms: int
    fields: tuple[OverwrittenField, ...]
