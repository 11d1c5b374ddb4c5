"""Measurements of the program's own speed, beside peers: `dsdmae bench`.

Every figure is of contenders that took turns in one run (turns.py; feed.py draws their order anew for each photograph)
on hardware that is named in it (machine.py), since a busy machine stretches all of them alike; step.py calibrates the
hardware too. step.py, feed.py, denoise.py and startup.py measure one thing each and give a Finding; programme.py runs
the list of gpu.toml on a CUDA device. Nothing here runs in the tests of the program but on tiny sizes: a loaded machine
must fail no test.
"""
