"""`dsdmae tokenizer`: `dsdmae pretrain` with another default preset, and one method."""

from __future__ import annotations

from dsdmae_cli.cli.options import takes
from dsdmae_cli.cli.pretrain import carry_out
from dsdmae_cli.config.given import Given
from dsdmae_cli.errors import SettingsError

_METHOD = "tokenizer"


@takes("tokenizer")
def command(given: Given) -> None:
    """Train a tokenizer: the visual words that BEiT and CAE learn to predict.

    They train one themselves where none is named; this one is yours to look at, to keep and to share:
    dsdmae pretrain --method beit --set method.tokenizer=DIR, with the same image_size and patch_size.

    Settings are gathered as for `dsdmae pretrain`; the preset is tokenizer, or tokenizer-quick where no dataset is
    named.
    """
    from dsdmae_cli.config.schema import TOKENIZER
    from dsdmae_cli.files import typed
    from dsdmae_cli.recipes.gather import pretraining
    from dsdmae_cli.runs.rundir import RunDir

    if given.resume and given.out is not None:
        found = RunDir(given.out).settings().settings.method.name
        if found != _METHOD:
            again = f"dsdmae pretrain --resume --out {typed(given.out)}"
            raise SettingsError(f"{given.out} holds a run of {found}; go on with it by: {again}")
    if any(text.strip().startswith("method.name") for text in given.assignments or ()):
        raise SettingsError(f"--set method.name is for `dsdmae pretrain`; this command trains the method {_METHOD}")
    carry_out(given, pretraining(given, TOKENIZER, None if given.resume else _METHOD))
