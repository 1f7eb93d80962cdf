"""What the registry offers: for predict and demo."""

from __future__ import annotations

from lineup.errors import UserError
from lineup.tracking.location import shown_uri
from lineup.tracking.store import client_for_user


def only_registered_name(how_to_name: str) -> str:
    """Return the name of the store's only registered model; UserError where there are others."""
    names = [model.name for model in client_for_user().search_registered_models()]
    if len(names) != 1:
        found = ", ".join(names) or "none"
        where = f"registered in {shown_uri()}: {found}"
        raise UserError(f"name the model: {how_to_name} ({where})")
    return names[0]


def registered_architectures(name: str) -> dict[str, str]:
    """Return the URI of each architecture's newest version, by architecture; UserError if none."""
    client = client_for_user()
    found = client.search_registered_models(f"name = '{name}'")
    uris = {}
    for alias in sorted(found[0].aliases) if found else []:
        version = client.get_model_version_by_alias(name, alias)
        if version.tags.get("architecture") == alias:  # others are the gate's, or a person's own
            uris[alias] = f"models:/{name}@{alias}"
    if not uris:
        where = f"{shown_uri()} holds no architecture of '{name}'"
        raise UserError(f"{where}; run: dvc repro, or make sync after dvc pull")
    return uris
