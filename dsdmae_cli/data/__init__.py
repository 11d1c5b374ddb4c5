"""Images on their way to the step.

For authors of datasets, and without torch: base.py says what a dataset is, arrays.py is one in memory, files.py one of
files in a folder or an archive (archives.py), splits.py finds splits and classes in their names, decode.py and
square.py turn files into pixels, once.py keeps what should be opened once a command.

For the program: open.py opens a dataset and makes a source of batches of it (source.py cuts epochs into steps), which
resident.py keeps on the device as a whole or streaming.py decodes while training; augment.py prepares batches;
run_data.py opens all that a pre-training run looks at.
"""
