"""The client against real services: what it sends, when, and what it refuses to send."""

import numpy as np

from tests.serve.world import Cas, client, service

CAS = Cas()


def test_a_prediction():
    with service(CAS) as server, client(server, CAS) as ours:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert np.array_equal(ours.predict({"x": x})["y"], x + x)
        assert np.array_equal(ours.predict([[1.0, 2.0, 3.0]])["y"], [[2, 4, 6]])
        assert ours.ready()
