"""The command line: find the command, parse its arguments, turn expected errors into one line and an exit code.

Exit codes: 0 done; 1 done in part (a batch with failures); 2 wrong input or settings; 128 + n stopped by signal n: 130
SIGINT (Ctrl-C), 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1, 140 SIGUSR2, 152 SIGXCPU. Help answers without importing torch: a
command imports its module when it runs.
"""

from __future__ import annotations

import logging
import os
import pwd
import sys
import warnings
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentError

from pipeline.cli import (
    cache,
    check,
    check_geometry,
    compare,
    cross_validate,
    evaluate,
    plan,
    plot,
    predict,
    report,
    sample,
    train,
)
from pipeline.cli.arguments import EXIT_WRONG_INPUT, complain, warn
from pipeline.cli.plain_words import closest
from pipeline.compute.signals import Stopped, quiet_end, stop_at_once_on_signals
from pipeline.console.terminal import PlainFormatter, lasting_output
from pipeline.files.atomic import full_disk_error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is returned.

    Args:
        arguments: command and flags; None: the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    _name_the_user()
    _let_waiting_threads_sleep()
    with lasting_output() as output, quiet_end():
        _log_to_stderr(logging.DEBUG if debug else logging.WARNING)
        try:
            with stop_at_once_on_signals():
                code = _run(given)
        except SystemExit as end:  # of a parser that has printed its help or settings
            code = end.code if isinstance(end.code, int) else EXIT_WRONG_INPUT
        except Exception as raised:
            error = full_disk_error(raised) or raised
            if not debug and isinstance(error, PermissionError) and error.filename:
                return complain(f"{error.filename}: cannot be accessed ({error.strerror}); check its permissions")
            if debug or not is_input_error(error):
                raise
            # Bad data have a line for every error, any other message is one line.
            return [complain(line) for line in getattr(error, "lines", [str(error)])][-1]
        except Stopped as stop:
            return complain("; ".join([f"stopped by {stop}", *_what_was_done(stop)]), stop.exit_code)
        except KeyboardInterrupt as stop:
            return complain("; ".join(["stopped", *_what_was_done(stop)]), 130)
        output.flush()
        return _after_output(code, output.error, given)


def _run(given: Sequence[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0 if given else EXIT_WRONG_INPUT
    command = COMMANDS.get(given[0])
    if given[0] in ("--version", "-V") or (command is not None and "--version" in given):
        print(f"bodyseg {_version()}")
        return 0
    if command is None:
        meant = closest(given[0], list(COMMANDS))
        guess = f"did you mean {meant}? " if meant else ""
        return complain(f"unknown command {given[0]!r}; {guess}known are {', '.join(COMMANDS)}")
    return command(list(given[1:]))


def _what_was_done(stop: KeyboardInterrupt) -> list[str]:
    """What a command says of itself when it is stopped, or else how far its progress had come."""
    advice = getattr(stop, "advice", "")
    return [advice] if advice else list(getattr(stop, "__notes__", ()))


def _name_the_user() -> None:
    """Give a user without a name, as in `docker run --user 12345`, one: importing MONAI asks for it and fails."""
    if any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        return  # where getpass.getuser looks first
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ["LOGNAME"] = str(os.getuid())


def _let_waiting_threads_sleep() -> None:
    """Where other programs keep half of the cores busy, let OpenMP's threads sleep while they wait for each other.

    They spin for milliseconds otherwise, which takes the core from the thread that they wait for: a training step on
    24×32×24 voxels with two threads took 6 s instead of 0.7 s. On an idle machine spinning saves the time to wake up.
    OpenMP reads the variable once, when torch is imported.
    """
    if os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _version() -> str:
    import importlib.metadata  # a tenth of a second

    try:
        return importlib.metadata.version("bodyseg")
    except importlib.metadata.PackageNotFoundError:
        return "of this folder, not installed"


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    if level > logging.DEBUG:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where a user's home cannot be written, in every start
        # They speak of odd values in headers, once for every slice of a series.
        for library in ("pydicom", "highdicom"):
            logging.getLogger(library).setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", category=UserWarning, module=library)


def _after_output(code: int, error: OSError | None, given: Sequence[str]) -> int:
    """Return the exit code, which must not be 0 where the result that was to be printed is lost.

    A reader that has gone (`bodyseg compare logs | head`) had enough; what a training or cross-validation prints is not
    its result.
    """
    if error is None or isinstance(error, BrokenPipeError):
        return code
    lost = f"standard output cannot be written ({error.strerror or error})"
    if given[0] in ("train", "cross-validate") and not {"--print_config", "--json"} & set(given):
        warn(f"{lost}; the training went on without it")
        return code
    return complain(f"{lost}; redirect it to another file")


def _overview() -> str:
    lines = ["usage: bodyseg COMMAND [arguments]   (bodyseg COMMAND --help explains them; bodyseg --version)", ""]
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").splitlines()[0]
        lines.append(f"  {name:15} {summary}")
    lines += ["", "With --debug a command that ends with an error shows its traceback."]
    return "\n".join(lines)


def is_input_error(error: Exception) -> bool:
    """Whether the message tells the person at the keyboard all there is to know; the class of the error says so."""
    return isinstance(error, ArgumentError) or getattr(error, "is_input_error", False)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train.run,
    "check": check.run,
    "plan": plan.run,
    "cross-validate": cross_validate.run,
    "predict": predict.run,
    "evaluate": evaluate.run,
    "check-geometry": check_geometry.run,
    "plot": plot.run,
    "compare": compare.run,
    "report": report.run,
    "sample": sample.run,
    "cache": cache.run,
}
