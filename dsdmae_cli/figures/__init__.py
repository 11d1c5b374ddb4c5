"""Pictures: of a run as it trains (training.py) and of what a classifier on its features does (scores.py)."""

from dsdmae_cli.figures.training import RestorationRecord, curves, sheet

__all__ = ["RestorationRecord", "curves", "sheet"]
