"""A small HTTP server in the hub's layout: repositories are folders, and files can be slow, broken or refused."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import json
import pathlib
import re
import shutil
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator

LARGE = 16 * 1024  # files from this size on have a SHA-256, as the hub's large files
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass
class Fault:
    """What goes wrong with the next `times` answers for a file."""

    times: int = 1
    drop_after: int | None = None  # the connection is cut after so many bytes
    corrupt: bool = False  # a byte in the middle is another
    status: int | None = None
    bytes_per_second: int | None = None
    hold: threading.Event | None = None  # nothing is sent before this


class Hub:
    """The server's state: what it serves, what goes wrong, what was asked for."""

    def __init__(self):
        self.endpoint = ""
        self.reset()

    def reset(self) -> None:
        self.repositories: dict[str, pathlib.Path] = {}
        self.extra_files: dict[str, dict[str, bytes]] = {}  # of a repository: names that no folder can hold
        self.listed_sizes: dict[str, int] = {}  # of files about which the listing lies
        self.faults: dict[str, Fault] = {}
        self.token: str | None = None
        self.requests: list[tuple[str, str | None]] = []  # file, range

    def asked(self, file: str) -> list[str | None]:
        """The ranges that a file was asked for in."""
        return [wanted for name, wanted in self.requests if name == file]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args):
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._error(401, "RepoNotFound" if self.headers.get("Authorization") else "GatedRepo")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            folder = self.hub.repositories.get(match[1])
            return self._listing(match[1], folder) if folder else self._error(404, "RepoNotFound")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            folder = self.hub.repositories.get(match[1])
            extra = self.hub.extra_files.get(match[1], {})
            if match[3] in extra:
                return self._bytes(extra[match[3]])
            if folder and match[2] in ("main", COMMIT) and (folder / match[3]).is_file():
                return self._file(folder / match[3], match[3])
        return self._error(404, "EntryNotFound")

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _listing(self, name: str, folder: pathlib.Path) -> None:
        siblings = []
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            size = file.stat().st_size
            listed = self.hub.listed_sizes.get(file.name, size)
            entry = {"rfilename": str(file.relative_to(folder)), "size": listed}
            if size >= LARGE:
                entry["lfs"] = {"sha256": _sha256(file, file.stat().st_mtime_ns), "size": size, "pointerSize": 130}
            else:
                entry["blobId"] = hashlib.sha1(f"blob {size}\0".encode() + file.read_bytes()).hexdigest()
            siblings.append(entry)
        for extra, body in self.hub.extra_files.get(name, {}).items():
            siblings.append({"rfilename": extra, "size": len(body)})
        self._bytes(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), "application/json")

    def _bytes(self, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, path: pathlib.Path, name: str) -> None:
        wanted = self.headers.get("Range")
        self.hub.requests.append((name, wanted))
        size = path.stat().st_size
        begin, end = 0, size
        if wanted and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)):
            begin, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        # Headers of shards are asked for by closed ranges: faults are for the files themselves.
        fault = self.hub.faults.get(name) if not (wanted and match and match[2]) else None
        fault = fault if fault and fault.times > 0 else None
        if fault:
            fault.times -= 1
            if fault.status:
                return self._error(fault.status, "Fault")
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        with open(path, "rb") as file, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if fault:
                file.seek(begin)
                self._send_faulty(bytearray(file.read(end - begin)), fault)
            else:
                self.connection.sendfile(file, begin, end - begin)

    def _send_faulty(self, body: bytearray, fault: Fault) -> None:
        if fault.hold:
            fault.hold.wait(60)
        if fault.corrupt:
            body[len(body) // 2] ^= 0xFF
        if fault.drop_after is not None:
            self.wfile.write(body[: fault.drop_after])
            self.close_connection = True
        elif fault.bytes_per_second:
            step = max(1, fault.bytes_per_second // 20)
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                time.sleep(0.05)
        else:
            self.wfile.write(body)


@functools.cache
def _sha256(path: pathlib.Path, modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def shard(source: pathlib.Path, target: pathlib.Path, shards: int) -> list[str]:
    """Copies a checkpoint folder with its model.safetensors cut into shards; returns their names."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix == ".json" and file.name != "golden.json":
            shutil.copy(file, target)
    data = (source / "model.safetensors").read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    names = sorted(header)
    weight_map = {}
    for k in range(shards):
        part, body = {}, b""
        for name in names[len(names) * k // shards : len(names) * (k + 1) // shards]:
            begin, end = header[name]["data_offsets"]
            part[name] = header[name] | {"data_offsets": [len(body), len(body) + end - begin]}
            body += data[8 + length + begin : 8 + length + end]
            weight_map[name] = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        text = json.dumps(part).encode()
        file = target / f"model-{k + 1:05}-of-{shards:05}.safetensors"
        file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sorted(set(weight_map.values()))
