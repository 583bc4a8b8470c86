"""What a latent action is: a map of them, groups of like ones, and how both fit the true actions."""

import importlib.util
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.data.store import UNLABELLED
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import gather_batches, latent_actions
from lapo_cli.core.training.networks import load_idm
from lapo_cli.core.training.stage import stage_seed

WINDOWS = 2048
CLUSTERS = 8
_NEIGHBOURS = 10
_COMPONENTS = 16
_ROUNDS = 50

Matrix = NDArray[np.float32]


def measure(ctx: Context) -> dict[str, Any]:
    """The latent actions of held-out windows: points of a map, clusters, true actions where known, and code usage.

    Raises:
        MissingInputError, CorruptDataError: stage 1 or the test frames are not there, or damaged.
    """
    windows, z, counts = sample(ctx)
    points, method = project(z, stage_seed(ctx, "map"))
    clusters, medoids = cluster(z, stage_seed(ctx, "clusters"))
    store = ctx.open_store("test")
    actions = None if store.actions is None else store.actions[windows]
    known = None if actions is None else actions != UNLABELLED
    found: dict[str, Any] = {
        "split": "test",
        "method": method,
        "points": np.round(points, 3).tolist(),
        "clusters": clusters.tolist(),
        "medoids": medoids.tolist(),
        "codes": counts,
        "actions": None,
        "purity": None,
    }
    if actions is not None and known is not None and known.sum() > _NEIGHBOURS:
        labels = actions[known].astype(np.int64)
        shares = np.bincount(labels) / len(labels)
        found["actions"] = [int(a) if k else None for a, k in zip(actions, known, strict=True)]
        found["purity"] = {
            "map": purity(points[known], labels),
            "latent": purity(z[known], labels),
            "chance": float((shares**2).sum()),
            "neighbours": _NEIGHBOURS,
        }
    return found


def sample(ctx: Context) -> tuple[NDArray[np.int64], Matrix, list[list[int]] | None]:
    """Centres (W,) of held-out windows, their z (W, la_dim), and how often every code of each codebook was chosen."""
    store = ctx.open_store("test")
    windows = np.random.default_rng(stage_seed(ctx, "map")).permutation(store.video().windows())[:WINDOWS]
    idm = load_idm(ctx)
    loader = FrameLoader(store.video(), ctx.compute.device, resident=False)
    z = torch.cat([part.float() for part in latent_actions(ctx, idm, gather_batches(loader, windows))])
    with torch.no_grad():
        codes = idm.quantizer(z).codes
    counts = None
    if codes is not None:
        # A quantizer says how many codes there are in all; those of a codebook are what is left for each.
        each = idm.quantizer.num_codes // codes.shape[1]
        counts = [torch.bincount(book.flatten().cpu(), minlength=each).tolist() for book in codes.unbind(1)]
    return windows, z.cpu().numpy(), counts


def projection() -> str:
    """How latent actions are brought to two dimensions here: by UMAP if it is installed, else by PCA."""
    return "UMAP" if importlib.util.find_spec("umap") else "PCA"


def project(z: Matrix, seed: int) -> tuple[Matrix, str]:
    """Points (W, 2) of z (W, D), and the method that gave them."""
    if projection() == "UMAP":
        import umap

        return umap.UMAP(random_state=seed % 2**31, n_jobs=1).fit_transform(z).astype(np.float32), "UMAP"
    return principal(z, 2), "PCA"


def principal(z: Matrix, count: int) -> Matrix:
    """The first ``count`` principal components (W, count) of z (W, D); zeros where there are fewer."""
    centred = z - z.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: make the largest entry positive, so that maps can be compared.
    u = u * np.where(u[np.abs(u).argmax(0), np.arange(u.shape[1])] < 0, -1, 1)
    scores = (u * s)[:, :count]
    return np.pad(scores, ((0, 0), (0, count - scores.shape[1]))).astype(np.float32)


def purity(points: Matrix, labels: NDArray[np.int64], neighbours: int = _NEIGHBOURS) -> float:
    """Mean share of the nearest neighbours of a point (W, D) that have its label (W,)."""
    distance = _distances(points, points)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argpartition(distance, min(neighbours, len(points) - 1) - 1, axis=1)[:, :neighbours]
    return float((labels[nearest] == labels[:, None]).mean())


def cluster(z: Matrix, seed: int, count: int = CLUSTERS) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """k-means (k-means++ start) on the leading principal components: clusters (W,) by falling size, and medoids (k,).

    A medoid is the index of the latent action nearest to a cluster's mean: one that occurred.
    """
    x = principal(z, min(_COMPONENTS, z.shape[1]))
    rng = np.random.default_rng(seed)
    means = x[rng.integers(len(x))][None]
    for _ in range(min(count, len(x)) - 1):
        nearest = _distances(x, means).min(1)
        if nearest.sum() <= 0:
            break
        means = np.concatenate([means, x[rng.choice(len(x), p=nearest / nearest.sum())][None]])
    for _ in range(_ROUNDS):
        of = _distances(x, means).argmin(1)
        moved = np.stack([x[of == k].mean(0) if (of == k).any() else means[k] for k in range(len(means))])
        if np.allclose(moved, means):
            break
        means = moved
    distance = _distances(x, means)
    of = distance.argmin(1)
    sizes = np.bincount(of, minlength=len(means))
    order = [k for k in np.argsort(-sizes, kind="stable") if sizes[k]]
    rank = np.zeros(len(means), np.int64)
    rank[order] = np.arange(len(order))
    medoids = [int(np.where(of == k, distance[:, k], np.inf).argmin()) for k in order]
    return rank[of], np.array(medoids, np.int64)


def _distances(x: Matrix, y: Matrix) -> NDArray[np.float64]:
    """Squared distances (X, Y)."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    squared: NDArray[np.float64] = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0)
    return squared
