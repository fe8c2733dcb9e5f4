"""The catalogue: all records, looked up by id, and the questions that are asked of it.

Loaded whole, at most once a process for the built-in tables; 1,314 rows are too few for a database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from ..errors import ConfigError, nearest
from .clean import CleanFor, clean_for
from .graph import Edges, Relative, edges, kinds, relatives
from .records import Dataset, MedMnistSet, MsdTask, Overlap


class Catalog:
    """Typed rows of all datasets and their relations.

    Attributes:
        datasets: every dataset, built-in ones in the order of the table, then the user's own.
        msd: the ten tasks of the Medical Segmentation Decathlon by dataset id (`msd-task03-liver`).
        medmnist: the eighteen sets of MedMNIST by dataset id (`pathmnist`).
        overlaps: the recorded relations.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        overlaps: Sequence[Overlap] = (),
        msd: Sequence[MsdTask] = (),
        medmnist: Sequence[MedMnistSet] = (),
    ) -> None:
        self.datasets: tuple[Dataset, ...] = tuple(datasets)
        self.overlaps: tuple[Overlap, ...] = tuple(overlaps)
        self.msd: Mapping[str, MsdTask] = {task.dataset: task for task in msd}
        self.medmnist: Mapping[str, MedMnistSet] = {item.id: item for item in medmnist}
        self._by_id = {dataset.id: dataset for dataset in self.datasets}

    def __getitem__(self, identifier: str) -> Dataset:
        """The dataset of that id.

        Raises:
            ConfigError: unknown; names the near ids.
        """
        found = self._by_id.get(identifier) or self._by_id.get(identifier.lower().replace("_", "-"))
        if found is None:
            near = nearest(identifier.lower(), set(self._by_id))
            raise ConfigError(f"{identifier}: no such dataset in the catalogue{near}")
        return found

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._by_id

    def __iter__(self) -> Iterator[Dataset]:
        return iter(self.datasets)

    def __len__(self) -> int:
        return len(self.datasets)

    @cached_property
    def _edges(self) -> Edges:
        return edges(self.overlaps)

    def related(self, identifier: str) -> list[Relative]:
        """Every dataset that shares or may share cases with this one, with the path and its basis.

        Raises:
            ConfigError: unknown id.
        """
        start = self[identifier]
        own = kinds(start.modalities)

        def apart(other: str) -> bool:
            if own is None or other not in self._by_id:
                return False
            theirs = kinds(self._by_id[other].modalities)
            return theirs is not None and own.isdisjoint(theirs)

        return relatives(start.id, self._edges, apart)

    def clean_for(self, task: str) -> CleanFor:
        """Every dataset that may be pretrained on without touching `task`, and what cannot be known of it.

        Args:
            task: a dataset id, or a task record (configs/tasks), which stands for its `related` ids.

        Raises:
            ConfigError: neither; names the near ids.
        """
        return clean_for(self, task)
