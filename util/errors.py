"""How faults reach the user: one line for each that can be corrected outside the code.

Every program has the same exit codes: 0 is success, 2 a fault in the user's input or a refusal by
the system, 3 a run without a result, and 128 + n the signal n. HYPERIQA_DEBUG=1 adds the traceback
to a fault of one line; a programming error always shows its own.
"""

import difflib
import functools
import io
import os
import re
import signal
import sys
import time
import traceback
import unicodedata
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from tqdm import tqdm

NO_RESULT = 3
# The signals that ask a program to end. Slurm warns with SIGUSR1, which Windows does not have.
ENDING = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, 'SIGUSR1'):
    ENDING.append(signal.SIGUSR1)
BROKEN_PIPE = 128 + 13  # Windows has no signal.SIGPIPE
# The variables that torchrun sets for each process that it starts.
TORCHRUN = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
# Before a rank reports a fault, it waits this many seconds for each rank before it, at most for 6.
TURN = 10
MEMORY = 'out of memory'
PERHAPS_MEMORY = 'perhaps out of memory'
SMALLER = (
    '; lower --batch_size (in a new run), --test_batch_size or --patches, or free memory; '
    'finished epochs are kept'
)
LOST = 'another rank has ended, does not answer or cannot be reached; finished epochs are kept'
COMPILER = 'the compiler of --compile has failed'
WITHOUT_COMPILER = (
    '; install a C++ compiler that works, or leave --compile out (--no-compile in a resume); '
    'HYPERIQA_DEBUG=1 shows its output'
)
# The names of torch.compile's errors; all of them come from the compiler, not from the program.
COMPILER_ERRORS = {
    'BackendCompilerFailed',
    'InvalidCxxCompiler',
    'CppCompileError',
    'TritonMissing',
    'GPUTooOldForTriton',
}
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

REMEDIES = {MEMORY: SMALLER, PERHAPS_MEMORY: SMALLER, COMPILER: WITHOUT_COMPILER}


class InputError(ValueError, ArgumentTypeError):
    """Something in the user's input cannot be used; the scripts exit with 2.

    The message names it and says how to correct it. It is an ArgumentTypeError too, so argparse
    adds the option's name.
    """


class Ranks(NamedTuple):
    """This process among those that compute together, which are called ranks."""

    number: int = 0
    number_here: int = 0  # among those on this machine
    world_size: int = 1


ranks = Ranks()


def read_ranks() -> None:
    """Become one of the ranks that torchrun has started, if it has started several.

    Only a program that calls this has ranks. Platforms set some of the variables for any program,
    and for a single process too.

    Raises:
        InputError: there are several processes, and a variable of torchrun is missing or empty.
    """
    global ranks
    ranks = Ranks()
    count = os.environ.get('WORLD_SIZE', '')
    if count in ('', '0', '1'):
        return
    missing = [name for name in TORCHRUN if not os.environ.get(name)]
    if missing:
        raise InputError(
            f'WORLD_SIZE is {count}, but missing or empty: {", ".join(missing)}; start several '
            'processes with torchrun, and a single one without WORLD_SIZE'
        )
    numbers = {}
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT'):
        value = os.environ[name]
        if not re.fullmatch('[0-9]+', value):
            raise InputError(f'{name} is {value!r} and not a number; torchrun sets it')
        numbers[name] = int(value)
    if numbers['RANK'] >= numbers['WORLD_SIZE']:
        raise InputError(
            f'RANK is {numbers["RANK"]}, but WORLD_SIZE is {count}; torchrun sets both'
        )
    ranks = Ranks(numbers['RANK'], numbers['LOCAL_RANK'], numbers['WORLD_SIZE'])


def launched() -> bool:
    """Whether this process is one of several ranks."""
    return ranks.world_size > 1


def rank() -> int:
    """The number of this process among the ranks; 0 if it is the only one."""
    return ranks.number


def restarted() -> bool:
    """Whether torchrun has started this process in the place of one that has failed."""
    return os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0'


@contextmanager
def reported_once() -> Iterator[None]:
    """Let only the first rank report a fault in the body that all ranks have.

    The others wait, since torchrun ends all of them when one has ended. A rank that is not ended
    while it waits has a fault of its own, as on a machine that lacks a file, and reports it.
    """
    try:
        yield
    except (InputError, OSError):
        time.sleep(TURN * min(rank(), 6))
        raise


def log(text: str) -> None:
    """Print one line to stderr, on the first rank only; stdout is kept for results."""
    if rank() == 0:
        print_error(text)


def print_error(text: str) -> None:
    """Print one line to stderr. If stderr does not take it, the line is lost and nothing fails."""
    # A progress bar on the same terminal gives way, and no two threads write at once.
    with suppress(OSError), tqdm.external_write_mode():
        print(one_line(text), file=sys.stderr, flush=True)


@functools.lru_cache
def log_once(text: str) -> None:
    """`log` a line, unless the same line was logged a moment ago."""
    log(text)


def one_line(text: Any) -> str:
    """`text` on one line in every terminal: control characters are escaped as in Python."""
    shown = []
    for character in str(text):
        # Python counts only the plain space as printable, and names have other spaces too.
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
    # BackendCompilerFailed has the real error inside, and NCCL writes it at the end of its message.
    text = str(getattr(error, 'inner_exception', error))
    _, _, reason = text.partition('Last error:')
    first, _, _ = (reason or text).strip().partition('\n')
    return first or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' with the one of `known` that is most like `word`, or ''."""
    found = difflib.get_close_matches(word, known, 1)
    return f'; did you mean {found[0]}?' if found else ''


def machine_fault(error: BaseException) -> str | None:
    """The meaning of an error that the machine causes and not the program; None for other errors.

    It is recognised by its type where PyTorch has one, and otherwise by its message.
    """
    # Types are compared by name, since torch may not be imported here.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or 'OutOfMemoryError' in kinds:
        return MEMORY
    if 'DistError' in kinds:
        return LOST
    for meaning, phrases in PHRASES.items():
        if re.search(phrases, str(error)):
            return meaning
    # Last, since a compiler that runs out of memory is a fault of memory.
    return COMPILER if kinds & COMPILER_ERRORS else None


@contextmanager
def boundary() -> Iterator[list[str]]:
    """Turn an error or a signal in the body into one line and an exit code.

    Yields:
        a list, to which the body appends what the user can do after an interrupt.
    """
    open_streams()
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
        # The reader has seen enough, as in `| head -1`.
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        reason = error.strerror or str(error)
        fail(f'{error.filename}: {reason}' if error.filename else reason)
    except (MemoryError, RuntimeError) as error:
        meaning = machine_fault(error)
        if meaning is None:
            raise
        remedy = REMEDIES.get(meaning, '')
        fail(f'{meaning}: {first_line(error)}{remedy}')
    finally:
        release_signals()
        close_streams()


def open_streams() -> None:
    """Make stdout and stderr take any text, also where they were closed before the start."""
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        stream = getattr(sys, name)
        if stream is None:
            # The null device gets the lowest free file descriptor, that of the closed stream.
            # Otherwise another file would get it, and a library that prints to stderr would write
            # into that file.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == 'w' and isinstance(stream, io.TextIOWrapper):
            # The names of files have characters that an encoding such as Latin-1 lacks. Each line
            # is written at once, so a log file shows how far a program is.
            stream.reconfigure(errors='backslashreplace', line_buffering=True)


def close_streams() -> None:
    """Print what is left to print. A stream that cannot take it is replaced by the null device.

    Otherwise Python would print it when it ends, report the failure and exit with 120.
    """
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def catch_signals() -> None:
    """Let the signals that ask a program to end raise a KeyboardInterrupt."""
    for number in ENDING:
        # Signals that are ignored stay so, as under `nohup`.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def release_signals() -> None:
    """Let a signal end the program at once: it is ending, and nothing is left to be saved."""
    for number in ENDING:
        if signal.getsignal(number) is interrupt:
            signal.signal(number, signal.SIG_DFL)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of a signal; the exit code goes with the exception."""
    raise KeyboardInterrupt(128 + number)


def fail(reason: str) -> NoReturn:
    """Print the error's one line and exit with 2."""
    if os.environ.get('HYPERIQA_DEBUG'):
        traceback.print_exc()
    print_error(f'error: {reason}')
    sys.exit(2)
