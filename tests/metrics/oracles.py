"""The metrics' definitions once more, pixel lists in NumPy double precision: slow, short, and independent."""

from __future__ import annotations

import numpy as np


def known(label: np.ndarray, ignore: float = 255) -> np.ndarray:
    """[B,K,H,W] -> bool [B,H,W]"""
    return (np.isfinite(label) & (label != ignore)).all(1)


def mean_iou(map, label, classes, absent="zero") -> dict[str, float]:
    ok = known(label) & (label[:, 0] >= 0) & (label[:, 0] < classes)
    p, y = map[ok], label[:, 0][ok]
    iou = []
    for c in range(classes):
        either = ((p == c) | (y == c)).sum()
        both = ((p == c) & (y == c)).sum()
        if either or absent == "zero":
            iou.append(both / either if either else 0.0)
    return {"mIoU": 100 * np.mean(iou), "pixel_acc": 100 * np.mean(p == y)}


def best_f(score, label, thresholds, beta2) -> float:
    ok = known(label)
    s, y = score[ok], label[:, 0][ok] == 1
    best = 0.0
    for t in thresholds:
        positive = s >= np.float32(t)
        if (positive & y).sum():
            precision, recall = (positive & y).sum() / positive.sum(), (positive & y).sum() / y.sum()
            best = max(best, (1 + beta2) * precision * recall / (beta2 * precision + recall))
    return 100 * best


def max_f(map, label) -> dict[str, float]:
    thresholds = [0.05 * k for k in range(1, 20)]
    paper = (1 / (1 + np.exp(-map))).astype(np.float32)
    return {"maxF": best_f(map, label, thresholds, 0.3), "maxF_paper": best_f(paper, label, thresholds, 0.3)}


def edge(map, label) -> dict[str, float]:
    ok = known(label)
    p, y = map[ok].astype(np.float64), label[:, 0][ok]
    bce = -(0.95 * y * np.log(p) + 0.05 * (1 - y) * np.log(1 - p))
    taken_for_logit = 1 / (1 + np.exp(-p))
    loss = -(0.95 * y * np.log(taken_for_logit) + 0.05 * (1 - y) * np.log(1 - taken_for_logit))
    pixel_f = best_f(map, label, [0.01 * k for k in range(1, 100)], 1.0)
    return {"pixelF": pixel_f, "loss": loss.mean(), "bce": bce.mean()}


def angular(map, label) -> dict[str, float]:
    ok = known(label) & (label != 0).any(1)
    a, b = (np.moveaxis(v, 1, -1)[ok].astype(np.float64) for v in (map, label))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    figures = {"mean": angle.mean(), "median": np.median(angle), "rmse": np.sqrt((angle**2).mean())}
    return figures | {f"within_{t:g}": 100 * (angle < t).mean() for t in (11.25, 22.5, 30)}


def depth(map, label, relative=True) -> dict[str, float]:
    ok = known(label) & ((label[:, 0] > 0) | (not relative))
    p, y = map[ok].astype(np.float64), label[:, 0][ok].astype(np.float64)
    if relative:
        p[p <= 0] = 1e-9
    d = p - y
    figures = {"rmse": np.sqrt((d**2).mean()), "abs_err": np.abs(d).mean()}
    if relative:
        figures["log_rmse"] = np.sqrt(((np.log(p) - np.log(y)) ** 2).mean())
        figures |= {"abs_rel": (np.abs(d) / y).mean(), "sq_rel": (d**2 / y).mean()}
    return figures
