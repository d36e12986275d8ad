"""Several processes: they equal one, one that leaves ends the run in time, and another number of them goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from groups import together_and_alone
from promises import Promises

WORDS = (
    "pretrain moco_v2 --queue 128 --lr 0.0001 --data world:107 --image-size 32 --backbone tiny_cnn --batch-size 32 "
    "--accumulate 2 --precision 32 --probe-every 0 --no-report --logger none --log-every 1 --save-minutes 0"
).split()
"""107 images in batches of 32, so an epoch is three updates and eleven images are left over; each in two parts.

At a low rate: at a high one float32 sums in another order grow tenfold with each update, until they say nothing."""
DIES = "a process that dies or is cut off ends the run within a minute, with one line that says so"
GOES_ON = "a run goes on with another number of processes, and ends as the run of one"
EQUAL = "four processes, each update in two parts, train as one does: weights, memories and the true gradient"
APART = 1e-4
"""float32 sums in another order, after 15 updates; a queue in another order would be 0.1 apart."""


def begin(words: list[str], **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "selfsight", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def step_of(run: Path) -> int:
    with suppress(OSError):
        rows = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:]
        return int(rows[-1].split(",")[0]) if rows else -1
    return -1


def wait_for(step: int, run: Path, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 120
    while step_of(run) < step:
        assert process.poll() is None, "the run has ended too soon"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """The processes that ``pid`` started, in the order of their numbers."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted(map(int, found))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)["method"]


def apart(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


def told(said: str) -> list[str]:
    """The lines that say why a run has ended."""
    return [line for line in said.splitlines() if line.startswith("selfsight:")]


def test_a_killed_process_ends_the_run_and_another_number_goes_on(promise: Promises, tmp_path: Path) -> None:
    dies, goes_on = promise(DIES), promise(GOES_ON)
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = [*WORDS, "--epochs", "5"]
    process = begin([*words, "--out", str(run), "--devices", "2"])
    wait_for(11, run, process)
    killed = time.monotonic()
    os.kill(children_of(process.pid)[1], signal.SIGKILL)
    said = process.communicate(timeout=90)[0]
    dies(time.monotonic() - killed < 60, f"killed: {time.monotonic() - killed:.0f} s")
    dies(len(told(said)) == 1 and "process 1 of 2 was killed (SIGKILL" in told(said)[0], f"killed: {said}")
    dies("Traceback" not in said and process.returncode == 1, f"killed: {said}")
    at = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"]
    dies(10 <= at < 15, f"killed: saved at {at}")

    one, alone = begin([*words, "--out", str(run), "--resume"]), begin([*words, "--out", str(whole)])
    said = one.communicate(timeout=120)[0]
    alone.communicate(timeout=120)
    goes_on("as exact as arithmetic allows, for processes 2 -> 1" in said, said)
    goes_on(one.returncode == alone.returncode == 0, said)
    goes_on(apart(run, whole) < APART, f"2 -> 1: {apart(run, whole):.1e}")


class Network:
    """Two hosts, each a network of its own with an address, and the switch between them."""

    def __init__(self, name: str) -> None:
        self.hosts = [f"{name}a", f"{name}b"]
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        self.switch = f"{name}s"

    def up(self) -> None:
        ip("link", "add", self.switch, "type", "bridge")
        ip("link", "set", self.switch, "up")
        for host, address in zip(self.hosts, self.addresses, strict=True):
            ip("netns", "add", host)
            ip("link", "add", f"{host}0", "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("link", "set", f"{host}0", "master", self.switch, "up")
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")

    def down(self) -> None:
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.switch], check=False, capture_output=True)

    def cable(self, host: int, state: str) -> None:
        """``down`` pulls the cable of a host: packets vanish, no connection is closed."""
        ip("link", "set", f"{self.hosts[host]}0", state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def network() -> Iterator[Network]:
    """Two hosts; skipped where this machine may not make any."""
    made = Network(f"ss{os.getpid() % 10000}")
    try:
        if shutil.which("ip") is None:
            pytest.skip("two hosts need the program ip (iproute2)")
        try:
            made.up()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"two hosts need the right to make network namespaces: {error.stderr.strip()}")
        yield made
    finally:
        made.down()


def host(network: Network, number: int, words: list[str]) -> "subprocess.Popen[str]":
    """torchrun on one of the two hosts, with one process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=trust"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={network.addresses[0]}:29511"]
    local = [f"--rdzv-conf=is_host={1 - number}", f"--local-addr={network.addresses[number]}", "--max-restarts=0"]
    return subprocess.Popen(
        ["ip", "netns", "exec", network.hosts[number], *launcher, *meeting, *local, "-m", "selfsight", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", "TORCH_CPP_LOG_LEVEL": "FATAL"},
    )


def workers_of(launcher: "subprocess.Popen[str]") -> list[int]:
    """What torchrun has started on its host."""
    return [pid for pid in children_of(launcher.pid) if b"selfsight" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


def end(launchers: list["subprocess.Popen[str]"], workers: list[int]) -> list[str]:
    """Ends what still runs; returns what each host said, and prints it for the report of a failure."""
    for pid in [*(launcher.pid for launcher in launchers), *workers]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    said = [launcher.communicate()[0] for launcher in launchers]
    print(*said, sep="\n")
    return said


@pytest.mark.trust
def test_two_hosts_of_which_one_is_cut_off_and_comes_back(network: Network, promise: Promises, tmp_path: Path) -> None:
    dies, goes_on = promise(DIES), promise(GOES_ON)
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = [*WORDS, "--epochs", "5"]
    hosts, workers = [host(network, number, [*words, "--out", str(run)]) for number in range(2)], []
    try:
        wait_for(11, run, hosts[0])
        network.cable(1, "down")
        cut = time.monotonic()
        workers = [pid for launcher in hosts for pid in workers_of(launcher)]
        assert len(workers) == 2, "the run had ended before the cable was pulled"
        while any(map(runs, workers)) and time.monotonic() < cut + 90:
            time.sleep(0.2)
        passed = time.monotonic() - cut
    finally:
        said = end(hosts, workers)
    dies(passed < 60, f"cut off: {passed:.0f} s")
    for number, lines in enumerate(map(told, said)):
        dies(len(lines) == 1 and f"process {1 - number} of 2 silent for 30 s" in lines[0], f"host {number}: {said}")
    at = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"]
    dies(10 <= at < 15, f"cut off: saved at {at}")

    network.cable(1, "up")
    hosts = [host(network, number, [*words, "--out", str(run), "--resume"]) for number in range(2)]
    try:
        for launcher in hosts:
            launcher.wait(timeout=120)
    finally:
        said = end(hosts, [])
    alone = begin([*words, "--out", str(whole)])
    alone.communicate(timeout=120)
    goes_on([launcher.returncode for launcher in hosts] == [0, 0], f"two hosts again: {said}")
    goes_on(apart(run, whole) < APART, f"two hosts again: {apart(run, whole):.1e}")


LOSS = dict.fromkeys(("simmim", "simmim_swin"), 1e-8)
"""SimMIM's code adds 1e-5 to the number of hidden values, some thousands: eight parts of a batch add it eight times."""


@pytest.mark.trust
def test_four_processes_train_as_one(promise: Promises, tmp_path: Path) -> None:
    equal = promise(EQUAL)
    for name, found in together_and_alone(tmp_path, world=4, steps=5, micro=2, seconds=1400).items():
        equal(found["moved"] > 1e-5, f"{name}: nothing was trained")
        equal(found["loss"] < LOSS.get(name, 1e-9), f"{name}: loss {found['loss']:.1e}")
        equal(found["gradient"] < 1e-5, f"{name}: gradient {found['gradient']:.1e}")
        equal(found["state"] < 1e-8, f"{name}: {found['worst']} {found['state']:.1e}")
        equal(found["ranks"] < 1e-12, f"{name}: processes {found['ranks']:.1e} apart")
