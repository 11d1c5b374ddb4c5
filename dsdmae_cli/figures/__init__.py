"""Pictures.

sheet      rows of small pictures as one, which can be taken apart again
moments    what its method is given and predicts, at a few moments
scores     what a classifier on its features does
page       what drawn figures share
"""
