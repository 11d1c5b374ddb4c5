"""`dsdmae ablate`: many runs that differ in a setting, and one report of them.

definition.py says what a study is; plans.py what its trials take; study.py keeps its books on Optuna; trial.py runs one
trial in processes of its own; run.py is the loop over them; results.py, statistics.py, figure.py and report.py make of
them what is read. What `--sweep KEY VALUES` means is in dsdmae_cli.settings.sweep.
"""
