"""`dsdmae finetune`."""

from __future__ import annotations

from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.given import Given


@takes("finetune")
def command(given: Given) -> None:
    """Train a whole network on labels, from a pre-trained encoder or from scratch, and judge it on the test images.

    dsdmae finetune RUN                  what pre-training was worth
    dsdmae finetune scratch --like RUN   the same network without it
    dsdmae finetune RUN --preset strong  with strong augmentation
    dsdmae finetune RUN --task segment   classes of pixels, of images with masks

    Dataset and backbone are those of RUN unless you name others. The result is the last epoch, or with
    --set finetune.select=best the best on a held-out share of the training images; never the best on the test set.
    """
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.config.schema import FINETUNE
    from dsdmae_cli.recipes.gather import judging

    loaded = judging(given, FINETUNE, "finetune")

    from dsdmae_cli.report import print_result

    if given.dry_run:
        from dsdmae_cli import distributed
        from dsdmae_cli.recipes.finetune import plan

        planned = plan(resolve(loaded.settings))
        if given.resume and given.out is not None:
            planned = planned.gone_on_with(given.out)
        if distributed.is_first():
            print_result(planned.json(), as_json=given.json, text=planned.text())
        return

    from dsdmae_cli.recipes.finetune import finetune, summary

    result = finetune(
        loaded, out=given.out, resume=given.resume, overridden=given.any_setting, accept_changes=given.accept_changes,
        as_json=given.json,
    )  # fmt: skip
    if result:
        print_result(result, as_json=given.json, text=summary(result))
