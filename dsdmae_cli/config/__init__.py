"""Settings gathered from presets, files, the environment and flags; checked, resolved and described."""
