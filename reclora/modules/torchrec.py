"""This file is deltas on the tables of TorchRec's EmbeddingCollection.

The tables of an EmbeddingBagCollection are EmbeddingBags that it calls one by one, with a bag a
sample: `reclora.modules.bags` does for them. Those of an EmbeddingCollection see rows alone, and
whose sample a row is for stands in the collection's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from reclora.configs import AdapterError
from reclora.modules.embeddings import TableDeltas, adapted_rows
from reclora.modules.mixed import Tiles
from reclora.modules.sites import Change, Current, hook_outputs


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
        from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

        features = args[0]
        if not isinstance(features, KeyedJaggedTensor) or features.variable_stride_per_key():
            raise AdapterError(
                f"table {self.path!r}: adapted, its collection needs a KeyedJaggedTensor of one "
                f"batch size for all features, got {type(features).__name__}"
            )
        if features.stride() != len(tiles):
            raise AdapterError(
                f"table {self.path!r}: the KeyedJaggedTensor has {features.stride()} samples, but "
                f"`segments` has {len(tiles)}: it needs one code a sample"
            )
        ids = features.to_dict()
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
