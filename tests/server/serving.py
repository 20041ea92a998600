"""Starts the server with the demo model and talks to it."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ["DLLAMA_API_PROGRAM"]
DEMO = ["--model", str(ROOT / "models/demo/demo-q40.m"), "--chat-template", "glm-4.5", "--served-name", "demo"]
STORY = "Once upon a time there was a little"


class Server:
    """A running dllama-api; `output` is what it has printed so far."""

    def __init__(self, *flags: str, model: list[str] = DEMO, env: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            [PROGRAM, *model, "--port", "0", "--nthreads", "1", *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (env or {}),
        )
        self.output = ""
        self.port = 0
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        if not self.ready.wait(60) or not self.port:
            self.process.kill()
            raise RuntimeError(f"the server has not begun: {self.output}")

    def read(self):
        for line in self.process.stdout:
            self.output += line
            if found := re.search(r"🌐 .* at https?://.*:(\d+)$", line.strip()):
                self.port = int(found[1])
                self.ready.set()
        self.ready.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body=None, headers=None, timeout=120) -> tuple[int, dict, bytes]:
        """Status, headers and body of one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = json.dumps(body) if isinstance(body, (dict, list)) else body
        with contextlib.closing(connection):
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def json(self, method: str, path: str, body=None, **options) -> tuple[int, dict]:
        status, _, data = self.request(method, path, body, **options)
        return status, json.loads(data)

    def complete(self, prompt: str, max_tokens: int = 16, **fields) -> dict:
        """A greedy completion."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0} | fields
        status, answer = self.json("POST", "/v1/completions", body)
        assert status == 200, answer
        return answer

    def chat(self, text: str = STORY, max_tokens: int = 16, **fields) -> dict:
        """A greedy answer to one message."""
        status, answer = self.json("POST", "/v1/chat/completions", chat_body(text, max_tokens, **fields))
        assert status == 200, answer
        return answer

    def raw(self, timeout=30) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.reader.join(timeout=10)
        return code


def chat_body(text: str = STORY, max_tokens: int = 16, **fields) -> dict:
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": False},
    } | fields


@contextlib.contextmanager
def serving(*flags: str, **options):
    server = Server(*flags, **options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def events(server: Server, path: str, body: dict, read_all: bool = True):
    """The data of a stream's events, as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", path, json.dumps(body | {"stream": True}))
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    assert answer.getheader("Content-Type").startswith("text/event-stream")
    for line in answer:
        if line.startswith(b"data: "):
            yield line[6:].strip().decode()
    connection.close()


def wait_until(condition, seconds: float = 30, what: str = "it"):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} has not happened within {seconds} s"
        time.sleep(0.02)
