"""Run exported models in an inference engine, without the code that built the models.

    model = load_exported("raft-onnx")
    logits = model(images)                  (n, C, H, W), prepared as in training

An engine takes and returns numpy arrays.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metamix.utils.checks import DoesNotFit, check_counts, parse_size
from metamix.utils.system import is_out_of_memory
from metamix.utils.text import plural
from metamix.weights.files import ARTIFACT

from .artifact import Artifact, load_artifact
from .formats import FORMATS, Run


class ExportedModel(nn.Module):
    """An exported model, called like the model that it was made from.

    `run` calls the engine. `reopen` opens the folder again; pickle and copy need it.
    """

    def __init__(self, run: Run, artifact: Artifact, reopen: "Callable[[], ExportedModel] | None" = None):
        super().__init__()
        self.run, self.artifact, self.reopen = run, artifact, reopen
        self.on_cpu = nn.Parameter(torch.empty(0), requires_grad=False)  # callers read the device from a parameter
        self.eval()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy only the path of the folder and open it again, since an engine belongs to its process."""
        return (self.reopen, ()) if self.reopen else super().__reduce_ex__(protocol)

    def forward(self, images: Any) -> Any:
        """Run the model on images (n, C, H, W), a tensor or a numpy array in float32.

        Returns:
            The output, of the same type as `images`; a tuple if the model has several outputs.

        Raises:
            DoesNotFit: the model does not take images of this shape, or the engine fails. It is a ValueError.
        """
        self.check_shape(tuple(images.shape))
        as_tensor = isinstance(images, Tensor)
        array = images.detach().float().cpu().numpy() if as_tensor else np.asarray(images, np.float32)
        try:
            outputs = self.run(np.ascontiguousarray(array))
        except ValueError:
            raise
        except Exception as error:  # each engine has its own error types
            if is_out_of_memory(error):
                raise
            raise DoesNotFit(f"the exported model fails on images of shape {array.shape} ({reason(error)})") from error
        kind = [torch.from_numpy(output) for output in outputs] if as_tensor else outputs
        return kind[0] if len(kind) == 1 else tuple(kind)

    def probe(self) -> Any:
        """Return the output for images of zeros."""
        batch, channels = self.artifact.input_shape[:2]
        size: Any = self.artifact.size or self.artifact.model.img_size
        return self(torch.zeros(batch or 1, channels or 3, *parse_size("img_size", size)))

    def check_classes(self, count: int) -> None:
        """Raise ValueError unless `probe` returns scores of `count` classes, (n, count, ...)."""
        outputs = self.probe()
        shapes = [tuple(output.shape) for output in (outputs if isinstance(outputs, tuple) else [outputs])]
        if len(shapes) != 1 or shapes[0][1:2] != (count,):
            raise ValueError(
                f"{ARTIFACT} has {plural(count, 'class')}, but the graph returns outputs of shape "
                f"{', '.join(map(str, shapes))}: they do not belong together; export the model again"
            )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise DoesNotFit if the model does not take images (n, C, H, W) of this shape."""
        wanted = self.artifact.input_shape
        if len(shape) != len(wanted) or not all(shape) or any(w not in (None, s) for w, s in zip(wanted, shape)):
            names = ("n", "C", "H", "W")
            accepted = ", ".join(name if side is None else str(side) for name, side in zip(names, wanted))
            raise DoesNotFit(
                f"images of shape {shape} are given, but the exported model takes ({accepted}): resize them, or export "
                f"again with --img-size or --dynamic"
            )


def reason(error: Exception) -> str:
    """Return the last line of an engine's message, since OpenVINO's messages begin with names of source files."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def load_exported(folder: str | Path, *, threads: int | None = None, trust: bool = False) -> ExportedModel:
    """Load an exported model.

    Args:
        folder: folder that `metamix export` wrote.
        threads: number of threads; None for all cores. A torch.export model computes with torch's threads: None keeps
            their number, and any other value applies to all of torch in this process.
        trust: load a model that was exported in the format torch; its files can run code.

    Raises:
        FileNotFoundError: the folder holds no exported model.
        ValueError: its files are damaged, they can run code and `trust` is false, or `threads` is less than 1.
        ImportError: the engine is not installed.
    """
    if threads is not None:
        check_counts(1, threads=threads)
    artifact = load_artifact(folder)
    file, format = Path(folder) / artifact.file, FORMATS[artifact.format]
    if format.runs_code and not trust:
        safe = [name for name, other in FORMATS.items() if not other.runs_code]
        raise ValueError(
            f"{file} is not loaded: {format.runs_code}. If you trust its author, give --trust, or in Python "
            f"trust=True. Exports to {' and '.join(safe)} do not need it"
        )
    artifact.check_files(Path(folder))
    try:
        name = format.compiled if format.compiled in artifact.files else format.file
        run = format.open(file.with_name(name), threads, artifact.precision)
    except ImportError:
        raise
    except Exception as error:  # each engine has its own error types
        raise ValueError(f"{file} cannot be loaded ({reason(error)}): copy the folder again or export again") from error
    return ExportedModel(run, artifact, partial(load_exported, Path(folder).absolute(), threads=threads, trust=trust))
