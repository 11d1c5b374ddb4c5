"""How near restored pixels are to the original ones: dsdmae_cli.pictures.quality has it, which also judges whole pictures."""

from dsdmae_cli.pictures.quality import psnr, ssim

__all__ = ["psnr", "ssim"]
