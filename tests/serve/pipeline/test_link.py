"""The front door and its parts in one process: order, replay, deadlines, and hosts that meddle."""

from __future__ import annotations

import datetime as dt
import socket
import threading
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import pytest

from strongroom.channel import Channel, Identity, TlsChannel, accept, connect, expect_key
from strongroom.errors import (
    ChannelError,
    IntegrityError,
    ServeError,
    StrongroomError,
    TooLargeError,
    UnansweredError,
)
from strongroom.serve.ending import Ending
from strongroom.serve.pipeline import alive, frames, part
from strongroom.serve.pipeline.link import Link
from strongroom.serve.pipeline.model import PipelineModel
from strongroom.serve.pipeline.tick import Tick
from strongroom.serve.stage import Stage
from tests.serve.pipeline.world import model, pieces, pipeline
from tests.serve.world import ENDLESS, turning

pytest.importorskip("onnxruntime")

X = np.random.default_rng(3).standard_normal((2, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def whole():
    return Stage.load(model(), name="m")


@pytest.fixture(scope="module")
def stages():
    return [part.load(pipeline(), number, each) for number, each in enumerate(pieces().models, 1)]


class Parts:
    """Both parts, each in a thread for each connection; `dial` is what a host would do.

    Attributes:
        said: what links told.
        sockets: the parts' ends, the newest last.
        as_part: which part answers for which.
    """

    def __init__(self, stages, ours=None):
        self.pipeline, self.stages = ours or pipeline(), stages
        self.said: list[str] = []
        self.sockets: dict[int, list[socket.socket]] = {1: [], 2: []}
        self.as_part = {1: 1, 2: 2}
        self.links = [Link(self.pipeline, number, self.dialler(number), tell=self.said.append) for number in (1, 2)]

    def dialler(self, number):
        return lambda: self.dial(number)

    def dial(self, number):
        ours, theirs = socket.socketpair()
        self.sockets[number].append(theirs)
        plays = self.as_part[number]

        def run():
            channel = Channel(theirs, "front door", seconds=30)
            with suppress(StrongroomError):
                part.answer(self.pipeline, plays, self.stages[plays - 1], channel)
            channel.close()

        threading.Thread(target=run, daemon=True).start()
        return Channel(ours, f"part {number}", seconds=30)

    def close(self):
        for link in self.links:
            link.close()


@pytest.fixture
def parts(stages):
    found = Parts(stages)
    yield found
    found.close()


def close_to(got, wanted):
    return np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def only(outputs):
    [value] = outputs.values()
    return value


def test_requests_under_way_together_each_get_their_own_answer(parts, whole):
    served = PipelineModel(parts.pipeline, parts.links)
    inputs = [X + place for place in range(24)]
    answers: list[object] = [None] * len(inputs)

    def ask(place):
        answers[place] = only(served.infer({"x": inputs[place]}))

    asking = [threading.Thread(target=ask, args=(place,)) for place in range(len(inputs))]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert all(close_to(got, only(whole.infer({"x": x}))) for got, x in zip(answers, inputs, strict=True))
    served.check()
    assert served.metadata()["inputs"] == whole.metadata()["inputs"]


def test_what_a_broken_link_had_not_answered_is_sent_again(parts, whole):
    """A part that takes a request and is gone: the next one answers it."""
    healthy, link = parts.stages, parts.links[1]
    assert link.wait()

    class Dies:
        def infer(self, tensors, names, ending=None):
            parts.stages = healthy
            parts.sockets[2][-1].shutdown(socket.SHUT_RDWR)
            raise ServeError("never read")

    parts.stages = [healthy[0], Dies()]
    parts.sockets[2][-1].shutdown(socket.SHUT_RDWR)  # the next connection is to the one that dies
    served = PipelineModel(parts.pipeline, parts.links)
    assert close_to(only(served.infer({"x": X})), only(whole.infer({"x": X})))
    assert link.ended == 2 and "made again" in parts.said[-1]


def test_a_part_that_is_another_gets_no_request(parts):
    parts.as_part[2] = 1
    seen: list[object] = []
    parts.stages = [parts.stages[0], type("Never", (), {"infer": lambda self, *_: seen.append(1)})()]
    link = Link(parts.pipeline, 2, parts.dialler(2), tell=parts.said.append)
    try:
        answer = link.submit(1, [np.zeros((1, 64), np.float32)])
        while not any("another part" in each for each in parts.said):
            assert not answer.done()
    finally:
        link.close()
    assert seen == [] and isinstance(answer.exception(), ServeError)
    with pytest.raises(UnansweredError, match="part 2"):
        PipelineModel(parts.pipeline, [parts.links[0], link]).check()


def test_a_request_fails_at_its_deadline_and_its_answer_is_dropped(stages, whole):
    """Nobody waits for it any more; the one after it is answered."""
    gate = threading.Event()

    class Slow:
        def infer(self, tensors, names, ending=None):
            gate.wait()
            return stages[1].infer(tensors, names)

    parts = Parts([stages[0], Slow()])
    try:
        with pytest.raises(UnansweredError, match=r"part 2 did not answer within the 0\.05 s"):
            PipelineModel(parts.pipeline, parts.links, deadline=0.05).infer({"x": X})
        gate.set()
        served = PipelineModel(parts.pipeline, parts.links)
        next(served._numbers)  # one service has one row of numbers
        assert close_to(only(served.infer({"x": X})), only(whole.infer({"x": X})))
    finally:
        gate.set()
        parts.close()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "missing"),
        ({"x": X, "y": X}, "unknown"),
        ({"x": X.astype(np.float64)}, "datatype"),
        ({"x": X[0]}, "shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_at_the_door(parts, inputs, words):
    with pytest.raises(ServeError, match=words):
        PipelineModel(parts.pipeline, parts.links).infer(inputs)
    with pytest.raises(ServeError, match="unknown"):
        PipelineModel(parts.pipeline, parts.links).infer({"x": X}, ["z"])


def test_what_a_part_refuses_is_told_and_does_not_end_its_link(parts, whole):
    link = parts.links[1]
    with pytest.raises(ServeError):
        link.submit(900, [np.zeros((1, 3), np.float32)]).result()
    served = PipelineModel(parts.pipeline, parts.links)
    assert close_to(only(served.infer({"x": X})), only(whole.infer({"x": X})))
    assert link.ended == 0


def test_a_closed_link_takes_nothing(parts):
    parts.close()
    with pytest.raises(ServeError, match="stopping"):
        parts.links[0].submit(1, [X])


def test_another_model_than_the_measured_one_is_not_loaded():
    with pytest.raises(IntegrityError, match="which was measured"):
        part.load(pipeline(), 1, pieces().models[1])


def test_users_who_ask_together_run_together_and_get_their_own(stages, whole):
    """By a plan for batches of 4: each frame is that of 4 rows."""
    parts = Parts(stages, pipeline(batch=4, delay=10_000_000))
    served = PipelineModel(parts.pipeline, parts.links)
    inputs = [X[:1] * place for place in range(1, 9)]
    answers: list[object] = [None] * len(inputs)

    def ask(place):
        answers[place] = only(served.infer({"x": inputs[place]}))

    asking = [threading.Thread(target=ask, args=(place,)) for place in range(len(inputs))]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert all(close_to(got, only(whole.infer({"x": x}))) for got, x in zip(answers, inputs, strict=True))
    served.close()


class Clock:
    """Time goes on when somebody waits, and by what `works` takes."""

    def __init__(self):
        self.now = 0.0

    def tick(self, microseconds):
        return Tick(microseconds, clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds):
        self.now += seconds


def test_on_a_tick_when_and_how_long_frames_are_tells_nothing_of_an_input(stages):
    """Two inputs, of which one takes a part three times as long to compute: the traffic is the same."""
    ours = pipeline(tick=50_000)

    def traffic(x):
        clock, seen = Clock(), []

        class Works:
            def infer(self, tensors, names, ending=None):
                clock.sleep(0.03 if tensors["x"].any() else 0.01)
                return stages[0].infer(tensors, names)

        class Seen(Channel):
            def queue(self, parts):
                parts = list(parts)
                seen.append((round(clock.now, 6), sum(map(len, parts))))
                super().queue(parts)

        def dial():
            a, b = socket.socketpair()

            def run():
                channel = Seen(b, "front door", seconds=30)
                with closing(channel), suppress(ChannelError):
                    part.answer(ours, 1, Works(), channel, tick=clock.tick(ours.tick))

            threads.append(threading.Thread(target=run))
            threads[-1].start()
            return Seen(a, "part 1", seconds=30)

        threads: list[threading.Thread] = []
        link = Link(ours, 1, dial, tell=print, tick=clock.tick(ours.tick))
        link.submit(1, [x]).result()
        link.submit(2, [x]).result()
        link.close()
        threads[0].join()
        return seen

    slow, fast = traffic(np.ones((1, 64), np.float32)), traffic(np.zeros((1, 64), np.float32))
    assert slow == fast
    assert [when for when, _ in slow] == [0.0, 0.05, 0.1, 0.15, 0.2]


@pytest.mark.parametrize("meddle", ["change", "repeat", "drop"])
def test_a_host_that_meddles_ends_the_link_and_no_answer_is_wrong(stages, whole, meddle):
    """Between the two ends of a real TLS connection; the next connection, left alone, answers."""
    ours = pipeline()
    now = dt.datetime.now(dt.UTC)
    front, back = Identity.fresh("front", now=now), Identity.fresh("part", now=now)
    dials = 0
    said: list[str] = []
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []

    both = threading.Event()

    def dial():
        nonlocal dials
        both.wait()
        dials += 1
        (a, b), (c, d) = socket.socketpair(), socket.socketpair()

        def run():
            with suppress(StrongroomError):
                stream = accept(d, expect=expect_key(front.key.public.fingerprint), identity=back)
                channel = TlsChannel(stream, "front", seconds=30)
                with closing(channel):
                    part.answer(ours, 1, stages[0], channel)

        host = Host(meddle if dials == 1 else "")
        works = [(run, ()), (host.carry, (b, c, True)), (host.carry, (c, b, False))]
        threads.extend(threading.Thread(target=work, args=arguments) for work, arguments in works)
        for thread in threads[-3:]:
            thread.start()
        sockets.extend((a, b, c, d))
        stream = connect(a, expect=expect_key(back.key.public.fingerprint), identity=front)
        return TlsChannel(stream, "part 1", seconds=30)

    link = Link(ours, 1, dial, tell=said.append)
    try:
        inputs = [X, 2 * X]  # that something was dropped shows when more comes
        asked = [link.submit(number, [x]) for number, x in enumerate(inputs)]
        both.set()
        for x, answer in zip(inputs, asked, strict=True):
            got, wanted = answer.result(), stages[0].infer({"x": x})
            assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
        assert dials == 2 and link.ended == 1
    finally:
        link.close()
        for thread in threads:
            thread.join()
        for sock in sockets:
            sock.close()


class Host:
    """Carries TLS records between two sockets, and meddles with the first long one towards the part."""

    def __init__(self, meddle):
        self.meddle = meddle

    def carry(self, source, target, forward):
        buffer = b""
        with suppress(OSError):
            while data := source.recv(1 << 16):
                buffer += data
                while len(buffer) >= 5 and len(buffer) >= (size := 5 + int.from_bytes(buffer[3:5], "big")):
                    record, buffer = buffer[:size], buffer[size:]
                    if forward and record[0] == 23 and size > 3000:
                        record, self.meddle = self.meddled(record), ""
                    target.sendall(record)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def meddled(self, record):
        changed = record[:-1] + bytes([record[-1] ^ 1])
        return {"change": changed, "drop": b"", "repeat": 2 * record}.get(self.meddle, record)


def test_replicas_share_the_requests_and_one_takes_over_what_the_other_had(stages, whole):
    """Two enclaves of a part: the first takes requests and answers none until it is gone."""
    doubled = replace(pipeline(), parts=tuple(replace(each, replicas=2) for each in pipeline().parts))
    taken = threading.Semaphore(0)
    over = threading.Event()
    first = threading.Lock()

    class Stuck:
        def infer(self, tensors, names, ending=None):
            if first.acquire(blocking=False):
                taken.release()
                over.wait()
                raise ServeError("never read")
            return stages[1].infer(tensors, names)

    parts = Parts([stages[0], Stuck()], doubled)
    try:
        assert all(link.wait() for link in parts.links)
        link, rows = parts.links[1], stages[0].infer({"x": X})
        asked = [link.submit(900 + place, [rows[name] for name in link.part.takes]) for place in range(8)]
        assert taken.acquire()
        answered = wait(asked, return_when=FIRST_COMPLETED).done  # by the other one
        assert answered
        for sock in parts.sockets[2][:2]:
            sock.shutdown(socket.SHUT_RDWR)
        wanted = only(whole.infer({"x": X}))
        assert all(close_to(only(answer.result()), wanted) for answer in asked)
    finally:
        over.set()
        parts.close()


def test_a_part_that_says_nothing_is_left(stages, whole, monkeypatch):
    """As an enclave that hangs, or a host that is gone without a word: its standby answers."""
    monkeypatch.setattr(alive, "SILENT_SECONDS", 0.05)
    silent, over = threading.Event(), threading.Event()

    class Hangs:
        def infer(self, tensors, names, ending=None):
            if not silent.is_set():
                silent.set()
                over.wait()
            return stages[1].infer(tensors, names)

    parts = Parts([stages[0], Hangs()])
    try:
        served = PipelineModel(parts.pipeline, parts.links)
        assert close_to(only(served.infer({"x": X})), only(whole.infer({"x": X})))
        assert silent.is_set() and "nothing for 0.05 s" in parts.said[0]
    finally:
        over.set()
        parts.close()


def test_a_part_that_works_for_long_says_so_and_is_asked_once(stages, whole, monkeypatch):
    monkeypatch.setattr(alive, "BEAT_SECONDS", 0.01)
    beats, runs = threading.Semaphore(0), []

    class Slow:
        def infer(self, tensors, names, ending=None):
            runs.append(1)
            beats.acquire()
            beats.acquire()
            return stages[1].infer(tensors, names)

    class Heard(alive.Patience):
        def heard(self):
            super().heard()
            beats.release()

    monkeypatch.setattr("strongroom.serve.pipeline.link.Patience", Heard)
    parts = Parts([stages[0], Slow()])
    try:
        served = PipelineModel(parts.pipeline, parts.links)
        assert close_to(only(served.infer({"x": X})), only(whole.infer({"x": X})))
        assert len(runs) == 1 and parts.links[1].ended == 0
    finally:
        parts.close()


def test_a_part_ends_its_work_once_nobody_waits_for_it(stages, whole, monkeypatch):
    """A request past its deadline: the front door leaves the part, which ends the run and answers others."""
    monkeypatch.setattr(alive, "BEAT_SECONDS", 0.01)
    ended, turns = threading.Event(), Stage.load(turning(), name="turning")

    class Turns:
        def infer(self, tensors, names, ending=None):
            [value] = tensors.values()
            if np.isnan(value).any():
                try:
                    turns.infer({"x": np.zeros(1, np.float32), "turns": np.array(ENDLESS)}, ending=ending)
                finally:
                    ended.set()
            return stages[1].infer(tensors, names)

    parts = Parts([stages[0], Turns()])
    try:
        assert all(link.wait() for link in parts.links)
        with pytest.raises(UnansweredError, match="did not answer"):
            PipelineModel(parts.pipeline, parts.links, deadline=0.3).infer({"x": np.full_like(X, np.nan)})
        assert ended.wait(60)
        served = PipelineModel(parts.pipeline, parts.links)
        next(served._numbers)  # one service has one row of numbers
        assert close_to(only(served.infer({"x": X})), only(whole.infer({"x": X})))
        assert any("nobody waits for" in each for each in parts.said)
    finally:
        parts.close()


def test_a_part_clears_what_it_has_sent(stages):
    """Before it waits for the next request."""
    kept: list[np.ndarray] = []

    class Keeps:
        def infer(self, tensors, names, ending=None):
            results = stages[1].infer(tensors, names)
            kept.extend(results.values())
            return results

    parts = Parts([stages[0], Keeps()])
    try:
        served = PipelineModel(parts.pipeline, parts.links)
        assert only(served.infer({"x": X})).any() and only(served.infer({"x": X})).any()
        assert not kept[0].any()
    finally:
        parts.close()


def test_a_request_whose_client_has_gone_waits_for_no_part(stages):
    gate, gone = threading.Event(), Ending()

    class Waits:
        def infer(self, tensors, names, ending=None):
            gone.end()
            gate.wait()
            return stages[1].infer(tensors, names)

    parts = Parts([stages[0], Waits()])
    try:
        with pytest.raises(UnansweredError, match="nobody waits"):
            PipelineModel(parts.pipeline, parts.links).infer({"x": X}, ending=gone)
    finally:
        gate.set()
        parts.close()


def test_a_request_of_more_rows_than_a_batch_runs_in_several(stages, whole):
    """So that parts need no more memory than the plan says; the last is filled up."""
    rows, inputs = [], np.concatenate([X + place for place in range(9)])

    class Counts:
        def infer(self, tensors, names, ending=None):
            [value] = tensors.values()
            rows.append(len(value))
            return stages[1].infer(tensors, names)

    parts = Parts([stages[0], Counts()], pipeline(batch=4, delay=0))
    served = PipelineModel(parts.pipeline, parts.links)
    try:
        assert close_to(only(served.infer({"x": inputs})), only(whole.infer({"x": inputs})))
        assert rows == 5 * [4]
        assert only(served.infer({"x": inputs[:0]})).shape == only(whole.infer({"x": inputs[:0]})).shape
    finally:
        served.close()
        parts.close()


def test_what_the_enclaves_have_not_the_memory_for_is_refused(parts, whole):
    """By a plan for one row, in enclaves with memory for three times that."""
    served = PipelineModel(replace(parts.pipeline, times=3), parts.links)
    three = np.concatenate([X, X[:1]])
    assert close_to(only(served.infer({"x": three})), only(whole.infer({"x": three})))
    with pytest.raises(TooLargeError, match=r"got \[4, 64\], the plan is for \[1, 64\] .* 3 times that"):
        served.infer({"x": np.concatenate([X, X])})


def test_patience_doubles_until_something_comes():
    ours = alive.Patience()
    before = ours.seconds
    ours.ended()
    ours.ended()
    assert ours.seconds == 4 * before
    ours.heard()
    assert ours.seconds == before


def test_a_request_that_ends_its_part_each_time_fails_and_the_others_do_not(stages, whole):
    """As one for which an enclave has not the memory."""
    runs = []

    class Dies:
        def infer(self, tensors, names, ending=None):
            [value] = tensors.values()
            if np.isnan(value).any():
                runs.append(1)
                parts.sockets[2][-1].shutdown(socket.SHUT_RDWR)
            return stages[1].infer(tensors, names)

    parts = Parts([stages[0], Dies()])
    try:
        served = PipelineModel(parts.pipeline, parts.links)
        with pytest.raises(UnansweredError, match="part 2 ended 3 times while it worked on this request"):
            served.infer({"x": np.full_like(X, np.nan)})
        assert len(runs) == 3
        assert close_to(only(served.infer({"x": X})), only(whole.infer({"x": X})))
    finally:
        parts.close()


def test_what_nobody_waits_for_is_forgotten_while_its_part_is_away():
    """Else a client fills the front door's memory with what it gave up."""

    def dial():
        raise ChannelError("away")

    link = Link(pipeline(), 1, dial, tell=lambda line: None)
    try:
        for number in range(3):
            assert link.submit(number, [X]).cancel()
        assert not link.waiting
    finally:
        link.close()


def test_a_part_without_the_memory_for_a_request_says_so(stages):
    class Full:
        def infer(self, tensors, names, ending=None):
            raise MemoryError

    parts = Parts([Full(), stages[1]])
    try:
        with pytest.raises(ServeError, match="not the memory for this request"):
            PipelineModel(parts.pipeline, parts.links).infer({"x": X})
        assert parts.links[0].ended == 0
    finally:
        parts.close()


@pytest.fixture
def played():
    """A link to part 1, whose other end the test plays; gives the link, that end, and what the link told."""
    ours, theirs = socket.socketpair()
    ends, said = [ours], []

    def dial():
        if not ends:
            raise ChannelError("away")
        return Channel(ends.pop(), "part 1", seconds=30)

    link, channel = Link(pipeline(), 1, dial, tell=said.append), Channel(theirs, "front door", seconds=30)
    hello = {"pipeline": pipeline().digest, "part": 1}
    channel.queue(frames.text_frame(frames.HELLO, 0, hello, link.part.answers))
    yield link, channel, said
    channel.close()
    link.close()


def test_no_more_is_under_way_than_the_window(played):
    link, channel, _ = played
    asked = [link.submit(number, [X]) for number in range(1, 6)]
    for number in range(1, 6):
        frame = frames.receive(channel, link.part.asks)
        assert frame.number == number
        if number >= 2:
            assert not channel.hears(0.05)  # what comes next waits for an answer
            channel.queue(frames.error_frame(number - 1, ServeError("no"), link.part.answers))
            channel.flush()
            assert isinstance(asked[number - 2].exception(), ServeError)


@pytest.mark.parametrize("kind", [frames.TENSORS, frames.ERROR, frames.WORKING])
def test_an_answer_to_what_was_not_asked_ends_the_link(played, kind):
    link, channel, said = played
    link.submit(1, [X])
    assert frames.receive(channel, link.part.asks).number == 1
    channel.queue(frames.text_frame(kind, 7, {}, link.part.answers))
    channel.flush()
    assert channel.hears(30)
    with pytest.raises(ChannelError, match="closed"):
        frames.receive(channel, link.part.asks)
    assert "number 7, which it was not asked" in said[0]


def test_a_part_that_works_on_what_nobody_waits_for_is_left(played):
    """Else one request without an end has it for good."""
    link, channel, said = played
    late, _ = link.submit(1, [X]), link.submit(2, [X])
    assert [frames.receive(channel, link.part.asks).number for _ in range(2)] == [1, 2]
    assert late.cancel()
    channel.queue(frames.text_frame(frames.WORKING, 1, {}, link.part.answers))
    channel.flush()
    with pytest.raises(ChannelError, match="closed"):
        frames.receive(channel, link.part.asks)
    while not link.waiting:
        assert not link.closed
    assert "nobody waits for" in said[0]
    assert [(job.number, job.tries) for job in link.waiting] == [(2, 0)]  # it had not begun
