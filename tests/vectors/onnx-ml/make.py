"""Write the small models of scikit-learn that lie beside this file, as skl2onnx writes them, and what they give."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

HERE = Path(__file__).parent

warnings.simplefilter("ignore")
rng = np.random.default_rng(5)
x = (rng.standard_normal((60, 2)) * 2 + 1).astype(np.float32)
three = (x[:, 0] > 1).astype(int) + (x[:, 1] > 1)
network = MLPRegressor(hidden_layer_sizes=(3,), max_iter=20, random_state=1)
MODELS = {
    "logistic_two": (LogisticRegression(), three > 0),
    "logistic_three": (LogisticRegression(), three),
    "logistic_text": (LogisticRegression(), np.array(["a", "b", "c"])[three]),
    "discriminant": (LinearDiscriminantAnalysis(), three),
    "scaled_linear": (make_pipeline(StandardScaler(), LinearRegression()), x @ [0.5, -2.0] + 1),
    "polynomial_network": (make_pipeline(PolynomialFeatures(2), network), x[:, 0] * x[:, 1]),
}
given = x[:3]
results = {}
for name, (model, y) in MODELS.items():
    model.fit(x, y)
    made = to_onnx(model, x[:1], target_opset={"": 17, "ai.onnx.ml": 3})
    (HERE / f"{name}.onnx").write_bytes(made.SerializeToString())
    result = model.predict_proba(given) if hasattr(model, "predict_proba") else model.predict(given).reshape(-1, 1)
    results[name] = result.tolist()
(HERE / "results.json").write_text(json.dumps({"x": given.tolist(), **results}, indent=1) + "\n")
