"""What was found, as a table for the terminal and as an HTML page with a reliability diagram a row."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from lsdali.evaluate.figures import Row


def heat(row: Row) -> str:
    """A row's temperature in words."""
    if row.temperature is None:
        return "each its own" if row.scaled else "-"
    return f"{row.temperature:.4f}"


def table(rows: Sequence[Row]) -> Table:
    """One line a row: top1, top5, ece and ece_pskd in %, nll in nats, aurc x 1000."""
    out = Table("run", "samples", "temperature", *rows[0].metrics)
    for row in rows:
        values = [f"{value:.0f}" if name == "n" else f"{value:.3f}" for name, value in row.metrics.items()]
        out.add_row(row.name, row.samples, heat(row), *values)
    return out


def as_html(found: dict[str, Any], rows: Sequence[Row]) -> str:
    """A page that stands alone."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(PAGE).render(found=found, rows=rows, heat=heat)
    return page.encode(errors="replace").decode()


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Evaluation</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { border: 1px solid #bbb; padding: .2em .6em; text-align: left }
figure { display: inline-block; margin: 1em } svg { background: #f6f6f6; overflow: visible }
.right { fill: #47a } .gap { fill: #c33; fill-opacity: .35 } line { stroke: #777; stroke-dasharray: 4 }
</style>
<h1>Evaluation</h1>
{% for run in found.runs %}
<p><b>{{ run.run }}</b>: {{ run.weights }} weights after step {{ run.step }}, on {{ run.data }}</p>
{% endfor %}
{% if found.temperature %}
<p>Temperatures are fitted on {{ found.temperature }}.</p>
{% endif %}
<table><tr><th>run<th>samples<th>temperature{% for name in rows[0].metrics %}<th>{{ name }}{% endfor %}
{% for row in rows %}
<tr><td>{{ row.name }}<td>{{ row.samples }}<td>{{ heat(row) }}
{% for v in row.metrics.values() %}<td>{{ "%.6g" % v }}{% endfor %}
{% endfor %}
</table>
<p>Accuracy by confidence in 15 bins (blue), and its distance from the mean confidence (red). A bar's title tells its
numbers; calibrated networks end on the diagonal.</p>
{% for row in rows %}
<figure><svg width="300" height="300" viewBox="0 0 300 300">
{% for bin in row.reliability if bin.count %}
{% set x = 300 * bin.lower %}{% set w = 300 * (bin.upper - bin.lower) - 1 %}
{% set low = [bin.accuracy, bin.confidence] | min %}{% set high = [bin.accuracy, bin.confidence] | max %}
<g><title>{{ bin.count }} samples, confidence {{ "%.4f" % bin.confidence }},
 accuracy {{ "%.4f" % bin.accuracy }}</title>
<rect class="right" x="{{ "%.2f" % x }}" y="{{ "%.2f" % (300 - 300 * bin.accuracy) }}" width="{{ "%.2f" % w }}"
 height="{{ "%.2f" % (300 * bin.accuracy) }}"/>
<rect class="gap" x="{{ "%.2f" % x }}" y="{{ "%.2f" % (300 - 300 * high) }}" width="{{ "%.2f" % w }}"
 height="{{ "%.2f" % (300 * (high - low)) }}"/></g>
{% endfor %}
<line x1="0" y1="300" x2="300" y2="0"/></svg>
<figcaption>{{ row.name }}, {{ row.samples }}, temperature {{ heat(row) }}: ECE {{ "%.3f" % row.metrics.ece }} %
</figcaption></figure>
{% endfor %}
</html>
"""
