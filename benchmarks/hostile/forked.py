"""Run a call in a forked process within limits of time and memory, and tell what came of it."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from taxonomy.errors import HierclassError

LONGEST_SENTENCE = 1000
"""Characters that an error has, at most; a hostile file may have names of megabytes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call."""

    fault: str
    """What is wrong, such as "takes longer than 20 s"; empty if the call was bounded and failed as it should."""
    said: str
    """The sentence of the refusal, or what the call returned."""
    seconds: float
    megabytes: float
    """Peak of its resident memory, with what it shares with the process that forked it."""


def run_forked(call: Callable[[], str], *, seconds: float, megabytes: int) -> Outcome:
    """Run a call in a fork of this process, which must have no other threads.

    The call returns a line, or raises HierclassError with one. Anything else is a fault: another exception, a crash,
    more than `seconds`, more than `megabytes` of memory.
    """
    reader, writer = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if not child:
        os.close(reader)
        _run_here(call, writer, megabytes)
    os.close(writer)
    ended, _, _ = select.select([reader], [], [], seconds)
    if not ended:
        os.kill(child, signal.SIGKILL)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    _, status, usage = os.wait4(child, 0)
    took, peak = time.perf_counter() - start, usage.ru_maxrss / 1024
    if not ended:
        return Outcome(f"takes longer than {seconds:g} s", "", took, peak)
    if not data:
        return Outcome(f"ends its process by signal {os.WTERMSIG(status)}", "", took, peak)
    fault, said = pickle.loads(data)  # of our own process
    if peak > megabytes:
        fault = fault or f"takes {peak:,.0f} MB"
    return Outcome(fault, said, took, peak)


def _run_here(call: Callable[[], str], writer: int, megabytes: int) -> None:
    """Run a call, write its outcome to a pipe, and end this process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what decoders print
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    room = (megabytes << 20) + _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    try:
        found = ("", call())
    except HierclassError as error:
        text = str(error)
        long = "\n" in text or len(text) > LONGEST_SENTENCE
        found = ("a refusal of more than a line" if long else "", text[:LONGEST_SENTENCE])
    except BaseException as error:
        found = (f"raises {type(error).__name__}", "".join(traceback.format_exception(error))[-3000:])
    with open(writer, "wb") as pipe:
        pickle.dump(found, pipe)
    os._exit(0)


def _address_space() -> int:
    """Bytes of addresses that this process uses."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
