"""What looks at a run as it goes, one file each; base.py says what an observer is told and when.

page        report.html, which lives while the run does
progress    lines or a bar for the person
jsonl       metrics.jsonl
trackers    TensorBoard and whatever plugins bring (dsdmae_cli.tracking)
pictures    what the method is given and predicts, at a few moments
features    the encoder's features of held-out images now and then: k-NN accuracy (knn), collapse (collapse)
validation  accuracy on a held-out share of the training images, for a run that learns from labels
"""
