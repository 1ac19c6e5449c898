"""Choose and fit a scikit-learn pipeline by cross-validation, in two processes, and keep it with joblib.

An ordinary script: it reads ``DATA/train.csv`` and ``DATA/test.csv`` (the label, then the features), and writes
``OUT/pipeline.joblib``, ``OUT/probabilities.npy`` and ``OUT/report.json``.
"""

import argparse
import json
from pathlib import Path

import joblib
import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trees", type=int, default=100)
    args = parser.parse_args()

    train, test = (np.loadtxt(args.data / f"{part}.csv", delimiter=",") for part in ("train", "test"))
    forest = RandomForestClassifier(args.trees, random_state=0)
    pipeline = make_pipeline(StandardScaler(), PCA(random_state=0, svd_solver="full"), forest)
    search = GridSearchCV(pipeline, {"pca__n_components": [16, 32]}, cv=3, n_jobs=2)
    search.fit(train[:, 1:], train[:, 0].astype(int))
    joblib.dump(search.best_estimator_, args.out / "pipeline.joblib", compress=3)

    kept = joblib.load(args.out / "pipeline.joblib")
    probabilities = kept.predict_proba(test[:, 1:])
    np.save(args.out / "probabilities.npy", probabilities)
    right = float((kept.classes_[probabilities.argmax(1)] == test[:, 0]).mean())
    report = {"best": search.best_params_, "cross-validation": search.best_score_, "test": right}
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"right: {right:.1%} of {len(test)}, with {search.best_params_}")


if __name__ == "__main__":
    main()
