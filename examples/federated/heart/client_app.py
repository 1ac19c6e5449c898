"""What each hospital runs: it trains on its own records, and answers with weights."""

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from heart.task import disease, fitted, records

app = ClientApp()


def _received(message: Message) -> np.ndarray:
    return message.content["arrays"].to_numpy_ndarrays()[0]


def _own(context: Context) -> tuple[np.ndarray, np.ndarray]:
    return records(Path(str(context.node_config["data"])))


@app.train()
def train(message: Message, context: Context) -> Message:
    features, labels = _own(context)
    weights = fitted(_received(message), features, labels)
    metrics = MetricRecord({"num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    features, labels = _own(context)
    right = float(((disease(_received(message), features) > 0.5) == labels).mean())
    return Message(
        RecordDict({"metrics": MetricRecord({"right": right, "num-examples": len(labels)})}), reply_to=message
    )
