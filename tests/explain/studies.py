"""Studies and networks of known answers, for tests of what explains columns and views."""

import numpy as np

from explain.background import Background, StudyInputs


def linear_study(columns: int = 5, views: int = 0, rows: int = 60, seed: int = 0):
    """(StudyInputs without gaps, weights [F, 2], outputs w·x + 3 · views)."""
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(rows, columns)) * rng.uniform(0.5, 3, columns) + rng.normal(size=columns)
    weights = rng.normal(size=(columns, 2))
    background = Background.of_training(data, np.ones_like(data, bool))
    study = StudyInputs(rng.normal(size=columns), np.ones(columns, bool), np.ones(views, bool), background)

    def outputs(table, known, there):
        return np.where(known, table, 0) @ weights + 0.5 + 3.0 * there.sum(axis=1, keepdims=True)

    return study, weights, outputs


def curved(table, known, there):
    """A network with interactions, gaps and views; two outputs."""
    x = np.where(known, table, -0.3)
    bent = np.tanh(x[:, 0] * x[:, 1] + x[:, 3]) * x[:, 0] + x[:, 2] ** 2 * (x[:, 1] > 0) - 0.2 * known.sum(axis=1)
    seen = there.sum(axis=1) * (1 + x[:, 0])
    return np.stack([bent + seen, np.exp(-(x**2).sum(axis=1) / 5) - seen], axis=1)


def curved_study(columns: int = 5, views: int = 2, seed: int = 1) -> StudyInputs:
    rng = np.random.default_rng(seed)
    background = Background.of_training(rng.normal(size=(40, columns)), rng.random((40, columns)) < 0.8)
    return StudyInputs(rng.normal(size=columns), np.ones(columns, bool), np.ones(views, bool), background)
