"""Several pods of one job that write at the same time: one of them is frozen before any request to the storage, and the
others go on."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.checkpoints.folder import Unusable, read_folder
from finetune_trainer.checkpoints.store import BestWeights, CheckpointStore, Found
from finetune_trainer.pod.failure import Superseded
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from finetune_trainer.storage.stores import Stores
from tests.unit.finetune_trainer.storage.test_job_storage import bundle

STEPS_OF_A_POD = 3


class Killed(Exception):  # noqa: N818 - not an error
    """The node of a pod is gone."""


class Watched(JobStorage):
    """Calls `before` before each request that changes or lists something."""

    def __init__(self, folder: str, before: Callable[[], object]) -> None:
        made = bundle(folder)
        super().__init__(made, Stores(made, Path("none"), Path("none"), Path("none")))
        self.before = before

    def send(self, open: Callable[[], BinaryIO], uri: str, advance: Callable[[int], None] = lambda size: None) -> None:
        self.before()
        super().send(open, uri, advance)

    def write_bytes(self, uri: str, data: bytes, if_absent: bool = False) -> bool:
        self.before()
        return super().write_bytes(uri, data, if_absent)

    def list_folder(self, uri: str, levels: int | None = None) -> dict[str, int]:
        self.before()
        return super().list_folder(uri, levels)

    def delete_prefix(self, uri: str) -> None:
        self.before()
        super().delete_prefix(uri)


class Job:
    """A job whose pods run as `data` says."""

    def __init__(self, folder: Path, data: st.DataObject, attempts: list[int]) -> None:
        self.folder, self.data, self.waiting = folder, data, list(enumerate(attempts))
        self.root, self.storage = str(folder / "checkpoints"), open_storage(bundle(str(folder)))
        self.complete: dict[int, int] = {}
        """The newest complete step of each pod, by its number."""

    def chance(self) -> bool:
        return self.data.draw(st.sampled_from([False] * 4 + [True]))

    def run(self) -> None:
        """Lets the next pod live. While it is frozen, later pods live."""
        number, attempt = self.waiting.pop(0)

        def before() -> None:
            self.check()
            if self.waiting and self.chance():
                self.run()
            if self.chance() and self.chance():
                raise Killed

        keep = self.data.draw(st.integers(1, 2))
        storage = Watched(str(self.folder), before)
        store = CheckpointStore(storage, self.root, f"pod{number}", {}, keep, attempt)
        scratch = self.folder / f"scratch{number}"
        try:
            self.live(store, number, scratch)
        except (Killed, Superseded):
            pass
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def live(self, store: CheckpointStore, number: int, scratch: Path) -> None:
        store.begin()
        found, _ = newest(store, scratch)
        step, best = (int(found.name.split("-")[1]), found.best) if found else (0, None)
        for _ in range(STEPS_OF_A_POD):
            step += 1
            if best is None or self.data.draw(st.booleans()):
                scratch.mkdir(exist_ok=True)
                (scratch / f"best{step}").write_bytes(b"best of %d" % step)
                best = BestWeights(step, scratch / f"best{step}")
            words = (store.best_name(best) or "").encode()
            try:
                store.write(step, lambda state=b"state of %d" % step: io.BytesIO(state), words, best, lambda size: None)
            except Superseded:
                self.complete[number] = step
                raise
            self.complete[number] = step

    def check(self) -> None:
        """A pod that starts now finds the newest checkpoint that can be read, and never less than the last of the
        writers has."""
        with TemporaryDirectory() as scratch:
            found, _ = newest(CheckpointStore(self.storage, self.root, "reader", {}), Path(scratch))
            step = int(found.name.split("-")[1]) if found else 0
            assert step == max(self.usable(Path(scratch)), default=0)
        if self.complete:
            assert step >= self.complete[max(self.complete)]

    def usable(self, scratch: Path) -> list[int]:
        """Returns the steps of all checkpoints that can be read, looked at one by one."""
        steps = []
        for name in {path.partition("/")[0] for path in self.storage.list_folder(self.root)}:
            into = scratch / "all" / name
            if name.startswith("step-") and self.is_whole(name, into):
                best = (into / "state.json").read_text()
                steps += [int(name.split("-")[1])] if self.is_whole(best, scratch / "all" / best) else []
        return steps

    def is_whole(self, name: str, into: Path) -> bool:
        return not isinstance(read_folder(self.storage, f"{self.root}/{name}", into, {}), Unusable)


def newest(store: CheckpointStore, into: Path) -> tuple[Found | None, list[str]]:
    return store.newest(into / "checkpoints", lambda words: words.decode() or None, lambda path, words: None)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), attempts=st.lists(st.integers(1, 3), min_size=2, max_size=3).map(sorted))
def test_the_newest_whole_checkpoint_is_found_whatever_several_pods_do(data: Any, attempts: list[int]) -> None:
    with TemporaryDirectory() as folder:
        job = Job(Path(folder), data, attempts)
        while job.waiting:
            job.run()
            job.check()
