"""What push and pull share: the client, one commit for one repository, and errors of the Hub in one line."""

import json
import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of whichever HTTP library the client uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lpg_hf._files import system_message


# A broken connection raises HTTPError of the HTTP library, which is not an OSError; a failed upload is a RuntimeError
# with its cause; a proxy's answer that is not JSON is a ValueError.
HTTP_ERROR = HTTPError
HUB_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)
# Files of these kinds decide what a loader reads. The commit that replaces those of an earlier push also deletes them.
OWNED = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "*.py", "data/*.parquet")
MAX_ATTEMPTS = 5


def signed_in(api: HfApi | None) -> HfApi:
    """A client that may write.

    Raises:
        ValueError: there is no token.
    """
    api = api or HfApi()
    if not (get_token() if api.token is None else api.token):
        raise ValueError(
            "There is no token for the Hub. Run `hf auth login`, or set HF_TOKEN to a token that may write."
        )
    return api


def commit_files(
    api: HfApi, repo_id: str, repo_type: str, files: dict[str, Path], revision: str | None, message: str
) -> tuple[str, bool]:
    """Bring the repository to these files with one commit, or with none if it holds them already.

    The commit names its parent, so it never lands on content that this function has not seen. If another push was
    faster, it starts again from that push's commit.

    Args:
        files: path in the repository -> local file.
        revision: a branch, made if it does not exist; None: main.

    Returns:
        The commit that holds the files, and whether it is new.
    """
    branch = revision or "main"
    if branch != "main":
        api.create_branch(repo_id, branch=branch, repo_type=repo_type, exist_ok=True)
    attempts = MAX_ATTEMPTS
    while True:
        head = repo_info(api, repo_id, repo_type, branch)
        names = [sibling.rfilename for sibling in head.siblings or []]
        stale = [name for name in names if name not in files and any(Path(name).match(kind) for kind in OWNED)]
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        try:
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message=message,
                repo_type=repo_type,
                revision=branch,
                parent_commit=head.sha,
            )
        except HfHubHTTPError as error:
            attempts -= 1
            if error.response.status_code != 412 or attempts == 0:
                raise
        else:
            return commit.oid, commit.oid != head.sha


def repo_info(api: HfApi, repo_id: str, repo_type: str, revision: str | None = None) -> ModelInfo | DatasetInfo:
    """What the Hub knows about a repository of type "model" or "dataset"."""
    read = api.dataset_info if repo_type == "dataset" else api.model_info
    return read(repo_id, revision=revision)


# What to do, by the status that the server answered; others are of the server's side.
_REMEDIES = {
    400: "update the package huggingface_hub, or look at the repository's page",
    401: "the token is wrong or has expired: run `hf auth login` again",
    402: "the server asks for payment: look at the account's page",
    403: "the token may not write there",
    404: "check the name, and the address in HF_ENDPOINT",
    409: "somebody else changes it: try again",
    412: "somebody else pushes to it: try again",
    413: "a file is too large for this server",
    429: "wait some minutes, then try again",
    507: "the server has no space left",
}


def reason(error: Exception, what: str, revision: str | None = None) -> str:
    """Why the Hub refused `what` (a repository id), and what to do, in one line."""
    response = getattr(error, "response", None)
    if isinstance(error, GatedRepoError):
        return f"access to {what} is restricted; ask for access on its page, then run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{what} has no such revision{'' if revision is None else f' {revision!r}'}; see its branches and tags"
    if isinstance(error, RepositoryNotFoundError):
        return f"{what} does not exist, or is private and your token may not see it; check name and `hf auth whoami`"
    if isinstance(error, LocalEntryNotFoundError | RuntimeError) and isinstance(error.__cause__, HTTPError):
        return reason(error.__cause__, what, revision)
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is switched off (HF_HUB_OFFLINE is set); unset it"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{what} is not in the cache, and the Hub is switched off (HF_HUB_OFFLINE) or cannot be reached; connect "
            "once to load it"
        )
    if response is not None:
        said = getattr(error, "server_message", None) or response.reason_phrase
        remedy = _REMEDIES.get(response.status_code, "the server has a problem: try again later")
        return f"the server answered {response.status_code} ({' '.join(said.split())}); {remedy}"
    if isinstance(error, HTTPError):
        text = re.sub(r"\[Errno -?\d+\] ", "", str(error))
        return f"the connection failed ({type(error).__name__}: {text}); check the network and HF_ENDPOINT"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return system_message(error)
    if isinstance(error, json.JSONDecodeError):
        return f"what answered is not the Hub, maybe a proxy ({error}); check the network and HF_ENDPOINT"
    text = " ".join(str(error).split())
    if isinstance(error, OSError | RuntimeError):  # of the client of large files, Xet
        return f"{text or type(error).__name__}; try again, or without Xet (HF_HUB_DISABLE_XET=1)"
    return text
