"""Messages between the processes of one run, and the news of an error in any of them."""

import atexit
import json
import os
import pickle
import sys
import traceback
import uuid
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vitprobe.errors import VitprobeError

PATIENCE = timedelta(days=1)
"""How long a process waits for another that is alive: shares need not take the same time."""
FAREWELL = timedelta(seconds=5)
"""How long a process that is about to end waits for the others to take what it has sent."""


class StoppedError(VitprobeError):
    """Another process has failed; the main one says why."""


class Link:
    """Pass values between the main process, of rank 0, and the others, over gloo.

    A message is a pair of a kind and a value. The others send ``value``, or, having failed, ``stopped``; the main
    process sends ``value``, or, having failed and being about to end, ``end``. The first error of all stands in the
    launcher's store, where each can look for it at any time. So no process waits for one that will not come.
    """

    def __init__(self, rank: int, world: int, *, on_gpu: bool) -> None:
        """Join the others; where someone has done so before, as `Accelerator` does, beside what was set up."""
        from accelerate import PartialState

        if not dist.is_initialized():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the number of threads that it sets
                PartialState(cpu=not on_gpu, backend="gloo")
        self.rank, self.world = rank, world
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._sent: list[tuple[dist.Work, torch.Tensor]] = []
        """Messages that may be on their way."""
        self._has_failed = self._is_free = False
        self._store: dist.Store | None = None
        if rank == 0:
            self.send(name := uuid.uuid4().hex)
        else:
            name = self.receive(0)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.PrefixStore(name, dist.TCPStore(address, port, is_master=False, wait_for_workers=False))
        atexit.register(self._leave)

    def send(self, value: Any) -> None:
        """Send a value to the main process, or from it to all others; waits only for what was sent before."""
        self.settle()
        self._post("value", value)

    def receive(self, rank: int) -> Any:
        """Wait for the value that a process sends. Raises where it, or another, has failed."""
        kind, value = self._take(rank)
        if kind == "value":
            return value
        if self.rank == 0:
            raise self._failure()
        self._is_free = True
        raise StoppedError("the main process has failed")

    def any(self, flag: bool) -> bool:
        """Tell every process whether any raised a flag."""
        raised = torch.tensor([int(flag)])
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.group)
        return bool(raised)

    def heed(self) -> None:
        """Raise where another process has failed."""
        if self._anyone_failed():
            raise self._failure() if self.rank == 0 else StoppedError("another process has failed")

    def fail(self, error: BaseException) -> None:
        """Tell the others of an error here; a process that is not the main one waits until that has had its say."""
        if self._has_failed or self._is_free:
            return
        self._has_failed = True
        try:
            if not isinstance(error, StoppedError) and self._store is not None:
                self._store.compare_set("failed", "", json.dumps(_described(error, self.rank)))
            if self.rank != 0:
                self._post("stopped", None)
                while self._take(0)[0] != "end":  # values that it sent before it knew
                    pass
        except (RuntimeError, VitprobeError):  # the launcher, or the main process, is gone
            return

    def abandon(self, error: BaseException) -> None:
        """Tell of an error and end this process at once, where the others wait in a collective of another library.

        They wait for this one's part; that it is gone is what frees them. The main process does nothing here.
        """
        if self.rank == 0:
            return
        try:
            if not isinstance(error, StoppedError) and self._store is not None:
                self._store.compare_set("failed", "", json.dumps(_described(error, self.rank)))
        except RuntimeError:  # the launcher is gone
            pass
        os._exit(1)

    def settle(self, patience: timedelta = PATIENCE) -> None:
        """Wait until what was sent has been taken."""
        sent, self._sent = self._sent, []
        for work, _ in sent:
            try:
                work.wait(patience)
            except RuntimeError as error:
                raise self._lost("one") from error

    def _leave(self) -> None:
        """Let the others go, as the last thing that a process does."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        try:
            if self._has_failed and self.rank == 0:
                self._post("end", None)
            self.settle(FAREWELL)
        except VitprobeError:  # one is gone, or too busy to hear: the launcher ends it
            return

    def _post(self, kind: str, value: Any) -> None:
        data = bytearray(pickle.dumps((kind, value), protocol=5))
        message = torch.frombuffer(data, dtype=torch.uint8)
        for rank in range(1, self.world) if self.rank == 0 else (0,):
            for part in (torch.tensor([len(data)]), message):
                try:
                    self._sent.append((dist.isend(part, rank, group=self.group), part))
                except RuntimeError as error:
                    raise self._lost(f"process {rank}") from error

    def _take(self, rank: int) -> tuple[str, Any]:
        length = torch.zeros(1, dtype=torch.int64)
        try:
            dist.recv(length, rank, group=self.group)
            data = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(data, rank, group=self.group)
        except RuntimeError as error:
            raise self._lost(f"process {rank}") from error
        return pickle.loads(data.numpy().data)  # from a process of this very run

    def _anyone_failed(self) -> bool:
        try:
            return self._store is not None and self._store.check(["failed"])
        except RuntimeError:
            raise VitprobeError("the launcher has ended; nothing was written") from None

    def _failure(self) -> BaseException:
        """Return the first error of any process, for the main one to raise."""
        if not self._anyone_failed():
            return VitprobeError("another process was stopped; nothing was written")
        found = json.loads(self._store.get("failed"))
        if found["kind"] == "interrupt":
            return KeyboardInterrupt()
        if found["kind"] == "user":
            return VitprobeError(found["text"])
        return RuntimeError(f"process {found['rank']} of {self.world} has failed:\n{found['text']}")

    def _lost(self, which: str) -> BaseException:
        """Say that a process has ended without a word."""
        if self.rank != 0:
            self._is_free = True
            return StoppedError("the main process has gone")
        if self._anyone_failed():
            return self._failure()
        return VitprobeError(
            f"{which} of the {self.world} processes has ended without a word, perhaps for want of memory; "
            "try a smaller --batch-size, or fewer processes; nothing was written"
        )


def _described(error: BaseException, rank: int) -> dict[str, Any]:
    if isinstance(error, VitprobeError):
        return {"rank": rank, "kind": "user", "text": str(error)}
    if isinstance(error, KeyboardInterrupt):
        return {"rank": rank, "kind": "interrupt", "text": ""}
    memory = "out of memory\n" if isinstance(error, MemoryError) else ""
    return {"rank": rank, "kind": "machine", "text": memory + "".join(traceback.format_exception(error))}
