"""The settings that have a flag of their own; everything else is reached with --set."""

FLAGS = {
    "--dataset": "data.dataset",
    "--data-dir": "data.data_dir",
    "--strict-data": "data.strict",
    "--method": "method.name",
    "--backbone": "backbone.name",
    "--epochs": "train.epochs",
    "--batch-size": "train.batch_size",
    "--lr": "optim.lr",
    "--mask-ratio": "method.mask_ratio",
    "--noise-std": "method.noise_std",
    "--lambda": "method.lambda",
    "--seed": "train.seed",
    "--device": "train.device",
    "--precision": "train.precision",
    "--compile/--no-compile": "train.compile",
}

_SHARED = (
    "--dataset",
    "--data-dir",
    "--strict-data",
    "--backbone",
    "--epochs",
    "--batch-size",
    "--seed",
    "--device",
    "--precision",
)

FINETUNE_FLAGS = {
    **{flag: FLAGS[flag] for flag in (*_SHARED, "--lr", "--compile/--no-compile")},
    "--layer-decay": "optim.layer_decay",
    "--pool": "finetune.pool",
    "--validation": "finetune.validation",
}

PROBE_FLAGS = {
    **{flag: FLAGS[flag] for flag in _SHARED},
    "--kind": "probe.kind",
    "--pool": "probe.pool",
    "--few-shot": "probe.few_shot",
}
