"""Features in two dimensions, to look at. Distances in such a picture prove nothing; scores do."""

from __future__ import annotations

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# t-SNE's time grows with the square of the points; 2,000 take seconds, and more would hide each other.
MOST_TSNE_POINTS = 2000
# Of which float64 copies are in memory at a time.
_ROWS = 65_536


@torch.no_grad()
def pca(features: Float[Tensor, "n d"], num_components: int = 2) -> tuple[Float[Tensor, "n k"], tuple[float, ...]]:
    """Coordinates along the directions of largest variance, and the share of all variance that each holds.

    On the CPU in float64, some rows at a time, from the [d, d] covariance or the [n, n] products of the points,
    whichever is smaller. The sign of a direction is free: its largest entry is made positive, so that pictures of the
    same features are the same.
    """
    chunks = features.cpu().split(_ROWS)
    mean = sum(chunk.sum(dim=0, dtype=torch.float64) for chunk in chunks) / len(features)
    wide = features.shape[0] < features.shape[1]
    if wide:
        x = features.cpu().double() - mean
        products = x @ x.T / len(x)
    else:
        products = sum((chunk.double() - mean).T @ (chunk.double() - mean) for chunk in chunks) / len(features)
    assert isinstance(products, Tensor)
    size = len(products)
    # Only the largest: of 2,000 points that takes half a second, where all take several.
    found = scipy.linalg.eigh(products.numpy(), subset_by_index=(size - num_components, size - 1))
    values, vectors = (torch.from_numpy(part).flip(-1) for part in found)
    directions = F.normalize(x.T @ vectors, dim=0) if wide else vectors
    largest = directions.abs().argmax(dim=0)
    directions = directions * directions.gather(0, largest[None]).sign()
    shares = values.clamp(min=0) / products.trace()
    places = torch.cat([((chunk.double() - mean) @ directions).float() for chunk in chunks])
    return places, tuple(shares.tolist())


def tsne(features: Float[Tensor, "n d"], seed: int = 0, perplexity: float = 30.0) -> Float[Tensor, "n 2"]:
    """t-SNE (van der Maaten & Hinton 2008) by scikit-learn, from 50 principal components, started at the first two.

    Args:
        features: 4 to 2,000 rows.
        perplexity: neighbours that a point feels; at most a third of the points.

    Raises:
        ValueError: the features do not differ, or are not finite: there is nothing to lay out, and scikit-learn's tree
            of such points recurses until the process dies.
    """
    from sklearn.manifold import TSNE

    assert 4 <= len(features) <= MOST_TSNE_POINTS
    if not features.isfinite().all():
        raise ValueError("features are not finite")
    reduced, _ = pca(features, min(50, *features.shape))
    first = reduced[:, :2].double()
    spread = float(first[:, 0].std(unbiased=False))
    if not spread > 1e-6 * max(1.0, float(features.abs().max())):
        raise ValueError("features do not differ from image to image")
    perplexity = min(perplexity, (len(features) - 1) / 3)
    # scikit-learn's own start divides by the same spread; its first components need not be finite where ours are.
    start = (first / spread * 1e-4).float().numpy()
    model = TSNE(init=start, perplexity=perplexity, random_state=seed, n_jobs=1)
    return torch.from_numpy(model.fit_transform(reduced.numpy())).float()
