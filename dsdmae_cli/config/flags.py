"""Every flag that stands for a setting, declared once; all other settings are reached with --set.

A line says which setting a flag is for, how help shows it and which commands take it. From here on a value travels
under its setting's name: cli/options.py makes the commands' parameters from these lines and hands what was typed over
as {"method.mask_ratio": "0.75"}; config/compose.py lays that over the other sources. Meaning, range and default in help
are read off the settings (config/help.py). Nothing is imported here, so that help need not wait for the settings.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCES, DATA, METHOD, TRAINING, RUN = "Where settings come from", "Data", "Method", "Training", "Run"
PROBE, NETWORK = "Probe", "Network"

# What stands lowest where no preset is named: (alone, where a dataset is named).
DEFAULT_PRESETS: dict[str, tuple[str | None, str | None]] = {
    "pretrain": ("quick", None),
    "tokenizer": ("tokenizer-quick", "tokenizer"),
    "ablate": ("quick-ablate", None),
    "finetune": ("paper", "paper"),
    "worth": ("paper", "paper"),
}
# What stands there instead for a value of finetune.task.
TASK_PRESETS = {"segment": "segment"}


@dataclass(frozen=True)
class Flag:
    """A flag for a setting.

    Attributes:
        name: as typed; "--compile/--no-compile" for both sides of a switch.
        setting: what it sets: "train.epochs".
        metavar: what help writes for its value; None = a switch.
        panel: its box in help.
        commands: that take it.
        several: it may be given several times, for a setting that is a list.
        values: what completion offers where the setting's type does not say.
        sweep: an example of VALUES for `dsdmae ablate --sweep`.
        help: in place of the setting's own words.
    """

    name: str
    setting: str
    metavar: str | None
    panel: str
    commands: tuple[str, ...]
    several: bool = False
    values: tuple[str, ...] = ()
    sweep: str = ""
    help: str = ""

    @property
    def word(self) -> str:
        """Its name in `--sweep`: "mask-ratio"."""
        return self.name.split("/")[0].removeprefix("--")


_TASK = ("pretrain", "ablate")
_PRETRAIN = (*_TASK, "tokenizer")
_TRAIN = (*_PRETRAIN, "finetune")
_LEARN = (*_TRAIN, "probe", "worth")
_USE = ("embed", "export")
_DEVICES = ("auto", "cpu", "cuda", "mps")
_OF_WEIGHTS = (
    "Architecture of weights that do not name theirs, with --set backbone.KEY=VALUE for its settings; `dsdmae plugins`"
    " lists what there is"
)

FLAGS = (
    Flag("--dataset", "data.dataset", "NAME", DATA, (*_LEARN, "embed")),
    Flag(
        "--labels",
        "data.labels",
        "FILE.csv",
        DATA,
        (*_LEARN, "embed"),
        help="Labels of your own images: a file name and a label a row, in place of class folders (data.labels)",
    ),
    Flag(
        "--splits",
        "data.splits",
        "TRAIN,TEST|none",
        DATA,
        (*_LEARN, "embed"),
        help="The folders of your own images to learn from and to test on, where their names do not say (data.splits)",
    ),
    Flag(
        "--image-size",
        "data.image_size",
        "N|H,W",
        DATA,
        _LEARN,
        help="What the network sees, in pixels from 4 to 4096: the side of a square, or HEIGHT,WIDTH. Default: the"
        " dataset's own (data.image_size)",
    ),
    Flag("--data-dir", "data.data_dir", "DIR", DATA, (*_LEARN, "embed")),
    Flag("--strict-data", "data.strict", None, DATA, (*_LEARN, "embed")),
    Flag("--validation", "finetune.validation", "FRACTION", DATA, ("finetune",)),
    Flag("--method", "method.name", "NAME", METHOD, _TASK),
    Flag("--backbone", "backbone.name", "NAME", METHOD, (*_TRAIN, "probe")),
    Flag("--backbone", "backbone.name", "NAME", NETWORK, _USE, help=_OF_WEIGHTS),
    Flag(
        "--from",
        "train.start",
        "RUN|FILE|NAME",
        METHOD,
        ("pretrain",),
        help="Weights to begin with: a run, a file, or published ones such as timm:NAME and hf:OWNER/NAME. Default: new"
        " ones, drawn from the seed (train.start)",
    ),
    Flag("--mask-ratio", "method.mask_ratio", "R[,R]", METHOD, _TASK, sweep="0.75..0.95"),
    Flag("--noise-std", "method.noise_std", "SIGMA[,SIGMA]", METHOD, _TASK, sweep="0.5,1.0"),
    Flag(
        "--mask-ratio",
        "method.mask_ratio",
        "R",
        METHOD,
        ("restore",),
        help="Fraction of patches that are hidden or made noisy, in place of the run's own (method.mask_ratio)",
    ),
    Flag(
        "--noise-std",
        "method.noise_std",
        "SIGMA",
        METHOD,
        ("restore",),
        help="σ of the noise for pixels in [-1, 1], in place of the run's own (method.noise_std)",
    ),
    Flag(
        "--seed",
        "train.seed",
        "N",
        METHOD,
        ("restore",),
        help="Seed of masks and noise, the same for every picture. Default 0",
    ),
    Flag("--lambda", "method.lambda", "X", METHOD, _TASK, sweep="0.2..0.8"),
    Flag("--task", "finetune.task", "NAME", METHOD, ("finetune",)),
    Flag("--pool", "finetune.pool", "NAME", METHOD, ("finetune",)),
    Flag("--blocks", "finetune.blocks", "N|last:N", METHOD, ("finetune",)),
    Flag("--class-weights", "finetune.class_weights", "balanced|none", METHOD, ("finetune",)),
    Flag("--kind", "probe.kind", "NAME", PROBE, ("probe",)),
    Flag("--pool", "probe.pool", "NAME", PROBE, ("probe",)),
    Flag("--blocks", "probe.blocks", "N|last:N|all", PROBE, ("probe",)),
    Flag("--teacher", "probe.teacher", None, PROBE, ("probe",)),
    Flag("--input-noise", "probe.input_noise", "SIGMA", PROBE, ("probe",)),
    Flag("--few-shot", "probe.few_shot", "FRACTION[,FRACTION...]", PROBE, ("probe",)),
    Flag("--class-weights", "probe.class_weights", "balanced|none", PROBE, ("probe",)),
    Flag("--epochs", "train.epochs", "N", PROBE, ("probe",)),
    Flag("--batch-size", "train.batch_size", "N", PROBE, ("probe",)),
    Flag("--epochs", "train.epochs", "N", TRAINING, _TRAIN, sweep="20..100"),
    Flag("--batch-size", "train.batch_size", "N", TRAINING, _TRAIN, sweep="16,32,64"),
    Flag("--lr", "optim.lr", "X", TRAINING, _TRAIN, sweep="1e-4..1e-2/5log"),
    Flag("--layer-decay", "optim.layer_decay", "X", TRAINING, ("finetune",)),
    Flag("--seed", "train.seed", "N", TRAINING, _LEARN),
    Flag("--device", "train.device", "NAME", TRAINING, _LEARN, values=_DEVICES),
    Flag("--device", "train.device", "NAME", NETWORK, ("embed", "denoise", "predict", "restore"), values=_DEVICES),
    Flag("--precision", "train.precision", "NAME", TRAINING, _LEARN),
    Flag("--precision", "train.precision", "NAME", NETWORK, ("embed", "denoise", "predict", "restore")),
    Flag(
        "--track",
        "train.trackers",
        "NAME",
        RUN,
        _LEARN,
        several=True,
        help="Tell this tracker of settings, figures, pictures and the result as they come, repeatable;"
        " `dsdmae plugins` lists them (train.trackers)",
    ),
    Flag("--compile/--no-compile", "train.compile", None, TRAINING, _TRAIN),
)


def flags_of(command: str) -> tuple[Flag, ...]:
    """The flags of a command, in the order of its help; `config show` says what pretrain would make of its flags."""
    whose = "pretrain" if command == "config show" else command
    return tuple(flag for flag in FLAGS if whose in flag.commands)
