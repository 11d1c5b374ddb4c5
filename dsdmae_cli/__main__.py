"""`dsdmae` and `python -m dsdmae_cli`: run the command line and turn errors into one line and an exit code."""

from __future__ import annotations

import sys

from dsdmae_cli.errors import DsdmaeError, RunInterrupted


def main(arguments: list[str] | None = None) -> None:
    """Run the program on sys.argv (or `arguments`) and exit.

    Exit codes: 0 done, 1 the run failed, 2 wrong input, 128+N stopped by signal N (the run can be resumed).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    import typer

    from dsdmae_cli.cli import app

    # Typer carries a copy of click from some release on; the base class of its usage errors is not exported by either.
    usage_error: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

    try:
        done = app(args=arguments, standalone_mode=False)
        return done if isinstance(done, int) else 0
    except RunInterrupted as error:
        print(f"dsdmae: {error}", file=sys.stderr)  # no error: it was asked for, and nothing is lost
        return error.exit_code
    except DsdmaeError as error:
        return _complain(str(error), error.exit_code, arguments)
    except usage_error as error:
        text = error.format_message()  # type: ignore[attr-defined]
        return _complain(f"{text} (see dsdmae --help)", 2, arguments)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted", 130, arguments)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left; nothing more to say
        return 141


def _complain(text: str, code: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        raise
    print("dsdmae: error: " + " ".join(text.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
