"""Recipes: what each command does, from settings to result. Wiring only; each reads from top to bottom."""
