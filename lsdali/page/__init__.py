"""HTML pages that stand alone: one base template, no network, figures as inline SVG."""

from lsdali.page.render import render

__all__ = ["render"]
