"""One file from the network to disk, whole or not at all.

torch.hub does the work: a bar, a temporary file, a hash while it reads. This adds a check of the
length, because a connection that is cut ends a read without an error. It also adds one clear line
for each way to fail.

Left out on purpose: going on with half a file. Knows no other file.
"""
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

import torch


class Unreached(ValueError):
    """What was wanted lies on the network, and does not come."""


def download(url: str, path: Path, sha256: str | None = None) -> Path:
    """Returns path, which is the whole file; one that is already there is taken as it is.

    Raises ValueError, one line, on no network, 404, a cut connection, a wrong hash. Then nothing
    is left at path.
    """
    path = Path(path)
    if path.exists():  # only a whole file was ever renamed to this name
        return path
    part = path.with_name(path.name + ".part")
    by_hand = f"or put the file at {path} by hand"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(head, timeout=30) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
        torch.hub.download_url_to_file(url, str(part), hash_prefix=sha256)
        if length and part.stat().st_size != length:
            raise ValueError(f"the connection was cut: {part.stat().st_size:,} of {length:,} bytes "
                             f"of {url} came; try again, {by_hand}")
        with open(part, "r+b") as f:
            os.fsync(f.fileno())  # on the disk before the name points at it
        part.rename(path)
    except urllib.error.HTTPError as e:
        raise Unreached(f"{url} answered {e.code} {e.reason}; check the address, {by_hand}") from e
    except (urllib.error.URLError, TimeoutError, ConnectionError,
            http.client.HTTPException) as e:
        why = str(getattr(e, "reason", e)).strip()
        raise Unreached(f"no connection to {url} ({why}); try again with a network, "
                        f"{by_hand}") from e
    except OSError as e:
        raise ValueError(f"{path} can't be written ({e.strerror or e})") from e
    except RuntimeError as e:  # torch.hub's word for a hash that differs
        raise ValueError(f"{url} is not the file that was expected (its sha256 differs); try "
                         f"again, {by_hand}") from e
    finally:
        if part.exists():
            part.unlink()
    return path
