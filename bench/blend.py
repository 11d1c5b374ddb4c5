"""Two denoiser files of the same network mixed, weight by weight.

Between a network and what became of it by further training lie networks that do both tasks (Wortsman et al. 2022,
"Robust fine-tuning of zero-shot models", arXiv:2109.01903).

    python bench/blend.py NEW.safetensors OLD.safetensors SHARE OUT.safetensors

SHARE is that of NEW, 0 to 1. The settings that the file carries are NEW's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dsdmae_cli.checkpoint import DIGEST, weights_sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("new", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    new, old, share = load_file(arguments.new), load_file(arguments.old), arguments.share
    if {k: v.shape for k, v in new.items()} != {k: v.shape for k, v in old.items()}:
        parser.error(f"{arguments.new} and {arguments.old} are of different networks")
    with safe_open(arguments.new, "pt") as file:
        metadata = file.metadata()
    metadata["blend"] = f"{share:g} of this training, {1 - share:g} of the weights it began with"
    mixed = {k: (share * new[k].float() + (1 - share) * old[k].float()).to(new[k].dtype) for k in new}
    metadata[DIGEST] = weights_sha256(mixed)
    save_file(mixed, arguments.out, metadata)


if __name__ == "__main__":
    main()
