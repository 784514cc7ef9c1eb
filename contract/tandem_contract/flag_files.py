"""Files that flags name, and what is wrong with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tandem_contract.flags import FlagError, option_name


@contextlib.contextmanager
def flag_file(field_name: str, path: str, *, wants: str) -> Iterator[None]:
    """Around reading the file: whatever makes it unusable becomes a `FlagError` of one line, `wants` its remedy."""
    try:
        yield
    except FlagError:
        raise
    except (OSError, ValueError) as error:
        raise FlagError(f"{option_name(field_name)} {path}: {_reason(error)}; {wants}") from error


def _reason(error: OSError | ValueError) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such file"
        case IsADirectoryError():
            return "it is a folder"
        case UnicodeDecodeError():
            return "it is not UTF-8 text"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)
