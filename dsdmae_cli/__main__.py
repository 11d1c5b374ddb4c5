"""`dsdmae` and `python -m dsdmae_cli`: run the command line and turn errors into one line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from pathlib import Path

from dsdmae_cli import slurm
from dsdmae_cli.data.once import opened_once
from dsdmae_cli.errors import AGAIN, RESUME, SHORTAGES, DsdmaeError, RunInterrupted, SettingsError, is_lack_of_memory
from dsdmae_cli.report import shown
from dsdmae_cli.signals import Stopped, guarded

# Commands that train, and so have a --resume; several processes run them as one. Of others, srun's tasks are commands
# of their own (an ablation's workers).
_TRAINS = ("pretrain", "finetune", "tokenizer")
_STREAM_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EFBIG, errno.EIO}

_NO_THREAD = "can't start new thread"


def main(arguments: list[str] | None = None) -> None:
    """Run the program on sys.argv (or `arguments`) and exit.

    Exit codes: 0 done, 1 the run failed, 2 wrong input, 128+N stopped by signal N (the run can be resumed).
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an old code page has no σ; that is no reason to fail
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _open_closed_streams() -> None:
    """Whoever started us may have closed a stream (`>&-`): Python has None for it, and the first file that is opened, a
    checkpoint perhaps, would get its number, to which libraries print. In order, each gets its own number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123  (until the process ends)


def _run(arguments: list[str]) -> int:
    try:
        return _answered(arguments)
    except Exception as error:
        if (short := _shortage(error)) is not None:
            return _complain(short, 1, arguments)
        return _output_failed(error, arguments)
    except BaseException as error:
        # How Typer answers a reader that has left; else it is a plugin that would end the program, unseen or by a class
        # of its own.
        if isinstance(error, SystemExit) and isinstance(error.__context__, OSError):
            return _output_failed(error.__context__, arguments)
        *_, at = traceback.extract_tb(error.__traceback__)
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        return _complain(f"{said}, raised in {at.filename}:{at.lineno}; --debug shows how it came to it", 1, arguments)


def _answered(arguments: list[str]) -> int:
    import typer

    from dsdmae_cli.cli import app
    from dsdmae_cli.cli.group import USAGE_ERROR

    try:
        if not {"--help", "-h", "--version"} & set(arguments):
            _require_directory()
        if _command(arguments) in _TRAINS:
            os.environ.update(slurm.group(os.environ))
        with guarded(), opened_once():
            done = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk or a reader that has left can still be answered for
        if done == 130:  # what Typer makes of a Ctrl-C, and of whatever ends like one
            return _interrupted()
        return done if isinstance(done, int) else 0
    except RunInterrupted as error:  # no error: it was asked for, and nothing is lost
        if not error.said_elsewhere:
            print(f"dsdmae: {shown(str(error), one_line=True)}", file=sys.stderr)
        return error.exit_code
    except DsdmaeError as error:
        if error.said_elsewhere:
            return error.exit_code
        text = str(error) if _command(arguments) in _TRAINS else str(error).replace(RESUME, AGAIN)
        return _complain(text, error.exit_code, arguments)
    except USAGE_ERROR as error:
        return _usage(error, arguments)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()


def _require_directory() -> None:
    """Refuse to work in a directory that is gone: a relative path means nothing there, and MKL, which torch loads at
    its first product of matrices, ends the process over it with words about a library.

    Raises:
        SettingsError: it is gone.
    """
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise SettingsError("the current directory is gone, removed or moved; cd to one that is there") from error


def _command(arguments: list[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "")


def _shortage(error: BaseException | None) -> str | None:
    """What the system ran out of, where that is what lies behind an error: libraries fail over a shortage in ways of
    their own, and what they say then hides it."""
    while error is not None:
        text = (str(error).splitlines() or [""])[0]
        number = getattr(error, "errno", None)
        if number is None and isinstance(error, OSError | RuntimeError | ImportError):
            number = next((known for known in SHORTAGES if os.strerror(known) in text), None)
            number = errno.EAGAIN if _NO_THREAD in text else number
        if number in SHORTAGES and isinstance(error, OSError | RuntimeError | ImportError):
            named = getattr(error, "filename", None)
            what = getattr(error, "strerror", None) or text
            return f"the system refuses: {what.lower()}{f' at {named}' if named else ''}; {SHORTAGES[number]}"
        if is_lack_of_memory(error):
            return "memory ran out; end other programs, or give it less at once"
        error = error.__cause__ or error.__context__
    return None


def _interrupted() -> int:
    number = Stopped.by
    if os.environ.get("RANK", "0") in ("", "0"):  # of a group that is told to stop, the first process says so
        print(f"dsdmae: {f'stopped by signal {number}' if number else 'interrupted'}", file=sys.stderr)
    return 128 + (number or 2)


def _usage(error: Exception, arguments: list[str]) -> int:
    text = error.format_message()  # type: ignore[attr-defined]
    if not text:  # a group without a command: its help is the answer
        error.show()  # type: ignore[attr-defined]
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "dsdmae"
    return _complain(f"{text.replace('Value error, ', '')} (see {command} --help)", 2, arguments)


def _output_failed(error: BaseException | None, arguments: list[str]) -> int:
    """stdout is gone or full; anything else that the system refuses is a bug of ours and keeps its traceback.

    The program's own files raise RunFailed; an OSError without a file's name comes from a stream.
    """
    if not isinstance(error, OSError) or error.errno not in _STREAM_ERRORS or error.filename is not None:
        raise
    # What could not be written would be tried again, and complained about, when Python exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return 141
    return _complain(f"cannot write the output: {error.strerror}", 1, arguments)


def _complain(text: str, code: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        raise
    print("dsdmae: error: " + shown(" ".join(text.split())), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
