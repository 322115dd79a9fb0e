"""The OpenAPI 3.1 document, made from the same declarations that serve the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from mana.hub.http.endpoints import Endpoint, Query, WholeQuery
from mana.protocol.messages import Problem
from mana.protocol.problems import MEDIA_TYPE

VERSION: Final = "3.1.0"
_REFS: Final = "#/components/schemas/{name}"
_UUID: Final = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_RECORD: Final = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_FORMS: Final = {
    "spaceId": "^[0-9a-f]{64}$",
    "grantId": _UUID,
    "invitationId": _UUID,
    "missionId": _RECORD,
}
_DESCRIBED: Final = {
    400: "Malformed",
    401: "No valid access token, or wrong credentials",
    403: "Not allowed",
    404: "Not there, or not this account's to see",
    409: "The state does not allow it",
    413: "Too large",
    429: "Too many attempts",
    503: "Not reachable or not set up; nothing was lost",
}


def openapi(endpoints: Sequence[Endpoint], *, version: str) -> dict[str, Any]:
    """Return the description of every endpoint."""
    shapes: list[type[Any]] = [Problem]
    for endpoint in endpoints:
        shapes += [shape for shape in (endpoint.body, endpoint.answer) if shape is not None]
    unique = tuple(dict.fromkeys(shapes))
    found, components = msgspec.json.schema_components(unique, ref_template=_REFS)
    schemas = dict(zip(unique, found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": VERSION,
        "info": {
            "title": "Mana hub",
            "version": version,
            "description": "Accounts, spaces, sync and grants. The hub keeps ciphertext only.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def _operation(endpoint: Endpoint, schemas: dict[type[Any], Any]) -> dict[str, Any]:
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": _FORMS.get(name, "^[^/]+$")},
        }
        for name in endpoint.parameters
    ]
    parameters += [_query(query) for query in endpoint.query]
    parameters += [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
        for name in endpoint.headers
    ]
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": _operation_id(endpoint),
        "responses": _responses(endpoint, schemas),
        "security": [{"bearer": []}] if endpoint.signed_in else [],
    }
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[endpoint.body]}},
        }
    return operation


def _operation_id(endpoint: Endpoint) -> str:
    words = [piece.strip("{}") for piece in endpoint.path.split("/") if piece]
    return "_".join([endpoint.method.lower(), *words]).replace("-", "_").replace(".", "_")


def _query(query: Query) -> dict[str, Any]:
    schema: dict[str, Any]
    if isinstance(query, WholeQuery):
        schema = {"type": "integer", "default": query.default}
        if not query.clamps:
            schema |= {"minimum": query.low, "maximum": query.high}
    else:
        schema = {"type": "string", "maxLength": query.length_max, "pattern": "^[ -~]*$"}
    return {
        "name": query.name,
        "in": "query",
        "required": False,
        "description": query.described,
        "schema": schema,
    }


def _responses(endpoint: Endpoint, schemas: dict[type[Any], Any]) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done"}
    if endpoint.answer is not None:
        done["content"] = {"application/json": {"schema": schemas[endpoint.answer]}}
    elif endpoint.status not in (101, 204):
        done["content"] = {endpoint.media_type: {"schema": {}}}
    problem = {MEDIA_TYPE: {"schema": schemas[Problem]}}
    return {
        str(endpoint.status): done,
        **{
            str(status): {"description": text, "content": problem}
            for status, text in _DESCRIBED.items()
        },
        "default": {"description": "Failed", "content": problem},
    }
