"""What features are worth: each score is a plain function of features and labels."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.augment import prepare


@torch.no_grad()
def mean_features(
    encoder: Backbone,
    images: UInt8[Tensor, "n 3 s s"],
    batch_size: int,
    autocast_dtype: torch.dtype | None = None,
) -> Float[Tensor, "n d"]:
    """Tokens of clean images, averaged over the grid; the encoder in eval mode."""
    was_training = encoder.training
    encoder.eval()
    features = []
    for batch in images.split(batch_size):
        kind = batch.device.type
        with torch.autocast(kind, autocast_dtype) if autocast_dtype else nullcontext():
            features.append(encoder(prepare(batch, encoder.image_size, "bicubic")).float().mean(dim=1))
    encoder.train(was_training)
    return torch.cat(features)


def knn_accuracy(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    labels: Int64[Tensor, " m"],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of queries that their k nearest bank images classify rightly.

    Features are centred on the bank's mean and compared by cosine; neighbours vote with exp(cosine/temperature)
    (Wu et al. 2018, arXiv:1805.01978, the protocol of DINO).
    """
    center = bank.mean(dim=0)
    bank, queries = F.normalize(bank - center, dim=1), F.normalize(queries - center, dim=1)
    num_classes = int(max(bank_labels.max(), labels.max())) + 1
    hits = 0
    for query, truth in zip(queries.split(1024), labels.split(1024), strict=True):
        similarity, nearest = (query @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(query), num_classes, device=query.device)
        votes.scatter_add_(1, bank_labels[nearest], (similarity / temperature).exp())
        hits += int((votes.argmax(dim=1) == truth).sum())
    return hits / len(labels)


def logistic_accuracy(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    labels: Int64[Tensor, " m"],
    c: float = 1.0,
) -> float:
    """Accuracy of scikit-learn's logistic regression (L-BFGS) on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
    model.fit(bank.cpu().numpy(), bank_labels.cpu().numpy())
    return float(model.score(queries.cpu().numpy(), labels.cpu().numpy()))


def psnr(
    images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], data_range: float = 2.0
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image, in dB; data_range is 2 for pixels in [-1, 1]."""
    mse = (images - reference).pow(2).flatten(1).mean(dim=1)
    return 10 * torch.log10(data_range**2 / mse)
