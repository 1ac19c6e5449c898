"""What the aggregator runs: it averages the hospitals' weights, and keeps what comes of it."""

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from heart.task import FEATURES

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    clients = int(context.run_config["clients"])
    strategy = FedAvg(min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients)
    first = ArrayRecord([np.zeros(FEATURES + 1)])
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=int(context.run_config["rounds"]))
    weights = result.arrays.to_numpy_ndarrays()[0]
    np.savetxt(Path(str(context.run_config["out"])) / "weights.txt", weights, fmt="%.12g")
    print(f"right: {result.evaluate_metrics_clientapp[int(context.run_config['rounds'])]['right']:.1%}")
