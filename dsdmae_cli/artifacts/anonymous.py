"""What leaves this machine with weights: settings without its directories. No torch here."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from dsdmae_cli import plugins
from dsdmae_cli.errors import PluginError
from dsdmae_cli.files import looks_like_path


def anonymous(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings without the directories of the machine that they were used on, and without its trackers.

    Of a path its last part is kept: of the images, of a table of labels, of what a run began with or needed.
    """
    known = {section: {key: _without_folders(key, value) for key, value in table.items()}
             for section, table in values.items()}  # fmt: skip
    known["data"] |= {"dataset": of_dataset(values["data"]["dataset"]), "data_dir": "none"}
    if "trackers" in known.get("train", {}):  # whose arguments are servers and projects
        known["train"]["trackers"] = []
    return known


def of_dataset(dataset: str) -> str:
    """A dataset's name: "folder:birds" of "folder:/home/me/birds"; what is no path is public and stays whole."""
    plugin, colon, argument = dataset.partition(":")
    try:
        of_paths = plugins.find("dataset", dataset).spec.argument == "PATH"
    except PluginError:  # it need not be here any more
        of_paths = False
    path = of_paths or argument.startswith((".", "~", "/"))
    return f"{plugin}{colon}{PurePath(argument).name if path else argument}"


def _without_folders(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    path = value.startswith((".", "~", "/")) or PurePath(value).is_absolute()
    return PurePath(value).name if path or (key == "start" and looks_like_path(value)) else value
