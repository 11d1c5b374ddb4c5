"""`dsdmae finetune`."""

from __future__ import annotations

from dsdmae_cli.cli import options as o
from dsdmae_cli.errors import SettingsError


def command(
    start: o.Subject = None,
    preset: o.FinetunePreset = None,
    config: o.Config = None,
    set_: o.Set = None,
    like: o.Like = None,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    strict_data: o.StrictData = None,
    validation: o.Validation = None,
    backbone: o.Backbone = None,
    pool: o.FinetunePool = None,
    epochs: o.FinetuneEpochs = None,
    batch_size: o.FinetuneBatchSize = None,
    lr: o.Lr = None,
    layer_decay: o.LayerDecay = None,
    seed: o.Seed = None,
    device: o.Device = None,
    precision: o.Precision = None,
    compile: o.Compile = None,
    out: o.Out = None,
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Train a whole network on labels, from a pre-trained encoder or from scratch, and judge it on the test images.

    dsdmae finetune RUN                        what pre-training was worth
    dsdmae finetune scratch --like RUN         the same network without it
    dsdmae finetune RUN --preset strong        with strong augmentation

    Dataset and backbone are those of RUN unless you name others. The result is the last epoch, or with
    --set finetune.select=best the best on a held-out share of the training images; never the best on the test set.
    """
    flags = {
        name: value
        for name, value in locals().items()
        if name not in {"start", "preset", "config", "set_", "like", "out", "resume", "dry_run", "json", "debug"}
    }
    overridden = any(value is not None for value in (start, preset, config, set_, like, *flags.values()))
    if resume and out is None:
        raise SettingsError("--resume needs the run's directory; add --out DIR")
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.config.schema import FINETUNE

    loaded = o.load_judging(FINETUNE, "finetune", start, like, preset, config, set_, flags, out if resume else None)

    from dsdmae_cli.report import print_result

    if dry_run:
        from dsdmae_cli import plugins
        from dsdmae_cli.evaluation.judging import open_judged
        from dsdmae_cli.recipes.finetune import build_classifier
        from dsdmae_cli.runs.plan import make_plan
        from dsdmae_cli.runs.rundir import RunDir

        if out is not None and not resume:
            RunDir(out).check_free()
        settings = resolve(loaded.settings)
        split = plugins.find("dataset", settings.data.dataset).spec.labelled_split
        _, method = build_classifier(settings, len(open_judged(settings.data).classes))
        plan = make_plan(settings, method, split)
        print_result(plan.json(), as_json=json, text=plan.text())
        return

    from dsdmae_cli.recipes.finetune import finetune, summary

    result = finetune(loaded, out=out, resume=resume, overridden=overridden, as_json=json)
    if result:
        print_result(result, as_json=json, text=summary(result))
