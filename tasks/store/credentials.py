"""Credentials of a remote store from a Prefect block, as an alternative to environment variables."""

from typing import cast

import fsspec

from tasks.store.store import StoreError


def use_block(name: str) -> None:
    """Apply the settings of a block (keys, endpoint) to every file system of its protocol in this process.

    Raises:
        StoreError: the block does not exist.
    """
    from prefect.filesystems import RemoteFileSystem

    try:
        block = cast(RemoteFileSystem, RemoteFileSystem.load(name))
    except ValueError as error:
        raise StoreError(
            f"execution.storage_block: there is no block remote-file-system/{name}; create it in Prefect's UI"
        ) from error
    protocol = block.basepath.partition("://")[0]
    fsspec.config.conf[protocol] = {**fsspec.config.conf.get(protocol, {}), **block.settings}
