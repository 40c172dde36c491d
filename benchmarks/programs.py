"""Starts what is measured and what reads, talks to both, and knows what CPU and memory they use."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msgspec import Struct

HERE = Path(__file__).parent
ROOT = HERE.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jobqueue-broadcast-bench"

DEFLATE = "permessage-deflate; client_max_window_bits"


class Peer(Struct, frozen=True, kw_only=True):
    """What is measured, or compared with.

    Args:
        name: In tables.
        program: Its file under `servers/`.
        options: Arguments of it.
        path: What connections ask for; `{i}` is their number.
        deflate: Whether they offer to compress.
        takeover: Whether compressed frames refer to earlier ones.
        hello: What they say first.
        most: How many connections at most: less for what would take minutes.
    """

    name: str
    program: str
    options: tuple[str, ...] = ()
    path: str = "/{i}"
    deflate: bool = False
    takeover: bool = False
    hello: str | None = None
    most: int = 1_000_000


MONITOR = "/ws/monitor/m{i}"

OURS = Peer(name="jobqueue-broadcast", program="ours.py", path=MONITOR)
OURS_UVLOOP = Peer(
    name="jobqueue-broadcast on uvloop", program="ours.py", options=("--uvloop",), path=MONITOR
)
OURS_DEFLATE = Peer(
    name="jobqueue-broadcast, deflate",
    program="ours.py",
    options=("--deflate",),
    path=MONITOR,
    deflate=True,
)
WEBSOCKETS = Peer(name="websockets.broadcast()", program="websockets_broadcast.py")
WEBSOCKETS_DEFLATE = Peer(
    name="websockets.broadcast(), default deflate",
    program="websockets_broadcast.py",
    options=("--deflate",),
    deflate=True,
    takeover=True,
)
RAW = Peer(name="ready frame to each transport", program="raw_transport.py")
NCHAN = Peer(name="nginx + nchan", program="nchan.conf")
NODE = Peer(name="Node.js ws", program="node_ws.js")
SOCKETIFY = Peer(name="socketify", program="socketify_app.py")
STARLETTE = Peer(name="Starlette on uvicorn", program="starlette_app.py")
SOCKETIO = Peer(
    name="python-socketio",
    program="socketio_app.py",
    path="/socket.io/?EIO=4&transport=websocket",
    hello="40",
    most=500,
)

ALWAYS = (OURS, WEBSOCKETS, RAW)
OTHERS = (OURS_UVLOOP, NCHAN, NODE, SOCKETIFY, STARLETTE, SOCKETIO)

_NCHAN_MODULES = (
    "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "/usr/share/nginx/modules/ngx_nchan_module.so",
)


def missing(peer: Peer) -> str | None:
    """Return what a peer lacks to be run here; `None`: nothing."""
    if peer is NCHAN:
        if shutil.which("nginx") is None:
            return "nginx is not installed"
        return None if _nchan_module() else "nginx has no nchan module"
    if peer is NODE:
        if shutil.which("node") is None:
            return "node is not installed"
        return None if (CACHE / "node_modules" / "ws").is_dir() else "ws is not installed (npm)"
    needs = {
        OURS_UVLOOP: ("uvloop",),
        SOCKETIFY: ("socketify",),
        STARLETTE: ("starlette", "uvicorn"),
        SOCKETIO: ("socketio", "uvicorn"),
    }
    absent = [name for name in needs.get(peer, ()) if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def install_peers() -> None:
    """Install what no package of Python brings: `ws` by npm, nginx and nchan by apt when root."""
    if shutil.which("npm"):
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(CACHE)]
        subprocess.run([*command, "ws@8"], check=False)
    if missing(NCHAN) and shutil.which("apt-get") and os.geteuid() == 0:
        command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends"]
        subprocess.run([*command, "nginx", "libnginx-mod-nchan"], check=False)


def _nchan_module() -> str | None:
    return next((path for path in _NCHAN_MODULES if Path(path).exists()), None)


class Process:
    """A program of ours, spoken to by lines."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": _python_path()} | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self, line: str) -> None:
        """Write a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """Read a line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended unexpectedly")
        return line.strip()

    def close(self) -> None:
        """End it, by the end of its input and then by force."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def _python_path() -> str:
    """Let children import what this process imports, wherever it came from."""
    return os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, sys.path)]))


class Reader:
    """The drain of one server."""

    def __init__(self) -> None:
        self._process = Process([sys.executable, "-m", "benchmarks.drain"])

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and return its answer."""
        self._process.say(json.dumps({"do": do, **arguments}))
        answer: dict[str, Any] = json.loads(self._process.hear())
        return answer

    def connect(self, peer: Peer, port: int, count: int, path: str | None = None) -> None:
        """Open connections, and let the greetings pass."""
        self.ask(
            "connect",
            port=port,
            path=path or peer.path,
            count=count,
            offer=DEFLATE if peer.deflate else None,
            hello=peer.hello,
            takeover=peer.takeover,
        )
        time.sleep(0.3)

    def close(self) -> None:
        """End it."""
        self._process.close()


class Server:
    """A measured server, in a process of its own."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.pid = 0
        self.port = 0

    def command(self, name: str, *arguments: float) -> dict[str, Any]:
        """Have a command carried out."""
        raise NotImplementedError

    def cpu_ns(self) -> int:
        """Return the CPU time its process has used so far."""
        return cpu_ns(self.pid)

    def close(self) -> None:
        """End it."""
        raise NotImplementedError


class LineServer(Server):
    """A server that obeys lines on its standard input."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer)
        program = HERE / "servers" / peer.program
        environment = {}
        if peer is NODE:
            command = ["node", str(program)]
            environment["NODE_PATH"] = str(CACHE / "node_modules")
        else:
            command = [sys.executable, "-m", f"benchmarks.servers.{program.stem}"]
        if peer is SOCKETIFY:
            command.append(str(_free_port()))
        self._process = Process([*command, *peer.options], environment)
        self.pid = self._process.process.pid
        word, port = self._process.hear().split()
        assert word == "ready"
        self.port = int(port)

    def command(self, name: str, *arguments: float) -> dict[str, Any]:
        self._process.say(" ".join((name, *map(str, arguments))))
        word, _, answer = self._process.hear().partition(" ")
        assert word == "done"
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        self._process.close()


class NchanServer(Server):
    """nginx with nchan; events go to it over a WebSocket, those of a turn in one write."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer)
        self._stack = ExitStack()
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nchan-"))
        self.port = _free_port()
        values = {
            "MODULE": _nchan_module() or "",
            "USER": "user root;" if os.geteuid() == 0 else "",
            "FILES": "20000",
            "DIRECTORY": directory,
            "PORT": str(self.port),
        }
        text = (HERE / "servers" / peer.program).read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        configuration = Path(directory, "nginx.conf")
        configuration.write_text(text)
        master = subprocess.Popen(["nginx", "-p", directory, "-c", str(configuration)])
        self._stack.callback(_terminate, master)
        self._publisher = _retry(lambda: _open_websocket(self.port, "/publish"))
        self._stack.callback(self._publisher.close)
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
        # The worker is the child that has the connections.
        self.pid = int(children[0])
        self._echo = _open_websocket(self.port, "/echo")
        self._stack.callback(self._echo.close)

    def command(self, name: str, *arguments: float) -> dict[str, Any]:
        from benchmarks import frames

        assert name == "burst"
        events, per_turn = map(int, arguments)
        for _ in range(events // per_turn):
            began = time.perf_counter()
            texts = [frames.payload(number).encode() for number in range(per_turn)]
            self._publisher.sendall(
                b"".join(bytes((0x81, 0x80 | 125, 0, 0, 0, 0)) + text for text in texts)
            )
            self._read(self._echo, per_turn * (2 + frames.SIZE))
            time.sleep(0.5 * (time.perf_counter() - began))
        return {}

    def close(self) -> None:
        self._stack.close()

    def _read(self, sock: socket.socket, size: int) -> None:
        while size > 0:
            data = sock.recv(size)
            if not data:
                raise RuntimeError("nchan closed the connection")
            size -= len(data)


def start(peer: Peer) -> Server:
    """Start a peer's server."""
    return NchanServer(peer) if peer is NCHAN else LineServer(peer)


class Pair:
    """A server with connections and their reader."""

    def __init__(self, peer: Peer, connections: int, path: str | None = None) -> None:
        self.peer = peer
        self.connections = min(connections, peer.most)
        self.server = start(peer)
        try:
            self.reader = Reader()
            self.reader.connect(peer, self.server.port, self.connections, path)
        except BaseException:
            self.server.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.reader.close()
        self.server.close()


def cpu_ns(pid: int) -> int:
    """Return the CPU time (user and system) of a process, over all its threads."""
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return total


def memory(pid: int) -> int:
    """Return the bytes that a process has to itself (USS)."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _retry(connect: Any) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            connected: socket.socket = connect()
            return connected
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _open_websocket(port: int, path: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += sock.recv(1)
    assert data.startswith(b"HTTP/1.1 101"), data
    return sock
