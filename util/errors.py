"""How faults reach the user: one line for each that can be corrected outside the code.

Every program has the same exit codes: 0 is success, 2 a fault in the user's input or a refusal by
the system, 3 a run without a result, and 128 + n the signal n. HYPERIQA_DEBUG=1 adds the traceback
to a fault of one line; a programming error always shows its own.
"""

import difflib
import functools
import os
import re
import signal
import sys
import traceback
import unicodedata
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from tqdm import tqdm

NO_RESULT = 3
MEMORY = 'out of memory'
PERHAPS_MEMORY = 'perhaps out of memory'
SMALLER = (
    '; lower --batch_size (in a new run), --test_batch_size or --patches, or free memory; '
    'finished epochs are kept'
)
LOST = 'another rank has ended, does not answer or cannot be reached; finished epochs are kept'
THREADS = (
    'the system starts no more threads for this user; end other programs, or raise the limit '
    '(ulimit -u)'
)
# Regexes for the bare RuntimeErrors that the machine causes, by meaning. They are whole phrases:
# a single word such as "memory" also stands in errors of the program ("unsupported memory format",
# "an illegal memory access was encountered").
PHRASES = {
    MEMORY: r"DefaultCPUAllocator: (can't allocate|not enough) memory|"
    r'(CUDA|HIP) error: out of memory|MPS backend out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED|'
    r'could not create a (memory object|primitive(?! descriptor))',
    # the second and third are cuDNN's
    PERHAPS_MEMORY: r'CU(BLAS|DNN)_STATUS_NOT_INITIALIZED|'
    r'unable to find an engine to execute this computation|'
    r'Unable to find a valid cuDNN algorithm to run convolution',
    # gloo's
    LOST: r'Connection (closed|reset) by peer|Application timeout caused pair closure|'
    r'Timed out waiting \d+ms for (recv|send) operation to complete',
    # Python's and C++'s
    THREADS: r"can't start new thread|Resource temporarily unavailable",
}


class InputError(ValueError, ArgumentTypeError):
    """Something in the user's input cannot be used; the scripts exit with 2.

    The message names it and says how to correct it. It is an ArgumentTypeError too, so argparse
    adds the option's name.
    """


def launched() -> bool:
    """Whether torchrun started this process."""
    return 'RANK' in os.environ and 'WORLD_SIZE' in os.environ


def rank() -> int:
    """The number of this process among those that torchrun started; 0 without torchrun."""
    return int(os.environ['RANK']) if launched() else 0


def log(text: str) -> None:
    """Print one line to stderr, on the first rank only; stdout is kept for results."""
    if rank() == 0:
        # A progress bar on the same terminal gives way, and no two threads write at once.
        with tqdm.external_write_mode():
            print(one_line(text), file=sys.stderr, flush=True)


@functools.lru_cache
def log_once(text: str) -> None:
    """`log` a line, unless the same line was logged a moment ago."""
    log(text)


def one_line(text: Any) -> str:
    """`text` on one line in every terminal: control characters are escaped as in Python."""
    shown = []
    for character in str(text):
        # Python counts only the plain space as printable, and names hold other spaces too.
        is_space = unicodedata.category(character) == 'Zs'
        shown.append(character if is_space else visible(character))
    return ''.join(shown)


def visible(text: Any) -> str:
    """As `one_line`, and spaces other than the plain one are escaped too.

    A name that is not found may differ by such a space from the right one.
    """
    shown = []
    for character in str(text):
        shown.append(character if character.isprintable() else ascii(character).strip("'"))
    return ''.join(shown)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if there is no message."""
    text = str(error)
    # NCCL writes the reason last.
    _, _, reason = text.partition('Last error:')
    first, _, _ = (reason or text).strip().partition('\n')
    return first or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' with the one of `known` that is most like `word`, or ''."""
    found = difflib.get_close_matches(word, known, 1)
    return f'; did you mean {found[0]}?' if found else ''


def machine_fault(error: BaseException) -> str | None:
    """The meaning of an error that the machine causes and not the program; None for other errors.

    It is told by type where PyTorch has one, and otherwise by the message.
    """
    # Types are compared by name, since torch may not be imported here.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if 'OutOfMemoryError' in kinds or isinstance(error, MemoryError):
        return MEMORY
    if 'DistError' in kinds:
        return LOST
    for meaning, phrases in PHRASES.items():
        if re.search(phrases, str(error)):
            return meaning
    return None


@contextmanager
def boundary() -> Iterator[list[str]]:
    """Turn an error or a signal in the body into one line and an exit code.

    Yields:
        a list, to which the body appends what the user can do after an interrupt.
    """
    catch_signals()
    remedies: list[str] = []
    try:
        yield remedies
        # A full disk or a closed pipe behind stdout shows now, while it can still be reported.
        print(end='', flush=True)
    except KeyboardInterrupt as error:
        log('; '.join(['interrupted', *remedies]))
        sys.exit(error.args[0] if error.args else 130)
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        # The reader has seen enough, as in `| head -1`. Python flushes stdout once more when it
        # ends, and would complain again if stdout still led into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        reason = error.strerror or str(error)
        fail(f'{error.filename}: {reason}' if error.filename else reason)
    except (MemoryError, RuntimeError) as error:
        meaning = machine_fault(error)
        if meaning is None:
            raise
        remedy = SMALLER if meaning in (MEMORY, PERHAPS_MEMORY) else ''
        fail(f'{meaning}: {first_line(error)}{remedy}')


def catch_signals() -> None:
    """Let the signals that ask a program to end raise a KeyboardInterrupt."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, 'SIGUSR1'):  # not on Windows; Slurm warns with it
        numbers.append(signal.SIGUSR1)
    for number in numbers:
        # Signals that are ignored stay so, as under `nohup`.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of a signal; the exit code goes with the exception."""
    raise KeyboardInterrupt(128 + number)


def fail(reason: str) -> NoReturn:
    """Print the error's one line and exit with 2."""
    if os.environ.get('HYPERIQA_DEBUG'):
        traceback.print_exc()
    print(f'error: {one_line(reason)}', file=sys.stderr, flush=True)
    sys.exit(2)
