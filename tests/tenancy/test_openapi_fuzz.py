"""The hub's own description, turned against it: made-up requests of an account that is signed in.

The outsider of `household.py` asks every endpoint with what the description allows and with what
it does not, half of the time about things that stand and are somebody else's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mana.testing.postgres import Cluster, Database, run_apart
from tests.tenancy.household import MISSION, SHARED_TASK, household, secrets_of
from tests.tenancy.served import hub_thread

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.postgres, pytest.mark.slow]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))
# Streams without an end; tests/hub/test_live.py talks to them.
ENDLESS = frozenset({"/api/v1/live", "/api/v1/live/socket"})


@dataclass(frozen=True)
class Target:
    """A served hub, the outsider's token, and what must never be in an answer to them."""

    url: str
    token: str
    spare: str
    device_id: str
    names: dict[str, list[str]]
    secrets: frozenset[str]
    document: dict[str, Any]


@pytest.fixture(scope="module")
def target(postgres: Cluster) -> Iterator[Target]:
    with postgres.database() as database, tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        token, spare, device_id, names, secrets = run_apart(lambda: prepared(database, home))
        with hub_thread(database, home) as url:
            document = requests.get(f"{url}/api/v1/openapi.json", timeout=10).json()
            yield Target(url, token, spare, device_id, names, secrets, document)


async def prepared(
    database: Database, home: Path
) -> tuple[str, str, str, dict[str, list[str]], frozenset[str]]:
    async with household(database, home) as made:
        outsider = made.people["out"]
        names = {
            "spaceId": [made.space.space_id, made.people["ada"].space, outsider.space],
            "missionId": [MISSION],
            "grantId": [made.grant_id, made.pending_id],
            "invitationId": [made.invitation.new.invitation_id],
            "table": ["tasks", "notes"],
            "recordId": [SHARED_TASK],
            "sessionId": [made.session_id],
            "deviceId": [made.device_id, outsider.account.device_id],
            "factorId": [made.factor_id],
            "linkId": [made.link_id],
            "reservationId": [made.reservation_id],
            "key": ["s1"],
        }
        # Whoever logs out is out: this session is for that alone.
        answer = await outsider.log_in()
        secrets = await secrets_of(made, "out")
        return (
            outsider.tokens.access_token,
            answer.json()["accessToken"],
            outsider.account.device_id,
            names,
            frozenset(secrets),
        )


def modes(operation: Any) -> list[Any]:
    """Return how an operation can be asked: without input there is no wrong one."""
    from schemathesis import GenerationMode

    has_input = bool(operation.body) or bool(list(operation.iter_parameters()))
    return [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if has_input else [])]


def aimed(case: Any, target: Target, dice: st.DataObject) -> None:
    """Let some of the names be those of things that stand, and the device one's own."""
    for name in case.path_parameters or {}:
        if dice.draw(st.booleans()):
            case.path_parameters[name] = dice.draw(st.sampled_from(target.names[name]))
    if isinstance(case.body, dict):
        if "deviceId" in case.body and dice.draw(st.booleans()):
            case.body["deviceId"] = target.device_id
        if "spaceId" in case.body and dice.draw(st.booleans()):
            case.body["spaceId"] = dice.draw(st.sampled_from(target.names["spaceId"]))


def headers(target: Target, case: Any) -> dict[str, str]:
    """Return who asks: the outsider, who logs out of a session that is for nothing else."""
    token = target.spare if case.path.endswith("/auth/logout") else target.token
    return {"authorization": f"Bearer {token}"}


@pytest.mark.timeout(300)
def test_no_failure_and_no_row_of_another(target: Target) -> None:
    """No request makes the hub fail, get an answer that its description does not have, or read
    a word that is somebody else's."""
    # Not with the file, which is read for each run of any test: this loads for a second.
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]
    document = {
        **target.document,
        "paths": {
            path: one for path, one in target.document["paths"].items() if path not in ENDLESS
        },
    }
    schema = schemathesis.openapi.from_dict(document)
    session = requests.Session()
    asked = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        assert operation is not None, result
        for mode in modes(operation):
            asked.add(operation.label)

            @settings(
                max_examples=EXAMPLES,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode), dice=st.data())
            def ask(case: Any, dice: st.DataObject) -> None:
                aimed(case, target, dice)
                answer = case.call(
                    base_url=target.url, headers=headers(target, case), session=session
                )
                case.validate_response(answer, checks=wanted)
                text = answer.content.decode("utf-8", "replace")
                found = {one for one in target.secrets if one in text}
                assert found == set(), (case.method, case.path)

            ask()
    assert len(asked) >= 30
