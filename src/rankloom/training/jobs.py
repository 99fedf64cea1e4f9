"""Several runs at once: worker processes with one thread each.

Where a second thread does not halve the time of a run, two runs at once take less time in all.
Workers are started by spawning, so a script that asks for more than one of them must guard its own
start with `if __name__ == "__main__":`.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from rankloom.runs.record import StoredRun
from rankloom.training.course import Progress
from rankloom.training.recipes import AnyRecipe, run_recipe
from rankloom.training.run_folders import EVALUATED


@dataclass(frozen=True)
class Job:
    """One run to be trained."""

    number: int
    """What the caller knows it by."""
    recipe: AnyRecipe
    """The recipe."""
    out: Path
    """Folder that run folders go into."""
    resume: bool = True
    """Go on from a checkpoint."""
    splits: tuple[str, ...] = EVALUATED
    """Splits to evaluate."""


Outcome = StoredRun | ValueError
"""The finished run, or why it could not be finished."""


def run_jobs(
    jobs: Iterable[Job],
    workers: int,
    *,
    done: Callable[[Job, Outcome], None],
    progress: Callable[[Job, Progress], None] | None = None,
) -> None:
    """Train every job.

    Args:
        jobs: what to train; the next one is taken only when a worker is free for it.
        workers: runs at once. One trains in this process with the threads that torch has here;
            more train in processes of their own, with one thread each.
        done: called with each job's outcome, in the order in which they end. What it raises ends
            everything.
        progress: called now and then during each run.

    Raises:
        ValueError: `workers` is below 1.
        OSError: a file could not be read or written, or a worker process died.
    """
    if workers < 1:
        raise ValueError(f"jobs must be at least 1; got {workers}")
    if workers == 1:
        for job in jobs:
            done(job, _outcome(job, progress))
    else:
        _run_parallel(iter(jobs), workers, done, progress)


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    job: Job


def _run_parallel(
    jobs: Iterator[Job],
    workers: int,
    done: Callable[[Job, Outcome], None],
    progress: Callable[[Job, Progress], None] | None,
) -> None:
    crew: list[_Worker] = []
    try:
        while len(crew) < workers and (job := next(jobs, None)) is not None:
            crew.append(_start(job))
        busy = {worker.connection: worker for worker in crew}
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                message = _receive(worker)
                if isinstance(message, Progress):
                    if progress is not None:
                        progress(worker.job, message)
                    continue
                if isinstance(message, OSError):
                    raise message
                done(worker.job, message)
                following = next(jobs, None)
                if following is None:
                    del busy[connection]
                else:
                    worker.job = following
                    connection.send(following)
    finally:
        # Idle workers end here too. Those under way lose nothing but what their last checkpoint
        # does not hold.
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.process.join()
            worker.process.close()
            worker.connection.close()


def _start(job: Job) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    # A worker starts, and stays, with Ctrl-C blocked: a terminal sends it to the workers as well,
    # and it is the parent that ends them. The tracker of multiprocessing, started with the first
    # process, would unblock it, so it comes before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()  # so that the end of the worker is the end of the pipe
    worker = _Worker(process, ours, job)
    ours.send(job)
    return worker


def _receive(worker: _Worker) -> Progress | Outcome | OSError:
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        raise ChildProcessError(
            f"the worker process that trained {worker.job.recipe.name} seed "
            f"{worker.job.recipe.seed} ended with status {worker.process.exitcode}: a crash shows "
            "its traceback above, status -9 usually means too little memory (use fewer jobs), and "
            'a script needs `if __name__ == "__main__":` around its start'
        ) from None


def _work(connection: Connection) -> None:
    """Train what comes through the pipe until its other end is gone."""
    torch.set_num_threads(1)
    try:
        while True:
            job = connection.recv()
            message: Outcome | OSError
            try:
                message = _outcome(job, lambda _, state: connection.send(state))
            except OSError as error:
                message = error
            connection.send(message)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _outcome(job: Job, progress: Callable[[Job, Progress], None] | None) -> Outcome:
    try:
        run = run_recipe(
            job.recipe,
            out=job.out,
            resume=job.resume,
            splits=job.splits,
            progress=None if progress is None else lambda state: progress(job, state),
        )
    except ValueError as error:
        return ValueError(str(error))  # of no subclass, some of which cannot be sent
    return StoredRun(run.folder, run.record)
