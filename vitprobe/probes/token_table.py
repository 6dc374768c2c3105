"""Write one row a token to Parquet while images pass; which tokens are outliers is filled in at the end."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitprobe.tokens import TokenLayout

KIND_NAMES = {"cls": "cls", "registers": "register", "patches": "patch"}


class TokenTable:
    """Stream token norms to ``path``. Columns: image, block, kind, row, col, norm, outlier.

    ``block`` is null for tokens after the final norm; ``row`` and ``col`` are null for tokens that are no patches;
    ``outlier`` is true for patches at or over their block's cutoff. Memory does not grow with the number of images.
    """

    def __init__(self, path: Path, layout: TokenLayout, *, num_blocks: int, rank: int = 0) -> None:
        """Open the table, or, of several processes, the part of the one of this rank."""
        import pyarrow as pa
        from pyarrow import parquet

        self._path, self._layout, self._num_blocks = path, layout, num_blocks
        names = pa.dictionary(pa.int32(), pa.string())
        fields = [("image", names), ("block", pa.int16()), ("kind", names), ("row", pa.int16()), ("col", pa.int16())]
        self._schema = pa.schema([*fields, ("norm", pa.float32())])
        self.part = path.with_suffix(f".{rank}.part")
        """Where the rows are until `finish`."""
        self._writer = parquet.ParquetWriter(self.part, self._schema)
        kinds, rows, cols = [""] * layout.num_tokens, [None] * layout.num_tokens, [None] * layout.num_tokens
        for kind in layout.kinds:
            for k, position in enumerate(layout.positions(kind)):
                kinds[position] = KIND_NAMES[kind]
                if kind == "patches":
                    rows[position], cols[position] = divmod(k, layout.grid[1])
        self._kinds, self._rows, self._cols = kinds, rows, cols

    def add(self, names: Sequence[str], norms: np.ndarray) -> None:
        """Write the tokens of one batch: norms (S, B, T), a point beyond the last block being the final norm."""
        import pyarrow as pa

        points, images, tokens = norms.shape
        blocks = [p if p < self._num_blocks else None for p in range(points)]
        columns = [
            pa.array(np.repeat(np.array(names, dtype=object), points * tokens), pa.string()).dictionary_encode(),
            pa.array([b for _ in range(images) for b in blocks for _ in range(tokens)], pa.int16()),
            pa.array(self._kinds * (images * points), pa.string()).dictionary_encode(),
            pa.array(self._rows * (images * points), pa.int16()),
            pa.array(self._cols * (images * points), pa.int16()),
            pa.array(norms.transpose(1, 0, 2).ravel(), pa.float32()),
        ]
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> Path:
        """End this part, and say where it is."""
        self._writer.close()
        return self.part

    def finish(self, cutoffs: Sequence[float | None], parts: Sequence[Path] = ()) -> None:
        """Fill in ``outlier`` by the cutoff of each point, and put the file in its place.

        ``parts``: those of all processes, in the order of the images; by default this one's alone.
        """
        import pyarrow as pa
        from pyarrow import compute as pc
        from pyarrow import parquet

        own = self.close()
        limits = np.array([np.inf if c is None or np.isnan(c) else c for c in cutoffs])
        schema = self._schema.append(pa.field("outlier", pa.bool_()))
        with parquet.ParquetWriter(self._path, schema) as writer:
            for path in parts or (own,):
                with parquet.ParquetFile(path) as part:
                    for group in range(part.num_row_groups):
                        table = part.read_row_group(group)
                        point = pc.fill_null(table["block"], len(limits) - 1).to_numpy()
                        patch = pc.equal(table["kind"].cast(pa.string()), "patch").to_numpy()
                        over = patch & (table["norm"].to_numpy() >= limits[point])
                        writer.write_table(table.append_column("outlier", pa.array(over)).cast(schema))
                path.unlink()
