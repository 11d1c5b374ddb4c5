"""What method authors build on: base.py must be read, ema.py, heads.py and losses.py are there to be used.

The methods themselves are plugins; ours are in plugins/dsdmae_builtin/methods, one file each.
"""
