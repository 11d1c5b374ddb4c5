"""Help of the flags: read off the settings, and kept in help.json beside this file, so that `--help` need not import
them; a test holds the two together. After a change of a flag or of a setting that has one:

    python -m dsdmae_cli.config.help > help.json && mv help.json dsdmae_cli/config/
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from dsdmae_cli.config.flags import FLAGS, Flag

# Whose settings the flags of a command are about, where that is not the command's own.
_SETTINGS_OF = {"finetune": "finetune", "probe": "probe"}


def help_of(flag: Flag, command: str) -> str:
    """One line of help for a command's flag: meaning, range and default of its setting."""
    whose = _SETTINGS_OF.get(command, "pretrain")
    # A flag that was declared a moment ago is in no file yet.
    return flag.help or _kept().get(whose, {}).get(flag.setting) or made(flag.setting, whose)


@cache
def _kept() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(
        files("dsdmae_cli").joinpath("config", "help.json").read_text(encoding="utf-8")
    )
    return found


def made(setting: str, whose: str) -> str:
    """The line as the settings have it.

    Args:
        setting: "train.epochs".
        whose: pretrain, finetune or probe.
    """
    from dsdmae_cli.config.describe import help_text
    from dsdmae_cli.config.schema import SCHEMAS, section_class

    section, _, key = setting.partition(".")
    # What the flag of a method means is written in that method's settings; those of the default method stand for all.
    return help_text(section_class(section, {}, schema=SCHEMAS[whose]), section, key)


def all_made() -> dict[str, dict[str, str]]:
    """The lines of all flags, by whose settings they are about."""
    found: dict[str, dict[str, str]] = {}
    for flag in FLAGS:
        for whose in () if flag.help else {_SETTINGS_OF.get(command, "pretrain") for command in flag.commands}:
            found.setdefault(whose, {})[flag.setting] = made(flag.setting, whose)
    return found


if __name__ == "__main__":
    print(json.dumps(all_made(), indent=1, sort_keys=True, ensure_ascii=False))
