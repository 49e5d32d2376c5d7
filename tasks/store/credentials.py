"""Credentials of a remote store from a block of Prefect's, for those who do not keep them in the environment."""

from typing import cast

import fsspec

from tasks.store.store import StoreError


def use_block(name: str) -> None:
    """Let every file system of the block's protocol use its settings (keys, endpoint), in this process.

    Raises:
        StoreError: there is no such block.
    """
    from prefect.filesystems import RemoteFileSystem

    try:
        block = cast(RemoteFileSystem, RemoteFileSystem.load(name))
    except ValueError as error:
        raise StoreError(
            f"execution.storage_block: there is no block remote-file-system/{name}; make it in Prefect's UI"
        ) from error
    protocol = block.basepath.partition("://")[0]
    fsspec.config.conf[protocol] = {**fsspec.config.conf.get(protocol, {}), **block.settings}
