"""How the programs begin and end: one line for what the user can mend, and the same exit codes everywhere.

0 is done, 2 something the user gave or the system refused, 3 a run without a result, 128 + n the signal n. HYPERIQA_DEBUG=1
shows the traceback of what is otherwise told in one line; a programming error shows its own always. The programs import
this module before any other: from then on Ctrl-C ends them quietly, also while PyTorch is imported.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from util.errors import InputError

NO_RESULT = 3
OUTSIDE = {  # signs of the RuntimeErrors of PyTorch that no mistake of the program raises, and what to tell
    'memory': 'the memory does not suffice',
    **dict.fromkeys(('gloo', 'NCCL', 'Dist'), 'another rank has ended or does not answer; the finished epochs are kept'),
}


def tell(text: str) -> None:
    """Print one line to stderr, which may be closed or full: a message that nobody can read is no reason to end."""
    with suppress(OSError, ValueError):
        print(one_line(text), file=sys.stderr, flush=True)


def one_line(text: Any) -> str:
    """What every terminal and every reader of CSV takes as one line: characters that do not print are escaped as in Python."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(text))


@contextmanager
def boundary(hint: str = '') -> Iterator[None]:
    """Turn what the body raises into one line and an exit code.

    Args:
        hint: what the user may do after an interrupt.
    """
    catch_signals(interrupt)
    try:
        yield
        print(end='', flush=True)
    except KeyboardInterrupt as error:
        if os.environ.get('RANK', '0') == '0':
            tell(f'interrupted{hint}')
        sys.exit(error.args[0] if error.args else 130)
    except BrokenPipeError:  # the reader of the output has seen enough, as in `| head -1`
        sys.exit(128 + signal.SIGPIPE)
    except InputError as error:
        fail(str(error))
    except OSError as error:  # of stdout, since files tell of their own, or of something that no reader foresaw
        fail(f'{error.filename or "the output"}: {error.strerror or error}')
    except MemoryError as error:
        fail(f'the memory does not suffice: {str(error) or "a smaller batch or image needs less"}')
    except RuntimeError as error:
        told = next((text for sign, text in OUTSIDE.items() if sign in f'{type(error).__name__}: {error}'), None)
        if told is None:
            raise
        fail(f'{told}: {first_line(error)}')
    finally:
        drain()


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options in `argv`, of which none is empty: that is most often a variable of the shell that is not set."""
    options = parser.parse_args(argv)
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        if value == '' or (isinstance(value, list) and '' in value):
            name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
            raise InputError(f'{name} is empty; give it a value or leave it out')
    return options


def fail(reason: str) -> NoReturn:
    if os.environ.get('HYPERIQA_DEBUG'):
        traceback.print_exc()
    tell(f'error: {reason}')
    sys.exit(2)


def drain() -> None:
    """Write out both streams; what a stream refuses is dropped, or Python would complain of it once more when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def catch_signals(handler: signal.Handlers | object) -> None:
    """Handle Ctrl-C, SIGTERM and SIGUSR1, with which Slurm warns of the end; one that is ignored, as by `nohup`, stays so."""
    for name in ('SIGINT', 'SIGTERM', 'SIGUSR1'):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)  # type: ignore[arg-type]


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End the body as Ctrl-C does; a second signal does not wait for that."""
    catch_signals(end_at_once)
    raise KeyboardInterrupt(128 + number)


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        os.write(2, b'interrupted\n')
    os._exit(128 + number)


def begin() -> None:
    """Where one of the project's programs starts: quiet signals, and streams that exist and take every character."""
    catch_signals(end_at_once)
    # a closed one leaves its number to the next file that is opened, in which messages would land
    for name in ('stdin', 'stdout', 'stderr'):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'r+'))  # noqa: SIM115, for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]


started = getattr(sys.modules['__main__'], '__file__', None)
if started and Path(started).resolve().parent == Path(__file__).resolve().parent.parent:
    begin()
