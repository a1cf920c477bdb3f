"""How faults reach the user: one line for what can be corrected outside the code, and the same exit codes in every program.

0 is done, 2 something that the user gave or the system refused, 3 a run without a result, 128 + n the signal n.
HYPERIQA_DEBUG=1 shows the traceback of what is otherwise one line; a programming error always shows its own.
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

NO_RESULT = 3
MEMORY = 'out of memory'
PERHAPS_MEMORY = 'perhaps out of memory'
SMALLER = '; lower --batch_size (in a new run), --test_batch_size or --patches, or free memory; finished epochs are kept'
LOST = 'another rank has ended, does not answer or cannot be reached; finished epochs are kept'
THREADS = 'the system starts no more threads for this user; end other programs, or raise the limit (ulimit -u)'
# Phrases, as patterns, of the bare RuntimeErrors that the machine causes, by what they mean. Whole ones: a single word such as
# "memory" is in errors of the program too ("unsupported memory format", "an illegal memory access was encountered").
PHRASES = {
    MEMORY: r"DefaultCPUAllocator: (can't allocate|not enough) memory|(CUDA|HIP) error: out of memory|"
    r'MPS backend out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED|could not create a (memory object|primitive(?! descriptor))',
    PERHAPS_MEMORY: r'CU(BLAS|DNN)_STATUS_NOT_INITIALIZED|unable to find an engine to execute this computation|'  # cuDNN
    r'Unable to find a valid cuDNN algorithm to run convolution',
    LOST: r'Connection (closed|reset) by peer|Application timeout caused pair closure|'  # gloo
    r'Timed out waiting \d+ms for (recv|send) operation to complete',
    THREADS: r"can't start new thread|Resource temporarily unavailable",  # Python, C++
}


class InputError(ValueError, ArgumentTypeError):
    """Something that the user gave cannot be used; the message names it and what to do. The scripts exit with 2.

    Also as the value of an option, at which argparse names the option too.
    """


def launched() -> bool:
    """Whether torchrun started this process."""
    return 'RANK' in os.environ and 'WORLD_SIZE' in os.environ


def rank() -> int:
    """The number of this process among those that torchrun started; 0 without torchrun."""
    return int(os.environ['RANK']) if launched() else 0


def log(text: str) -> None:
    """Print one line to stderr, by the first rank only: stdout carries the results alone."""
    if rank() == 0:
        print(one_line(text), file=sys.stderr, flush=True)


log_once = functools.lru_cache(log)  # without what was logged a moment ago


def one_line(text: Any) -> str:
    """`text` as every terminal shows it in one line: control characters and the like are escaped as in Python."""
    return ''.join(
        c if c.isprintable() or unicodedata.category(c) == 'Zs' else ascii(c)[1:-1]
        for c in str(text)
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where there is none; NCCL puts the reason after 'Last error:'."""
    text = str(error)
    return (text.partition('Last error:')[2] or text).strip().partition('\n')[0] or type(
        error
    ).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' with the one of `known` that is most like `word`, or ''."""
    found = difflib.get_close_matches(word, known, 1)
    return f'; did you mean {found[0]}?' if found else ''


def machine_fault(error: BaseException) -> str | None:
    """What an error of PyTorch means that the machine causes and not the program; None for any other error.

    By type where PyTorch has one. The types are compared by name, since torch may not be imported.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if 'OutOfMemoryError' in kinds or isinstance(error, MemoryError):
        return MEMORY
    if 'DistError' in kinds:
        return LOST
    return next(
        (meaning for meaning, phrases in PHRASES.items() if re.search(phrases, str(error))), None
    )


@contextmanager
def boundary() -> Iterator[list[str]]:
    """Turn what the body raises into one line and an exit code.

    Yields:
        a list, to which the body appends what the user can do after an interrupt.
    """
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        getattr(signal, 'SIGUSR1', signal.SIGTERM),
    ):  # Slurm warns with SIGUSR1
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under `nohup`
            signal.signal(number, interrupt)
    remedies: list[str] = []
    try:
        yield remedies
        print(end='', flush=True)
    except KeyboardInterrupt as error:
        log('; '.join(['interrupted', *remedies]))
        sys.exit(error.args[0] if error.args else 130)
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:  # the reader has seen enough, as in `| head -1`
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # otherwise Python complains of stdout once more when it ends
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        fail(': '.join(str(part) for part in (error.filename, error.strerror or error) if part))
    except (MemoryError, RuntimeError) as error:
        meaning = machine_fault(error)
        if meaning is None:
            raise
        remedy = SMALLER * (meaning in (MEMORY, PERHAPS_MEMORY))
        fail(f'{meaning}: {first_line(error)}{remedy}')


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(128 + number)


def fail(reason: str) -> NoReturn:
    if os.environ.get('HYPERIQA_DEBUG'):
        traceback.print_exc()
    print(f'error: {one_line(reason)}', file=sys.stderr, flush=True)
    sys.exit(2)
