"""`dsdmae tokenizer`."""

from __future__ import annotations

import os

from dsdmae_cli.cli import options as o
from dsdmae_cli.errors import SettingsError


def command(
    preset: o.Preset = None,
    config: o.Config = None,
    set_: o.Set = None,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    strict_data: o.StrictData = None,
    backbone: o.Backbone = None,
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
    """Train a tokenizer: the visual words that BEiT and CAE learn to predict.

    They train one themselves where none is named; this one is yours to look at, to keep and to share:
    dsdmae pretrain --method beit --set method.tokenizer=DIR, with the same image_size and patch_size.

    Settings are gathered as for `dsdmae pretrain`; the preset is tokenizer, or tokenizer-quick where no dataset is
    named.
    """
    from dsdmae_cli.cli import pretrain
    from dsdmae_cli.runs.rundir import RunDir

    own = None if resume else "tokenizer"
    if not resume and preset is None and not os.environ.get("DSDMAE_PRESET"):
        somewhere = config or os.environ.get("DSDMAE_CONFIG") or os.environ.get("DSDMAE_DATA_DATASET")
        named = dataset or somewhere or any(text.strip().startswith("data.dataset") for text in set_ or [])
        preset = "tokenizer" if named else "tokenizer-quick"
    if resume and out is not None and (found := RunDir(out).settings().settings.method.name) != "tokenizer":
        raise SettingsError(f"{out} holds a run of {found}; go on with it by: dsdmae pretrain --resume --out {out}")
    if any(text.strip().startswith("method.name") for text in set_ or []):
        raise SettingsError("--set method.name is for `dsdmae pretrain`; this command trains the method tokenizer")
    pretrain.command(
        preset=preset, config=config, set_=set_, dataset=dataset, data_dir=data_dir, strict_data=strict_data,
        method=own, backbone=backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, device=device,
        precision=precision, compile=compile, out=out, resume=resume, dry_run=dry_run, json=json, debug=debug,
    )  # fmt: skip
