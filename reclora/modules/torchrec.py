"""This file is deltas on the tables of TorchRec's collections.

The tables of an EmbeddingBagCollection are EmbeddingBags that it calls one by one, with a bag a
sample: `reclora.modules.bags` does for them. Those of an EmbeddingCollection see rows alone, and
whose sample a row is for stands in the collection's input. So it is with the bags of a sharded
EmbeddingBagCollection: this rank has its samples' ids, and their pooled rows, but not the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from reclora.configs import AdapterError
from reclora.modules.bags import BagSite
from reclora.modules.embeddings import TableDeltas, adapted_rows
from reclora.modules.mixed import Tiles
from reclora.modules.sites import Change, Current, hook_inputs, hook_outputs


class CollectionSite:
    """A table of an EmbeddingCollection: every feature that reads it gets its rows adapted."""

    def __init__(self, path: str, collection: Any, table: nn.Embedding, deltas: TableDeltas):
        self.path, self.owner, self.table = path, table, deltas
        self.collection = collection
        self.deltas, self.touched = deltas.deltas, deltas.touched
        tables = [*collection.embeddings.values()]
        place = next(number for number, other in enumerate(tables) if other is table)
        config = collection.embedding_configs()[place]
        self.features = [
            *zip(config.feature_names, collection.embedding_names_by_table()[place], strict=True)
        ]

    def attach(self, current: Current) -> Callable[[], None]:
        return hook_outputs(self.collection, current, self._adapted)

    def _adapted(self, tiles: Tiles, args: tuple[Any, ...], output: dict[str, Any]) -> Any:
        from torchrec.sparse.jagged_tensor import JaggedTensor

        ids = _by_feature(self.path, args[0], tiles)
        changed = dict(output)
        for feature, name in self.features:
            lengths = ids[feature].lengths()
            rows = Tiles(tiles.segments_B.repeat_interleave(lengths))
            values = adapted_rows(
                self.table, rows, ids[feature].values().long(), output[name].values()
            )
            changed[name] = JaggedTensor(
                values=values, lengths=lengths, weights=output[name].weights_or_none()
            )
        return changed

    def merged(self, code: int) -> Iterator[Change]:
        return self.table.merged(code)


class ShardedBagSite:
    """A table of a sharded EmbeddingBagCollection: what TorchRec pooled, wherever its rows lie, is
    changed as a bag's of one process is.
    """

    def __init__(self, path: str, collection: Any, bags: BagSite):
        self.path, self.owner, self.bags = path, collection, bags
        self.deltas, self.touched = bags.deltas, bags.touched

    def attach(self, current: Current) -> Callable[[], None]:
        end_of_checks = hook_inputs(self.owner, current, self._check)
        end = hook_outputs(self.owner, current, self._adapted)

        def remove() -> None:
            end_of_checks()
            end()

        return remove

    def _check(self, tiles: Tiles, args: tuple[Any, ...]) -> None:
        """Before TorchRec, which takes row 0 for a row that is none, or breaks off."""
        ids, num_rows = _by_feature(self.path, args[0], tiles), self.bags.module.num_embeddings
        for feature, _ in self._features():
            rows = ids[feature].values()
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < num_rows:
                raise AdapterError(
                    f"feature {feature!r} has ids from {int(rows.min())} to {int(rows.max())}, "
                    f"table {self.path!r} has rows 0 to {num_rows - 1}"
                )

    def _adapted(self, tiles: Tiles, args: tuple[Any, ...], output: Any) -> Any:
        from torchrec.sparse.jagged_tensor import KeyedTensor

        ids = _by_feature(self.path, args[0], tiles)
        keys, widths = output.keys(), output.length_per_key()
        pooled = dict(zip(keys, output.values().split(widths, 1), strict=True))
        for feature, name in self._features():
            bag = ids[feature]
            weights = bag.weights() if self.owner._is_weighted else None
            pooled[name] = self.bags.adapted(
                tiles, (bag.values(), bag.offsets(), weights), pooled[name]
            )
        return KeyedTensor(keys, widths, torch.cat([*pooled.values()], 1))

    def _features(self) -> Iterator[tuple[str, str]]:
        """Each feature that reads the table, and the name of what it gives."""
        from torchrec.modules.embedding_modules import get_embedding_names_by_table

        configs = self.owner._embedding_bag_configs
        for config, names in zip(configs, get_embedding_names_by_table(configs), strict=True):
            if config.name == self.path.rpartition(".")[2]:
                yield from zip(config.feature_names, names, strict=True)

    def merged(self, code: int) -> Iterator[Change]:
        raise AdapterError(f"table {self.path!r} is sharded: nothing is merged into it")


def _by_feature(path: str, features: Any, tiles: Tiles) -> dict[str, Any]:
    """The ids of each feature, with a sequence of them for each sample."""
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    if not isinstance(features, KeyedJaggedTensor) or features.variable_stride_per_key():
        raise AdapterError(
            f"table {path!r}: adapted, its collection needs a KeyedJaggedTensor of one "
            f"batch size for all features, got {type(features).__name__}"
        )
    if features.stride() != len(tiles):
        raise AdapterError(
            f"table {path!r}: the KeyedJaggedTensor has {features.stride()} samples, but "
            f"`segments` has {len(tiles)}: it needs one code a sample"
        )
    by_feature: dict[str, Any] = features.to_dict()
    return by_feature
