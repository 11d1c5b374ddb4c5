"""From a clone: modal run docs/machines/modal_run.py --words "pretrain /photos --out /runs/mine"

The images lie in the volume dsdmae-photos (`modal volume put dsdmae-photos ./photos /`), runs go to dsdmae-runs. A call
that ran out of its time goes on with --words "pretrain --resume --out /runs/mine".
"""

import shlex
import subprocess

import modal

app = modal.App("dsdmae")
image = (
    modal.Image.debian_slim(python_version="3.11")
    .add_local_dir(".", "/src", copy=True, ignore=[".venv", ".git"])
    .run_commands("pip install /src")
)
photos = modal.Volume.from_name("dsdmae-photos", create_if_missing=True)
runs = modal.Volume.from_name("dsdmae-runs", create_if_missing=True)


@app.function(image=image, gpu="H100", volumes={"/photos": photos, "/runs": runs}, timeout=6 * 3600)
def dsdmae(words: str) -> int:
    """Run `dsdmae WORDS` on a GPU; the exit code is its own."""
    code = subprocess.run(["dsdmae", *shlex.split(words)], check=False).returncode
    runs.commit()
    return code


@app.local_entrypoint()
def main(words: str = "doctor") -> None:
    raise SystemExit(dsdmae.remote(words))
