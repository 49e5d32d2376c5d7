"""Files of data sets on the hub, fetched once into its cache, which also serves them offline."""

import re
from pathlib import Path

_URL = re.compile(r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


def hub_file(url: str) -> Path | None:
    """The file of a URL `hf://datasets/OWNER/NAME@REVISION/FILE` in the hub's cache; None for any other URL.

    Raises:
        ValueError: it is neither in the cache nor to be had.
    """
    found = _URL.fullmatch(url)
    if found is None:
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from tasks.store.keys import hub_errors

    try:
        path = hf_hub_download(
            found["repository"], found["file"], repo_type="dataset", revision=found["revision"], etag_timeout=10
        )
    except LocalEntryNotFoundError as error:
        raise ValueError(
            "the hub cannot be reached, and its cache does not have the file; "
            "give a copy of the data set in task.folder, or network access"
        ) from error
    except EntryNotFoundError as error:
        raise ValueError("the data set has no such file at this revision") from error
    except hub_errors() as error:
        raise ValueError(f"the hub does not give it ({type(error).__name__})") from error
    return Path(path)
