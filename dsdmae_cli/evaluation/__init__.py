"""What features are worth. Nothing here trains a backbone, and importing this package alone loads no torch.

features    an encoder and images to pooled features, and their cache on disk
split       which training images are held out, and few-shot draws
probes      what a probe is, for authors of plugins; probe_data gathers what one is given
knn, logistic, linear    features to logits, each choosing its own setting on held-out training images
attentive, efficient    the same for heads that read all tokens
updates     optimisers of several heads at once
metrics     logits to accuracies, intervals and the confusion matrix
reducing    features to two dimensions, for a picture
"""
