"""What dsdmae expects of a plugin, as functions for its author's tests: no clone of dsdmae is needed.

    from dsdmae_cli.testing import check_method

    def test_it_is_a_method() -> None:
        check_method("my-method")

Each takes the name by which the installed plugin is found, works on scikit-learn's handwritten digits, and raises
AssertionError with a sentence about the first promise that is not kept. Nothing is loaded until one is called.
"""

from __future__ import annotations

from dsdmae_cli.testing.backbones import check_backbone
from dsdmae_cli.testing.datasets import check_dataset
from dsdmae_cli.testing.methods import check_method
from dsdmae_cli.testing.probes import check_probe
from dsdmae_cli.testing.trackers import check_tracker

__all__ = ["check_backbone", "check_dataset", "check_method", "check_probe", "check_tracker"]
