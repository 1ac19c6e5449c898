"""Values that cannot come back as they were are refused."""

import numpy as np
import pytest

from strongroom.errors import UsageError
from strongroom.mirror.state import encode

ml_dtypes = pytest.importorskip("ml_dtypes")


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_a_scalar_of_a_type_that_numpy_lacks(name):
    value = getattr(ml_dtypes, name)(1.5)
    with pytest.raises(UsageError, match=f"parts/rate: a scalar of {name}, wanted a number or an array") as refused:
        encode({"parts": {"rate": value}})
    assert refused.value.hint == "float(value) is exact"
    assert len(encode({"rate": float(value), "array": np.asarray([value])})[1]) == 1
