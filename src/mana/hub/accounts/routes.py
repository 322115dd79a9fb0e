"""The endpoints of accounts."""

from __future__ import annotations

from mana.hub.accounts.service import AccountService
from mana.hub.http.endpoints import Call, Document, Endpoint, Reply
from mana.protocol.codec import encode
from mana.protocol.messages import (
    Account,
    DeleteAccountRequest,
    DeviceCertificate,
    DevicesAnswer,
    InviteAnswer,
    KdfParameters,
    KdfRequest,
    LoginRequest,
    RecoverRequest,
    RefreshRequest,
    ResetAnswer,
    ResetRequest,
    SignUpRequest,
    Tokens,
)


def account_routes(accounts: AccountService) -> list[Endpoint]:
    """Return the endpoints of sign-up, log-in, sessions, the account and its devices."""

    async def sign_up(call: Call) -> Reply:
        return await accounts.sign_up(call.message(SignUpRequest))

    async def kdf(call: Call) -> Reply:
        return await accounts.kdf(call.message(KdfRequest))

    async def log_in(call: Call) -> Reply:
        return await accounts.log_in(call.message(LoginRequest))

    async def recover(call: Call) -> Reply:
        return await accounts.recover(call.message(RecoverRequest))

    async def reset(call: Call) -> Reply:
        return await accounts.reset(call.message(ResetRequest))

    async def refresh(call: Call) -> Reply:
        return await accounts.refresh(call.message(RefreshRequest))

    async def log_out(call: Call) -> Reply:
        await accounts.log_out(call.session)
        return None

    async def jwks(_call: Call) -> Reply:
        return Document(encode(accounts.jwks()))

    async def invite(call: Call) -> Reply:
        return await accounts.invite(call.tenant)

    async def me(call: Call) -> Reply:
        return await accounts.account(call.tenant)

    async def delete(call: Call) -> Reply:
        await accounts.delete(call.session, call.message(DeleteAccountRequest))
        return None

    async def devices(call: Call) -> Reply:
        return await accounts.devices(call.tenant)

    async def add_device(call: Call) -> Reply:
        return await accounts.add_device(call.session, call.message(DeviceCertificate))

    auth, self_ = "/api/v1/auth", "/api/v1/me"
    return [
        Endpoint(
            "POST",
            f"{auth}/signup",
            sign_up,
            "Make an account",
            body=SignUpRequest,
            answer=Tokens,
            status=201,
            signed_in=False,
        ),
        Endpoint(
            "POST",
            f"{auth}/kdf",
            kdf,
            "Ask how the password of a login becomes keys",
            body=KdfRequest,
            answer=KdfParameters,
            signed_in=False,
        ),
        Endpoint(
            "POST",
            f"{auth}/login",
            log_in,
            "Begin a session",
            body=LoginRequest,
            answer=Tokens,
            signed_in=False,
        ),
        Endpoint(
            "POST",
            f"{auth}/recover",
            recover,
            "Begin a session with a recovery code",
            body=RecoverRequest,
            answer=Tokens,
            signed_in=False,
        ),
        Endpoint(
            "POST",
            f"{auth}/reset",
            reset,
            "Begin a session with a one-time token of the operator",
            body=ResetRequest,
            answer=ResetAnswer,
            signed_in=False,
        ),
        Endpoint(
            "POST",
            f"{auth}/refresh",
            refresh,
            "Exchange a refresh token for a new pair",
            body=RefreshRequest,
            answer=Tokens,
            signed_in=False,
        ),
        Endpoint("POST", f"{auth}/logout", log_out, "End the session", status=204),
        Endpoint("GET", f"{auth}/jwks", jwks, "Public keys of access tokens", signed_in=False),
        Endpoint(
            "POST", f"{auth}/invites", invite, "Invite someone", answer=InviteAnswer, status=201
        ),
        Endpoint("GET", self_, me, "The signed-in account", answer=Account),
        Endpoint(
            "DELETE",
            self_,
            delete,
            "Remove the account and all its rows",
            body=DeleteAccountRequest,
            status=204,
        ),
        Endpoint("GET", f"{self_}/devices", devices, "The account's devices", answer=DevicesAnswer),
        Endpoint(
            "POST",
            f"{self_}/devices",
            add_device,
            "Register a device",
            body=DeviceCertificate,
            answer=DeviceCertificate,
            status=201,
        ),
    ]
