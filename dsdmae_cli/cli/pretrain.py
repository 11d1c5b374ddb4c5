"""`dsdmae pretrain`."""

from __future__ import annotations

from dsdmae_cli.cli import options as o
from dsdmae_cli.errors import SettingsError


def command(
    preset: o.Preset = None,
    config: o.Config = None,
    set_: o.Set = None,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    strict_data: o.StrictData = None,
    method: o.Method = None,
    backbone: o.Backbone = None,
    mask_ratio: o.MaskRatio = None,
    noise_std: o.NoiseStd = None,
    lambda_: o.Lambda = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.Lr = None,
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
    """Pre-train a backbone on images, without labels.

    Alone it learns handwritten digits in under two minutes. On your own images:
    dsdmae pretrain --dataset folder:PATH --backbone vit-tiny --epochs 100

    Values come from defaults, then --preset, --config, environment variables (DSDMAE_TRAIN_EPOCHS=5), flags and --set;
    the later wins. Ctrl-C saves and stops (exit code 130); --resume --out DIR goes on.
    """
    flags = {
        name: value
        for name, value in locals().items()
        if name not in {"preset", "config", "set_", "out", "resume", "dry_run", "json", "debug"}
    }
    overridden = any(value is not None for value in (preset, config, set_, *flags.values()))
    if resume and out is None:
        raise SettingsError("--resume needs the run's directory; add --out DIR")
    from dsdmae_cli.runs.rundir import RunDir

    base = RunDir(out).settings().settings if resume and out is not None else None
    loaded = o.load_settings(preset, config, set_, flags, base)

    from dsdmae_cli.report import print_result

    if dry_run:
        from dsdmae_cli.config.resolve import resolve
        from dsdmae_cli.runs.plan import make_plan

        if out is not None and not resume:
            RunDir(out).check_free()
        plan = make_plan(resolve(loaded.settings))
        print_result(plan.json(), as_json=json, text=plan.text())
        return

    from dsdmae_cli.recipes.pretrain import pretrain, summary

    result = pretrain(loaded, out=out, resume=resume, overridden=overridden, as_json=json)
    if result:
        print_result(result, as_json=json, text=summary(result))
