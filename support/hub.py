"""Files of a model on the Hugging Face hub, downloaded to the hub's own cache. Knows no model."""

import os
from collections.abc import Sequence
from pathlib import Path

from support.errors import UserError


def hub_file(repo: str, wanted: Sequence[str], unknown: str) -> Path:
    """Path of the first of the wanted files that the model has. A model in the cache needs no network.

    Raises UserError: the words `unknown` if there is no such model, or that it has none of the files.
    """
    import huggingface_hub

    try:
        for file in wanted:
            cached = huggingface_hub.try_to_load_from_cache(repo, file)
            if isinstance(cached, str):
                return Path(cached)
        # without a network this fails at once; a download would retry for a minute
        info = huggingface_hub.HfApi().model_info(repo, timeout=10)
        published = {file.rfilename for file in info.siblings or []}
        for file in wanted:
            if file in published:
                return Path(huggingface_hub.hf_hub_download(repo, file))
    except Exception as error:  # no such model, no network, a proxy's answer, a full disk
        raise UserError(f"{unknown} ({type(error).__name__})") from None
    raise UserError(f"{repo!r}: the model has no {' or '.join(wanted)}")


def hub_folder(name_or_path: str, endings: Sequence[str]) -> Path:
    """The folder itself, or a hub model's files with these endings, as they are on the hub now.

    Without a network they come from the cache. Raises UserError if there is no such folder and no such model.
    """
    if os.path.lexists(name_or_path):  # the reader says what is wrong if it is no model
        return Path(name_or_path)
    import huggingface_hub

    patterns = [f"*.{ending}" for ending in endings]
    try:
        return Path(huggingface_hub.snapshot_download(name_or_path, allow_patterns=patterns))
    except Exception as error:  # as above
        unknown = f"{name_or_path!r}: not a folder, and not a model on the Hugging Face hub or in its cache"
        raise UserError(f"{unknown} ({type(error).__name__})") from None
