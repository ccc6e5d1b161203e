"""Self-contained HTML pages: shell, tables, images and charts. Knows nothing of runs."""

from vqkit.pages.axes import Linear, Log
from vqkit.pages.charts import Series, bar_chart, line_chart
from vqkit.pages.images import Encoded, encode, encode_within, image_row, image_tag
from vqkit.pages.markup import Html, join, tag
from vqkit.pages.shell import Section, page
from vqkit.pages.tables import Value, folded, headline, key_values, number, table

__all__ = [
    "Encoded", "Html", "Linear", "Log", "Section", "Series", "Value", "bar_chart", "encode", "encode_within",
    "folded", "headline", "image_row", "image_tag", "join", "key_values", "line_chart", "number", "page",
    "table", "tag",
]  # fmt: skip
