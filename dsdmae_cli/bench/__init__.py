"""Measurements of the program's own speed, beside peers: `dsdmae bench`.

Every figure is of contenders that took turns in one run (turns.py) on hardware that is named and calibrated in it
(machine.py), since a busy machine stretches all of them alike. step.py, feed.py, denoise.py and startup.py measure one
thing each and give a Finding; program.py runs the list of gpu.toml on a CUDA device. Nothing here runs in the tests of
the program but on tiny sizes: a loaded machine must fail no test.
"""
