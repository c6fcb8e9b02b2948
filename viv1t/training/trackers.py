"""Where each epoch's numbers go besides `metrics.csv`: TensorBoard where it is installed, Weights & Biases if asked."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from typing import Any, Protocol

from viv1t.errors import ConfigError
from viv1t.families.known import AnyConfig
from viv1t.runs.folder import RunFolder
from viv1t.system.files import advice, write_text

log = logging.getLogger("viv1t.train")

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Takes the rows of `metrics.csv` as they come."""

    def log(self, row: Row) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<run>/tensorboard`. A run that goes on from an earlier epoch takes back what came after it.

    They are a view of `metrics.csv`: where they cannot be written, they end with one line and the run goes on.
    """

    def __init__(self, folder: RunFolder, epoch: int) -> None:
        self._path = folder.path / "tensorboard"
        self._hook = threading.excepthook
        threading.excepthook = self._thread_failed
        self._writer: Any = None
        with warnings.catch_warnings(action="ignore"):  # of its own dependencies
            from torch.utils.tensorboard import SummaryWriter

            with self._going_on():
                self._writer = SummaryWriter(str(self._path), purge_step=epoch + 1)  # type: ignore[no-untyped-call]

    def log(self, row: Row) -> None:
        if self._writer is None:
            return
        with self._going_on():
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with self._going_on():
                self._writer.close()
        threading.excepthook = self._hook

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            writer, self._writer = self._writer, None
            why = f"{error.strerror or error}{advice(error, self._path)}"
            log.warning("%s: cannot be written, and ends here; metrics.csv has every epoch (%s)", self._path, why)
            if writer is not None:
                with suppress(OSError):
                    writer.close()

    def _thread_failed(self, args: threading.ExceptHookArgs) -> None:
        # Its thread's error is raised again where the next number is written.
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            self._hook(args)


class WandB:
    """A run of Weights & Biases; its id is kept in `<run>/wandb_id`, so that the run continues there too.

    Without a network or an account, `WANDB_MODE=offline` keeps everything in the run folder.
    """

    def __init__(self, folder: RunFolder, config: AnyConfig) -> None:
        import wandb

        path = folder.path / "wandb_id"
        known = path.read_text(encoding="utf-8").strip() if path.is_file() else None
        try:
            self._run = wandb.init(
                group=config.train.wandb, name=folder.path.name, id=config.train.wandb_id or known, resume="allow",
                dir=str(folder.path), config=config.to_options(),
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise ConfigError(
                f"--wandb: {str(error).rstrip('.')}; or set WANDB_MODE=offline to keep the numbers in the run folder"
            ) from error
        write_text(path, f"{self._run.id}\n")

    def log(self, row: Row) -> None:
        self._run.log(dict(row), step=row["epoch"])

    def close(self) -> None:
        self._run.finish()


def check_trackers(wandb: str | None) -> None:
    """Raises a ConfigError where a package that was asked for is missing."""
    if wandb is not None and find_spec("wandb") is None:
        raise ConfigError("--wandb needs the package wandb: install it with `pip install 'viv1t[wandb]'`")


@contextmanager
def trackers(config: AnyConfig, folder: RunFolder, epoch: int) -> Iterator[list[Tracker]]:
    """The trackers of a run that has finished `epoch` epochs; closed in the end.

    Raises:
        ConfigError: Weights & Biases cannot be reached.
    """
    with ExitStack() as closing:  # each is closed, whatever happens to another
        chosen: list[Tracker] = []

        def use(tracker: Tracker) -> None:
            closing.callback(tracker.close)
            chosen.append(tracker)

        if find_spec("tensorboard") is not None:
            use(TensorBoard(folder, epoch))
        if config.train.wandb is not None:
            use(WandB(folder, config))
        yield chosen
