"""What a run writes down: TensorBoard's events and metrics.jsonl, from a thread of its own."""

import errno
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cifar_jax import records

_BUCKETS = 50
RETRY_SECONDS = 30.0  # after a failure, before the disk is tried again
_counter = iter(range(sys.maxsize))  # several writers of one process


class Writer:
    """Takes summaries without waiting for the disk, and writes them in their order.

    What was taken is on disk after `close`, whatever ends the run in between. A disk that is full
    or a folder that is gone costs summaries and one line of warning, never the run; writing is
    tried again with the next summary. Of several processes the first one writes; the others' are
    dropped.
    """

    def __init__(self, workdir: Path, kind: str, resumed_at: int | None = None):
        """`kind` names the records and the folder of events: "train", "eval", …

        With `resumed_at`, what an earlier process wrote of that step and later ones is taken back.
        """
        self._workdir, self._kind, self._resumed_at = workdir, kind, resumed_at
        self.writes = jax.process_index() == 0
        self._events: Any = None
        self._warned, self._retry_at = False, 0.0
        self._bug: Exception | None = None
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        if resumed_at is not None:
            self._queue.put(self._begin)

    # -- what can be written; all return at once --

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """To TensorBoard and, as one record, to metrics.jsonl."""
        now = time.time()

        def write():
            from tensorboardX import summary

            record = {"kind": self._kind, "step": step, "time": now, **values}
            records.append(self._path, record)
            for name, value in values.items():
                self._event(step, summary.scalar(name, value), now)

        self._queue.put(write)

    def histogram(self, step: int, name: str, values: Any) -> None:
        """Of any array. NaN and infinity are left out, and their number is told as a scalar."""

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

        self._queue.put(write)

    def image(self, step: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        """`draw`, which gives a uint8 [H, W, 3], is called by the thread as well."""

        def write():
            from tensorboardX import summary

            self._event(step, summary.image(name, draw(), dataformats="HWC"))

        self._queue.put(write)

    def text(self, name: str, markdown: str) -> None:
        def write():
            from tensorboardX import summary

            self._event(0, summary.text(name, markdown))

        self._queue.put(write)

    def hparams(self, config: Mapping[str, Any], metrics: Sequence[tuple[str, str]]) -> None:
        """TensorBoard's table of runs: the fields of a config, beside the newest value of each of
        `metrics`, as (kind, name of a scalar)."""

        def write():
            from tensorboardX import summary
            from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

            simple = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
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

        self._queue.put(write)

    def close(self) -> None:
        """Returns once all is written. Raises what was not the disk's fault."""
        self._queue.put(None)
        self._thread.join()
        if self._bug:
            raise self._bug

    # -- the thread --

    @property
    def _path(self) -> Path:
        return self._workdir / records.FILE

    def _work(self) -> None:
        while (write := self._queue.get()) is not None:
            self._guarded(write)
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
            if not self._warned:
                print(
                    f"Summaries cannot be written to {self._workdir}: {error.strerror}. "
                    "Training goes on without.",
                    file=sys.stderr,
                    flush=True,
                )
            self._warned = True
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
    """The tutorial's moving average of a scalar: decay 0.9, and as if it had begun long ago.

    (tf.train.ExponentialMovingAverage of a tensor, which makes up for its first value of 0.)
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
        """As after very many values of `average`."""
        self._sum, self._weight = average, 1.0
