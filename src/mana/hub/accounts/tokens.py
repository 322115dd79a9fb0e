"""Access tokens: EdDSA JWTs of 15 minutes, and the public key that others verify them with."""

from __future__ import annotations

from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry

from mana.crypto.primitives import b64url
from mana.crypto.signatures import SigningKey, VerifyKey
from mana.domain.encoding import canonical_json, sha256
from mana.domain.errors import Invalid, Unauthenticated
from mana.domain.ids import AccountId, require_uuid
from mana.hub.http.endpoints import Session

LIFE_S: Final = 15 * 60
AUDIENCE: Final = "mana"
TOKEN_LENGTH_MAX: Final = 2_048
ALGORITHM: Final = "EdDSA"
CHECKED_MAX: Final = 10_000
"""Tokens whose signature was checked and that are remembered, by their hash."""


class _Only(JWSRegistry):
    """Knows one algorithm. The library warns at each use that RFC 9864 renames it."""

    def get_alg(self, name: str) -> Any:
        if name != ALGORITHM:
            raise UnsupportedAlgorithmError("algorithm is not allowed")
        return self.algorithms[ALGORITHM]


_REGISTRY: Final = _Only(algorithms=[ALGORITHM])


class TokenIssuer:
    """Signs and verifies access tokens of one hub."""

    def __init__(self, key: SigningKey, *, issuer: str) -> None:
        self._issuer = issuer
        public = _public_members(key.public())
        self._kid = _thumbprint(public)
        self._key = OKPKey.import_key({**public, "d": b64url(key.to_bytes())})
        self._verifier = TokenVerifier(key.public(), issuer=issuer)

    def issue(self, account: AccountId, session_id: str, *, now_ms: int) -> str:
        """Return a token for a session of an account."""
        issued = now_ms // 1_000
        claims: dict[str, Any] = {
            "sub": account,
            "sid": session_id,
            "iss": self._issuer,
            "aud": AUDIENCE,
            "iat": issued,
            "exp": issued + LIFE_S,
        }
        header = {"alg": ALGORITHM, "kid": self._kid, "typ": "JWT"}
        return jwt.encode(header, claims, self._key, registry=_REGISTRY)

    def verify(self, token: str, *, now_ms: int) -> Session:
        """Return whose token this is; raise Unauthenticated otherwise."""
        return self._verifier.verify(token, now_ms=now_ms)

    def jwks(self) -> dict[str, Any]:
        """Return the public key set."""
        return self._verifier.jwks()


class TokenVerifier:
    """Verifies access tokens with the public key alone."""

    def __init__(self, key: VerifyKey, *, issuer: str) -> None:
        self._issuer = issuer
        self._members = _public_members(key)
        self._kid = _thumbprint(self._members)
        self._key = OKPKey.import_key({**self._members})
        self._checked: dict[bytes, tuple[Session, int]] = {}

    def verify(self, token: str, *, now_ms: int) -> Session:
        """Return whose token this is; raise Unauthenticated otherwise."""
        if len(token) > TOKEN_LENGTH_MAX:
            raise Unauthenticated("the access token is not valid")
        known = sha256(token.encode("utf-8", "replace"))
        checked = self._checked.get(known)
        if checked is None:
            checked = self._check(token)
            # A device asks many times with one token, and its signature holds every time.
            while len(self._checked) >= CHECKED_MAX:
                del self._checked[next(iter(self._checked))]
            self._checked[known] = checked
        session, issued_ms = checked
        # A minute of grace for a hub whose clock was set back after it issued the token.
        if not issued_ms - 60_000 <= now_ms < session.expires_ms:
            self._checked.pop(known, None)
            raise Unauthenticated("the access token is not valid or has expired")
        return session

    def _check(self, token: str) -> tuple[Session, int]:
        """Return the session of a token that this hub signed, and when it did; times later."""
        try:
            found = jwt.decode(token, self._key, registry=_REGISTRY)
            claims = found.claims
            account = require_uuid(str(claims["sub"]), "account id")
            expires_ms = int(claims["exp"]) * 1_000
            issued_ms = int(claims["iat"]) * 1_000
            holds = (
                found.header.get("kid") == self._kid
                and claims["iss"] == self._issuer
                and claims["aud"] == AUDIENCE
                and isinstance(claims["sid"], str)
            )
        except (JoseError, Invalid, KeyError, ValueError, TypeError, OverflowError):
            raise Unauthenticated("the access token is not valid") from None
        if not holds:
            raise Unauthenticated("the access token is not valid")
        return Session(AccountId(account), claims["sid"], expires_ms), issued_ms

    def jwks(self) -> dict[str, Any]:
        """Return the public key set."""
        key = {**self._members, "kid": self._kid, "use": "sig", "alg": ALGORITHM}
        return {"keys": [key]}


def _public_members(key: VerifyKey) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": b64url(key.to_bytes())}


def _thumbprint(members: dict[str, str]) -> str:
    """Return the key id of RFC 7638: the hash of the members in canonical form."""
    return b64url(sha256(canonical_json({name: members[name] for name in ("crv", "kty", "x")})))
