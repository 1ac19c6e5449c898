"""Logistic regression on UCI's table of heart disease, in NumPy: the same steps give the same weights everywhere."""

from pathlib import Path

import numpy as np

FEATURES = 13
# About the middle and the spread of each column, known beforehand: nobody's records enter them.
MIDDLE = np.array([54, 0.7, 3.2, 131, 247, 0.15, 1, 150, 0.33, 1, 1.6, 0.7, 4.7])
SPREAD = np.array([9, 0.5, 1, 18, 52, 0.36, 1, 23, 0.47, 1.2, 0.6, 0.9, 1.9])


def records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features, about 0 and of about one size, and whether there is a disease; rows with a gap are left out."""
    lines = [line.split(",") for line in path.read_text().split() if "?" not in line]
    table = np.array(lines, np.float64)
    return (table[:, :FEATURES] - MIDDLE) / SPREAD, (table[:, FEATURES] > 0).astype(np.float64)


def disease(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """How likely it is."""
    return 1 / (1 + np.exp(-(features @ weights[:-1] + weights[-1])))


def fitted(weights: np.ndarray, features: np.ndarray, labels: np.ndarray, steps: int = 100) -> np.ndarray:
    """The weights after some steps of gradient descent."""
    for _ in range(steps):
        wrong = disease(weights, features) - labels
        weights = weights - 0.3 * np.append(features.T @ wrong, wrong.sum()) / len(labels)
    return weights
