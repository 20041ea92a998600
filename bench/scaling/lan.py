"""Hosts of an emulated LAN: processes in their networks and on their cores."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

CLONE_NEWNET = 0x40000000
NOT_PERMITTED = 77


class NotPermitted(Exception):
    """This system does not let us make network namespaces or TAP devices; the reason."""


def enter(network: str) -> None:
    """Moves this process into a network namespace."""
    with open(network) as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {network}")


def cores() -> list[int]:
    """The CPUs that this process may use: one of each core first, then the cores' second hyper-threads."""
    seen: dict[int, int] = {}

    def place(cpu: int) -> tuple[int, int]:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = int(siblings.read_text().replace("-", ",").split(",")[0]) if siblings.exists() else cpu
        seen[core] = seen.get(core, -1) + 1
        return seen[core], cpu

    return sorted(sorted(os.sched_getaffinity(0)), key=place)


class Lan:
    """`with Lan(...) as lan:` hosts 0, 1, ... on their own cores as far as there are enough."""

    def __init__(self, program: Path, hosts: int, cores_per_host: int, rate: float, delay: float) -> None:
        cpus = cores()
        wanted = hosts * cores_per_host
        self.switch_cpu = cpus[-1] if hosts > 1 and wanted < len(cpus) else None
        self._cpus = [{cpus[(h * cores_per_host + i) % len(cpus)] for i in range(cores_per_host)} for h in range(hosts)]
        self._command = [str(program), "--hosts", str(hosts), "--rate", str(rate), "--delay", str(delay)]
        if self.switch_cpu is not None:
            self._command += ["--cpu", str(self.switch_cpu)]
        self._started: list[subprocess.Popen] = []
        self.report = ""

    def __enter__(self) -> Self:
        self._switch = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._hosts = []
        for line in self._switch.stdout:
            if line == "ready\n":
                return self
            self._hosts.append(line.split())
        reason = self._switch.stderr.read().strip()
        if self._switch.wait() == NOT_PERMITTED:
            raise NotPermitted(reason)
        raise RuntimeError(f"{self._command[0]}: {reason}")

    def __exit__(self, *_: object) -> None:
        for process in [*reversed(self._started), self._switch]:
            process.terminate()
        for process in self._started:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.report = self._switch.communicate()[0].strip()

    def address(self, host: int) -> str:
        return self._hosts[host][0]

    def start(self, host: int, command: list[str], **options: object) -> subprocess.Popen:
        """A program on a host; it is ended with the LAN."""
        place = [sys.executable, __file__, self._hosts[host][1], ",".join(map(str, self._cpus[host]))]
        process = subprocess.Popen(place + command, **options)
        self._started.append(process)
        return process

    def set_unlimited(self, unlimited: bool) -> None:
        """Without limits the cables take no time."""
        self._switch.send_signal(signal.SIGUSR1 if unlimited else signal.SIGUSR2)

    def probe(self) -> tuple[float, float]:
        """Microseconds from host 0 to host 1 for a small message, and Mbit/s of a stream, both by TCP."""
        program = str(Path(__file__).with_name("probe.py"))
        self.start(1, [sys.executable, program, "answer", self.address(1)])
        ask = self.start(0, [sys.executable, program, "ask", self.address(1)], stdout=subprocess.PIPE, text=True)
        latency, rate = ask.communicate(timeout=60)[0].split()
        return float(latency), float(rate)


if __name__ == "__main__":
    # lan.py NETWORK CPU,CPU,... COMMAND ...: what start() runs
    enter(sys.argv[1])
    os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
    os.execvp(sys.argv[3], sys.argv[3:])
