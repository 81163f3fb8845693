"""Summaries: TensorBoard's events and metrics.jsonl, written by a separate thread."""

import errno
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cifar_jax.errors import reason
from cifar_jax.workdir import records

_BUCKETS = 50
MAX_BYTES = 1 << 28  # of images and histograms that wait for the disk; more are left out
MAX_WAITING = 100_000  # summaries; of more, scalars are left out, too
RETRY_SECONDS = 30.0  # after a failure, before the disk is tried again
CLOSE_SECONDS = 60.0  # for what waits at the end; a disk that hangs must not keep a run for ever
_counter = iter(range(sys.maxsize))  # several writers of one process
_importing = threading.Lock()


class _Job(NamedTuple):
    write: Callable[[], object]
    size: int  # bytes that it keeps in memory


class Writer:
    """Queues summaries without waiting for the disk, and writes them in their order.

    They are on disk after `close`, if the disk takes them in time. A disk that is full
    or a folder that is gone costs summaries and one line of warning, never the run; writing is
    tried again with the next summary. A disk that is too slow costs images and histograms, and
    scalars only when very many wait. Of several processes the first one writes; the others' are
    dropped.
    """

    def __init__(self, workdir: Path, kind: str, resumed_at: int | None = None):
        """`kind` names the records and the folder of events: "train", "eval", …

        With `resumed_at`, what an earlier process wrote for that step and later ones is removed.
        """
        self._workdir, self._kind, self._resumed_at = workdir, kind, resumed_at
        self.writes = jax.process_index() == 0
        self._events: Any = None
        self._said: set[str] = set()  # which warnings
        self._retry_at = 0.0
        self._bug: Exception | None = None
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock, self._bytes = threading.Lock(), 0  # of what is in the queue
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        if resumed_at is not None:
            self._put(self._begin)

    # -- what can be written; all return at once --

    def scalars(
        self, step: int, values: Mapping[str, float], facts: Mapping[str, str | int] | None = None
    ) -> None:
        """To TensorBoard and, as one record, to metrics.jsonl.

        With `facts`, which say what was measured and go into the record alone, the record replaces
        one of the same kind, step and facts. An older one that says nothing of a fact is the same.
        """
        now = time.time()

        def write():
            from tensorboardX import summary

            record = {"kind": self._kind, "step": step, "time": now, **(facts or {}), **values}
            if facts is not None:
                records.drop(self._path, lambda other: _is_same(record, other, facts))
            records.append(self._path, record)
            for name, value in values.items():
                if math.isfinite(value):  # else tensorboardX warns, of each one
                    self._event(step, summary.scalar(self._tag(name), value), now)

        if self._queue.qsize() < MAX_WAITING:
            self._put(write)
        else:
            self._say_once("Summaries come faster than they can be written: scalars are left out.")

    def _tag(self, name: str) -> str:
        """TensorBoard's tag of a scalar: an evaluation's accuracy keeps the tutorial's."""
        evaluated = self._kind != "train" and name.startswith("accuracy")
        return name.replace("accuracy", "precision_at_1") if evaluated else name

    def histogram(self, step: int, name: str, values: Any) -> None:
        """Of any array. NaN and infinity are left out, and their number is written as a scalar."""

        def write():
            from tensorboardX import summary

            flat = np.asarray(values, np.float32).ravel()
            finite = np.isfinite(flat)
            if not finite.all():
                lost = float(flat.size - finite.sum())
                self._event(step, summary.scalar(f"not_finite/{name}", lost))
                flat = flat[finite]
            if flat.size:
                self._event(step, summary.histogram_raw(name, **histogram(flat)))

        self._put_if_room(write, getattr(values, "nbytes", 0))

    def image(
        self, step: int, name: str, draw: Callable[[], np.ndarray], size: int = 1 << 20
    ) -> None:
        """`draw`, which gives a uint8 [H, W, 3], is called by the thread as well; it keeps about
        `size` bytes in memory."""

        def write():
            from tensorboardX import summary

            self._event(step, summary.image(name, draw(), dataformats="HWC"))

        self._put_if_room(write, size)

    def text(self, name: str, markdown: str) -> None:
        def write():
            from tensorboardX import summary

            self._event(0, summary.text(name, _utf8(markdown)))

        self._put(write)

    def hparams(self, config: Mapping[str, Any], metrics: Sequence[tuple[str, str]]) -> None:
        """TensorBoard's table of runs: the fields of a config, beside the newest value of each of
        `metrics`, as (kind, name of a scalar)."""

        def write():
            from tensorboardX import summary
            from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

            simple = {
                name: value if isinstance(value, bool | int | float) else _utf8(str(value))
                for name, value in config.items()
            }
            experiment, start, _ = summary.hparams(simple, {name: 0.0 for _, name in metrics})
            plugin = experiment.value[0].metadata.plugin_data
            content = HParamsPluginData.FromString(plugin.content)
            for info, (kind, _) in zip(content.experiment.metric_infos, metrics, strict=True):
                info.name.group = kind  # the folder of its events
            plugin.content = content.SerializeToString()
            events = _events_writer(self._workdir / "tensorboard")
            for part in (experiment, start):
                events.write_event(_event(0, part))
            events.close()

        self._put(write)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Returns once all is written, or gives up after `seconds`. Raises what was not the disk's
        fault."""
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._say_once(f"The last summaries were not written within {seconds:g} s.")
        if self._bug:
            raise self._bug

    def _put_if_room(self, write: Callable[[], object], size: int) -> None:
        # One alone may be larger.
        if self._queue.qsize() >= MAX_WAITING or (self._bytes and self._bytes + size > MAX_BYTES):
            self._say_once(
                "Summaries come faster than they can be written: images and histograms are "
                "thinned out."
            )
        else:
            self._put(write, size)

    def _put(self, write: Callable[[], object], size: int = 0) -> None:
        with self._lock:
            self._bytes += size
        self._queue.put(_Job(write, size))

    def _say_once(self, text: str, key: str = "") -> None:
        """`key` identifies the warning, where its text differs from time to time."""
        if self.writes and (key or text) not in self._said:
            self._said.add(key or text)
            print(text, file=sys.stderr, flush=True)

    # -- the thread --

    @property
    def _path(self) -> Path:
        return self._workdir / records.FILE

    def _work(self) -> None:
        self._guarded(_import_tensorboard)
        while (job := self._queue.get()) is not None:
            self._guarded(job.write)
            with self._lock:
                self._bytes -= job.size
            del job  # and its arrays, while there is nothing else to do
            if self._queue.empty():
                self._guarded(self._flush)
        self._guarded(self._close)

    def _guarded(self, write: Callable[[], object]) -> None:
        if not self.writes or time.monotonic() < self._retry_at:
            return
        try:
            write()
        except OSError as error:
            self._events = None  # what is half written there would hide what follows
            self._retry_at = time.monotonic() + RETRY_SECONDS
            what = "Training" if self._kind == "train" else "Evaluation"
            self._say_once(
                f"Summaries cannot be written to {self._workdir}: {reason(error)}. "
                f"{what} goes on without.",
                key="disk",
            )
        except Exception as error:
            self._bug = error

    def _begin(self) -> None:
        step = self._resumed_at or 0
        records.drop(self._path, lambda r: r["kind"] in (self._kind, "start") and r["step"] >= step)
        if self._kind == "train":
            records.append(self._path, {"kind": "start", "step": step, "time": time.time()})

    def _event(self, step: int, content: Any, now: float | None = None) -> None:
        if self._events is None:
            self._events = _events_writer(self._workdir / "tensorboard" / self._kind)
            if self._resumed_at is not None:  # TensorBoard forgets what it had read from there on
                self._events.write_event(_restart(self._resumed_at))
                self._resumed_at = None
        self._events.write_event(_event(step, content, now))

    def _flush(self) -> None:
        if self._events is None:
            return
        self._events.flush()
        if not Path(self._events._file_name).exists():  # Linux writes on to a file that was deleted
            raise FileNotFoundError(errno.ENOENT, "its folder of events is gone")

    def _close(self) -> None:
        if self._events is not None:
            self._events.close()


def _is_same(
    record: Mapping[str, Any], other: records.Record, facts: Mapping[str, str | int]
) -> bool:
    names = ("kind", "step", *facts)
    return all(other.get(name, record[name]) == record[name] for name in names)


def _utf8(text: str) -> str:
    """Text that protocol buffers accept; a path or a class name may hold any bytes."""
    return text.encode(errors="backslashreplace").decode()


def _import_tensorboard() -> None:
    """Imports tensorboardX without PyTorch, which it takes along where that is installed: for two
    seconds and 200 MB, and for the sake of PyTorch's own tensors and graphs."""
    with _importing:
        hide = "torch" not in sys.modules
        if hide:
            sys.modules["torch"] = None  # type: ignore[assignment]  # to import it fails
        try:
            import tensorboardX  # noqa: F401
        finally:
            if hide:
                del sys.modules["torch"]


def _events_writer(folder: Path) -> Any:
    from tensorboardX.event_file_writer import EventsWriter

    folder.mkdir(parents=True, exist_ok=True)
    return EventsWriter(str(folder / "events"), f".{os.getpid()}.{next(_counter)}")


def _event(step: int, content: Any, now: float | None = None) -> Any:
    from tensorboardX.proto.event_pb2 import Event

    return Event(step=step, summary=content, wall_time=now or time.time())


def _restart(step: int) -> Any:
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    log = SessionLog(status=SessionLog.START)
    return Event(step=step, session_log=log, wall_time=time.time())


def histogram(values: np.ndarray) -> dict[str, Any]:
    """Buckets of equal width over finite float32, as TensorBoard's protocol names them."""
    counts, edges = np.histogram(values, _BUCKETS)
    return {
        "min": values.min(),
        "max": values.max(),
        "num": values.size,
        "sum": values.sum(dtype=np.float64),
        "sum_squares": np.square(values).sum(dtype=np.float64),
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": counts.tolist(),
    }


class Average:
    """The tutorial's moving average of a scalar: decay 0.9, corrected for its initial value of 0,
    as tf.train.ExponentialMovingAverage does for a tensor.
    """

    def __init__(self, decay: float = 0.9):
        self._decay, self._sum, self._weight = decay, 0.0, 0.0

    def next(self, value: float) -> float:
        """What `update` would give."""
        decay = self._decay
        return (decay * self._sum + (1 - decay) * value) / (decay * self._weight + 1 - decay)

    def update(self, value: float) -> float:
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)
        return self._sum / self._weight

    def restart(self, average: float) -> None:
        """Continues as after very many values of `average`."""
        self._sum, self._weight = average, 1.0
