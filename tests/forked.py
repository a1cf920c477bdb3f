"""Real processes of the project's programs, forked from a server that has imported the project.

Each starts in no time. Everything that a process has is its own, as if it had been started by its
name: signals, limits, memory, files and exit code.
"""

import functools
import multiprocessing
import os
import resource
import signal
import sys
from multiprocessing import forkserver

import pytest
from helpers import PROJECT

# What the programs import at their start and, with the second line, when they train.
IMPORTS = ['train_test_IQA', 'demo']
IMPORTS += ['rounds', 'util.plots', 'scoring.scorer', 'scipy.stats', 'scipy.io']
TESTS = str(PROJECT / 'tests')


@functools.cache
def server():
    """A fork server of this worker of pytest, with the imports done."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(IMPORTS)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(
            'PYTHONPATH', os.pathsep.join((str(PROJECT), TESTS))
        )  # it gets no path of this process
        forkserver.ensure_running()
    return context


class Forked:
    """A process that runs `function(*arguments)` in `folder`, like a small `subprocess.Popen`.

    Args:
        function: of a module, by which the new process finds it: a program's `main`, say.
        limits: of a kind of `resource.setrlimit`, how many bytes.
        environment: further variables.
    """

    def __init__(self, function, *arguments, folder, limits=(), **environment):
        out, err = (server().Pipe(duplex=False) for _ in range(2))
        arguments = ((out[1], err[1]), str(folder), dict(limits), environment, function, arguments)
        self.process = server().Process(target=act, args=arguments, daemon=True)
        self.process.start()
        for _, end in (out, err):
            end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno())) for end, _ in (out, err))
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout=None):
        """What it still prints, few lines: (stdout, stderr)."""
        if timeout:
            assert self.wait(timeout) is not None, f'it has not ended within {timeout} s'
        printed = tuple(file.read() for file in (self.stdout, self.stderr))
        self.wait()
        return printed


def program(main, *options, **how):
    """The main of a script with its options, forked."""
    return Forked(main, [*map(str, options)], **how)


def act(ends, folder, limits, environment, function, arguments):
    """In the new process: be as one that a shell has just started, then call the function."""
    for number, end in enumerate(ends, start=1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout, sys.stderr = (open(number, 'w', buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # also where the suite was started with SIGINT ignored
    os.chdir(folder)
    os.environ.update(environment)
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))
    function(*arguments)
