"""What becomes of a finished model besides its folder: its card, and its place on the Hub."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator

from ..card import write_card
from ..hub import push
from ..places import CARD, HUB_ID, is_here
from ..schema import Strict
from ..sharing import check_owner, make_repository


class HubOptions(Strict):
    """Where a recipe's model is uploaded when it is finished.

    Args:
        repo_id: "owner/name"; made before the training begins, if it is missing.
        private: of a new repository; None: as the owner's settings say.
        revision: the branch, made if it is missing; None: "main".
        message: of the commit; None: "Upload model".
        base: of a model around a frozen body in a folder of this machine (layers of PEFT over it, say): the id on the
            Hub of the same body. None: where the model says.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    message: str | None = None
    base: str | None = None

    @field_validator("repo_id", "base")
    @classmethod
    def _is_id(cls, name: str | None) -> str | None:
        if name is not None and not HUB_ID.fullmatch(name):
            raise ValueError("it must be an id on the Hub, 'owner/name'")
        return name


def check_hub(options: HubOptions, body: str | None) -> None:
    """Makes the repository, so that what the Hub refuses is known before a training begins, not after it.

    Args:
        body: where the frozen body is that the model will refer to; None: it has none elsewhere.

    Raises:
        ValueError: the Hub refuses, or nobody else would find the body.
    """
    if body is not None and is_here(body) and options.base is None:
        raise ValueError(
            f"hub.base is missing, and the frozen body is in {body!r}, a folder of this machine; push that model first "
            "and name its id on the Hub"
        )
    check_owner(options.repo_id)
    make_repository(options.repo_id, options.private)


def finish(output: Path, options: HubOptions | None) -> str | None:
    """Writes the card of the model in `output` if it has none, and uploads the model if there is a place for it; what
    is there already is not uploaded again.

    Returns:
        The commit's address; None: it was not uploaded.

    Raises:
        ValueError: the upload failed; the model is whole in `output`, and the message says how to upload it.
    """
    if not (output / CARD).is_file():  # or it may say more by now
        write_card(output, str(output))
    if options is None:
        return None
    where = {"private": options.private, "revision": options.revision, "commit_message": options.message}
    try:
        return push(output, options.repo_id, base=options.base, **where)  # type: ignore[arg-type]
    except ValueError as error:
        more = f" --revision {options.revision}" if options.revision else ""
        more += f" --base {options.base}" if options.base else ""
        raise ValueError(
            f"the model is in {str(output)!r} and was not uploaded, for {error}; "
            f"`unimodal-ar push {output} {options.repo_id}{more}` tries again"
        ) from error
