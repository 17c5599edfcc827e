"""Where else the numbers of a run may go: TensorBoard, Weights & Biases."""

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqxformer.training.callbacks import Callback, Record

if TYPE_CHECKING:
    from eqxformer.training.trainer import Trainer


class TensorBoard(Callback):
    """Writes every number for TensorBoard; needs the extra `tensorboard`.

    Arguments:
        directory: where its event files go; `tensorboard --logdir DIRECTORY` shows them.

    Where training goes on from a checkpoint, what was shown behind it is taken back.

    Example:
        >>> import eqxformer as ef
        >>> callbacks = [ef.TensorBoard("run/tensorboard")]  # for a `Trainer`
        >>> callbacks[0].everywhere
        False
    """

    everywhere = False

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ValueError(
                "TensorBoard needs the extra: pip install 'eqxformer[tensorboard]'."
            ) from None
        self._open = lambda **options: SummaryWriter(str(directory), **options)

    def started(self, trainer: "Trainer") -> None:
        more = {"purge_step": trainer.step + 1} if trainer.step else {}
        self._writer = self._open(**more)

    def recorded(self, record: Record) -> None:
        for name, value in record.values.items():
            self._writer.add_scalar(name, value, record.step)

    def closed(self) -> None:
        self._writer.close()


class WeightsAndBiases(Callback):
    """Sends every number to Weights & Biases; needs the extra `wandb`, and its login.

    Arguments:
        project: of Weights & Biases.
        name: of the run; one is made up if None.
        config: what the run is, as plain values.
        directory: where its own files go.

    Where training goes on from a checkpoint, so does the run there.

    Example:
        >>> import eqxformer as ef
        >>> callbacks = [ef.WeightsAndBiases("eqxformer", name="first")]  # doctest: +SKIP
    """

    everywhere = False

    def __init__(
        self,
        project: str,
        *,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        directory: Path | None = None,
    ) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                "Weights & Biases needs the extra: pip install 'eqxformer[wandb]'."
            ) from None
        self._wandb: Any = wandb
        self._about = {"project": project, "name": name, "config": config, "dir": directory}
        self._id = secrets.token_hex(4)

    def started(self, trainer: "Trainer") -> None:
        self._run = self._wandb.init(**self._about, id=self._id, resume="allow")
        # Its own counter takes no step twice, and a validation comes behind the step's own numbers.
        self._run.define_metric("*", step_metric="step")

    def recorded(self, record: Record) -> None:
        self._run.log({**record.values, "step": record.step, "tokens": record.tokens})

    def closed(self) -> None:
        self._run.finish()

    def memory(self) -> dict[str, Any]:
        return {"id": self._id}

    def recall(self, memory: dict[str, Any]) -> None:
        self._id = memory.get("id", self._id)
