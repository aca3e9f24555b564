"""The process works or ends, whatever a part of it does. Each story runs in a process of its own.

Only the times that a story waits for are short. All others are so long that no busy machine makes them pass."""

import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request

import pytest

from finetune_operator.process import probes

TIMES = {
    "DEADLINE_SECONDS": 60.0,
    "LAST_RESORT_SECONDS": 60.0,
    "CHECK_SECONDS": 0.02,
    "UNANSWERED_CHECKS": 3000,
    "FAULTY_CHECKS": 3,
    "DEAD_SECONDS": 60.0,
}
"""Supervision's constants in a story that names no others."""
DEADLINE = {"DEADLINE_SECONDS": 0.3}
BLOCKS, HANGS_ITSELF = {**DEADLINE, "UNANSWERED_CHECKS": 20}, {"DEAD_SECONDS": 1.0}
PREAMBLE = """
import asyncio, ctypes, logging, os, signal, sys, threading, time
from finetune_operator.process import probes
from finetune_operator.process import supervise
logging.basicConfig(level="INFO")

class Part:
    name = "the part"
    def __init__(self): self.stopped = asyncio.Event()
    async def run(self, ending): await self.stopped.wait()
    def stop(self): self.stopped.set()
    def fault(self): return None
    def waits_for(self): return None

def say_it_runs(): os.write(1, b"runs\\n")

async def for_ever():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass  # as kopf does when it takes its own end for a pause
"""
END = "\nsupervise.exit_process(supervise.Supervisor([Part(), Tested()]).run())\n"


def start(story: str, times: dict[str, float] | None = None, end: str = END) -> subprocess.Popen[str]:
    """A process that supervises a sound part beside the class `Tested` of the story. It runs when this returns.

    `times`: constants of supervision that differ from TIMES."""
    constants = "".join(f"supervise.{name} = {value}\n" for name, value in {**TIMES, **(times or {})}.items())
    code = PREAMBLE + constants + textwrap.dedent(story) + end
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    if first != "runs\n":
        process.kill()
        pytest.fail(first + process.communicate()[1])
    return process


def end_of(process: subprocess.Popen[str], number: signal.Signals | None = None) -> tuple[int, str]:
    """Exit code and log. The log has a pipe of its own: what `start` read ahead of its line would be lost to this."""
    if number is not None:
        process.send_signal(number)
    try:
        _, output = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, output


SOUND = """
    class Tested(Part):
        name = "the tested part"
        async def run(self, ending): say_it_runs(); await super().run(ending)
"""
HANGS = """
    class Tested(Part):
        name = "the tested part"
        async def run(self, ending): say_it_runs(); await for_ever()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_parts_that_end_on_a_signal_end_the_process_with_0(number: signal.Signals) -> None:
    code, output = end_of(start(SOUND), number)
    assert code == 0, output
    assert f"The operator stops: received {number.name}." in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_part_that_does_not_end_on_a_signal_is_left_behind_with_its_stacks_logged(number: signal.Signals) -> None:
    process = start(HANGS, DEADLINE)
    began = time.monotonic()
    code, output = end_of(process, number)
    assert code == 128 + number, output
    assert time.monotonic() - began >= DEADLINE["DEADLINE_SECONDS"]
    assert "the tested part did not end within" in output
    assert "Current thread" in output  # the threads
    assert "in for_ever" in output  # and what the task waits for


FAILURES: dict[str, tuple[str, dict[str, float]]] = {
    "raises": ("raise ValueError('a torn line')", {}),
    "exits": ("sys.exit(0)", {}),
    "returns": ("return", {}),
    "is cancelled": ("asyncio.current_task().cancel(); await asyncio.sleep(3600)", {}),
    "fails and hangs": ("ending('a reason'); await for_ever()", DEADLINE),
    "fails and leaves a task that hangs": (
        "self.task = asyncio.create_task(for_ever()); await asyncio.sleep(0.1)",
        DEADLINE,
    ),
    "fails while a thread hangs": (
        "asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600); return",
        DEADLINE,
    ),
    "blocks its loop": ("time.sleep(3600)", BLOCKS),
    "keeps its loop busy": ("\n            while True: pass", BLOCKS),
    "waits for a lock": ("lock = threading.Lock(); lock.acquire(); lock.acquire()", BLOCKS),
    "holds the interpreter": ("ctypes.PyDLL(None).sleep(3600)", HANGS_ITSELF),
    "holds the log": (
        "logging.root.handlers[0].acquire(); time.sleep(3600)",
        {**BLOCKS, **HANGS_ITSELF, "LAST_RESORT_SECONDS": 0.4},
    ),
}
"""What a part does, and the constants of supervision for it."""


@pytest.mark.parametrize("failure", FAILURES)
def test_a_part_that_fails_ends_the_process_with_1(failure: str) -> None:
    act, times = FAILURES[failure]
    story = f"""
    class Tested(Part):
        name = "the tested part"
        async def run(self, ending):
            say_it_runs()
            await asyncio.sleep(0.1)
            {act}
    """
    code, output = end_of(start(story, times))
    assert code == 1, output


def test_what_a_part_raised_is_logged() -> None:
    story = "class Tested(Part):\n    async def run(self, ending): say_it_runs(); raise ValueError('a torn line')\n"
    code, output = end_of(start(story))
    assert code == 1
    assert "ValueError: a torn line" in output


def test_a_fault_that_lasts_ends_the_process_and_one_that_passes_does_not() -> None:
    story = """
    class Tested(Part):
        async def run(self, ending): say_it_runs(); await super().run(ending)
        faults = [None, "short", "short", None, "a watch has ended"]
        def fault(self): return self.faults.pop(0) if len(self.faults) > 1 else self.faults[0]
    """
    code, output = end_of(start(story))
    assert code == 1
    assert "The operator stops: a watch has ended." in output


def test_a_loop_that_is_only_slow_is_not_taken_for_blocked() -> None:
    story = """
    class Tested(Part):
        async def run(self, ending):
            say_it_runs()
            for _ in range(4):
                time.sleep(supervise.UNANSWERED_CHECKS * supervise.CHECK_SECONDS / 3)
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            await self.stopped.wait()
    """
    code, output = end_of(start(story, {"UNANSWERED_CHECKS": 100}))
    assert code == 0, output


def answer(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


SERVE = """
supervisor = supervise.Supervisor([Tested()])
server = probes.serve("127.0.0.1:0", supervisor.health, supervisor.readiness)
say_it_runs()
print(server.server_port, flush=True)
supervise._Runner.has_failed = False  # the process stays, so that it can be asked
supervise.exit_process(supervisor.run())
"""


def wait_for_answer(port: int, path: str, status: int, text: str) -> None:
    deadline = time.monotonic() + 30
    while (found := answer(port, path)) != (status, text):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


BLOCKED = "the event loop of the part is blocked"


@pytest.mark.parametrize(
    ("story", "live", "ready"),
    [
        ("", (200, "ok"), (200, "ok")),
        ("def waits_for(self): return 'There is no watch yet.'", (200, "ok"), (503, "There is no watch yet.")),
        ("def fault(self): return 'a watch has ended'", (503, "a watch has ended"), (503, "a watch has ended")),
        ("async def run(self, _): time.sleep(3600)", (503, BLOCKED), (503, BLOCKED)),
    ],
)
def test_the_probes_say_what_does_not_work(story: str, live: tuple[int, str], ready: tuple[int, str]) -> None:
    silent = "async def run(self, ending): await self.stopped.wait()"
    process = start(f"class Tested(Part):\n    {silent}\n    {story}\n", BLOCKS, SERVE)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    try:
        wait_for_answer(port, "/healthz", *live)
        wait_for_answer(port, "/readyz", *ready)
        assert answer(port, "/metrics")[0] == 404
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("address", ["8080", "", "0.0.0.0", "host:port", ":8080"])
def test_an_address_without_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|[Pp]ort"):
        probes.serve(address, lambda: None, lambda: None)


def test_a_signal_that_comes_while_a_part_starts_keeps_it_from_beginning() -> None:
    story = """
    class Tested(Part):
        async def run(self, ending): os.write(1, b"began"); await self.stopped.wait()

    run = supervise._Runner._run
    def run_late(runner):
        if isinstance(runner._part, Tested):
            say_it_runs()
            time.sleep(0.3)
        run(runner)
    supervise._Runner._run = run_late
    """
    code, output = end_of(start(story), signal.SIGTERM)
    assert code == 0, output
    assert "began" not in output
