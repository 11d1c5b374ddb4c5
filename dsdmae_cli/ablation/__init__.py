"""Ablations: what a study is, its book-keeping, the loop that runs its trials, and its report."""
