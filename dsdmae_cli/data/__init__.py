"""Images on their way to the step: base.py and decode.py are what a dataset author needs, the rest is the program's.

resident.py keeps a whole dataset on the device, streaming.py decodes while training, augment.py prepares batches,
source.py chooses between the two and cuts epochs into steps.
"""
