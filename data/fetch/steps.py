"""How to get a dataset that cannot be fetched by a program alone: the page, and the host's own way, exactly.

The commands are those of the hosts' own tools, filled in from the address; where an address says nothing, the
page is all there is. What was downloaded then goes through the same checks and unpacking, with --from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from ..catalog import Dataset
from ..catalog.vocabulary import Access

Step = Callable[[re.Match[str], str], list[str]]

_ACCOUNTS: dict[Access, str] = {
    Access.REGISTRATION: "make a free account there, and accept the terms",
    Access.CHALLENGE: "make an account there and join the challenge",
    Access.APPLICATION: "apply there and wait for approval; sign what is asked",
}


def steps(dataset: Dataset, folder: str) -> list[str]:
    """What to do by hand, in order; the last step gives the files back to medloom.

    Args:
        folder: where the user's datasets lie.
    """
    if dataset.access is Access.GONE:
        return [f"it was withdrawn; ask its authors: {dataset.homepage or dataset.paper or 'no page known'}"]
    found: list[str] = []
    page = dataset.homepage or next(iter(dataset.download), "")
    if page:
        found.append(f"open {page}")
    if others := [url for url in dataset.download if url != page]:
        found.append(f"its files, by the catalogue: {' '.join(others)}")
    if dataset.access in _ACCOUNTS:
        found.append(_ACCOUNTS[dataset.access])
    place = f"{folder}/downloads/{dataset.id}"
    ways = [way for url in dataset.download if (way := _way(url, place))]
    found += ways[0] if ways else [f"download its files to {place}"]
    found.append(f"medloom data fetch {dataset.id} --from {place} --to {folder}")
    return found


def _way(url: str, place: str) -> list[str]:
    """The host's own way to the files behind this address; empty where there is none."""
    for pattern, way in _WAYS:
        if match := re.search(pattern, url):
            return way(match, place)
    return []


def _idc(match: re.Match[str], place: str) -> list[str]:
    collection = parse_qs(urlsplit(match.string).query)["collection_id"][0]
    return ["pip install idc-index", f"idc download {collection} --download-dir {place}"]


def _kaggle(kind: str) -> Step:
    def way(match: re.Match[str], place: str) -> list[str]:
        name = f"-d {match[1]}" if kind == "datasets" else f"-c {match[1]}"
        return [
            "pip install kaggle, and put your API token where it says (kaggle.com, Settings, API)",
            f"kaggle {kind} download {name} -p {place}",
        ]

    return way


def _hugging_face(match: re.Match[str], place: str) -> list[str]:
    return [
        "pip install huggingface_hub; where the page asks for it: hf auth login",
        f"hf download {match[1]} --repo-type dataset --local-dir {place}",
    ]


def _synapse(match: re.Match[str], place: str) -> list[str]:
    return [
        "pip install synapseclient, and put your access token into ~/.synapseConfig",
        f"synapse get -r {match[1]} --downloadLocation {place}",
    ]


def _zenodo(match: re.Match[str], place: str) -> list[str]:
    return ["pip install zenodo-get", f"zenodo_get {match[1]} -o {place}"]


def _osf(match: re.Match[str], place: str) -> list[str]:
    return ["pip install osfclient", f"osf -p {match[1]} clone {place}"]


def _github(match: re.Match[str], place: str) -> list[str]:
    return [
        f"git clone https://github.com/{match[1]} {place}",
        "read its README: some repositories hold a script or a link instead of the images",
    ]


def _drive(match: re.Match[str], place: str) -> list[str]:
    folder = " --folder" if "/folders/" in match.string else ""
    return ["pip install gdown", f"gdown{folder} {match[1]} -O {place}/"]


_WAYS: tuple[tuple[str, Step], ...] = (
    (r"imaging\.datacommons\.cancer\.gov/.*collection_id=", _idc),
    (r"kaggle\.com/datasets/([\w.-]+/[\w.-]+)", _kaggle("datasets")),
    (r"kaggle\.com/(?:competitions|c)/([\w-]+)", _kaggle("competitions")),
    (r"huggingface\.co/datasets/([\w.-]+/[\w.-]+)", _hugging_face),
    (r"synapse\.org/.*?(syn\d+)", _synapse),
    (r"zenodo\.org/records?/(\d+)", _zenodo),
    (r"osf\.io/(\w+)", _osf),
    (r"github\.com/([\w.-]+/[\w.-]+?)(?:[/?#]|$)", _github),
    (r"drive\.google\.com/(?:drive/folders|file/d)/([\w-]+)", _drive),
)
