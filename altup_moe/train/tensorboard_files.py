"""TensorBoard's event files, written by a `KeptFile`: a full disk neither stops a run nor leaves a record cut short.

TensorBoard's own writer opens and closes the file for every event in a thread. After one error the thread is gone, the
record is left in part, and every later call raises the error again.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from altup_moe.config import RunConfig
from altup_moe.config.run_directory import tensorboard_dir
from altup_moe.train.generation import GeneratedText
from altup_moe.train.kept_file import KeptFile
from altup_moe.train.metrics import StepMetrics
from altup_moe.train.tracker_pages import load_picture, tensorboard_pages, tracked

_number = count()


class _Records:
    """What tensorboard's `RecordWriter` writes to: one call of `write` is one whole record."""

    def __init__(self, file: KeptFile) -> None:
        self.write = file.put


class _EventWriter:
    """In place of tensorboard's EventFileWriter: records wait for `flush`, which is called once a step."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{next(_number)}"
        path = directory / name
        self._file = KeptFile(path, lambda: directory.mkdir(parents=True, exist_ok=True), "record")
        self._records = RecordWriter(_Records(self._file))
        source = SourceMetadata(writer="altup_moe.train.tensorboard_files")
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source))

    def get_logdir(self) -> str:
        return str(self._directory)

    def add_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _FileWriter(FileWriter):
    def __init__(self, directory: Path) -> None:
        self.event_writer: Any = _EventWriter(directory)


class _SummaryWriter(SummaryWriter):
    """torch's writer of summaries, whose file is ours."""

    def _get_file_writer(self) -> FileWriter:
        writer: Any = self  # torch declares what it keeps here as None
        if writer.all_writers is None or writer.file_writer is None:
            writer.file_writer = _FileWriter(Path(writer.log_dir))
            writer.all_writers = {writer.file_writer.get_logdir(): writer.file_writer}
            if writer.purge_step is not None:
                # Readers drop events of this step and later ones that files before this one have.
                step, writer.purge_step = writer.purge_step, None
                writer.file_writer.add_event(Event(file_version="brain.Event:2"), step)
                writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)
        return writer.file_writer


class TensorBoard:
    """Event files in RUN/tensorboard: a scalar a number, pages of them (custom scalars), pictures of the routing."""

    def __init__(self, config: RunConfig, first_step: int) -> None:
        self._writer = _SummaryWriter(str(tensorboard_dir(config.log.run_dir)), purge_step=first_step)
        self._writer.add_custom_scalars(tensorboard_pages(config))
        self._writer.flush()

    def log(self, metrics: StepMetrics) -> None:
        for name, value in tracked(metrics).items():
            self._writer.add_scalar(name, value, metrics.step)
        if metrics.routing is not None:
            self._writer.add_image("routing/load", load_picture(metrics.routing), metrics.step, dataformats="HWC")
        self._writer.flush()

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        for number, one in enumerate(texts):
            # Indented by four, it is shown as it is.
            shown = f"{one.prompt}\n---\n{one.text}".replace("\n", "\n    ")
            self._writer.add_text(f"samples/{number}", f"    {shown}", step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
