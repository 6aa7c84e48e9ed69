"""`kolmo explore`: a page on this machine for teaching, on Panel and Bokeh (pip install 'kolmo[explore]').

settings: what can be chosen. model: what is solved, without a page. work: on a thread of its own. pixels,
plots, page, texts: what is seen. server: who may see it.
"""

from __future__ import annotations
