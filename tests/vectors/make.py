"""Adds vectors to the files beside it; never changes one that stands.

`python tests/vectors/make.py` computes what is in `CASES` and not yet in a file. A vector is
`{name, operation, input, output}`: `OPERATIONS` says how each operation reads its input, and
the tests replay every stored vector through it. Randomness is the bytes 00, 01, 02 … in the
order in which they are drawn. HPKE and RSA draw for themselves, so their vectors are of
opening only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from mana.crypto import (
    envelope,
    grants,
    hpke,
    identity,
    invitations,
    keys,
    linking,
    passwords,
    rsa,
    runners,
    signatures,
    vaults,
    work,
    wrapping,
)
from mana.crypto.authority import facts_of, verify_log
from mana.crypto.primitives import b64, unb64
from mana.device import audit as device_audit
from mana.device import elements, journal
from mana.domain.clock import Stamp, parse_stamp
from mana.domain.encoding import canonical_json, length_prefixed, sha256
from mana.domain.grants import header_from_wire
from mana.domain.ids import (
    DeviceId,
    IterationId,
    MissionId,
    SpaceId,
    StepId,
    created_id,
    derived_id,
    iteration_id,
    step_id,
)
from mana.domain.iterations import binding_hash
from mana.domain.spaces import entry_from_wire
from mana.domain.tables import Number, Shape, Table, Text, sealed
from mana.hub.runner import audit as hub_audit
from mana.hub.runner.keys import runner_device_id
from mana.hub.runner.writeback import run_digest
from mana.protocol.messages import AuditRow, ChangeMessage, SignedEntry

HERE = Path(__file__).parent
Operation = Callable[..., Any]


def counting() -> Callable[[int], bytes]:
    """Return a source of the bytes 00, 01, 02 … for a vector."""

    def numbers() -> Iterator[int]:
        while True:
            yield from range(256)

    source = numbers()
    return lambda count: bytes(next(source) for _ in range(count))


def repeated(byte: int, length: int = 32) -> str:
    return bytes([byte] * length).hex()


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


# ------------------------------------------------------------------ operations


def _password_keys(password: str, login: str, kdf: dict[str, Any]) -> dict[str, str]:
    found = passwords.derive_password_keys(
        password,
        login,
        passwords.KdfParameters.from_wire(kdf),
        floor=passwords.KdfFloor(t=1, m_kib=8, p=1),
    )
    return {"loginKey": found.login_key.hex(), "unlockKey": found.unlock_key.hex()}


def _binding(wire: dict[str, Any]) -> envelope.Binding:
    return envelope.Binding(**wire)


def _seal_field(key: str, cls: Any, version: int, binding: dict[str, Any], value: Any) -> str:
    record_key = envelope.RecordKey(raw(key))
    bound = _binding(binding)
    text = envelope.seal_field(
        record_key, cls=cls, version=version, binding=bound, value=value, random=counting()
    )
    assert envelope.open_field(record_key, text, binding=bound) == value
    return text


def _seal_grant(
    header: dict[str, Any], missionId: str, secret: str, iv: str, payload: dict[str, Any]
) -> dict[str, str]:
    """The part of a grant that draws no randomness of its own."""
    head = canonical_json(header)
    data_key = grants.derive_mission_data_key(raw(secret), missionId, head)
    drawn = iter((raw(secret), raw(iv)))
    sealed = grants.seal_grant(
        head,
        missionId,
        payload,
        runner=hpke.HpkePrivateKey(bytes(96)).public(),
        device=signatures.SigningKey(bytes(32)),
        random=lambda count: next(drawn)[:count],
    )
    return {"missionDataKey": data_key.hex(), "sealedKeys": sealed.sealed_keys}


def _open_grant(
    header: dict[str, Any],
    missionId: str,
    suite: str,
    runnerKey: str,
    deviceKey: str,
    hubKey: str,
    wrappedKey: str,
    sealedKeys: str,
    signature: str,
    countersignature: str,
) -> dict[str, Any]:
    private = {hpke.SUITE: hpke.HpkePrivateKey, rsa.SUITE: rsa.RsaPrivateKey}[suite]
    runner = cast(wrapping.WrapPrivateKey, private(unb64(runnerKey)))
    return grants.open_grant(
        canonical_json(header),
        missionId,
        grants.SealedGrant(unb64(wrappedKey), sealedKeys, unb64(signature)),
        unb64(countersignature),
        runner=runner,
        device=signatures.VerifyKey(unb64(deviceKey)),
        hub=signatures.VerifyKey(unb64(hubKey)),
    )


def _facts(wire: dict[str, Any]) -> signatures.ChangeFacts:
    entries = {
        path: (at, signatures.value_hash(value)) for path, (at, value) in wire["values"].items()
    }
    rest = {name: value for name, value in wire.items() if name != "values"}
    return signatures.ChangeFacts(entries=entries, **rest)


def _change(key: str, facts: dict[str, Any]) -> dict[str, str]:
    signing, stated = signatures.SigningKey(raw(key)), _facts(facts)
    signature = signatures.sign_change(signing, stated)
    signatures.verify_change(signing.public(), stated, signature)
    return {"digest": signatures.change_digest(stated).hex(), "signature": b64(signature)}


def _membership(key: str, entry: dict[str, Any]) -> dict[str, str]:
    signing = signatures.SigningKey(raw(key))
    signature = signatures.sign_entry(signing, entry)
    signatures.verify_entry(signing.public(), entry, signature)
    return {"signature": b64(signature), "hash": signatures.entry_hash(entry, signature)}


def _reseal(key: str, facts: dict[str, Any]) -> dict[str, str]:
    signing, stated = signatures.SigningKey(raw(key)), _facts(facts)
    signature = signatures.sign_reseal(signing, stated)
    signatures.verify_reseal(signing.public(), stated, signature)
    return {"signature": b64(signature)}


def _membership_log(people: dict[str, dict[str, str]], steps: list[dict[str, Any]]) -> Any:
    """A whole log: who each entry names, under which key; verified as a device does."""
    log: list[SignedEntry] = []
    space, head, check, version = "", "", "", 0
    for step in steps:
        if step["spaceKey"] is not None:
            version += 1
            check = keys.key_check(raw(step["spaceKey"]), step["nonce"], version)
        entry = {
            "version": "v1",
            "previous": head,
            "type": step["type"],
            "members": [
                {
                    "accountId": name,
                    "role": role,
                    "signingKey": b64(_signing(people[name]).public().to_bytes()),
                    "hpkeKey": b64(
                        hpke.HpkePrivateKey(raw(people[name]["hpkeKey"])).public().to_bytes()
                    ),
                }
                for name, role in step["members"].items()
            ],
            "keyVersion": version,
            "keyCheck": check,
            "createdAt": step["createdAt"],
            "authorId": step["author"],
            "nonce": step["nonce"],
        }
        signature = signatures.sign_entry(_signing(people[step["author"]]), entry)
        head = signatures.entry_hash(entry, signature)
        space = space or head
        log.append(SignedEntry(entry=entry, signature=b64(signature)))
    verified = verify_log(space, log)
    return {
        "spaceId": space,
        "hashes": list(verified.hashes),
        "keyChecks": [one.key_check for one in verified.entries],
        "signatures": [one.signature for one in log],
    }


def _signing(person: dict[str, str]) -> signatures.SigningKey:
    return signatures.SigningKey(raw(person["signingKey"]))


def _invitation(
    hub: str, spaceId: str, invitationId: str, secret: str, head: str, joins: dict[str, str]
) -> dict[str, str]:
    link = invitations.InvitationLink(hub, spaceId, invitationId, raw(secret), head)
    assert invitations.parse_link(link.text()) == link
    token = invitations.invitation_token(raw(secret), spaceId, invitationId)
    who = {
        "account_id": joins["accountId"],
        "signing_key": joins["signingKey"],
        "hpke_key": joins["hpkeKey"],
    }
    proof = b64(invitations.acceptance_mac(raw(secret), spaceId, invitationId, **who))
    invitations.verify_acceptance(raw(secret), spaceId, invitationId, **who, proof=proof)
    return {
        "link": link.text(),
        "token": b64(token),
        "tokenHash": invitations.token_hash(token),
        "mac": proof,
    }


def _certificate(
    key: str, accountId: str, deviceId: str, publicKey: str, createdAt: str
) -> dict[str, Any]:
    device = signatures.VerifyKey(unb64(publicKey))
    signing = signatures.SigningKey(raw(key))
    made = identity.certify_device(signing, accountId, deviceId, device, createdAt)
    identity.verify_certificate(made, signing.public(), accountId)
    return made.to_wire()


def _runner_write(key: str, write: dict[str, Any]) -> str:
    signing, stated = signatures.SigningKey(raw(key)), signatures.RunnerWrite(**write)
    signature = signatures.sign_runner_write(signing, stated)
    signatures.verify_runner_write(signing.public(), stated, signature)
    return b64(signature)


def _identity(masterKey: str, accountId: str) -> dict[str, Any]:
    draw = counting()
    made = identity.PrivateIdentity.generate(accountId, random=draw)
    sealed = made.seal(raw(masterKey), random=draw)
    opened = identity.PrivateIdentity.open(raw(masterKey), sealed, made.public())
    assert opened.public() == made.public()
    return {
        "public": made.public().to_wire(),
        "fingerprint": made.public().fingerprint(),
        "sealedPrivate": sealed,
    }


def _runner_bundle(publicPem: str) -> dict[str, str]:
    bundle = runners.RunnerPublicKey.from_pem(publicPem)
    assert bundle.to_pem() == publicPem
    return {"keyId": bundle.key_id(), "fingerprint": bundle.fingerprint()}


def _succession(beforePem: str, afterPem: str) -> dict[str, str]:
    before = runners.RunnerPrivateKey.from_pem(beforePem)
    after = runners.RunnerPublicKey.from_pem(afterPem)
    word = runners.name_successor(before, after)
    assert runners.succession_from(after, [word]) == (after, before.public())
    return {"keyId": word.key.key_id(), "signature": b64(word.signature)}


def _grant_ended(key: str, header: dict[str, Any]) -> str:
    signing, raw_header = signatures.SigningKey(raw(key)), canonical_json(header)
    grant_id = header["grantId"]
    word = grants.end_grant(signing, grant_id, raw_header)
    grants.verify_grant_ended(grant_id, raw_header, word, device=signing.public())
    return b64(word)


def _unwrap_space_key(privateKey: str, wrapped: str, name: dict[str, Any]) -> str:
    recipient = hpke.HpkePrivateKey(raw(privateKey))
    return keys.unwrap_space_key(wrapped, recipient, keys.SpaceKeyName(**name)).hex()


def _master_wrap(masterKey: str, wrappingKey: str, purpose: Any, accountId: str, keyId: str) -> str:
    where = (raw(wrappingKey), purpose, accountId, keyId)
    text = keys.wrap_master_key(raw(masterKey), *where, random=counting())
    assert keys.unwrap_master_key(text, *where) == raw(masterKey)
    return text


def _secret(
    masterKey: str, plaintext: str, purpose: str, accountId: str, context: list[str]
) -> str:
    where = (purpose, accountId, *context)
    text = keys.seal_secret(raw(masterKey), raw(plaintext), *where, random=counting())
    assert keys.open_secret(raw(masterKey), text, *where) == raw(plaintext)
    return text


def _stamp(wallMs: int, counter: int, device: str) -> str:
    stamp = Stamp(wallMs, counter, DeviceId(device))
    assert parse_stamp(str(stamp)) == stamp
    return str(stamp)


def _run_ids(missionId: str, scheduledFor: str, table: str, recordId: str) -> dict[str, str]:
    """The ids that follow from an occurrence: its run, its first step, and what that does."""
    run = iteration_id(MissionId(missionId), scheduledFor)
    step = step_id(IterationId(run), 0)
    entry = journal.journal_id(step, table, recordId)
    return {
        "iteration": run,
        "step": step,
        "created": created_id(StepId(step), 0),
        "createdNext": created_id(StepId(step), 1),
        "journal": entry,
        "effect": journal.decide_change_id(step, table, recordId),
        "revert": journal.revert_change_id(entry),
    }


def _grant_header(header: dict[str, Any]) -> dict[str, str]:
    canonical = header_from_wire(header).canonical()
    return {"canonical": canonical.hex(), "sha256": sha256(canonical).hex()}


def _space(key: str, spaceKey: str, entry: dict[str, Any]) -> dict[str, str]:
    """Found a space: the key check, the signed first entry, and the id that both give."""
    signing = signatures.SigningKey(raw(key))
    check = keys.key_check(raw(spaceKey), entry["nonce"], entry["keyVersion"])
    first = entry_from_wire({**entry, "keyCheck": check}).to_wire()
    signature = signatures.sign_entry(signing, first)
    return {
        "keyCheck": check,
        "signature": b64(signature),
        "spaceId": SpaceId(signatures.entry_hash(first, signature)),
    }


def _change_message(space: str, change: dict[str, Any]) -> dict[str, str]:
    """The bytes that a device signs for a change as it is on the wire."""
    facts = facts_of(space, msgspec.convert(change, ChangeMessage))
    statement = length_prefixed("mana-change:v1", *facts.parts())
    assert sha256(statement) == signatures.change_digest(facts)
    return {"statement": statement.hex()}


def _audit_row(row: dict[str, Any]) -> str:
    shaped = msgspec.convert(row, AuditRow)
    found = hub_audit.row_hash(shaped)
    assert found == device_audit.row_hash(shaped)
    return found


COLLECTIONS = Table(
    name="collections",
    app_id="test",
    described="",
    fields=(
        sealed("labels", Text(64), shape=Shape.SET),
        sealed("lines", Text(64), shape=Shape.LIST),
        sealed("total", Number(), shape=Shape.COUNTER),
    ),
)


def _collection(
    key: str, device: str, current: dict[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    """What is written by path; the random name of a new list element is shown as `*`."""
    record_key = envelope.RecordKey(raw(key))
    written = elements.expand(COLLECTIONS, record_key, device, current, values)
    for path in written:
        COLLECTIONS.field_at(path)
    return {re.sub(r"^lines/[0-9a-f]{16}$", "lines/*", path): one for path, one in written.items()}


def _recovery(secret: str, login: str) -> dict[str, str]:
    derived = vaults.recovery_keys(raw(secret), login)
    return {
        "code": vaults.recovery_code(raw(secret)),
        "wrapKey": derived.wrap_key.hex(),
        "loginKey": derived.login_key.hex(),
        "keyId": derived.key_id,
    }


def _vault_statement(key: str, statement: dict[str, Any]) -> dict[str, str]:
    read = vaults.VaultStatement.from_wire(statement)
    signed = vaults.sign_statement(signatures.SigningKey(raw(key)), read)
    return {"hash": read.hash(), "signature": b64(signed)}


def _former_master(masterKey: str, former: str, accountId: str) -> dict[str, str]:
    check, sealed = vaults.seal_former_master(
        raw(masterKey), raw(former), accountId, random=counting()
    )
    return {"check": check, "sealed": sealed}


def _private_keys(key: str, accountId: str, spaceId: str, wraps: list[list[Any]]) -> str:
    signing, named = signatures.SigningKey(raw(key)), [(one[0], one[1]) for one in wraps]
    return b64(vaults.sign_private_keys(signing, accountId, spaceId, named))


def _master_proof(
    key: str, accountId: str, action: str, challenge: str, body: dict[str, Any]
) -> str:
    signing = signatures.SigningKey(raw(key))
    return b64(vaults.sign_proof(signing, accountId, action, challenge, body))


def _device_revocation(key: str, accountId: str, deviceId: str, revokedAt: str) -> str:
    signing = signatures.SigningKey(raw(key))
    return b64(identity.revoke_device(signing, accountId, deviceId, revokedAt).signature)


def _work_word(key: str, word: dict[str, Any]) -> dict[str, str]:
    said = work.WorkWord.from_wire(word)
    signature = work.sign_work(signatures.SigningKey(raw(key)), said)
    return {"canonical": said.canonical().decode(), "signature": b64(signature)}


def _hub_id(key: str) -> str:
    return work.hub_id(signatures.SigningKey(raw(key)).public())


def _link(
    hpkeKey: str,
    deviceKey: str,
    deviceId: str,
    linkId: str,
    login: str,
    accountId: str,
    newNonce: str,
    oldNonce: str,
) -> dict[str, str]:
    shown = linking.LinkKeys(
        hpke.HpkePrivateKey(raw(hpkeKey)).public(),
        signatures.SigningKey(raw(deviceKey)).public(),
        deviceId,
    )
    new, old = raw(newNonce), raw(oldNonce)
    return {
        "commitment": linking.commit(linkId, login, shown, new).hex(),
        "digits": linking.link_digits(linkId, login, accountId, shown, new, old),
    }


OPERATIONS: dict[str, Operation] = {
    "recovery": _recovery,
    "vault-statement": _vault_statement,
    "former-master": _former_master,
    "master-proof": _master_proof,
    "private-keys": _private_keys,
    "device-revocation": _device_revocation,
    "work-word": _work_word,
    "hub-id": _hub_id,
    "link": _link,
    "stamp": _stamp,
    "derived-id": lambda purpose, parts: derived_id(purpose, *parts),
    "run-ids": _run_ids,
    "runner-device-id": lambda keyId: runner_device_id(keyId),
    "grant-header": _grant_header,
    "space": _space,
    "change-message": _change_message,
    "run-digest": lambda records: run_digest([(one[0], one[1], one[2]) for one in records]),
    "audit-row": _audit_row,
    "binding": lambda intent, preview, base: binding_hash(intent, preview, base),
    "collection": _collection,
    "length-prefixed": lambda parts: length_prefixed(*parts).hex(),
    "canonical-json": lambda value: canonical_json(value).hex(),
    "password-keys": _password_keys,
    "login-hash": lambda loginKey: passwords.hash_login_key(
        raw(loginKey), cost=passwords.HashCost(t=1, m_kib=64), random=counting()
    ),
    "token-hash": lambda token: passwords.token_hash(raw(token)).hex(),
    "master-wrap": _master_wrap,
    "key-check": lambda key, label, version: keys.key_check(raw(key), label, version),
    "record-key": lambda parent, table, recordId: keys.record_key(
        raw(parent), table, recordId
    ).hex(),
    "mission-key": lambda spaceKey, missionId: keys.mission_key(raw(spaceKey), missionId).hex(),
    "private-key": lambda masterKey, spaceId, version: keys.private_key(
        raw(masterKey), spaceId, version
    ).hex(),
    "secret": _secret,
    "unwrap-space-key": _unwrap_space_key,
    "seal-field": _seal_field,
    "element-token": lambda key, field, element: envelope.element_token(
        envelope.RecordKey(raw(key)), field, element
    ),
    "change": _change,
    "membership": _membership,
    "membership-log": _membership_log,
    "reseal": _reseal,
    "invitation": _invitation,
    "device-certificate": _certificate,
    "runner-write": _runner_write,
    "audit-hash": lambda previous, row: signatures.audit_hash(previous, row),
    "identity": _identity,
    "runner-bundle": _runner_bundle,
    "runner-succession": _succession,
    "grant-ended": _grant_ended,
    "grant-seal": _seal_grant,
    "grant-open": _open_grant,
}


# ---------------------------------------------------------------------- cases

ACCOUNT = "5f0c2c56-7e1c-4a52-9d0e-0c1f6d1c8a01"
OTHER = "5f0c2c56-7e1c-4a52-9d0e-0c1f6d1c8a02"
DEVICE = "0b7f63f4-2d55-4a3b-8a7e-9a1b7f6d2c11"
SPACE = "ab" * 32
NOTE = "018f3b9e-0000-7000-8000-000000000001"
MISSION = "018f3b9e-0000-7000-8000-0000000000aa"
GRANT = "018f3b9e-0000-4000-8000-0000000000bb"
AT = f"2026-11-21T05:23:00.123Z-0000-{DEVICE}"
ACTOR = {"kind": "user", "principalId": ACCOUNT}
AGENT_ACTOR = {
    "kind": "ai",
    "principalId": "018f3b9e-0000-7000-8000-0000000000cc",
    "missionId": MISSION,
    "iterationId": "018f3b9e-0000-8000-8000-0000000000dd",
}
BINDING = {
    "space": SPACE,
    "table": "notes",
    "record": NOTE,
    "path": "title",
    "at": AT,
    "actor": ACTOR,
}
STATEMENT = {
    "version": "v1",
    "accountId": ACCOUNT,
    "revision": 1,
    "previous": "",
    "challenge": b64(bytes(range(32))),
    "mode": "standard",
    "kdf": {"salt": b64(bytes(16)), "t": 3, "mKib": 65536, "p": 4},
    "masterCheck": b64(bytes(16)),
    "masterWrap": repeated(0x33),
    "recovery": "",
    "signingKey": b64(bytes(range(32))),
    "hpkeKey": b64(bytes(1216)),
    "sealedPrivate": repeated(0x44),
    "formers": vaults.formers_hash([], []),
    "grants": True,
    "changedAt": "2026-11-21T05:23:00.123Z",
}
HEADER = {
    "version": "v2",
    "grantId": GRANT,
    "accountId": ACCOUNT,
    "spaceId": SPACE,
    "missionId": MISSION,
    "agentId": AGENT_ACTOR["principalId"],
    "tables": ["notes"],
    "recordIds": [f"notes:{NOTE}"],
    "endpoints": ["rules"],
    "issuedAt": "2026-11-21T05:23:00.123Z",
    "expiresAt": "2026-11-28T05:23:00.123Z",
    "suite": "hpke-mlkem768-x25519",
    "runnerKeyId": repeated(0xCD),
}
CAPS = {"missionTokens": 50_000, "missionCost": None, "agentTokens": 0, "agentCost": 250_000}
PAYLOAD = {
    "records": {f"notes:{NOTE}": {"k": b64(raw(repeated(1))), "e": "s1"}},
    "support": {f"aiMissions:{MISSION}": {"k": b64(raw(repeated(2))), "e": "s1"}},
    "iterationKey": {"k": b64(raw(repeated(3))), "e": "m1"},
}
FACTS = {
    "space": SPACE,
    "table": "aiMissions",
    "record": MISSION,
    "change": "018f3b9e-0000-4000-8000-0000000000ee",
    "author": ACCOUNT,
    "visibility": "space",
    "actor": ACTOR,
    "origin": "user",
    "values": {"state": [AT, "active"], "title": [AT, "enc:2:s1:AAECAwQFBgcICQoL.AA=="]},
}
ENTRY = {
    "version": "v1",
    "previous": "",
    "type": "personal",
    "members": [{"accountId": ACCOUNT, "role": "owner", "signingKey": "A", "hpkeKey": "B"}],
    "keyVersion": 1,
    "keyCheck": "AAAAAAAAAAAAAAAAAAAAAA==",
    "createdAt": "2026-11-21T05:23:00.123Z",
    "authorId": ACCOUNT,
    "nonce": "00",
}
CHEAP_KDF = {"salt": b64(bytes(range(16))), "t": 1, "mKib": 64, "p": 1}
REAL_KDF = {"salt": b64(bytes(range(16))), "t": 3, "mKib": 65536, "p": 4}

RUN = derived_id("iteration", MISSION, "2026-11-21T06:00:00.000Z")
STEP = f"{RUN}-0"
STEP_CONTENT = {
    "intent": {"kind": "toolCall", "toolName": "update_note", "params": {"id": NOTE, "title": "b"}},
    "preview": [
        {
            "table": "notes",
            "id": NOTE,
            "op": "update",
            "before": {"title": "a"},
            "after": {"title": "b"},
        }
    ],
    "base": {f"notes:{NOTE}": {"title": AT, "content": None, "color": f"step:{RUN}-1"}},
}
AUDIT_ROW = {
    "seq": 1,
    "missionId": MISSION,
    "iterationId": RUN,
    "grantId": GRANT,
    "tableName": "notes",
    "recordId": NOTE,
    "status": "ok",
    "reason": None,
    "endpoint": "rules",
    "runnerKeyId": repeated(0xCD),
    "ts": "2026-11-21T06:00:01.000Z",
    "previous": signatures.AUDIT_START,
    "hash": "",
}

Case = tuple[str, str, dict[str, Any]]

CASES: dict[str, list[Case]] = {
    "records.json": [
        ("a stamp", "stamp", {"wallMs": 1_795_238_580_123, "counter": 0, "device": DEVICE}),
        (
            "the counter has 4 hex digits",
            "stamp",
            {"wallMs": 1_795_238_580_000, "counter": 0xFFFF, "device": DEVICE},
        ),
        ("a derived id", "derived-id", {"purpose": "group", "parts": ["a", "bc"]}),
        ("parts do not run together", "derived-id", {"purpose": "group", "parts": ["ab", "c"]}),
        (
            "a claim names its device",
            "derived-id",
            {"purpose": "change", "parts": [STEP, "aiSteps", STEP, "claim", DEVICE]},
        ),
        (
            "what follows from an occurrence",
            "run-ids",
            {
                "missionId": MISSION,
                "scheduledFor": "2026-11-21T06:00:00.000Z",
                "table": "notes",
                "recordId": NOTE,
            },
        ),
        ("the device id of a runner", "runner-device-id", {"keyId": repeated(0xCD)}),
        ("what a step binds", "binding", STEP_CONTENT),
        ("a step that creates has no base", "binding", {**STEP_CONTENT, "base": {}}),
        (
            "a set: what goes is null, what stays is not written",
            "collection",
            {
                "key": repeated(9),
                "device": DEVICE,
                "current": {
                    f"labels/{envelope.element_token(envelope.RecordKey(raw(repeated(9))), 'labels', one)}": one
                    for one in ("old", "kept")
                },
                "values": {"labels": ["kept", "new"]},
            },
        ),
        (
            "a list: one element under a random name",
            "collection",
            {"key": repeated(9), "device": DEVICE, "current": {}, "values": {"lines": ["one"]}},
        ),
        (
            "a counter: this device's total",
            "collection",
            {
                "key": repeated(9),
                "device": DEVICE,
                "current": {f"total/{DEVICE}": 2, f"total/{OTHER}": 5},
                "values": {"total": 11},
            },
        ),
    ],
    "encoding.json": [
        ("no parts", "length-prefixed", {"parts": []}),
        ("an empty part is a part", "length-prefixed", {"parts": [""]}),
        ("a, bc", "length-prefixed", {"parts": ["a", "bc"]}),
        ("ab, c", "length-prefixed", {"parts": ["ab", "c"]}),
        ("bytes, not characters, are counted", "length-prefixed", {"parts": ["ü", "日本"]}),
        (
            "keys sorted, no spaces, not escaped",
            "canonical-json",
            {"value": {"b": [1, 1.5, None, True], "a": "Grüße", "ä": {}, "A": '\n"\\/'}},
        ),
    ],
    "passwords.json": [
        (
            "cheap parameters",
            "password-keys",
            {"password": "correct horse", "login": "ada", "kdf": CHEAP_KDF},
        ),
        (
            "the name is lower-cased, the password is not",
            "password-keys",
            {"password": "Correct horse", "login": "ADA", "kdf": CHEAP_KDF},
        ),
        (
            "decomposed letters are composed",
            "password-keys",
            {"password": "Schlu\u0308ssel", "login": "Zoe\u0308", "kdf": CHEAP_KDF},
        ),
        (
            "the parameters of new accounts",
            "password-keys",
            {"password": "correct horse", "login": "ada", "kdf": REAL_KDF},
        ),
        ("stored hash of a login key", "login-hash", {"loginKey": repeated(0x11)}),
        ("stored hash of a refresh token", "token-hash", {"token": repeated(0x22)}),
    ],
    "keys.json": [
        (
            "a record of a space",
            "record-key",
            {"parent": repeated(7), "table": "notes", "recordId": NOTE},
        ),
        ("a mission", "mission-key", {"spaceKey": repeated(7), "missionId": MISSION}),
        *(
            (
                f"private records of a space, version {version}",
                "private-key",
                {"masterKey": repeated(0x42), "spaceId": SPACE, "version": version},
            )
            for version in (1, 12)
        ),
        ("check of a space key", "key-check", {"key": repeated(7), "label": SPACE, "version": 1}),
        ("check of version 12", "key-check", {"key": repeated(7), "label": SPACE, "version": 12}),
        *(
            (
                f"the master key under {purpose}",
                "master-wrap",
                {
                    "masterKey": repeated(0x42),
                    "wrappingKey": repeated(0x24),
                    "purpose": purpose,
                    "accountId": ACCOUNT,
                    "keyId": "k1",
                },
            )
            for purpose in ("unlock", "kek", "recovery")
        ),
        (
            "a secret with context",
            "secret",
            {
                "masterKey": repeated(0x42),
                "plaintext": "00ff10",
                "purpose": "device-sign",
                "accountId": ACCOUNT,
                "context": [DEVICE],
            },
        ),
        ("an identity", "identity", {"masterKey": repeated(0x42), "accountId": ACCOUNT}),
    ],
    "envelope.json": [
        *(
            (
                f"{name}",
                "seal-field",
                {
                    "key": repeated(9),
                    "cls": cls,
                    "version": version,
                    "binding": BINDING,
                    "value": value,
                },
            )
            for name, cls, version, value in (
                ("text", "s", 1, "Buy milk"),
                ("empty text", "s", 1, ""),
                ("false", "p", 2, False),
                ("zero", "s", 1, 0),
                ("beyond ASCII", "s", 1, "Schlüssel — 日本語 — 🔐"),
                ("a list", "m", 999_999_999, [1, "two", {"three": True}, None]),
                ("30 bytes of text fill the smallest class", "s", 1, "x" * 30),
                ("31 bytes of text need the next", "s", 1, "x" * 31),
                ("4094 bytes of text fill 4096", "s", 1, "x" * 4094),
                ("4095 bytes of text need 8192", "s", 1, "x" * 4095),
            )
        ),
        (
            "written by an agent",
            "seal-field",
            {
                "key": repeated(9),
                "cls": "m",
                "version": 1,
                "binding": {**BINDING, "actor": AGENT_ACTOR, "path": "tags/abc"},
                "value": "x",
            },
        ),
        (
            "the token of a tag",
            "element-token",
            {"key": repeated(9), "field": "tags", "element": "urgent"},
        ),
        (
            "the token of an object",
            "element-token",
            {"key": repeated(9), "field": "links", "element": {"b": 1, "a": "ü"}},
        ),
    ],
    "signatures.json": [
        ("a change", "change", {"key": repeated(5), "facts": FACTS}),
        ("the first membership entry", "membership", {"key": repeated(5), "entry": ENTRY}),
        ("a re-seal", "reseal", {"key": repeated(5), "facts": FACTS}),
        (
            "a space is founded, somebody joins, and is removed under a new key",
            "membership-log",
            {
                "people": {
                    ACCOUNT: {"signingKey": repeated(5), "hpkeKey": repeated(6, 96)},
                    OTHER: {"signingKey": repeated(7), "hpkeKey": repeated(8, 96)},
                },
                "steps": [
                    {
                        "type": "family",
                        "author": ACCOUNT,
                        "members": {ACCOUNT: "owner"},
                        "spaceKey": repeated(9),
                        "createdAt": "2026-11-21T05:23:00.123Z",
                        "nonce": "00" * 16,
                    },
                    {
                        "type": "family",
                        "author": ACCOUNT,
                        "members": {ACCOUNT: "owner", OTHER: "member"},
                        "spaceKey": None,
                        "createdAt": "2026-11-21T05:24:00.000Z",
                        "nonce": "01" * 16,
                    },
                    {
                        "type": "family",
                        "author": ACCOUNT,
                        "members": {ACCOUNT: "owner"},
                        "spaceKey": repeated(10),
                        "createdAt": "2026-11-21T05:25:00.000Z",
                        "nonce": "02" * 16,
                    },
                ],
            },
        ),
        (
            "an invitation: link, token, its hash, and the proof of who joins",
            "invitation",
            {
                "hub": "https://hub.example:3050",
                "spaceId": SPACE,
                "invitationId": GRANT,
                "secret": bytes(range(224, 256)).hex(),
                "head": "cd" * 32,
                "joins": {"accountId": OTHER, "signingKey": "A", "hpkeKey": "B"},
            },
        ),
        (
            "a space is founded",
            "space",
            {"key": repeated(5), "spaceKey": repeated(7), "entry": ENTRY},
        ),
        (
            "the statement of a change on the wire",
            "change-message",
            {
                "space": SPACE,
                "change": {
                    "changeId": FACTS["change"],
                    "table": "aiMissions",
                    "id": MISSION,
                    "op": "update",
                    "fields": {"state": {"value": "active", "at": AT}},
                    "actor": ACTOR,
                    "origin": "user",
                    "authorId": ACCOUNT,
                    "group": "018f3b9e-0000-4000-8000-0000000000ff",
                },
            },
        ),
        (
            "the digest of a run leaves out proof and guarded paths, and sorts",
            "run-digest",
            {
                "records": [
                    [
                        "aiSteps",
                        STEP,
                        {
                            "index": 0,
                            "status": "staged",
                            "intent": "enc:2:m1:AAECAwQFBgcICQoL.AA==",
                        },
                    ],
                    [
                        "aiIterations",
                        RUN,
                        {"stepIds": [STEP], "source": "hub", "proof": {"keyId": "x"}},
                    ],
                ]
            },
        ),
        ("an audit row as it is on the wire", "audit-row", {"row": AUDIT_ROW}),
        (
            "a device",
            "device-certificate",
            {
                "key": repeated(5),
                "accountId": ACCOUNT,
                "deviceId": DEVICE,
                "publicKey": b64(signatures.SigningKey(raw(repeated(6))).public().to_bytes()),
                "createdAt": "2026-11-21T05:23:00.123Z",
            },
        ),
        (
            "a write of the runner",
            "runner-write",
            {
                "key": repeated(5),
                "write": {
                    "mission": MISSION,
                    "scheduled_for": "2026-11-21T06:00:00.000Z",
                    "grant": GRANT,
                    "fence": 3,
                    "digest": repeated(0xEE),
                    "audit_seq": 17,
                    "audit_hash": repeated(0xDD),
                },
            },
        ),
        (
            "the first audit row",
            "audit-hash",
            {"previous": signatures.AUDIT_START, "row": {"seq": 1, "status": "ok"}},
        ),
        (
            "a later audit row",
            "audit-hash",
            {"previous": repeated(0xDD), "row": {"seq": 2, "status": "failed"}},
        ),
    ],
    "grants.json": [
        ("the header's bytes", "grant-header", {"header": HEADER}),
        ("a header with caps", "grant-header", {"header": {**HEADER, "caps": CAPS}}),
        (
            "the word that a grant has ended",
            "grant-ended",
            {"key": repeated(0x78), "header": HEADER},
        ),
        (
            "mission data key and sealed keys",
            "grant-seal",
            {
                "header": HEADER,
                "missionId": MISSION,
                "secret": repeated(0x77),
                "iv": bytes(range(12)).hex(),
                "payload": PAYLOAD,
            },
        ),
    ],
    "hpke.json": [],
    "vaults.json": [
        (
            "a recovery code, as the reference has it",
            "recovery",
            {"secret": bytes(range(32)).hex(), "login": "ada"},
        ),
        ("another code and login", "recovery", {"secret": repeated(0xAB), "login": "Zoë"}),
        ("the first statement", "vault-statement", {"key": repeated(5), "statement": STATEMENT}),
        (
            "a statement of zero-knowledge mode",
            "vault-statement",
            {
                "key": repeated(5),
                "statement": {
                    **STATEMENT,
                    "revision": 2,
                    "previous": repeated(0x11),
                    "mode": "zero-knowledge",
                    "recovery": repeated(0x22),
                    "grants": False,
                },
            },
        ),
        (
            "a former master key",
            "former-master",
            {"masterKey": repeated(0x42), "former": repeated(0x41), "accountId": ACCOUNT},
        ),
        (
            "a proof",
            "master-proof",
            {
                "key": repeated(5),
                "accountId": ACCOUNT,
                "action": "link-approve",
                "challenge": b64(raw(repeated(6))),
                "body": {"deviceId": DEVICE, "linkId": "0" * 32},
            },
        ),
        (
            "the private keys of a space",
            "private-keys",
            {
                "key": repeated(5),
                "accountId": ACCOUNT,
                "spaceId": "0" * 64,
                "wraps": [[2, "AAAA"], [3, "BBBB"]],
            },
        ),
        (
            "a word on an account's work",
            "work-word",
            {
                "key": repeated(8),
                "word": {
                    "version": "v1",
                    "accountId": ACCOUNT,
                    "hub": repeated(0xCC),
                    "revision": 3,
                    "stopped": False,
                    "tokensPerDayMax": 50_000,
                    "costPerDayMax": None,
                    "at": "2026-11-21T05:23:00.123Z",
                },
            },
        ),
        ("what a word calls a hub", "hub-id", {"key": repeated(9)}),
        (
            "a revoked device",
            "device-revocation",
            {
                "key": repeated(5),
                "accountId": ACCOUNT,
                "deviceId": DEVICE,
                "revokedAt": "2026-11-21T05:23:00.123Z",
            },
        ),
        (
            "a link",
            "link",
            {
                "hpkeKey": bytes(range(96)).hex(),
                "deviceKey": repeated(8),
                "deviceId": DEVICE,
                "linkId": "0123456789abcdef" * 2,
                "login": "ada",
                "accountId": ACCOUNT,
                "newNonce": repeated(1),
                "oldNonce": repeated(2),
            },
        ),
    ],
}


# ------------------------------------------------- cases that are drawn only once


def drawn_once() -> dict[str, list[Callable[[], Case]]]:
    """Return makers of vectors whose input holds randomness that no one can fix."""
    return {
        "hpke.json": [lambda: _space_case("s"), lambda: _space_case("p")],
        "grants.json": [lambda: _grant_case(hpke.SUITE), lambda: _grant_case(rsa.SUITE)],
        "runners.json": [_runner_case, _succession_case],
    }


def _space_case(kind: Any) -> Case:
    private = hpke.HpkePrivateKey(bytes(range(96)))
    name = keys.SpaceKeyName(kind, SPACE, 3, OTHER)
    wrapped = keys.wrap_space_key(raw(repeated(7)), private.public(), name)
    return (
        f"a key of kind {kind}, unwrapped",
        "unwrap-space-key",
        {
            "privateKey": private.to_bytes().hex(),
            "wrapped": wrapped,
            "name": {"kind": kind, "space": SPACE, "version": 3, "recipient": OTHER},
        },
    )


def _grant_case(suite: str) -> Case:
    header = {**HEADER, "suite": suite}
    head = canonical_json(header)
    runner = wrapping.generate_wrap_key(suite)
    device, hub = signatures.SigningKey.generate(), signatures.SigningKey.generate()
    sealed = grants.seal_grant(head, MISSION, PAYLOAD, runner=runner.public(), device=device)
    return (
        f"a grant by {suite}, opened",
        "grant-open",
        {
            "header": header,
            "missionId": MISSION,
            "suite": suite,
            "runnerKey": b64(runner.to_bytes()),
            "deviceKey": b64(device.public().to_bytes()),
            "hubKey": b64(hub.public().to_bytes()),
            "wrappedKey": b64(sealed.wrapped_key),
            "sealedKeys": sealed.sealed_keys,
            "signature": b64(sealed.signature),
            "countersignature": b64(grants.countersign_grant(hub, head, sealed)),
        },
    )


def _runner_case() -> Case:
    bundle = runners.RunnerPrivateKey.generate().public()
    return ("a runner's bundle", "runner-bundle", {"publicPem": bundle.to_pem()})


def _succession_case() -> Case:
    before, after = (runners.RunnerPrivateKey.generate() for _ in range(2))
    inputs = {"beforePem": before.to_pem(), "afterPem": after.public().to_pem()}
    return ("a runner's key names the one after it", "runner-succession", inputs)


def load(name: str) -> list[dict[str, Any]]:
    """Return the vectors that stand in a file."""
    path = HERE / name
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def add() -> int:
    """Append what is missing, and return how many vectors were added."""
    added = 0
    once = drawn_once()
    for name in sorted({*CASES, *once}):
        standing = load(name)
        names = {vector["name"] for vector in standing}
        for case in [*CASES.get(name, []), *(make() for make in once.get(name, []))]:
            title, operation, inputs = case
            if title not in names:
                output = OPERATIONS[operation](**inputs)
                standing.append(
                    {"name": title, "operation": operation, "input": inputs, "output": output}
                )
                added += 1
        text = json.dumps(standing, ensure_ascii=False, indent=1)
        (HERE / name).write_text(text + "\n", encoding="utf-8")
    return added


if __name__ == "__main__":
    print(f"{add()} vectors added")
