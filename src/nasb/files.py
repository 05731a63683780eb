"""Files: written atomically (whole or not at all, also on a full disk), read with clear errors."""

import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nasb.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; one of a file may hold bytes that cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def destination(path: Path) -> Path:
    """Return the file that is written in the name of `path`: where symbolic links lead.

    Raises:
        UserError: what stands there is no regular file. Renaming a file over a device or a socket would destroy it.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        regular = True
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    if not regular:
        raise UserError(f"{path}: cannot be written: it is not a regular file; give another name")
    return Path(os.path.realpath(path))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and rename it to `path`.

    A symbolic link stays one: the file that it leads to is replaced.

    Raises:
        UserError: it cannot be written (folder missing, no permission, disk full, no regular file); what stood at
            `path` stands still.
    """
    target = destination(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; the former file is untouched") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_safetensors(path: str | Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Read a safetensors file: (tensors, metadata).

    Raises:
        UserError: it is missing, cut short or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        with Path(path).open("rb") as file:
            if file.read(2) in (b"PK", b"\x80\x02"):
                reason = (
                    "it looks like one of torch.save; write a state dict by safetensors.torch.save_file, see "
                    "docs/your-own-network.md"
                )
        raise UserError(f"{path}: is not a whole safetensors file ({reason})") from None


def save_safetensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; tensors that share memory (tied weights) are written each by itself."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()

    def own(tensor: "Tensor") -> "Tensor":
        made = tensor.detach().cpu().contiguous()
        place = made.untyped_storage().data_ptr()
        if place in seen:
            return made.clone()
        seen.add(place)
        return made

    def write(temporary: Path) -> None:
        try:
            save_file({name: own(tensor) for name, tensor in tensors.items()}, temporary, dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error).splitlines()[0]) from error

    write_atomically(path, write)
