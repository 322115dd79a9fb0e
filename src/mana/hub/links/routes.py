"""The endpoints of links between devices."""

from __future__ import annotations

from mana.hub.http.endpoints import Call, Endpoint, Reply
from mana.hub.links.service import LinkService
from mana.protocol.messages import (
    AnswerLink,
    ApproveLink,
    LinkPoll,
    LinkRequest,
    LinkReveal,
    LinksAnswer,
    LinkState,
    LinkTicket,
)


def link_routes(links: LinkService) -> list[Endpoint]:
    """Return the endpoints: the first three are of a device without a session."""

    async def begin(call: Call) -> Reply:
        return await links.begin(call.message(LinkRequest))

    async def poll(call: Call) -> Reply:
        return await links.poll(call.path["linkId"], call.message(LinkPoll))

    async def reveal(call: Call) -> Reply:
        await links.reveal(call.path["linkId"], call.message(LinkReveal))
        return None

    async def waiting(call: Call) -> Reply:
        return await links.waiting(call.tenant)

    async def answer(call: Call) -> Reply:
        await links.answer(call.tenant, call.path["linkId"], call.message(AnswerLink))
        return None

    async def approve(call: Call) -> Reply:
        await links.approve(call.session, call.path["linkId"], call.message(ApproveLink))
        return None

    async def refuse(call: Call) -> Reply:
        await links.refuse(call.session, call.path["linkId"])
        return None

    new, own = "/api/v1/auth/links", "/api/v1/me/links"
    return [
        Endpoint(
            "POST",
            new,
            begin,
            "Ask to be unlocked by another device",
            body=LinkRequest,
            answer=LinkTicket,
            status=201,
            signed_in=False,
        ),
        Endpoint(
            "POST",
            f"{new}/{{linkId}}/poll",
            poll,
            "How the link of a new device stands",
            body=LinkPoll,
            answer=LinkState,
            signed_in=False,
        ),
        Endpoint(
            "POST",
            f"{new}/{{linkId}}/reveal",
            reveal,
            "Show what the new device had committed to",
            body=LinkReveal,
            status=204,
            signed_in=False,
        ),
        Endpoint("GET", own, waiting, "Links that wait", answer=LinksAnswer),
        Endpoint(
            "POST",
            f"{own}/{{linkId}}/answer",
            answer,
            "Give the nonce of a device that is signed in",
            body=AnswerLink,
            status=204,
        ),
        Endpoint(
            "POST",
            f"{own}/{{linkId}}/approve",
            approve,
            "Hand the account over to the new device",
            body=ApproveLink,
            status=204,
        ),
        Endpoint("POST", f"{own}/{{linkId}}/refuse", refuse, "End a link", status=204),
    ]
