"""The machines of a cluster: what each needs to start its worker, and whether all of them answer."""

import json
import os
import pathlib
import re
import socket
import subprocess

from dllama_convert.paths import below, printable

from .errors import LaunchError
from .files import home_of, model_folder
from .models import Model, find_model
from .places import DEMO, ME
from .tools import find_program, say, start

DEFAULT_PORT = 9999


def parse_node(text: str) -> tuple[str, int] | None:
    """Host and port; None for what is neither host nor host:port."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[A-Za-z0-9_][\w.-]*)(?::(\d{1,5}))?", text, re.ASCII)
    if not match or not 0 < int(match[2] or DEFAULT_PORT) < 65536:
        return None
    return match[1], int(match[2] or DEFAULT_PORT)


def cluster_folder(model: Model, args) -> pathlib.Path:
    return home_of(model, args) / "cluster"


def read_cluster(model: Model, args) -> dict:
    """The workers and the secret of setup-cluster. They go into dllama's command line: none may be a flag there."""
    path = cluster_folder(model, args) / "cluster.json"
    again = f"{ME} setup-cluster {model.name} --nodes ..."
    try:
        cluster = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}: {again}") from error
    except (ValueError, RecursionError) as error:
        raise LaunchError(f"{path}: is damaged ({error}): {again}") from error
    workers = cluster.get("workers") if isinstance(cluster, dict) else None
    if not isinstance(workers, list) or not workers or not all(isinstance(worker, str) for worker in workers):
        raise LaunchError(f"{path}: has no list of workers: {again}")
    for worker in workers:
        if not parse_node(worker):
            raise LaunchError(f"{path}: {worker!r} is not the address of a worker: {again}")
    secret = cluster.get("secret_file")
    if not isinstance(secret, str) or not secret or secret.startswith("-") or not secret.isprintable():
        raise LaunchError(f"{path}: secret_file is {secret!r}, must be the secret's path: {again}")
    return {"workers": workers, "secret_file": secret}


def setup_cluster(args) -> int:
    model = find_model(args.name)
    # As dllama's --workers: apart by blanks or commas.
    texts = [text for word in args.nodes for text in word.split(",")]
    nodes = [parse_node(text) for text in texts]
    if None in nodes:
        text = texts[nodes.index(None)]
        raise LaunchError(f"--nodes {text}: must be host or host:port, an IPv6 address in brackets")
    if len(set(nodes)) != len(nodes):
        raise LaunchError("--nodes: a node is named twice")
    program = find_program(args.dry_run)
    folder = model_folder(model, args) / "cluster"
    secret = folder / "secret"
    addresses = [f"{host}:{port}" for host, port in nodes]
    if args.dry_run:
        return start([program, "keygen", secret], True)
    folder.mkdir(exist_ok=True)
    if not secret.exists() and start([program, "keygen", secret], False) != 0:
        return 1
    for host, port in nodes:
        node = node_folder(folder, host, port)
        node.mkdir(exist_ok=True)
        copy = node / "secret"
        copy.unlink(missing_ok=True)
        with open(os.open(copy, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(secret.read_bytes())
        (node / "start-worker.sh").write_text(of_port("start-worker.sh", port))
        (node / "start-worker.sh").chmod(0o755)
        (node / "dllama-worker.service").write_text(of_port("dllama-worker.service", port))
    cluster = {"model": model.name, "workers": addresses, "secret_file": str(secret)}
    (folder / "cluster.json").write_text(json.dumps(cluster, indent=2) + "\n")
    return check_cluster(model, program, nodes, secret)


def of_port(name: str, port: int) -> str:
    """One of the texts beside this file, for a worker at `port`."""
    text = pathlib.Path(__file__).with_name(name).read_text(encoding="utf-8")
    return text.replace("@PORT@", str(port))


def node_folder(folder: pathlib.Path, host: str, port: int) -> pathlib.Path:
    return below(folder, f"{host.strip('[]').replace(':', '_')}-{port}")


def check_cluster(model: Model, program: str, nodes: list[tuple[str, int]], secret: pathlib.Path) -> int:
    """Whether every node answers, has the secret and fits in version: the demo model says four tokens on each."""
    silent = []
    for host, port in nodes:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=3).close()
        except OSError as error:
            silent.append((host, port))
            print(f"🔴 {host}:{port} does not answer yet: {error.strerror or error}")
            continue
        line = [program, "inference", "--prompt", "Once", "--steps", "4", "--workers", f"{host}:{port}"]
        line += ["--secret-file", str(secret), "--model", str(DEMO / "demo-q40.m"), "--tokenizer", str(DEMO / "demo.t")]
        try:
            done = subprocess.run(line, capture_output=True, timeout=120, check=False)
            said = done.stderr.decode(errors="replace").strip().splitlines()
            why = (said or ["no reason given"])[-1] if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = "no answer within two minutes"
        if why:
            silent.append((host, port))
            print(f"🔴 {host}:{port}: {printable(why).removeprefix('🚨 ').removeprefix(f'{host}:{port}: ')}")
        else:
            print(f"🟢 {host}:{port} answers, with this secret and version")
    for host, port in silent:
        folder = node_folder(secret.parent, host, port)
        say(f"{host}:{port}: copy {folder} to it and run start-worker.sh there, or install the systemd unit")
    if silent:
        say("then run the same command again")
        return 1
    say(f"ready: {ME} chat {model.name} --cluster")
    return 0
