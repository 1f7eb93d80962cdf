"""Servers on the loopback: real ones of MLflow, and broken ones."""

import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers.waiting import wait_for


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Server:
    """A Python module that serves HTTP, such as mlflow, in a process group of its own."""

    def __init__(self, folder, *command, health="/health", cwd=None, module="mlflow"):
        self.port, self.folder, self.cwd = free_port(), folder, cwd or folder
        self.address = f"http://127.0.0.1:{self.port}"
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        self.command = [sys.executable, "-m", module, *command, *place]
        self.health, self.process = f"{self.address}{health}", None

    def start(self, environment=None):
        """Start the server and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.answers, 120)
        return self

    def answers(self):
        """Tell whether the server answers."""
        with urllib.request.urlopen(self.health, timeout=5) as answer:
            return answer.status == 200

    def stop(self, number=signal.SIGKILL):
        """End the server and all its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait(60)


@contextmanager
def mlflow_server(folder):
    """A tracking server with a store of its own, started."""
    store = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    store += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    server = Server(folder, "server", *store).start()
    try:
        yield server
    finally:
        server.stop()


class _Broken(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, status):
        self.status, self.released = status, threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self):
        if not self.server.status:
            self.server.released.wait()
            return
        self.request.recv(65536)
        head = f"HTTP/1.1 {self.server.status} Oops\r\nContent-Length: 4\r\nConnection: close"
        self.request.sendall(f"{head}\r\n\r\noops".encode())


@contextmanager
def broken_server(kind):
    """Yield the address of a server that refuses, hangs, or answers with a status, as "answers 500"."""
    if kind == "refuses":
        yield f"http://127.0.0.1:{free_port()}"
        return
    with _Broken(kind.removeprefix("answers ") if kind != "hangs" else "") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.released.set()
            server.shutdown()


class _SlowHandler(BaseHTTPRequestHandler):
    """Passes requests on to the server behind, each after some seconds, as long as it is slow."""

    def do_GET(self):
        if self.server.slow_requests > 0 and self.server.slow_path in self.path:
            self.server.slow_requests -= 1
            time.sleep(self.server.seconds)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {key: value for key, value in self.headers.items() if key != "Host"}
        behind = HTTPConnection("127.0.0.1", self.server.port_behind)
        behind.request(self.command, self.path, body, headers)
        answer = behind.getresponse()
        content = answer.read()
        with suppress(OSError):  # nobody waits any more
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if self.command != "HEAD" else b"")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *words):
        """Print nothing."""


@contextmanager
def slow_server(server, seconds, slow_requests, path=""):
    """Yield the address of `server` behind a network on which first requests take seconds.

    `path` is a part of the paths of these requests.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), _SlowHandler) as proxy:
        proxy.port_behind, proxy.seconds, proxy.slow_requests = server.port, seconds, slow_requests
        proxy.slow_path = path
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
