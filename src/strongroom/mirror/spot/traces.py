"""Traces of a spot market: what an instance cost, or whether there was one, at every moment.

Four forms are read, all as text from outside, so every one is checked before it becomes a `Trace`:

- CSV or TSV without a header: the price first, one row an interval; a second column, if there is one, is the row's
  number. That is the form of the traces of Wang, Liang and Urgaonkar ("An Empirical Analysis of Amazon EC2 Spot
  Instance Features Affecting Cost-effective Resource Procurement", ACM TOMPECS 3(2), 2018) as Plinius has them.
- CSV or TSV with a header that names `price`, and `time` unless rows are one interval each.
- The same with `available` (0 or 1) in place of the price, or beside it.
- JSON as `aws ec2 describe-spot-price-history` prints it.

Times are seconds (numbers), or ISO 8601, in UTC if they say nothing else. A row holds until the next one. Where rows
have times the last one only says when the trace ends: how long it held is not known.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from strongroom.errors import FormatError, UsageError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

MAX_BYTES: Final = 128 << 20
MAX_ROWS: Final = 4_000_000
MAX_PRICE: Final = 1e6  # USD an hour
MAX_SECONDS: Final = 1e11  # three thousand years
INTERVAL: Final = 60.0

_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ][0-9:.]{5,20}(Z|[+-]\d{2}:?\d{2})?", re.ASCII)
_COLUMNS: Final = {
    "time": "time", "timestamp": "time", "seconds": "time",
    "price": "price", "spotprice": "price", "spot_price": "price",
    "available": "available", "availability": "available",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trace:
    """What a market did between `times[0]`, which is 0, and `times[-1]`. Row i holds from `times[i]` to `times[i + 1]`.

    Attributes:
        times: seconds, one more than rows, strictly rising from 0.
        prices: USD for an hour of one instance, at least 0; one for each row.
        available: whether there was an instance to be had at any price; one for each row.

    Raises:
        FormatError: the arrays are not like that.
    """

    times: Floats
    prices: Floats
    available: Flags

    def __post_init__(self) -> None:
        for name, dtype in (("times", np.float64), ("prices", np.float64), ("available", np.bool_)):
            array = np.array(getattr(self, name), dtype)  # a copy: what the caller changes later changes nothing here
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        rows = len(self.prices)
        if rows < 1:
            raise FormatError("trace: no rows, wanted at least one", hint="is the file empty?")
        if len(self.times) != rows + 1 or len(self.available) != rows:
            got = f"{len(self.times)} times, {rows} prices, {len(self.available)} availabilities"
            raise FormatError(f"trace: {got}, wanted one more time than prices, as many availabilities")
        if self.times[0] != 0 or not (np.diff(self.times) > 0).all() or not self.times[-1] <= MAX_SECONDS:
            raise FormatError("trace: times that do not rise from 0, wanted seconds, each later than the one before")
        if not ((self.prices >= 0) & (self.prices <= MAX_PRICE)).all():
            raise FormatError(f"trace: a price that is none, wanted 0 to {MAX_PRICE:g} USD an hour")

    @property
    def seconds(self) -> float:
        """How long the trace is."""
        return float(self.times[-1])

    def up(self, bid: float | None) -> Flags:
        """In which rows an instance runs: one is there, and its price is not above `bid` (USD an hour; None: any).

        EC2 interrupts when "the Spot price is higher than your maximum price" (EC2 User Guide, "Spot Instance
        interruptions"): at a price that equals the bid it runs.
        """
        return self.available.copy() if bid is None else self.available & (self.prices <= bid)

    def interruptions(self, bid: float | None) -> int:
        """How often an instance that runs whenever it can is taken away in the whole trace.

        The count neither rises nor falls with the bid: a higher one also runs in short spells that a lower one sleeps
        through, and each of those ends. What never falls is the time that it runs.
        """
        up = self.up(bid)
        return int(np.count_nonzero(up[:-1] & ~up[1:]))

    def share(self, bid: float | None) -> float:
        """The share of the time that an instance runs, 0 to 1."""
        return float(np.diff(self.times)[self.up(bid)].sum() / self.seconds)

    def bids(self, count: int) -> list[float]:
        """At most `count` prices of the trace, rising, that cut its time into equal shares; the last is the highest.

        Other bids need not be tried often: between two neighbouring prices of a trace all bids do the same.

        Raises:
            UsageError: `count` is less than 1.
        """
        if count < 1:
            raise UsageError(f"bids: {count}, wanted 1 or more")
        order = np.argsort(self.prices, kind="stable")
        passed = np.cumsum(np.diff(self.times)[order])
        cuts = np.arange(1, count + 1) / count * passed[-1]
        at = np.minimum(np.searchsorted(passed, cuts), len(order) - 1)
        at[-1] = len(order) - 1
        return [float(price) for price in np.unique(self.prices[order][at])]

    def since(self, start: float) -> Trace:
        """The trace from second `start` on.

        Raises:
            UsageError: the trace is over by then, or `start` is less than 0.
        """
        if not 0 <= start < self.seconds:
            raise UsageError(f"start: {start:g} s, wanted 0 to less than the trace's {self.seconds:g} s")
        row = int(np.searchsorted(self.times, start, side="right")) - 1
        times = self.times[row:] - start
        times[0] = 0.0  # that row began earlier
        return Trace(times, self.prices[row:], self.available[row:])


def read(
    path: str | Path,
    *,
    interval: float = INTERVAL,
    price: float = 0.0,
    zone: str | None = None,
    instance: str | None = None,
    product: str | None = None,
) -> Trace:
    """The trace in a file, whichever of the forms it has; the arguments are those of `parse`.

    Raises:
        FormatError: it is none, or too long.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FormatError(f"trace: more than {MAX_BYTES >> 20} MiB, wanted at most that", hint="cut it into parts")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"trace: byte {error.start} is not UTF-8, wanted CSV or JSON as text") from None
    return parse(text, interval=interval, price=price, zone=zone, instance=instance, product=product)


def parse(
    text: str,
    *,
    interval: float = INTERVAL,
    price: float = 0.0,
    zone: str | None = None,
    instance: str | None = None,
    product: str | None = None,
) -> Trace:
    """The trace in a text: JSON if it begins with a brace, else CSV. See `parse_csv` and `parse_aws`.

    Raises:
        FormatError: it is neither.
        UsageError: an argument makes no sense.
    """
    if text.lstrip()[:1] in ("{", "["):
        return parse_aws(text, zone=zone, instance=instance, product=product)
    if zone or instance or product:
        raise UsageError("zone, instance, product: a CSV trace has none of them", hint="leave the choice out")
    return parse_csv(text, interval=interval, price=price)


def parse_csv(text: str, *, interval: float = INTERVAL, price: float = 0.0) -> Trace:
    """The trace in rows with commas or tabs between columns.

    Args:
        interval: seconds that a row holds where rows have no times.
        price: USD an hour, where rows say only whether an instance was available.

    Raises:
        FormatError: a row that is not a row of a trace; no row; rows out of order; too many.
        UsageError: `interval` or `price` makes no sense.
    """
    if not 0 < interval <= MAX_SECONDS:
        raise UsageError(f"interval: {interval:g} s, wanted more than 0 and at most {MAX_SECONDS:g}")
    if not 0 <= price <= MAX_PRICE:
        raise UsageError(f"price: {price:g}, wanted 0 to {MAX_PRICE:g} USD an hour")
    _check_size(text)
    lines = text.removeprefix("\ufeff").split("\n", MAX_ROWS + 2)
    if len(lines) > MAX_ROWS + 2:
        raise FormatError(f"trace: more than {MAX_ROWS:,} rows, wanted at most that", hint="cut it into parts")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise FormatError("trace: no rows, wanted at least one", hint="is the file empty?")
    comma = "\t" if "\t" in lines[0] else ","
    first = [cell.strip() for cell in lines[0].split(comma, 64)]
    if _NUMBER.fullmatch(first[0]) or _DATE.fullmatch(first[0]):
        return _unnamed(lines, comma, interval)
    columns = [_COLUMNS.get(name.strip('"').lower()) for name in first]
    named = [name for name in columns if name]
    if len(set(named)) != len(named) or not {"price", "available"} & set(named):
        raise FormatError(
            f"line 1: columns {_show(lines[0])}, wanted price or available, and time, each once",
            hint="name the columns in the first line: time,price or time,available",
        )
    wanted = [(name, at) for at, name in enumerate(columns) if name]
    values: dict[str, list[float]] = {name: [] for name in named}
    for number, line in enumerate(lines[1:], 2):
        cells = line.split(comma)
        if len(cells) != len(columns):
            raise FormatError(f"line {number}: {len(cells)} columns, wanted {len(columns)} as the header has")
        for name, at in wanted:
            values[name].append(_PARSE[name](cells[at], f"line {number}: {name}"))
    rows = len(lines) - 1
    prices = np.array(values.get("price", [price] * rows), np.float64)
    available = np.array(values.get("available", [1.0] * rows), np.float64) == 1.0
    if "time" in values:
        return _timed(np.array(values["time"], np.float64), prices, available, "line", 2)
    return _even(prices, available, interval)


def _unnamed(lines: list[str], comma: str, interval: float) -> Trace:
    """Rows of a price, or of a price and the row's number."""
    columns = len(lines[0].split(comma, 64))
    if columns > 2:
        raise FormatError(
            f"line 1: {columns} columns and no names, wanted at most price and row number",
            hint="name the columns in the first line: time,price or time,available",
        )
    prices: list[float] = []
    first = 0.0
    for number, line in enumerate(lines, 1):
        cells = line.split(comma)
        if len(cells) != columns:
            raise FormatError(f"line {number}: {len(cells)} columns, wanted {columns} as line 1 has")
        if columns == 2:
            count = _number(cells[1], f"line {number}: row number")
            first = count if number == 1 else first
            if count != first + number - 1:
                raise FormatError(
                    f"line {number}: {_show(cells[1])} in column 2, wanted the row's number, one more than before",
                    hint="if it is a time, name the columns in the first line: price,time",
                )
        prices.append(_price(cells[0], f"line {number}: price"))
    return _even(np.array(prices, np.float64), np.ones(len(prices), np.bool_), interval)


def parse_aws(text: str, *, zone: str | None = None, instance: str | None = None, product: str | None = None) -> Trace:
    """The trace in what `aws ec2 describe-spot-price-history` prints: entries in any order, each with the time from
    which its price holds. What holds for another zone, type or product is another market: one has to be chosen.

    Args:
        zone: the entries of this `AvailabilityZone` only.
        instance: of this `InstanceType` only.
        product: of this `ProductDescription` only.

    Raises:
        FormatError: it is none, it has several markets, none of that choice, or two prices at one time.
    """
    _check_size(text)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError(
            "trace: not JSON, wanted what aws ec2 describe-spot-price-history --output json prints"
        ) from None
    entries = document.get("SpotPriceHistory") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise FormatError("trace: no list SpotPriceHistory, wanted what aws ec2 describe-spot-price-history prints")
    if len(entries) > MAX_ROWS:
        raise FormatError(f"trace: {len(entries):,} entries, wanted at most {MAX_ROWS:,}", hint="cut it into parts")
    for at, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise FormatError(f"SpotPriceHistory[{at}]: {_show(entry)}, wanted an object")
    numbered = list(enumerate(entries))
    for field, chosen, flag in (
        ("InstanceType", instance, "instance"),
        ("AvailabilityZone", zone, "zone"),
        ("ProductDescription", product, "product"),
    ):
        numbered = _choose(numbered, field, chosen, flag)
    found: dict[float, float] = {}
    for at, entry in numbered:
        where = f"SpotPriceHistory[{at}]"
        time = _time(entry.get("Timestamp"), f"{where}: Timestamp")
        price = _price(entry.get("SpotPrice"), f"{where}: SpotPrice")
        if found.setdefault(time, price) != price:
            raise FormatError(f"{where}: a second price at {_show(entry.get('Timestamp'))}, wanted one")
    times = np.array(sorted(found), np.float64)
    prices = np.array([found[time] for time in times.tolist()], np.float64)
    return _timed(times, prices, np.ones(len(times), np.bool_), "entry", 1)


def _choose(
    entries: list[tuple[int, dict[str, Any]]], field: str, chosen: str | None, flag: str
) -> list[tuple[int, dict[str, Any]]]:
    there = sorted({str(entry.get(field, "")) for _, entry in entries})
    listed = ", ".join(name[:40] for name in there[:8]) + (", ..." if len(there) > 8 else "")
    if chosen is None:
        if len(there) > 1:
            raise FormatError(f"{field}: {len(there)} of them, wanted one", hint=f"choose a {flag}: {listed}")
        return entries
    if chosen not in there:
        raise FormatError(f"{field}: no entry has {_show(chosen)}", hint=f"those there are: {listed or 'none'}")
    return [(at, entry) for at, entry in entries if str(entry.get(field, "")) == chosen]


def _even(prices: Floats, available: Flags, interval: float) -> Trace:
    if interval * len(prices) > MAX_SECONDS:
        raise FormatError(f"trace: {len(prices):,} rows of {interval:g} s, wanted at most {MAX_SECONDS:g} s together")
    return Trace(np.arange(len(prices) + 1, dtype=np.float64) * interval, prices, available)


def _timed(times: Floats, prices: Floats, available: Flags, what: str, first: int) -> Trace:
    if len(times) < 2:
        raise FormatError(
            f"trace: rows with times: {len(times)}, wanted at least two", hint="the last row says when the trace ends"
        )
    wrong = np.flatnonzero(np.diff(times - times[0]) <= 0)
    if len(wrong):
        raise FormatError(
            f"{what} {first + int(wrong[0]) + 1}: not later than the one before, wanted rising times",
            hint="sort the rows by time, and keep one of each",
        )
    return Trace(times - times[0], prices[:-1], available[:-1])


def _number(cell: object, where: str) -> float:
    # float() takes more than numbers: nan, inf, 1_000, digits of every script.
    text = str(cell).strip() if isinstance(cell, str | int | float) and not isinstance(cell, bool) else ""
    if len(text) > 40 or not _NUMBER.fullmatch(text) or not math.isfinite(value := float(text)):
        raise FormatError(f"{where}: {_show(cell)}, wanted a number")
    return value


def _price(cell: object, where: str) -> float:
    value = _number(cell, where)
    if not 0 <= value <= MAX_PRICE:
        raise FormatError(f"{where}: {_show(cell)}, wanted 0 to {MAX_PRICE:g} USD an hour")
    return value


def _flag(cell: object, where: str) -> float:
    value = _number(cell, where)
    if value not in (0.0, 1.0):
        raise FormatError(f"{where}: {_show(cell)}, wanted 0 or 1")
    return value


def _time(cell: object, where: str) -> float:
    text = cell.strip().strip('"') if isinstance(cell, str) else cell
    if isinstance(text, str) and _DATE.fullmatch(text):
        try:
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise FormatError(f"{where}: {_show(cell)}, wanted seconds or a time as 2026-01-31T12:00:00Z") from None
    value = _number(text, where)
    if abs(value) > MAX_SECONDS:
        raise FormatError(f"{where}: {_show(cell)}, wanted seconds, at most {MAX_SECONDS:g}")
    return value


_PARSE: Final = {"time": _time, "price": _price, "available": _flag}


def _check_size(text: str) -> None:
    if len(text) > MAX_BYTES:
        raise FormatError(f"trace: more than {MAX_BYTES >> 20} MiB, wanted at most that", hint="cut it into parts")


def _show(value: object) -> str:
    """What was got, short and printable, for a message."""
    text = str(value)[:40] if isinstance(value, str | int | float | None) else type(value).__name__
    return "".join(c if c.isprintable() else " " for c in text) or "nothing"
