"""The endpoints of invitations, and the page that a link opens in a browser."""

from __future__ import annotations

from typing import Final

from mana.hub.http.endpoints import Call, Document, Endpoint, Reply
from mana.hub.invitations.service import InvitationService
from mana.protocol.messages import (
    AcceptInvitation,
    InvitationInfo,
    InvitationsAnswer,
    NewInvitation,
)

_HTML: Final = "text/html; charset=utf-8"
_JOIN: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>An invitation</title>
<h1>You are invited to a space on this hub</h1>
<p>Copy the whole address of this page and open it in Mana on your own device: <b>Spaces</b>, then
<b>Join by a link</b>; or <code>mana space join</code> in a terminal.
<p>This page cannot do it: what opens the invitation is at the end of the address, and your browser
sends it to nobody.
<hr>
<div lang="de">
<h1>Du bist in einen Bereich auf diesem Hub eingeladen</h1>
<p>Kopiere die ganze Adresse dieser Seite und öffne sie in Mana auf deinem eigenen Gerät:
<b lang="en">Spaces</b>, dann <b lang="en">Join by a link</b>; oder im Terminal
<code>mana space join</code>.
<p>Diese Seite kann es nicht: Was die Einladung öffnet, steht am Ende der Adresse, und dein Browser
schickt es niemandem.
</div>
</html>
"""


def invitation_routes(invitations: InvitationService) -> list[Endpoint]:
    """Return the endpoints of invitations."""

    async def create(call: Call) -> Reply:
        return await invitations.create(
            call.tenant, call.path["spaceId"], call.message(NewInvitation)
        )

    async def of_space(call: Call) -> Reply:
        return await invitations.of_space(call.tenant, call.path["spaceId"])

    async def withdraw(call: Call) -> Reply:
        path = call.path
        await invitations.withdraw(call.tenant, path["spaceId"], path["invitationId"])
        return None

    async def of_account(call: Call) -> Reply:
        return await invitations.of_account(call.tenant)

    async def accept(call: Call) -> Reply:
        return await invitations.accept(
            call.tenant, call.path["invitationId"], call.message(AcceptInvitation)
        )

    async def join(_call: Call) -> Reply:
        return Document(_JOIN.encode(), media_type=_HTML)

    of_one = "/api/v1/spaces/{spaceId}/invitations"
    return [
        Endpoint(
            "POST",
            of_one,
            create,
            "Make an invitation to a space",
            body=NewInvitation,
            answer=InvitationInfo,
            status=201,
        ),
        Endpoint("GET", of_one, of_space, "Invitations to a space", answer=InvitationsAnswer),
        Endpoint(
            "DELETE", f"{of_one}/{{invitationId}}", withdraw, "Withdraw an invitation", status=204
        ),
        Endpoint(
            "POST",
            "/api/v1/invitations/{invitationId}",
            accept,
            "Accept an invitation",
            body=AcceptInvitation,
            answer=InvitationInfo,
        ),
        Endpoint(
            "GET",
            "/api/v1/me/invitations",
            of_account,
            "Invitations that the account accepted",
            answer=InvitationsAnswer,
        ),
        Endpoint(
            "GET",
            "/join",
            join,
            "What to do with the link of an invitation",
            signed_in=False,
            media_type=_HTML,
        ),
    ]
