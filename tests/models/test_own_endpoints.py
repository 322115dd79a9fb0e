"""An endpoint that a person brings is no way into the operator's network."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mana.domain.own_models import OwnModel
from mana.models.addresses import (
    OwnEndpointRefused,
    OwnModels,
    check_own_origin,
    endpoint,
    is_public,
)
from mana.models.choose import ModelUnknown, candidates
from mana.models.connections import Connections, authorities
from mana.models.openai_compatible import OpenAiCompatible
from mana.models.settings import OFFLINE, ModelSettings
from mana.planning.ports import Message, ModelFailed, ModelRequest
from mana.testing.endpoints import completion, model_server, says

pytestmark = pytest.mark.anyio

REQUEST = ModelRequest((Message("user", "Hello"),), (), 0.3, 64)
HOST = "models.example"
PUBLIC = ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "1.1.1.1", "223.255.255.255")
NOT_PUBLIC = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:93.184.215.14",
    "64:ff9b::7f00:1",
    "64:ff9b::5db8:d70e",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "3fff::1",
    "4000::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "",
    "localhost",
    "models.example",
    "/run/model.sock",
    "2130706433",
    "0x7f.1",
    "127.1",
)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address: str) -> None:
    """What is on the public internet may be called."""
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_all_others_are_not(address: str) -> None:
    """What is private, local, special, or another address in disguise, may not be called."""
    assert not is_public(address)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://models.example", {"public", "any"}),
        ("https://models.example:8443", {"public", "any"}),
        ("https://1.1.1.1", {"public", "any"}),
        ("http://models.example", {"any"}),
        ("http://127.0.0.1:11434", {"any"}),
        ("https://127.0.0.1", {"any"}),
        ("https://[::1]", {"any"}),
        ("https://10.0.0.1", {"any"}),
        ("https://localhost", {"any"}),
        ("https://intranet", {"any"}),
        ("https://2130706433", {"any"}),
        ("https://models.example/", set()),
        ("https://models.example/v1", set()),
        ("https://models.example:443", set()),
        ("https://MODELS.example", set()),
        ("https://u:p@models.example", set()),
        ("https://models.example?x", set()),
        (" https://models.example", set()),
        ("https://models.example.", set()),
        ("ftp://models.example", set()),
        ("unix:///run/model.sock", set()),
        ("rules:offline", set()),
        ("", set()),
    ],
)
@pytest.mark.parametrize("own", ["off", "public", "any"])
def test_what_a_header_may_name(origin: str, allowed: set[str], own: OwnModels) -> None:
    """A header names a plain origin, by https and not in the operator's network; with `off` none."""
    if own in allowed:
        check_own_origin(origin, own)
        return
    with pytest.raises(OwnEndpointRefused):
        check_own_origin(origin, own)


class Wire(httpx.AsyncBaseTransport):
    """Takes requests in the place of a network, and notes where they would have gone."""

    def __init__(self, *broken: str) -> None:
        self.went: list[tuple[str, str, object]] = []
        self._broken = broken

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.went.append(
            (request.url.host, request.headers["host"], request.extensions.get("sni_hostname"))
        )
        if request.url.host in self._broken:
            raise httpx.ConnectError("no way")
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(completion("Hi")).encode()))


def resolving(*answers: Sequence[str]) -> tuple[Connections, list[str]]:
    """Return connections whose resolver gives these answers in turn, and what it was asked."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(f"{host}:{port}")
        return answers[min(len(asked), len(answers)) - 1]

    return Connections(resolve=resolve), asked


def on_wire(connections: Connections, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these connections end at a wire that only notes."""
    monkeypatch.setattr(httpx, "AsyncHTTPTransport", lambda **_options: wire)


def own_model(connections: Connections, url: str = f"https://{HOST}") -> OpenAiCompatible:
    """Return a model as the runner calls a person's own."""
    return OpenAiCompatible(url, model="m", connections=connections, public_only=True)


async def test_the_checked_address_is_the_one_that_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that changes its address after the check changes nothing: it is asked for once."""
    connections, asked = resolving([PUBLIC[0]], ["127.0.0.1"])
    wire = Wire()
    on_wire(connections, wire, monkeypatch)
    assert (await own_model(connections).complete(REQUEST)).content == "Hi"
    assert wire.went == [(PUBLIC[0], HOST, HOST)]
    assert asked == [f"{HOST}:443"]
    with pytest.raises(ModelFailed):
        await own_model(connections).complete(REQUEST)
    assert len(wire.went) == 1


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_name_that_leads_inside_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent to a name whose address is not public, in whatever form it comes."""
    connections, _ = resolving([address])
    wire = Wire()
    on_wire(connections, wire, monkeypatch)
    with pytest.raises(ModelFailed) as failed:
        await own_model(connections).complete(REQUEST)
    assert (failed.value.kind, failed.value.unbilled, wire.went) == ("provider", True, [])


async def test_only_the_public_ones_of_several_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all addresses the private ones are passed over, and one that is down too."""
    connections, _ = resolving(["10.0.0.1", PUBLIC[0], "::1", PUBLIC[1]])
    wire = Wire(PUBLIC[0])
    on_wire(connections, wire, monkeypatch)
    assert (await own_model(connections).complete(REQUEST)).content == "Hi"
    assert [host for host, _, _ in wire.went] == [PUBLIC[0], PUBLIC[1]]


async def test_a_name_without_an_address_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that knows nothing is a provider failure."""
    connections, _ = resolving([])
    on_wire(connections, Wire(), monkeypatch)
    with pytest.raises(ModelFailed) as failed:
        await own_model(connections).complete(REQUEST)
    assert failed.value.kind == "provider"


async def test_loopback_is_refused_over_a_real_socket() -> None:
    """With the system's own resolver a name of this machine is not called."""
    async with model_server(says("Hi")) as server, Connections() as connections:
        port = server.url.rsplit(":", 1)[1]
        for host in ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "0x7f.1"):
            with pytest.raises(ModelFailed):
                await own_model(connections, f"http://{host}:{port}").complete(REQUEST)
        assert server.connections == 0


def certified(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return how a server of this name shows itself, and how a client trusts exactly that."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain = folder / "server.pem"
    chain.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    return server, ssl.create_default_context(cafile=chain)


@pytest.mark.parametrize(("host", "ok"), [(HOST, True), ("other.example", False)])
async def test_the_certificate_is_the_name_s(host: str, ok: bool, tmp_path: Path) -> None:
    """Connected by its address, an endpoint still has to prove the name that the person gave."""
    theirs, ours = certified(tmp_path, HOST)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    def allowed(address: str) -> bool:
        return ipaddress.ip_address(address).is_loopback

    async with (
        model_server(says("Hi"), tls=theirs) as server,
        Connections(resolve=resolve, is_allowed=allowed, tls=ours) as connections,
    ):
        port = server.url.rsplit(":", 1)[1]
        model = own_model(connections, f"https://{host}:{port}")
        if ok:
            assert (await model.complete(REQUEST)).content == "Hi"
            assert f"host: {host}:{port}" in server.asked[0].head.lower()
        else:
            with pytest.raises(ModelFailed) as failed:
                await model.complete(REQUEST)
            assert (server.asked, failed.value.unbilled) == ([], True)


async def test_the_operator_s_authorities_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint in the operator's network may have a certificate of their own authority."""
    theirs, _ = certified(tmp_path, "localhost")
    async with model_server(says("Hi"), tls=theirs) as server:
        port = server.url.rsplit(":", 1)[1]
        for path, ok in ((None, False), (tmp_path / "server.pem", True)):
            if path is not None:
                monkeypatch.setenv("SSL_CERT_FILE", str(path))
                authorities.cache_clear()
            model = OpenAiCompatible(f"https://localhost:{port}", model="m")
            if ok:
                assert (await model.complete(REQUEST)).content == "Hi"
            else:
                with pytest.raises(ModelFailed):
                    await model.complete(REQUEST)
    authorities.cache_clear()


async def test_a_resolver_that_is_silent_is_given_up() -> None:
    """A name that is never answered ends at the limit of the call."""

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    model = OpenAiCompatible(
        f"https://{HOST}",
        model="m",
        timeout_s=0.1,
        connections=Connections(resolve=resolve),
        public_only=True,
    )
    with pytest.raises(ModelFailed) as failed:
        await model.complete(REQUEST)
    assert failed.value.kind == "timeout"


def chosen(own_models: OwnModels, url: str, alias: str = "own:own-1") -> list[str]:
    """Return the endpoints of the candidates of an agent with an own model at this address."""
    settings = ModelSettings(OFFLINE.models, own_models)
    own = OwnModel("own-1", url, "m")
    origin = endpoint(url).origin
    return [one.model.endpoint for one in candidates(settings, alias, {origin}, own)]


def test_an_own_model_is_called_where_it_is_allowed() -> None:
    """The runner asks again what the hub allowed: off, public or any."""
    assert chosen("public", f"https://{HOST}/v1") == [f"https://{HOST}"]
    assert chosen("any", "http://10.0.0.1:8080") == ["http://10.0.0.1:8080"]
    for own_models, url in (
        ("off", f"https://{HOST}"),
        ("public", f"http://{HOST}"),
        ("public", "https://10.0.0.1"),
    ):
        with pytest.raises(ModelUnknown):
            chosen(own_models, url)  # type: ignore[arg-type]


def test_an_own_model_that_was_not_handed_over_is_not_there() -> None:
    """Another id than the grant's, or none, is no model."""
    with pytest.raises(ModelUnknown):
        chosen("public", f"https://{HOST}", "own:own-2")
    with pytest.raises(ModelUnknown):
        candidates(OFFLINE, "own:own-1", None)


def test_an_own_model_that_no_header_names_is_passed_over() -> None:
    """Text goes to endpoints of the header only, also where the person's own key is."""
    own = OwnModel("own-1", f"https://{HOST}", "m")
    assert candidates(OFFLINE, "own:own-1", {"rules:offline"}, own) == []


@pytest.mark.parametrize(("own_models", "went"), [("public", []), ("any", [HOST])])
async def test_a_person_s_own_model_is_checked_at_each_call(
    own_models: OwnModels, went: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run calls of a person's is resolved and checked, unless the operator allows any."""
    connections, _ = resolving(["169.254.169.254"])
    wire = Wire()
    on_wire(connections, wire, monkeypatch)
    settings = ModelSettings(OFFLINE.models, own_models)
    own = OwnModel("own-1", f"https://{HOST}", "m")
    [found] = candidates(settings, "own:own-1", None, own, connections=connections)
    with contextlib.suppress(ModelFailed):
        await found.model.complete(REQUEST)
    assert [host for host, _, _ in wire.went] == went
