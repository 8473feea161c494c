"""Turn errors and interrupts of a command into one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hierclass.cli import DEBUG_VARIABLE
from hierclass.errors import HierclassError
from taxonomy.streams import clipped, visible
from taxonomy.terminal import PlainConsole
from training.cli.options import as_flags
from training.trainer.processes import is_main, is_peer_failure, launch_command, wait_to_be_ended


class FlagConsole(PlainConsole):
    """A console that shows options in place of the fields that the library's lines name (`as_flags`)."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does."""
        super().print(*(as_flags(each) if isinstance(each, str) else each for each in objects), **how)


@contextlib.contextmanager
def one_line_errors(how_to_resume: Callable[[], str] = str) -> Iterator[None]:
    """Context that turns errors into one line and exit code 2 (1 if not the user's mistake, 130 for Ctrl-C or SIGTERM).

    ``how_to_resume`` is called on exit; it returns the command that continues the run, or "" if there is none.
    """

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def hint(joint: str) -> str:
        command = how_to_resume()
        return f"{joint} continue with: {command}" if command else ""

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except HierclassError as error:
        raise failure(str(error), 2) from None
    except ModuleNotFoundError as error:
        raise failure(f"training needs {error.name}: pip install 'hierclass[train]'", 2) from None
    except OSError as error:  # a full disk, a folder that went away
        what = " ".join(filter(None, (error.filename and f"{error.filename}:", error.strerror or str(error))))
        raise failure(what + hint("; make room and"), 1) from None
    except KeyboardInterrupt:
        raise failure("interrupted" + hint(";"), 130) from None
    except Exception as error:
        raise _unexpected(error, hint(" and")) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _unexpected(error: Exception, resume: str) -> SystemExit:
    """The exit for an error that is not the user's; ``resume`` is the hint on how to continue."""
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):  # one was killed
        return failure(f"a process that prepares images died; use fewer --workers{resume}", 2)
    if is_peer_failure(error):
        wait_to_be_ended(10)
        return failure(f"another process of this run ended{resume and ';' + resume.removeprefix(' and')}", 1)
    how = f"please report it with what {DEBUG_VARIABLE}=1 prints"
    return failure(f"{type(error).__name__}: {error} (unexpected; {how})", 1)


def failure(message: str, code: int) -> SystemExit:
    """Print a message as one line, after the traceback if debugging, and return the SystemExit to raise.

    Of several processes the main one prints; another prints only if it has not been ended after a while.
    """
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        traceback.print_exc()
    if not is_main():
        wait_to_be_ended(20)
        if code == 130:
            return SystemExit(code)
    print(f"hierclass-train: {visible(clipped(' '.join(as_flags(message).split())))}", file=sys.stderr)
    return SystemExit(code)


def resume_command(command: str, out: Path, threads: int | None, *more: str) -> str:
    """Command that continues the run in ``out``, or "" if there is none; ``threads`` changes rounding."""
    if not (out / "recipe.json").exists():
        return ""
    given = [] if threads is None else ["--threads", str(threads)]
    return shlex.join([*launch_command(), command, "--out", str(out), "--resume", *more, *given])
