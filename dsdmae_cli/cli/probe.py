"""`dsdmae probe`."""

from __future__ import annotations

from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.given import Given


@takes("probe")
def command(given: Given) -> None:
    """Judge a frozen backbone: linear, k-NN, logistic, attentive or efficient probe.

    dsdmae probe RUN                     MAE's linear probe, on the run's dataset
    dsdmae probe RUN --kind knn
    dsdmae probe scratch --like RUN      the same network untrained
    dsdmae probe pixels --like RUN       no network at all
    dsdmae probe RUN --few-shot 1,5,10%  with few labels, repeated draws
    dsdmae probe RUN --kind segment      of images with masks: labels of pixels

    What there is to choose (rates, k, C) is chosen on held-out training images, never on the test set.
    """
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.config.schema import PROBE
    from dsdmae_cli.recipes.gather import judging

    loaded = judging(given, PROBE, "probe")

    from dsdmae_cli.report import print_result

    if given.dry_run:
        from dsdmae_cli.recipes.probe import plan_text
        from dsdmae_cli.runs.rundir import RunDir

        plan, text = plan_text(resolve(loaded.settings))
        removes = given.out is not None and RunDir(given.out).is_killed_probe()
        plan["removes"] = str(given.out) if removes else None
        if plan["removes"]:
            text += f"\n--out {given.out} holds what a probe that was killed has left, which will be removed first"
        print_result(plan, as_json=given.json, text=text)
        return

    from dsdmae_cli.recipes.probe import probe, summary

    result = probe(loaded, out=given.out, as_json=given.json)
    print_result(result, as_json=given.json, text=summary(result))
