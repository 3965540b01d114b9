"""The delta kinds: low-rank (and, to compare with, full) changes of tables and of weights.

A batch is laid out by segment: G segments with B rows each; a segment may stand there twice, and
the code -1 is a segment that nobody knows: nothing is changed for it. Every kind of table delta
has one signature,

    forward(rows_GBD, ids_GB, segments_G) -> rows_GBD

it takes rows and returns them changed, so kinds combine by following one another. A weight delta
changes a whole matrix per segment, or what comes out of it,

    forward(weight_GOI, segments_G) -> weight_GOI         change(x_GBI, segments_G) -> y_GBO

What trains is stacked over segments in 2-D parameters whose first axis is ordered by segment: one
segment's numbers are a slice of each (`slices`), and a gradient holds only the rows of a batch.
Each parameter ends in one row of padding, always zero, which is what a segment reads that does not
have the delta.
"""

from reclora.deltas.blocks import LowRank, Owners
from reclora.deltas.dropout import Dropout, RowDropout
from reclora.deltas.per_row import BasisDelta, FullDelta, RowsDelta
from reclora.deltas.touched import TouchedRows
from reclora.deltas.weights import FullWeight, LowRankWeight
from reclora.deltas.whole_table import BiasDelta, MapDelta, ScaleDelta

TableDelta = ScaleDelta | MapDelta | BasisDelta | RowsDelta | FullDelta | BiasDelta
WeightDelta = LowRankWeight | FullWeight
Delta = TableDelta | WeightDelta

__all__ = [
    "BasisDelta",
    "BiasDelta",
    "Delta",
    "Dropout",
    "FullDelta",
    "FullWeight",
    "LowRank",
    "LowRankWeight",
    "MapDelta",
    "Owners",
    "RowDropout",
    "RowsDelta",
    "ScaleDelta",
    "TableDelta",
    "TouchedRows",
    "WeightDelta",
]
