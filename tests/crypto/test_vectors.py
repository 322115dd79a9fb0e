"""Every stored vector, ours, the reference's and Wycheproof's, through our own functions."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from mana.crypto.envelope import is_enc1, open_enc1
from mana.crypto.errors import Malformed, SealRejected, SignatureRejected, WrapRejected
from mana.crypto.grants import mission_data_key_v1
from mana.crypto.primitives import Aead, hkdf, mac
from mana.crypto.rsa import RsaPrivateKey
from mana.crypto.signatures import VerifyKey
from mana.domain.errors import CryptoFailed
from tests.vectors import make

VECTORS = Path(make.__file__).parent
OURS = [
    pytest.param(vector, id=f"{path.stem}: {vector['name']}")
    for path in sorted(VECTORS.glob("*.json"))
    for vector in json.loads(path.read_text("utf-8"))
]


def _wycheproof(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    suite = json.loads((VECTORS / "wycheproof" / f"{name}.json").read_text("utf-8"))
    return [(group, test) for group in suite["testGroups"] for test in group["tests"]]


def _reference(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / "reference" / name).read_text("utf-8"))
    return found


@pytest.mark.parametrize("vector", OURS)
def test_bytes_stand(vector: dict[str, Any]) -> None:
    """What is sealed, derived or signed today is what the stored vectors say, to the byte."""
    assert make.OPERATIONS[vector["operation"]](**vector["input"]) == vector["output"]


def test_vectors_are_complete() -> None:
    """Every case of the script has its stored vector, and every operation at least one."""
    used = set()
    for name, cases in make.CASES.items():
        standing = {vector["name"]: vector for vector in make.load(name)}
        assert len(standing) == len(make.load(name))
        for title, operation, inputs in cases:
            assert standing[title]["operation"] == operation
            assert standing[title]["input"] == inputs
    for path in VECTORS.glob("*.json"):
        used |= {vector["operation"] for vector in make.load(path.name)}
    assert used >= set(make.OPERATIONS)


def _lp(*parts: str | bytes) -> bytes:
    out = b""
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        out += len(data).to_bytes(4, "big") + data
    return out


def _hkdf(key: bytes, info: bytes, salt: bytes = b"") -> bytes:
    extracted = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_another_implementation_agrees() -> None:
    """The derivations can be written again from docs/protocol/crypto.md with hashlib alone."""
    derived = 0
    for vector in [*make.load("keys.json"), *make.load("envelope.json"), *make.load("grants.json")]:
        given, output = vector["input"], vector["output"]
        match vector["operation"]:
            case "record-key":
                info = _lp("mana-record:v1", given["table"], given["recordId"])
                assert _hkdf(bytes.fromhex(given["parent"]), info).hex() == output
            case "mission-key":
                info = _lp("mana-mission:v1", given["missionId"])
                assert _hkdf(bytes.fromhex(given["spaceKey"]), info).hex() == output
            case "private-key":
                info = _lp("mana-private:v1", given["spaceId"], str(given["version"]))
                assert _hkdf(bytes.fromhex(given["masterKey"]), info).hex() == output
            case "element-token":
                key = _hkdf(bytes.fromhex(given["key"]), _lp("mana-path:v1", given["field"]))
                element = make.canonical_json(given["element"])
                digest = hmac.new(key, element, hashlib.sha256).digest()[:16]
                assert make.b64(digest).replace("+", "-").replace("/", "_").rstrip("=") == output
            case "grant-seal":
                header = make.canonical_json(given["header"])
                secret = bytes.fromhex(given["secret"])
                found = _hkdf(secret, header, given["missionId"].encode())
                assert found.hex() == output["missionDataKey"]
            case _:
                continue
        derived += 1
    assert derived >= 5


def _uuid8(*parts: str) -> str:
    raw = bytearray(hashlib.sha256(_lp("mana-id:v1", *parts)).digest()[:16])
    raw[6], raw[8] = raw[6] & 0x0F | 0x80, raw[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(raw)))


def _sorted_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_another_implementation_names_and_hashes_alike() -> None:
    """Ids, bindings, digests and chains can be made again from docs/protocol with hashlib alone."""
    seen = set()
    for name in ("records.json", "signatures.json", "grants.json"):
        for vector in make.load(name):
            given, output = vector["input"], vector["output"]
            match vector["operation"]:
                case "derived-id":
                    assert _uuid8(given["purpose"], *given["parts"]) == output
                case "run-ids":
                    run = _uuid8("iteration", given["missionId"], given["scheduledFor"])
                    step, target = f"{run}-0", (given["table"], given["recordId"])
                    entry = _uuid8("journal", step, *target)
                    assert output == {
                        "iteration": run,
                        "step": step,
                        "created": _uuid8("created", step, "0"),
                        "createdNext": _uuid8("created", step, "1"),
                        "journal": entry,
                        "effect": _uuid8("change", step, *target, "decide"),
                        "revert": _uuid8("change", entry, "revert"),
                    }
                case "binding":
                    assert hashlib.sha256(_sorted_json(given)).hexdigest() == output
                case "run-digest":
                    kept = [
                        [
                            table,
                            record_id,
                            {
                                path: value
                                for path, value in fields.items()
                                if path not in ("proof", "status", "claimedBy")
                            },
                        ]
                        for table, record_id, fields in sorted(
                            given["records"], key=lambda r: r[:2]
                        )
                    ]
                    assert hashlib.sha256(_sorted_json(kept)).hexdigest() == output
                case "audit-row":
                    row = dict(given["row"])
                    previous, _ = row.pop("previous"), row.pop("hash")
                    stated = _lp("mana-audit:v1", previous, _sorted_json(row))
                    assert hashlib.sha256(stated).hexdigest() == output
                case "space":
                    entry = {**given["entry"], "keyCheck": output["keyCheck"]}
                    signed = _sorted_json({"entry": entry, "signature": output["signature"]})
                    assert hashlib.sha256(signed).hexdigest() == output["spaceId"]
                    info = _lp("mana-key-check:v1", entry["nonce"], str(entry["keyVersion"]))
                    check = _hkdf(bytes.fromhex(given["spaceKey"]), info)[:16]
                    assert make.b64(check) == output["keyCheck"]
                case "change-message":
                    change = given["change"]
                    entries = {
                        path: [
                            write["at"],
                            hashlib.sha256(_sorted_json(write["value"])).hexdigest(),
                        ]
                        for path, write in change["fields"].items()
                    }
                    stated = _lp(
                        "mana-change:v1",
                        given["space"],
                        change["table"],
                        change["id"],
                        change["changeId"],
                        change["authorId"],
                        "space",
                        _sorted_json(change["actor"]),
                        change["origin"],
                        _sorted_json(entries),
                    )
                    assert stated.hex() == output["statement"]
                case "grant-header":
                    assert _sorted_json(given["header"]).hex() == output["canonical"]
                case _:
                    continue
            seen.add(vector["operation"])
    assert len(seen) == 8


@pytest.mark.parametrize("vector", _reference("field-enc1.json")["values"], ids=lambda v: v["name"])
def test_enc1_opens(vector: dict[str, Any]) -> None:
    """Whatever the reference sealed is read on import."""
    assert open_enc1(bytes.fromhex(vector["key"]), vector["blob"]) == vector["value"]


@pytest.mark.parametrize(
    "vector", _reference("field-enc1.json")["negative"], ids=lambda v: v["name"]
)
def test_enc1_fails_as_the_reference(vector: dict[str, Any]) -> None:
    """A broken enc:1 value raises; an oddly spelled one opens, as it does in a browser."""
    key, expected = bytes.fromhex(vector["key"]), vector["webapp"]
    if "error" in expected:
        with pytest.raises(CryptoFailed):
            open_enc1(key, vector["blob"])
    else:
        assert open_enc1(key, vector["blob"]) == expected["value"]


def test_enc1_passes_others_through() -> None:
    """Only text that starts with enc:1 is taken for a sealed value."""
    for vector in _reference("field-enc1.json")["pass_through"]:
        assert not is_enc1(vector["input"])
    with pytest.raises(Malformed):
        open_enc1(bytes(32), "plain text")


DOCUMENTED_ENC1 = {
    "ZUCjYuWIq3fmY7kAFBOko15oHcmYxWgkYqw=": "Buy milk",
    "ZSA7UEN731G2dRq3OanL4R8B": "",
    "czCZH5unBNj9RJEDWscHE/Z3": 42,
    "M3Cjfg4e26OvXTFfJg6nFgBOxKQ=": True,
    "HDP6ObGSrTmhOrX/2ZsdCKHs80aFHiJQVhKJ6UCrTglrvoyhM5LyBjUDAN5i": [
        1,
        "two",
        {"three": True},
        None,
    ],
}


@pytest.mark.parametrize("sealed", DOCUMENTED_ENC1)
def test_enc1_documented_values(sealed: str) -> None:
    """The values that the reference's documentation lists open to what it says."""
    text = f"enc:1:AAECAwQFBgcICQoL.{sealed}"
    assert open_enc1(bytes(range(32)), text) == DOCUMENTED_ENC1[sealed]


def test_mission_key_v1_golden() -> None:
    """The reference's golden mission key is derived, whatever order the scope comes in."""
    master_key = bytes(range(1, 33))
    golden = "7538df66c51d3ddb667c0135feb4ac7c2800ba372babc7e61e9423d6a9a65628"
    for tables in (["notes", "tasks"], ["tasks", "notes"]):
        found = mission_data_key_v1(master_key, "mission-abc", tables, ["tasks:t1", "notes:n1"])
        assert found.hex() == golden


@pytest.mark.parametrize(
    "vector", _reference("mission-key-v1.json")["vectors"], ids=lambda v: v["name"][:40]
)
def test_mission_key_v1(vector: dict[str, Any]) -> None:
    """Version 1 derivations are the reference's, its limit of the scope included."""
    scope = vector["derivation"]
    master_key = bytes.fromhex(vector["masterKey"])
    given = (master_key, scope["missionId"], scope["tables"], scope["recordIds"])
    if "error" in vector:
        with pytest.raises(Malformed):
            mission_data_key_v1(*given)
    else:
        assert mission_data_key_v1(*given).hex() == vector["mdk"]


def test_wycheproof_aes_gcm() -> None:
    """AES-GCM agrees with Wycheproof at our sizes and refuses all others."""
    tried = 0
    for group, test in _wycheproof("aes_gcm_test"):
        key, iv, aad, message, ciphertext, tag = (
            bytes.fromhex(test[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
        )
        if group["keySize"] != 256 or group["ivSize"] != 96:
            with pytest.raises(Malformed):
                Aead(key).open(iv, ciphertext + tag, aad)
        elif test["result"] == "valid":
            tried += 1
            assert Aead(key).seal(iv, message, aad) == ciphertext + tag
            assert Aead(key).open(iv, ciphertext + tag, aad) == message
        else:
            tried += 1
            with pytest.raises(SealRejected):
                Aead(key).open(iv, ciphertext + tag, aad)
    assert tried == 66


def test_wycheproof_hkdf() -> None:
    """HKDF-SHA256 agrees with Wycheproof, its limit of length included."""
    for _, test in _wycheproof("hkdf_sha256_test"):
        ikm, salt, info = (bytes.fromhex(test[name]) for name in ("ikm", "salt", "info"))
        if test["result"] == "valid":
            found = hkdf(ikm, info=info, salt=salt, length=test["size"])
            assert found.hex() == test["okm"]
        else:
            with pytest.raises(Malformed):
                hkdf(ikm, info=info, salt=salt, length=test["size"])


def test_wycheproof_hmac() -> None:
    """HMAC-SHA256 agrees with Wycheproof, whole or cut to its tag size."""
    for group, test in _wycheproof("hmac_sha256_test"):
        found = mac(bytes.fromhex(test["key"]), bytes.fromhex(test["msg"]))
        held = found[: group["tagSize"] // 8] == bytes.fromhex(test["tag"])
        assert held == (test["result"] == "valid")


def test_wycheproof_ed25519() -> None:
    """Ed25519 takes what Wycheproof calls valid and nothing else."""
    for group, test in _wycheproof("ed25519_test"):
        key = VerifyKey(bytes.fromhex(group["publicKey"]["pk"]))
        signature, message = bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"])
        if test["result"] == "valid":
            key.verify_message(signature, message)
        else:
            with pytest.raises(SignatureRejected):
                key.verify_message(signature, message)


def test_wycheproof_rsa_oaep() -> None:
    """RSA-OAEP agrees with Wycheproof where there is no label, and opens nothing with one."""
    opened = 0
    for group, test in _wycheproof("rsa_oaep_2048_sha256_mgf1sha256_test"):
        key = RsaPrivateKey(bytes.fromhex(group["privateKeyPkcs8"]))
        ciphertext = bytes.fromhex(test["ct"])
        if test["result"] == "valid" and not test["label"]:
            opened += 1
            assert key.unwrap(ciphertext, b"").hex() == test["msg"]
        else:
            with pytest.raises(WrapRejected):
                key.unwrap(ciphertext, b"")
    assert opened == 10
