"""The checkpoints of several networks that train together: a `Saver` for each."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cifar_jax.errors import Diverged
from cifar_jax.loop.saver import AfterCheckpoint, Saver
from cifar_jax.steps import TrainState
from cifar_jax.steps.members import member, stack
from cifar_jax.workdir import checkpoint


class Savers:
    """Does for a stacked state what a `Saver` does for one network. A network that diverges is
    given up; the others go on."""

    out_of_patience, to_compare = "", False  # neither is for several networks

    def __init__(
        self,
        savers: Sequence[Saver],
        folder: Path,
        after_checkpoint: AfterCheckpoint | None,
        begin: Callable[[], None],
    ):
        """`folder` holds the members' workdirs; `begin` is called once the first step is done."""
        self._savers, self.folder, self._begin = savers, folder, begin
        self._after_checkpoint = after_checkpoint
        self.lost = [bool(checkpoint.status(saver.folder).diverged) for saver in savers]
        self.newest: int | None = None

    @property
    def living(self) -> list[int]:
        return [number for number, lost in enumerate(self.lost) if not lost]

    @property
    def _first(self) -> Saver:
        return self._savers[self.living[0]]

    def restore(
        self, states: Sequence[TrainState], from_step: int | None = None, restart: bool = False
    ) -> TrainState:
        """The stacked state that all go on from: that of the newest checkpoint which every living
        one has, as a kill may have come between two of them."""
        if restart or from_step is not None:
            self.lost = [False] * len(self._savers)
        newest = {k: checkpoint.newest(self._savers[k].folder, print) for k in self.living}
        known = [-1 if step is None else step for step in newest.values()]
        common = from_step if from_step is not None else min(known, default=-1)
        restart = restart or common < 0
        found = list(states)
        for k in self.living:
            step = None if restart or newest[k] == common and from_step is None else common
            again = restart and newest[k] is not None
            found[k] = self._savers[k].restore(states[k], step, again)
        if not restart:
            self.newest = common
        at = found[self.living[0]].step
        return stack([state.replace(step=at) for state in found])

    def begin(self) -> None:
        self._begin()
        for k in self.living:
            self._savers[k].begin()

    def due(self, step: int) -> bool:
        return self._savers[0].due(step)

    def next_due(self, step: int) -> float:
        return self._savers[0].next_due(step)

    def overdue(self) -> int:
        return self._first.overdue()

    def save(self, step: int, state: TrainState, healthy: Sequence[bool]) -> float | None:
        for k in self.living:
            try:
                self._savers[k].save(step, member(state, k), healthy[k])
            except Diverged as error:
                self.lose(k, error)
        self.newest = step
        return self.tell()

    def tell(self) -> float | None:
        if self._after_checkpoint is None or self.newest is None:
            return None
        self.wait()
        return self._after_checkpoint(self.newest)

    def lose(self, number: int, error: Diverged) -> None:
        """Marks a member as diverged. Raises Diverged where none is left."""
        print(f"Network {number} goes on no more: {error}", flush=True)
        self.lost[number] = True
        self._savers[number].give_up(error)
        if not self.living:
            raise Diverged(f"All {len(self.lost)} networks have diverged. The last one: {error}")

    def give_up(self, error: Diverged) -> None:
        """Nothing: each member was marked when it was lost."""

    def finish(self, step: int) -> None:
        for k in self.living:
            self._savers[k].finish(step)

    def wait(self) -> None:
        for saver in self._savers:
            saver.wait()

    def close(self) -> None:
        for saver in self._savers:
            saver.close()
