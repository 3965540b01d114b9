"""Past one machine: the base's tables sharded, segments divided among the ranks of a process group.

    base = ShardedBase.load(folder)                       each rank holds its share of the rows
    chunks = divide(sizes, chunk_rows, base.num_ranks)    each rank owns whole segments
    done = train_sharded(base, chunks[base.rank], logs_of, bank_of, config)
    lists = rank_sharded(base, requests, k)               the catalogue passes by, block after block
    lists = recommend_sharded(base, held_out, ...)        of all users, each ranked by some rank

What a segment trains is its own: no gradient travels. All that ranks say to each other is which
rows of the frozen tables they need, and TorchRec brings them. So a rank's memory is its share of
the tables and what its log touches, never a table.
"""

from reclora.distributed.division import divide, rows_of_training
from reclora.distributed.parts import PartTable
from reclora.distributed.placement import DistributedError
from reclora.distributed.ranking import Request, rank_sharded
from reclora.distributed.recommending import recommend_here, recommend_sharded
from reclora.distributed.rounds import Rounds
from reclora.distributed.saved import load_adapters, save_adapters
from reclora.distributed.shards import ShardedBase
from reclora.distributed.training import TrainedChunk, train_sharded

__all__ = [
    "DistributedError",
    "PartTable",
    "Request",
    "Rounds",
    "ShardedBase",
    "TrainedChunk",
    "divide",
    "load_adapters",
    "rank_sharded",
    "recommend_here",
    "recommend_sharded",
    "rows_of_training",
    "save_adapters",
    "train_sharded",
]
