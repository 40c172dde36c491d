"""`wss://`: a certificate that is trusted, and one that is not."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobqueue_broadcast import MachineShutdown
from jobqueue_broadcast.client import connect_monitor
from tests.client.harness import BACKOFF, RealServer, in_time

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate"),
]

Serve = Callable[..., RealServer]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return key, certificate


@pytest.fixture
def server(serve: Serve, certificate: tuple[Path, Path]) -> RealServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, chain = certificate
    context.load_cert_chain(chain, key)
    return serve(ssl=context)


async def test_a_trusted_server(server: RealServer, certificate: tuple[Path, Path]) -> None:
    trust = ssl.create_default_context(cafile=certificate[1])
    url = server.url.replace("ws://", "wss://")
    async with in_time(), connect_monitor(url, monitor_id="m", ssl_context=trust) as monitor:
        server.broadcast(MachineShutdown(machine_id="x", timestamp=1))
        assert await anext(monitor) == MachineShutdown(machine_id="x", timestamp=1)


async def test_a_server_that_is_not_trusted_is_not_asked_again(server: RealServer) -> None:
    url = server.url.replace("ws://", "wss://")
    async with in_time():
        with pytest.raises(ssl.SSLCertVerificationError):
            async with connect_monitor(url, monitor_id="m"):
                pytest.fail("not to be entered")


async def test_a_server_that_does_not_speak_tls_is_waited_for(serve: Serve) -> None:
    url = serve().url.replace("ws://", "wss://")
    with pytest.raises(TimeoutError):
        async with in_time(0.3), connect_monitor(url, monitor_id="m", backoff=BACKOFF):
            pytest.fail("not to be entered")
