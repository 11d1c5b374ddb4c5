"""What features are worth: plain functions of features, logits and labels. Nothing here trains a backbone.

features    an encoder and images to pooled features, and their cache on disk
split       which training images are held out, and few-shot draws
knn, logistic, linear    features to logits, each choosing its own setting on held-out training images
metrics     logits to accuracies, intervals and the confusion matrix
reducing    features to two dimensions, for a picture
"""

from dsdmae_cli.evaluation.features import mean_features
from dsdmae_cli.evaluation.knn import knn_accuracy

__all__ = ["knn_accuracy", "mean_features"]
