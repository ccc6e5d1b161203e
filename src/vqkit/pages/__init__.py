"""Self-contained HTML pages: document, tables, images and charts. Knows nothing of runs."""

from vqkit.pages.charts import Linear, Log, Series, line_chart
from vqkit.pages.document import Html, Section, folded, page, tag
from vqkit.pages.images import Encoded, encode, encode_within, image_row
from vqkit.pages.tables import Value, headline, key_values, number, table

__all__ = [
    "Encoded", "Html", "Linear", "Log", "Section", "Series", "Value", "encode", "encode_within",
    "folded", "headline", "image_row", "key_values", "line_chart", "number", "page", "table", "tag",
]  # fmt: skip
