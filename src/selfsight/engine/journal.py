"""What a run writes down: metrics.csv, timings.csv, alarms.csv, skipped.csv, and other loggers by flag."""

import csv
import importlib
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selfsight.engine.checkpoint import write_atomically
from selfsight.errors import UserError

METRICS = (
    "step epoch loss lr weight_decay grad_norm feature_std effective_rank projection_rank alignment uniformity "
    "teacher_entropy dead_prototypes knn"
).split()
TIMINGS = "step seconds images_per_second data_share render_share step_share".split()
ALARMS = "step name value cause advice".split()
SKIPPED = "position where reason".split()


class Table:
    """A CSV that grows by rows, and by columns where a new name turns up. Flushed at each row."""

    def __init__(self, path: Path, columns: Sequence[str], keep_below: int | None = None) -> None:
        self.path, self.columns = path, list(columns)
        rows: list[dict[str, str]] = []
        if path.exists() and keep_below is not None:
            reader = csv.DictReader(_whole_rows(path))
            self.columns += [name for name in reader.fieldnames or () if name not in self.columns]
            rows = [row for row in reader if "step" not in row or _before(row["step"], keep_below)]
        self.kept = rows
        self._write_all(rows)

    def _write_all(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue().encode())

    def add(self, row: Mapping[str, Any]) -> None:
        new = [name for name in row if name not in self.columns]
        if new:
            with open(self.path, newline="", encoding="utf-8") as lines:
                rows = list(csv.DictReader(lines))
            self.columns += new
            self._write_all(rows)
        with open(self.path, "a", newline="", encoding="utf-8", errors="backslashreplace") as out:
            writer = csv.DictWriter(out, self.columns, restval="", lineterminator="\n")
            writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()})


def _whole_rows(path: Path) -> io.StringIO:
    """The rows that were written to their end: a full disk or a dying machine leaves a part of the last one.

    A row ends with a line outside quotes: names of files may hold any end of a line.
    """
    text = path.read_bytes().decode("utf-8", errors="replace")
    place = end = quotes = 0
    for line in text.split("\n")[:-1]:
        place += len(line) + 1
        quotes += line.count('"')
        end = end if quotes % 2 else place
    return io.StringIO(text[:end], newline="")


def _before(step: str | None, limit: int) -> bool:
    """Whether a row is of an update before ``limit``."""
    return bool(step) and step.isdecimal() and int(step) < limit


class Journal:
    """The tables of one run, and the loggers that get the same numbers."""

    def __init__(self, folder: Path, *, step: int, settings: Mapping[str, Any], loggers: Sequence[str] = ()) -> None:
        keep = step if step else None
        self.metrics = Table(folder / "metrics.csv", METRICS, keep)
        self.timings = Table(folder / "timings.csv", TIMINGS, keep)
        self.alarms = Table(folder / "alarms.csv", ALARMS, keep)
        self.skipped = Table(folder / "skipped.csv", SKIPPED, keep)
        self._skipped = {row["position"] for row in self.skipped.kept}
        self._loggers = [_open_logger(name, folder, step, settings) for name in loggers]

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        self.metrics.add(row)
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        for logger in self._loggers:
            logger.log(numbers, row["step"])

    def close(self) -> None:
        """Ends what the loggers opened; the tables need no end."""
        for logger in self._loggers:
            logger.close()
        self._loggers = []

    def skip(self, position: int, where: str, reason: str) -> None:
        """Once for each image, over all parts of a run."""
        if str(position) not in self._skipped:
            self._skipped.add(str(position))
            self.skipped.add({"position": position, "where": where, "reason": reason})


def pick_loggers(asked: Sequence[str] | None) -> tuple[str, ...]:
    """What was asked for, else TensorBoard where it is installed; refuses a logger that is not."""
    if asked is None:
        return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    names = tuple(name for name in asked if name != "none")
    for name in names:
        try:
            importlib.import_module(_MODULES[name])
        except ImportError:
            raise UserError(f"--logger {name} needs it installed: pip install 'selfsight[{name}]'") from None
    return names


_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class _Logger(NamedTuple):
    log: Callable[[Mapping[str, float], int], Any]
    close: Callable[[], Any]


def _open_logger(name: str, folder: Path, step: int, settings: Mapping[str, Any]) -> _Logger:
    pick_loggers([name])
    module = importlib.import_module(_MODULES[name])
    if name == "tensorboard":
        writer = module.SummaryWriter(str(folder), purge_step=step or None)

        def to_tensorboard(numbers: Mapping[str, float], step: int) -> None:
            for key, value in numbers.items():
                writer.add_scalar(key, value, step)
            writer.flush()

        return _Logger(to_tensorboard, writer.close)
    if name == "wandb":
        run = module.init(project="selfsight", name=folder.name, dir=str(folder), config=dict(settings))
        return _Logger(lambda numbers, step: run.log(dict(numbers), step=step), run.finish)
    module.set_experiment("selfsight")
    module.start_run(run_name=folder.name)
    return _Logger(lambda numbers, step: module.log_metrics(dict(numbers), step=step), module.end_run)
