"""`dsdmae pretrain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.given import Given

if TYPE_CHECKING:
    from dsdmae_cli.config.schema import Loaded


@takes("pretrain")
def command(given: Given) -> None:
    """Pre-train a backbone on images, without labels.

    Alone it learns handwritten digits in under two minutes. On your own images:
    dsdmae pretrain PATH --backbone vit-tiny --epochs 100

    Values come from defaults, then --preset, --config, environment variables (DSDMAE_TRAIN_EPOCHS=5), flags and --set;
    the later wins. Ctrl-C saves and stops (exit code 130); --resume goes on.
    """
    from dsdmae_cli.recipes.gather import pretraining

    carry_out(given, pretraining(given))


def carry_out(given: Given, loaded: Loaded[Any]) -> None:
    """Plan or run what settings say."""
    from dsdmae_cli.recipes.pretrain import plan, pretrain, summary
    from dsdmae_cli.report import print_result

    if given.dry_run:
        from dataclasses import replace

        from dsdmae_cli import distributed
        from dsdmae_cli.config.own_images import remarks
        from dsdmae_cli.config.schema import PRETRAIN

        planned = plan(loaded, resume=given.resume, as_json=given.json)
        planned = replace(planned, data_notes=(*planned.data_notes, *remarks(loaded, PRETRAIN)))
        if given.resume and given.out is not None:
            planned = planned.gone_on_with(given.out)
        if distributed.is_first():
            print_result(planned.json(), as_json=given.json, text=planned.text())
        return

    result = pretrain(
        loaded, out=given.out, resume=given.resume, overridden=given.any_setting, accept_changes=given.accept_changes,
        as_json=given.json,
    )  # fmt: skip
    if result:
        print_result(result, as_json=given.json, text=summary(result))
