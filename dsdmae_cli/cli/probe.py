"""`dsdmae probe`."""

from __future__ import annotations

from dsdmae_cli.cli import options as o


def command(
    start: o.Subject = None,
    config: o.Config = None,
    set_: o.Set = None,
    like: o.Like = None,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    strict_data: o.StrictData = None,
    backbone: o.Backbone = None,
    kind: o.Kind = None,
    pool: o.ProbePool = None,
    few_shot: o.FewShot = None,
    epochs: o.ProbeEpochs = None,
    batch_size: o.ProbeBatchSize = None,
    seed: o.Seed = None,
    device: o.Device = None,
    precision: o.Precision = None,
    out: o.Out = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Judge a frozen backbone: linear, k-NN, logistic or attentive probe.

    dsdmae probe RUN                           MAE's linear probe on the run's own dataset
    dsdmae probe RUN --kind knn
    dsdmae probe scratch --like RUN            the same network untrained
    dsdmae probe pixels --like RUN             no network at all
    dsdmae probe RUN --few-shot 1,5,10%        with few labels, repeated draws

    What there is to choose (rates, k, C) is chosen on held-out training images, never on the test set.
    """
    flags = {
        name: value
        for name, value in locals().items()
        if name not in {"start", "config", "set_", "like", "out", "dry_run", "json", "debug"}
    }
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.config.schema import PROBE

    loaded = o.load_judging(PROBE, "probe", start, like, None, config, set_, flags, None)

    from dsdmae_cli.report import print_result

    if dry_run:
        from dsdmae_cli.recipes.probe import plan_text
        from dsdmae_cli.runs.rundir import RunDir

        if out is not None:
            RunDir(out).check_free()
        plan, text = plan_text(resolve(loaded.settings))
        print_result(plan, as_json=json, text=text)
        return

    from dsdmae_cli.recipes.probe import probe, summary

    result = probe(loaded, out=out, as_json=json)
    print_result(result, as_json=json, text=summary(result))
